"""Machines put together from parts: a GPU, the overheads of its software, a link, a host, and tiers below memory.

A part is a piece of a hardware profile with its own sources and evidence, so that a host or a drive is stated once
and not once per machine. A machine names its parts under ``parts`` and may add or replace values beside them; what
comes out is an ordinary document, and nothing after this module can tell how it was written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tiercast_profiles.errors import BadInput

PART_KINDS = ("gpu", "overheads", "link", "host", "tiers")
# Parts add entries to these; everything else is said by one part alone.
LISTS: tuple[str, ...] = ("lookups", "interference")
_OWN_KEYS = frozenset({"name", "description", "sources", "evidence"})
_MACHINE_KEYS = _OWN_KEYS | {"schema_version", "parts", "calibration"}

Body = dict[str, Any]  # any: a piece of a document before its schema has seen it


@dataclass(frozen=True, slots=True)
class Part:
    """One part: ``kind`` is its folder, ``body`` the keys of a hardware profile it states."""

    kind: str
    name: str
    description: str
    sources: Body
    evidence: dict[str, str]
    body: Body


def is_composed(data: Mapping[str, Any]) -> bool:
    """True when a hardware document names parts."""
    return "parts" in data


def read_part(kind: str, name: str, data: Mapping[str, Any]) -> Part:
    """A part from the mapping of its file.

    Raises:
        BadInput: it lacks a description, or its sources or evidence are no mappings.
    """
    label = f"part {kind}/{name}"
    if not isinstance(data.get("description"), str):
        raise BadInput(f"{label}: description: missing; say in one sentence what the part is")
    return Part(
        kind,
        name,
        data["description"].strip(),
        _mapping(data.get("sources", {}), f"{label}: sources"),
        _mapping(data.get("evidence", {}), f"{label}: evidence"),
        {key: value for key, value in data.items() if key not in _OWN_KEYS},
    )


def part_names(data: Mapping[str, Any], label: str) -> list[tuple[str, str]]:
    """Kind and name of every part a machine is made of, in the order they are put together.

    Raises:
        BadInput: an unknown kind, or a name that is no text.
    """
    wanted = _mapping(data["parts"], f"{label}: parts")
    unknown = sorted(set(wanted) - set(PART_KINDS))
    if unknown:
        raise BadInput(f"{label}: parts.{unknown[0]}: unknown kind of part; known: {', '.join(PART_KINDS)}")
    names = []
    for kind in PART_KINDS:
        given = wanted.get(kind, [])
        for name in given if isinstance(given, list) else [given]:
            if not isinstance(name, str):
                raise BadInput(f"{label}: parts.{kind}: give the name of a part, or a list of names (given {name!r})")
            names.append((kind, name))
    return names


def compose(
    data: Mapping[str, Any], load_part: Callable[[str, str], Part], shared: Mapping[str, Any], label: str
) -> Body:
    """The whole document of a machine that names parts.

    Args:
        data: the machine: name, description, ``parts``, and values of its own, which win over those of the parts.
        load_part: gives a part by kind and name.
        shared: sources that parts refer to without stating them.
        label: the file, for messages.

    Raises:
        BadInput: two parts state the same value, or one source name stands for two sources.
    """
    parts = [load_part(kind, name) for kind, name in part_names(data, label)]
    own = Part(
        "machine",
        str(data.get("name", "")),
        "",
        _mapping(data.get("sources", {}), f"{label}: sources"),
        _mapping(data.get("evidence", {}), f"{label}: evidence"),
        {key: value for key, value in data.items() if key not in _MACHINE_KEYS},
    )
    sources: Body = {}
    body: Body = {}
    for part in parts:
        for key, source in part.sources.items():
            if sources.setdefault(key, source) != source:
                raise BadInput(f"{label}: part {part.kind}/{part.name}: source {key!r} is already another source")
        _add(body, part.body, f"{label}: part {part.kind}/{part.name}", "", is_override=False)
    _add(body, own.body, label, "", is_override=True)
    sources |= own.sources
    evidence = _evidence([*parts, own], {key: len(body.get(key, [])) for key in LISTS})
    used = dict.fromkeys(evidence.values())
    kept = {key: sources.get(key, shared.get(key)) for key in used if key in sources or key in shared}
    head = {key: data[key] for key in ("schema_version", "name", "description") if key in data}
    return {**head, "sources": kept, "evidence": evidence, "calibration": data.get("calibration", "datasheet"), **body}


def _mapping(value: object, label: str) -> Body:
    if not isinstance(value, dict):
        raise BadInput(f"{label}: give a mapping of names to values (given {type(value).__name__})")
    return value


def _add(target: Body, piece: Mapping[str, Any], label: str, path: str, *, is_override: bool) -> None:
    """Merge a piece into the document: mappings key by key, the lists of curves end to end."""
    for key, value in piece.items():
        where = f"{path}.{key}" if path else str(key)
        if not path and key in LISTS and isinstance(value, list):
            target[key] = [*target.get(key, []), *value]
        elif isinstance(value, dict) and isinstance(target.get(key), dict) and not _is_banded(value):
            target[key] = dict(target[key])
            _add(target[key], value, label, where, is_override=is_override)
        elif key in target and not is_override:
            raise BadInput(f"{label}: {where} is already stated by another part; name one of the two")
        else:
            target[key] = value


def _is_banded(value: Mapping[str, Any]) -> bool:
    return "value" in value


def _evidence(parts: Sequence[Part], lengths: Mapping[str, int]) -> dict[str, str]:
    """The evidence of all parts, with the entries of the lists counted through.

    A list whose entries all rest on one source is named once, without indices.
    """
    evidence: dict[str, str] = {}
    starts: dict[str, int] = dict.fromkeys(LISTS, 0)
    for part in parts:
        for path, source in part.evidence.items():
            for shifted in _shifted(path, part, starts):
                evidence[shifted] = source
        for key in LISTS:
            starts[key] += len(part.body.get(key, []))
    for key, length in lengths.items():
        entries = [evidence.get(f"{key}.{index}") for index in range(length)]
        if length and None not in entries and len(set(entries)) == 1:
            for index in range(length):
                del evidence[f"{key}.{index}"]
            evidence[key] = str(entries[0])
    return evidence


def _shifted(path: str, part: Part, starts: Mapping[str, int]) -> list[str]:
    head, _, rest = path.partition(".")
    if head not in LISTS or head not in part.body:
        return [path]
    if not rest:
        return [f"{head}.{starts[head] + index}" for index in range(len(part.body[head]))]
    number, _, tail = rest.partition(".")
    if not number.isdecimal():
        return [path]
    shifted = f"{head}.{starts[head] + int(number)}"
    return [f"{shifted}.{tail}" if tail else shifted]
