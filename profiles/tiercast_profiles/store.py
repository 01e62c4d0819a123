"""Files in, documents out; documents in, whole files out.

The door of the house: everything wrong with a file ends here in one line that names the file and the field.
"""

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tiercast_profiles.document import SCHEMA_VERSION
from tiercast_profiles.errors import (
    BadInput,
    FileProblem,
    UnknownCase,
    UnknownHardware,
    UnknownModel,
    UnknownName,
    UnknownPrices,
    shown,
)
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.hf_config import is_hf_config, model_from_hf_config
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.parts import PART_KINDS, Part, compose, is_composed, read_part
from tiercast_profiles.prices import PriceBook
from tiercast_profiles.published import PublishedCase
from tiercast_profiles.record import RunRecord
from tiercast_profiles.scenario import ResolvedScenario, Scenario, combine
from tiercast_profiles.suite import HeldOut, Suite

DocumentT = TypeVar("DocumentT", bound=BaseModel)

_FASTEST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_FASTEST):  # type: ignore[misc, valid-type]  # yaml's own in C where it was built
    """Refuses a key that is given twice: YAML keeps the last one, and what the first one said would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # Any: any YAML
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, _twice(key.value), key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return found


def _twice(key: str) -> str:
    return f"key {key!r} is given twice; keep one of them"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: any JSON
    """An object of JSON, refused where a key comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(_twice(next(key for key in keys if keys.count(key) > 1)))
    return found


_MAY_HOLD_BOOLEANS = (bool, Mapping, list, tuple)
_KINDS = {"NoneType": "nothing", "list": "a list", "str": "a word", "int": "a number", "float": "a number"}
"""What a file that is no mapping holds, in words."""
SUITE_FILES = ("suite.yaml", "held-out.yaml")
MAX_FILE_BYTES = 256 << 20


def shipped_names(kind: str) -> tuple[str, ...]:
    """Names of the shipped files of a kind: ``hardware``, ``models``, ``prices`` or ``published``."""
    folder = resources.files("tiercast_profiles") / "data" / kind
    return tuple(sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def shipped_parts() -> tuple[Part, ...]:
    """Every shipped part that machines are put together from, by kind and name."""
    folders = ((kind, resources.files("tiercast_profiles") / "data" / "parts" / kind) for kind in PART_KINDS)
    names = ((kind, sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir())) for kind, folder in folders)
    return tuple(_shipped_part(kind, name) for kind, found in names for name in found)


def load_hardware(name_or_path: str) -> HardwareProfile:
    """A shipped hardware profile by name, or one from a file.

    A file may name shipped parts, or files of parts beside it, instead of stating every value itself.

    Raises:
        UnknownHardware: neither a shipped name nor a file; never answered with a default.
        FileProblem: the file cannot be read.
        BadInput: the file does not follow the schema.
    """
    return _load("hardware", name_or_path, HardwareProfile, UnknownHardware)


def load_model(name_or_path: str) -> ModelSpec:
    """A shipped model by name, a model file, or a Hugging Face ``config.json`` of the V4.1 shape.

    Raises:
        UnknownModel: neither a shipped name nor a file.
        FileProblem: the file cannot be read.
        BadInput: the file is neither a model file nor a config this project understands.
    """
    return _load("models", name_or_path, ModelSpec, UnknownModel)


def load_prices(name_or_path: str) -> PriceBook:
    """A shipped price book by name, or one from a file.

    Raises:
        UnknownPrices: neither a shipped name nor a file.
        FileProblem: the file cannot be read.
        BadInput: the file does not follow the schema.
    """
    return _load("prices", name_or_path, PriceBook, UnknownPrices)


def load_published(name_or_path: str) -> PublishedCase:
    """A published case of the ledger by its shipped name, or one from a file.

    Raises:
        UnknownCase: neither a shipped name nor a file.
        FileProblem: the file cannot be read.
        BadInput: the file does not follow the schema.
    """
    return _load("published", name_or_path, PublishedCase, UnknownCase)


def load_suite() -> tuple[Suite, HeldOut]:
    """The shipped validation suite and the cases of it that are held out.

    Raises:
        BadInput: a held-out case is none of the suite's.
    """
    folder = resources.files("tiercast_profiles") / "data" / "validation"
    data = [yaml.load((folder / name).read_text(encoding="utf-8"), Loader=_Loader) for name in SUITE_FILES]
    suite, held_out = parse(Suite, data[0], SUITE_FILES[0]), parse(HeldOut, data[1], SUITE_FILES[1])
    unknown = sorted(set(held_out.cases) - set(suite.case_names()))
    if unknown:
        raise BadInput(f"{SUITE_FILES[1]}: no case of the suite: {', '.join(unknown)}")
    return suite, held_out


