"""What scenarios of a sweep name: each document loaded once, with single values replaced where a setting says so.

A setting whose path starts with ``hardware.``, ``model.`` or ``prices.`` replaces one value of the document that the
scenario names (``hardware.host_to_device.bandwidth_gb_per_s=30``, ``prices.dram_usd_per_gb=11``). The number loses its
band, and its evidence says that it was set by hand; the document on disk is not touched.
"""

import datetime
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from tiercast_plan.settings import DocumentKind, DocumentSetting, Value
from tiercast_profiles.document import WITH_ADDITIONS, Document
from tiercast_profiles.errors import BadInput
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.prices import PriceBook
from tiercast_profiles.scenario import ResolvedScenario, Scenario, combine
from tiercast_profiles.store import load_hardware, load_model, load_prices, parse

SET_BY_HAND = "set-by-hand"
# What a document is and where its numbers come from is not for a setting to change.
_KEPT = frozenset({"schema_version", "name", "description", "sources", "evidence", "calibration"})

DocumentT = TypeVar("DocumentT", bound=Document)


class Documents:
    """Loads what scenarios name, each document once, and once more for every set of values replaced in it.

    ``today`` dates the evidence of replaced values; without it they carry the latest date of their document.
    """

    def __init__(self, today: datetime.date | None = None) -> None:
        self._today = today
        self._hardware, self._model, self._prices = cache(self._load_hardware), cache(load_model), cache(load_prices)
        self._changed = cache(self._change)

    def of(
        self, scenario: Scenario, settings: Sequence[DocumentSetting] = ()
    ) -> tuple[HardwareProfile, ModelSpec, PriceBook]:
        """The three documents of a scenario.

        Raises:
            BadInput: a name is unknown, or a setting names an unknown key or gives a value the schema refuses.
            FileProblem: a file cannot be read.
        """
        return (
            self._with(self._hardware(scenario.hardware), "hardware", settings),
            self._with(self._model(scenario.model), "model", settings),
            self._with(self._prices(scenario.prices), "prices", settings),
        )

    def resolve(self, scenario: Scenario, settings: Sequence[DocumentSetting] = ()) -> ResolvedScenario:
        """A scenario with its documents, every natural choice made.

        Raises:
            BadInput: as in :meth:`of`, or the scenario and the machine do not go together.
            MissingCapability: the machine has no such tier or no curve for the path.
        """
        return combine(scenario, *self.of(scenario, settings))

    @staticmethod
    def _load_hardware(name_or_path: str) -> HardwareProfile:
        """Raw probe samples decide nothing, and a sweep hands the profile to every worker."""
        return load_hardware(name_or_path).model_copy(update={"probes": ()})

    def _with(self, document: DocumentT, kind: DocumentKind, settings: Sequence[DocumentSetting]) -> DocumentT:
        own = tuple(_Frozen(setting.path, setting.value) for setting in settings if setting.kind == kind)
        if not own:
            return document
        return self._changed(_ById(document), kind, own)  # type: ignore[return-value]  # cache loses the type variable

    def _change(self, held: "_ById", kind: DocumentKind, settings: tuple["_Frozen", ...]) -> Document:
        document = held.document
        data = document.model_dump(mode="json", context=WITH_ADDITIONS)
        evidence = data["evidence"]
        for setting in settings:
            place = replace_value(data, setting.path, setting.value, kind)
            evidence = {key: source for key, source in evidence.items() if not _is_within(key, place)}
            evidence[place] = SET_BY_HAND
        date = self._today or max(source.date for source in document.sources.values())
        by_hand = {"kind": "assumed", "mark": "R", "source": "set by hand for a what-if", "date": date}
        data |= {"evidence": evidence, "sources": {**data["sources"], SET_BY_HAND: by_hand}}
        label = ", ".join(f"{kind}.{setting.path}={setting.value}" for setting in settings)
        return parse(type(document), data, label)


class _ById:
    """A document as a cache key: the same object, not an equal one."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def __hash__(self) -> int:
        return id(self.document)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.document is self.document


class _Frozen:
    """One replaced value as a cache key: values may be lists or mappings, whose text tells them apart."""

    def __init__(self, path: str, value: Value) -> None:
        self.path, self.value = path, value
        self._key = (path, repr(value))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen) and other._key == self._key


def replace_value(data: dict[str, Any], path: str, value: Value, kind: DocumentKind) -> str:
    """Put a value into a document's mapping, in place; returns its path with list items by number.

    An item of a list is named by its number, or by ``tier/path`` where it has both (``lookups.dram/uva.fixed_us``).

    Raises:
        BadInput: no such path; the text names the first unknown key and what is known there.
    """
    parts = path.split(".")
    if parts[0] in _KEPT:
        raise BadInput(
            f"{kind}.{path}: {parts[0]} cannot be set; set one of: {', '.join(k for k in data if k not in _KEPT)}"
        )
    here: Any = data  # Any: a mapping or list of the document's JSON
    place: list[str] = []
    for depth, part in enumerate(parts):
        key = _key(here, part)
        if key is None:
            raise BadInput(f"unknown key {kind}.{path!s}: no {part!r} there; known: {_known(here)}")
        place.append(str(key))
        if depth == len(parts) - 1:
            here[key] = value
        else:
            here = here[key]
    return ".".join(place)


def _key(here: object, part: str) -> str | int | None:
    """The key or number of ``part`` in a mapping or list, or None."""
    if isinstance(here, Mapping):
        return part if part in here and part not in _KEPT else None
    if isinstance(here, list):
        if part.isdecimal() and int(part) < len(here):
            return int(part)
        names = [f"{item.get('tier')}/{item.get('path')}" if isinstance(item, Mapping) else None for item in here]
        return names.index(part) if part in names else None
    return None


def _known(here: object) -> str:
    if isinstance(here, Mapping):
        return ", ".join(key for key in here if key not in _KEPT)
    if isinstance(here, list) and here:
        named = [f"{item['tier']}/{item['path']}" for item in here if isinstance(item, Mapping) and "path" in item]
        return ", ".join(named) or f"0 to {len(here) - 1}"
    return "nothing; it holds a value"


def _is_within(key: str, place: str) -> bool:
    return key == place or key.startswith(f"{place}.")
