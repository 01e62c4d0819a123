"""Settings by dotted path: from the text of ``--set`` and ``--vary`` to validated scenarios.

A setting is ``path=value`` with the path as the scenario file spells it (``placement.tier=nvme``). A variation is
``path=value,value,…`` where a value may be a range: ``8..64..8`` counts up by 8, ``8..64*2`` doubles, ``1..4`` counts.
Several variations give every combination, the last one changing fastest. A path that goes on behind ``hardware``,
``model`` or ``prices`` means a value of the document that the scenario names there (:mod:`tiercast_plan.documents`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

import yaml

from tiercast_profiles.document import WITH_ADDITIONS
from tiercast_profiles.errors import BadInput
from tiercast_profiles.scenario import Scenario
from tiercast_profiles.store import parse

MAX_POINTS = 200_000
# A law of lengths is one of these keys; naming another one replaces the law.
_LAWS = ("fixed", "uniform", "lognormal")

Value = str | int | float | bool | list[Any] | dict[str, Any] | None  # Any: nested YAML, checked by the schema


DocumentKind = Literal["hardware", "model", "prices"]
DOCUMENT_KINDS: tuple[DocumentKind, ...] = get_args(DocumentKind)


@dataclass(frozen=True, slots=True)
class DocumentSetting:
    """A value to replace in a document; ``path`` is dotted and starts inside it."""

    kind: DocumentKind
    path: str
    value: Value


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of settings, the scenario they give, and the values to replace in what it names."""

    settings: dict[str, Value]
    scenario: Scenario
    documents: tuple[DocumentSetting, ...] = ()


def points(scenario: Scenario, sets: Sequence[str], varies: Sequence[str]) -> tuple[Point, ...]:
    """Every scenario of a sweep, validated.

    Raises:
        BadInput: a setting is malformed, names an unknown key or gives a value the schema refuses.
    """
    fixed = [_split(text) for text in sets]
    axes = [(path, _values(path, text)) for path, text in map(_split, varies)]
    paths = [path for path, _ in axes] + [path for path, _ in fixed]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise BadInput(f"{twice[0]}: set more than once; give each path once, in --set or in --vary")
    count = math.prod(len(values) for _, values in axes)
    if count > MAX_POINTS:
        raise BadInput(f"the variations make {count} points; at most {MAX_POINTS} run in one sweep")
    base = scenario.model_dump(mode="json", context=WITH_ADDITIONS)
    always = {path: _scalar(text) for path, text in fixed}
    for path, value in always.items():
        if document_setting(path, value) is None:
            base = apply(base, path, value)
    result = []
    for combination in product(*(values for _, values in axes)):
        data = base
        settings = {path: value for (path, _), value in zip(axes, combination, strict=True)}
        for path, value in settings.items():
            if document_setting(path, value) is None:
                data = apply(data, path, value)
        label = ", ".join(f"{path}={value}" for path, value in settings.items()) or "scenario"
        asked = (document_setting(path, value) for path, value in (always | settings).items())
        result.append(
            Point(settings, parse(Scenario, data, label), tuple(setting for setting in asked if setting is not None))
        )
    return tuple(result)


def document_setting(path: str, value: Value) -> DocumentSetting | None:
    """The setting as one of a document, or None where it is one of the scenario itself."""
    head, _, rest = path.partition(".")
    return DocumentSetting(head, rest, value) if head in DOCUMENT_KINDS and rest else None


def apply(data: Mapping[str, Any], path: str, value: Value) -> dict[str, Any]:
    """A copy of a scenario mapping with the value at a dotted path replaced.

    Raises:
        BadInput: no such path; the text names the first unknown key and what is known there.
    """
    return _applied(data, path.split("."), value, path)


def _applied(data: Mapping[str, Any], keys: Sequence[str], value: Value, path: str) -> dict[str, Any]:
    head, rest = keys[0], keys[1:]
    if data and set(data) <= set(_LAWS) and head in _LAWS:
        return {head: _law_values(data.get(head), rest, value, path)}
    if head not in data:
        raise BadInput(f"unknown scenario key {path!r}: no {head!r} there; known: {', '.join(data)}")
    if not rest:
        return {**data, head: value}
    if not isinstance(data[head], Mapping):
        raise BadInput(f"unknown scenario key {path!r}: {head!r} holds a value, not further keys")
    return {**data, head: _applied(data[head], rest, value, path)}


def _law_values(current: Any, rest: Sequence[str], value: Value, path: str) -> Value:  # Any: YAML
    """The new parameters of a law of lengths: replaced whole, or one number of the present one."""
    if not rest:
        return value
    index = rest[0]
    if len(rest) > 1 or not isinstance(current, list) or index not in [str(i) for i in range(len(current))]:
        raise BadInput(
            f"unknown scenario key {path!r}: the law holds {current}; give it as a whole, or .0 or .1 of a pair"
        )
    return [*current[: int(index)], value, *current[int(index) + 1 :]]


def _split(text: str) -> tuple[str, str]:
    path, separator, value = text.partition("=")
    if not separator or not path.strip() or not value.strip():
        raise BadInput(f"{text!r} is not a setting; write path=value, such as placement.tier=nvme")
    return path.strip(), value.strip()


def _scalar(text: str) -> Value:
    try:
        value: Value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise BadInput(
            f"{text!r} cannot be read as a value; write a word, a number, [a, b] or {{key: value}}"
        ) from None
    # YAML reads off, on, yes and no as true or false; the word is what the schema knows (prefetch: off) and a row shows
    return text if isinstance(value, bool) and text.lower() not in ("true", "false") else value


def _values(path: str, text: str) -> list[Value]:
    found: list[Value] = []
    for part in _top_level_parts(text):
        if not part:
            raise BadInput(f"{path}={text}: an empty value between commas; write v1,v2,v3")
        found += _range(path, part) if ".." in part and part[0] not in "[{\"'/." else [_scalar(part)]
    return found


def _top_level_parts(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()]


def _range(path: str, text: str) -> list[Value]:
    try:
        ends, _, factor_text = text.partition("*")
        numbers = [_number(part) for part in ends.split("..")]
        factor = _number(factor_text) if factor_text else None
    except ValueError:
        raise BadInput(f"{path}={text}: not a range; write 1..4, 8..64..8 or 8..64*2") from None
    if len(numbers) == 2 and factor is not None:
        return _growing(path, text, numbers[0], numbers[1], factor)
    if len(numbers) not in (2, 3) or factor is not None:
        raise BadInput(f"{path}={text}: not a range; write 1..4, 8..64..8 or 8..64*2")
    low, high, step = numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else 1
    if step <= 0 or low > high or (high - low) / step >= MAX_POINTS:
        raise BadInput(f"{path}={text}: the range must rise by a positive step, in at most {MAX_POINTS} values")
    # Multiples of the step, not a running sum: the last value must not be lost to rounding.
    return [low + index * step for index in range(math.floor((high - low) / step + 1e-9) + 1)]


def _growing(path: str, text: str, low: float, high: float, factor: float) -> list[Value]:
    if factor <= 1 or low <= 0 or low > high:
        raise BadInput(f"{path}={text}: a range by factor needs a factor above 1 and 0 < low <= high")
    found: list[Value] = []
    value = low
    while value <= high * (1 + 1e-9) and len(found) <= MAX_POINTS:
        found.append(value)
        value *= factor
    return found


def _number(text: str) -> int | float:
    text = text.strip()
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(text) from None
        return number