def load_scenario(path: str | Path) -> Scenario:
    """A scenario file (YAML or JSON). A trace it names by a relative path is looked for beside it."""
    scenario = parse(Scenario, read_mapping(Path(path)), str(path))
    trace = scenario.workload.file
    if trace is None:
        return scenario
    workload = scenario.workload.model_copy(update={"file": str(Path(path).parent / trace)})
    return scenario.model_copy(update={"workload": workload})


def load_record(path: str | Path) -> RunRecord:
    """A run record (JSON)."""
    return parse(RunRecord, read_mapping(Path(path)), str(path))


def resolve(scenario: Scenario) -> ResolvedScenario:
    """Load what the scenario names and make every natural choice."""
    return combine(scenario, load_hardware(scenario.hardware), load_model(scenario.model), load_prices(scenario.prices))


def _looks_like_path(text: str) -> bool:
    return "/" in text or text.endswith((".yaml", ".yml", ".json"))


def _load(kind: str, name_or_path: str, schema: type[DocumentT], unknown: type[UnknownName]) -> DocumentT:
    if name_or_path in shipped_names(kind):
        return _shipped(kind, name_or_path, schema)  # type: ignore[return-value]  # cache loses the type variable
    path = Path(name_or_path)
    if not _looks_like_path(name_or_path) and not path.is_file():
        raise unknown(name_or_path, shipped_names(kind))
    data = read_mapping(path)
    if schema is ModelSpec and is_hf_config(data):
        data = model_from_hf_config(data, name_or_path)
    if kind == "hardware" and is_composed(data):
        data = _composed(data, name_or_path, path.parent)
    return parse(schema, data, name_or_path)


@cache
def _shipped(kind: str, name: str, schema: type[BaseModel]) -> BaseModel:
    data, label = _shipped_mapping(kind, f"{name}.yaml"), f"shipped {kind}/{name}.yaml"
    if kind == "hardware" and is_composed(data):
        data = _composed(data, label, None)
    return parse(schema, data, label)


def _shipped_mapping(*path: str) -> dict[str, Any]:  # Any: whatever the file holds, before its schema has seen it
    text = resources.files("tiercast_profiles").joinpath("data", *path).read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.load(text, Loader=_Loader)
    return data


@cache
def _shipped_part(kind: str, name: str) -> Part:
    return read_part(kind, name, _shipped_mapping("parts", kind, f"{name}.yaml"))


@cache
def _shared_sources() -> dict[str, Any]:  # Any: sources before their schema has seen them
    return _shipped_mapping("parts", "sources.yaml")


def _composed(data: dict[str, Any], label: str, folder: Path | None) -> dict[str, Any]:
    """A machine with its parts: shipped ones by name, files relative to ``folder``."""

    def load_part(kind: str, name: str) -> Part:
        known = [part.name for part in shipped_parts() if part.kind == kind]
        if name in known:
            return _shipped_part(kind, name)
        if folder is None or not _looks_like_path(name):
            raise BadInput(
                f"{label}: parts.{kind}: unknown part {name!r}; known: {', '.join(known)}; or give the path of a file"
            )
        return read_part(kind, name, read_mapping(folder / name))

    return compose(data, load_part, _shared_sources(), label)


def read_mapping(path: Path) -> dict[str, Any]:  # Any: whatever the file holds, before its schema has seen it
    """The mapping in a YAML or JSON file.

    Raises:
        FileProblem: missing, not a file, too large, not UTF-8, truncated, or not a mapping.
    """
    try:
        if path.is_dir():
            raise FileProblem(f"{path}: is a folder; give a YAML or JSON file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise FileProblem(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB; not a file this tool writes or reads")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileProblem(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise FileProblem(f"{path}: not a UTF-8 text file") from None
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read ({error.strerror or error})") from None
    is_json = path.suffix == ".json"
    try:
        data = json.loads(text, object_pairs_hook=_unique) if is_json else yaml.load(text, Loader=_Loader)
    except json.JSONDecodeError as error:
        raise FileProblem(
            f"{path}: not complete JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        place = f" at line {where.line + 1}" if where is not None else ""
        kind = "JSON" if is_json else "YAML"
        raise FileProblem(f"{path}: not valid {kind}{place} ({getattr(error, 'problem', None) or error})") from None
    if not isinstance(data, dict):
        kind = type(data).__name__
        raise FileProblem(f"{path}: holds {_KINDS.get(kind, kind)}, not a mapping of keys to values")
    return data


def parse(schema: type[DocumentT], data: object, label: str) -> DocumentT:
    """Validate ``data`` and turn the first problem into one line.

    Raises:
        BadInput: with the file, the field, what was given and what is wrong.
    """
    try:
        document = schema.model_validate(data)
    except ValidationError as error:
        raise BadInput(f"{label}: {_first_problem(schema, error)}") from None
    boolean = _boolean_as_number(data, document)
    if boolean is not None:
        raise BadInput(f"{label}: {boolean[0].removeprefix('.')}: must be a number (given {boolean[1]})")
    return document


def _boolean_as_number(given: object, found: object) -> tuple[str, bool] | None:
    """The place of the first boolean of a file that became a number, and itself: pydantic takes true for 1."""
    if isinstance(given, bool):
        return None if isinstance(found, bool) or not isinstance(found, (int, float)) else ("", given)
    for key, value, parsed in _children(given, found):
        boolean = _boolean_as_number(value, parsed)
        if boolean is not None:
            return f".{key}{boolean[0]}", boolean[1]
    return None


def _children(given: object, found: object) -> Iterator[tuple[object, object, object]]:
    """What a mapping or a list of a file holds, by key or index, beside what was made of it."""
    if isinstance(given, Mapping):
        for key, value in given.items():
            if isinstance(value, _MAY_HOLD_BOOLEANS):
                parsed = found.get(key) if isinstance(found, Mapping) else getattr(found, str(key), None)
                yield key, value, parsed
    elif isinstance(given, (list, tuple)) and isinstance(found, (list, tuple)) and len(given) == len(found):
        for index, value in enumerate(given):
            if isinstance(value, _MAY_HOLD_BOOLEANS):
                yield index, value, found[index]


def _first_problem(schema: type[BaseModel], error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    version = next((p for p in problems if p["loc"] == ("schema_version",) and p["type"] != "missing"), None)
    if version is not None:
        return _wrong_version(version.get("input"))
    # An unknown key explains more than the union branches that fail because of it.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    field = ".".join(str(part) for part in problem["loc"]) or "document"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        names = ", ".join(_fields_at(schema, problem["loc"][:-1]))
        known = f"; known here: {names}" if names else ""
        return f"{field}: unknown key{known}{more}"
    if problem["type"] == "missing":
        return f"{field}: missing{more}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    is_told = isinstance(given, (str, int, float, bool)) and problem["type"] != "value_error"
    said = f" (given {shown(given)})" if is_told else ""
    return f"{field}: {message}{said}{more}"


def _fields_at(schema: type[BaseModel], place: tuple[int | str, ...]) -> tuple[str, ...]:
    """Names of the fields of the mapping at a place of a schema; none where it may be of several kinds."""
    models = [schema]
    for part in place:
        if isinstance(part, str) and len(models) == 1 and part in models[0].model_fields:
            models = list(_models_in(models[0].model_fields[part].annotation))
        elif not isinstance(part, int):
            return ()
    return tuple(models[0].model_fields) if len(models) == 1 else ()


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The schemas an annotation is made of: ``X | None``, ``tuple[X, ...]``, ``Annotated[X, …]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _wrong_version(given: object) -> str:
    """A version this program does not read: which way it is off, and what to do."""
    if isinstance(given, int) and not isinstance(given, bool) and given > SCHEMA_VERSION:
        return (
            f"schema_version {shown(given)} is newer than {SCHEMA_VERSION}, the one this Tiercast reads; "
            "upgrade Tiercast, or write the file anew with this one"
        )
    return (
        f"schema_version {shown(given)}: this Tiercast reads {SCHEMA_VERSION}, the first there was; write the file "
        "anew (tiercast profile, tiercast bench), or set schema_version: 1 if every field below is of today"
    )


def write_text(path: str | Path, text: str) -> None:
    """Write a whole file or none: a temporary file beside the target, flushed, then renamed over it.

    A device or a pipe (``/dev/stdout``) is written into and never replaced.

    Raises:
        FileProblem: when the folder is missing, not writable, or the disk is full; no partial file is left behind.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file():
            target.write_text(text, encoding="utf-8")
            return
        real = Path(os.path.realpath(target))
        temporary = real.with_name(f".{real.name}.{secrets.token_hex(6)}.tmp")
        try:
            with temporary.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(real)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise FileProblem(f"{target}: cannot be written ({error.strerror or error})") from None


class _Dumper(yaml.SafeDumper):
    """Writes what holds nothing but numbers (samples, a point, an interval) on lines of its own, all else in blocks."""

    def serialize_node(self, node: yaml.Node, parent: yaml.Node | None, index: object) -> None:
        if isinstance(node, yaml.CollectionNode):
            parts = [part[1] if isinstance(part, tuple) else part for part in node.value]
            node.flow_style = all(part.tag in _NUMBER_TAGS for part in parts)
        super().serialize_node(node, parent, index)


_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def to_yaml(document: BaseModel) -> str:
    """A document as YAML a person can diff: keys in schema order; a measured point or its samples are a line or two."""
    content = document.model_dump(mode="json")
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
