"""What every data file has in common: a version, named sources, evidence for every number, and a hash.

A number enters with its unit (in its name) and its evidence (in the ``evidence`` map) and leaves with both.
``evidence`` maps a path prefix inside the document to a key of ``sources``; the longest prefix wins.
"""

import datetime
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from tiercast_profiles.errors import shown

SCHEMA_VERSION = 1
WITH_ADDITIONS: Mapping[str, bool] = {"with_additions": True}
"""Context of a dump that shows every field, those of :class:`Grown` with their defaults too."""


class Strict(BaseModel):
    """Base of every schema: frozen, no unknown keys, finite numbers.

    Text that spells a number counts as one: YAML 1.1 reads ``1e6`` as text. That a boolean is none, ``store.parse``
    sees to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False, validate_default=True)


class Grown(Strict):
    """A schema that gained optional fields after documents were hashed and recorded.

    The fields in ``added_fields`` are left out of a dump while they have their default, so that the hash of a document
    without them stays what records of earlier runs say. A dump in the context :data:`WITH_ADDITIONS` has them all.
    """

    added_fields: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_unused_additions(
        self, dump: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:  # Any: any field
        data: dict[str, Any] = dump(self)
        if info.context is WITH_ADDITIONS:
            return data
        for name in self.added_fields:
            if getattr(self, name) == type(self).model_fields[name].default:
                data.pop(name, None)
        return data


class Source(Strict):
    """Where a number comes from.

    ``mark`` follows the project's fact files: V read in the named source, V2 read in a secondary source, M measured,
    D derived by arithmetic, R recalled, ? ambiguous.
    """

    kind: Literal["measured", "published", "derived", "assumed"]
    mark: Literal["V", "V2", "M", "D", "R", "?"]
    source: str = Field(min_length=3)
    date: datetime.date


class Quantity(Strict):
    """A number with an optional band; the band is what an interval on a prediction is made of.

    A bare number in a file means a quantity without a band.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _accept_bare_number(cls, data: Any) -> Any:  # Any: pydantic hands over whatever the file held
        if isinstance(data, (int, float)) and not isinstance(data, bool):
            return {"value": data}
        if not isinstance(data, (Mapping, Quantity)):
            raise ValueError(f"must be a number or {{value, low, high}} (given {shown(data)})")
        return data

    @model_validator(mode="after")
    def _band_holds_the_value(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high come together")
        if self.low is not None and self.high is not None and not self.low <= self.value <= self.high:
            raise ValueError(f"value {self.value} lies outside its band [{self.low}, {self.high}]")
        return self

    @model_serializer(mode="plain")
    def _bare_when_unbanded(self) -> float | dict[str, float]:
        if self.low is None or self.high is None:
            return self.value
        return {"value": self.value, "low": self.low, "high": self.high}

    @property
    def is_banded(self) -> bool:
        """True when the number carries a band."""
        return self.low is not None

    def at(self, bound: "Bound", *, higher_is_better: bool) -> float:
        """The value itself, or the end of the band that makes the system faster or slower."""
        if bound == "nominal" or self.low is None or self.high is None:
            return self.value
        return self.high if (bound == "optimistic") == higher_is_better else self.low


Bound = Literal["nominal", "optimistic", "pessimistic"]
BOUNDS: tuple[Bound, ...] = ("nominal", "optimistic", "pessimistic")


class Document(Strict):
    """A data file whose every number names its source."""

    schema_version: Literal[1]
    name: str = Field(min_length=1, pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str = Field(min_length=1)
    sources: dict[str, Source]
    evidence: dict[str, str]

    @model_validator(mode="after")
    def _every_number_has_a_source(self) -> Self:
        unknown = sorted({key for key in self.evidence.values() if key not in self.sources})
        if unknown:
            raise ValueError(f"evidence names sources that are not listed: {', '.join(unknown)}")
        bare = [path for path in self.numeric_paths() if self.source_of(path) is None]
        if bare:
            raise ValueError(f"no evidence for {', '.join(bare[:5])}{' …' if len(bare) > 5 else ''}")
        return self

    def numeric_paths(self) -> list[str]:
        """Dotted paths of every number in the document, evidence and version aside."""
        body = self.model_dump(mode="json", exclude={"schema_version", "name", "description", "sources", "evidence"})
        return [path for path, _ in _numbers(body, "")]

    def source_of(self, path: str) -> Source | None:
        """The source of the number at a dotted path, by longest evidence prefix."""
        parts = path.split(".")
        for length in range(len(parts), -1, -1):
            key = self.evidence.get(".".join(parts[:length]))
            if key is not None:
                return self.sources[key]
        return None

    @property
    def sha256(self) -> str:
        """Hash of the whole document in canonical JSON."""
        return hashlib.sha256(document_json(self).encode()).hexdigest()


class _Itself:
    """A document as a key: itself, not what it says. The key keeps it alive, so that no other object takes its id."""

    __slots__ = ("document",)

    def __init__(self, document: Document) -> None:
        self.document = document

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.document is other.document

    def __hash__(self) -> int:
        return id(self.document)


def document_json(document: Document, exclude: frozenset[str] = frozenset()) -> str:
    """Canonical JSON of a document without some of its fields, written once while the document is in use.

    Documents are frozen and far larger than what a sweep changes between two points.
    """
    return _document_json(_Itself(document), exclude)


@lru_cache(maxsize=16)
def _document_json(key: _Itself, exclude: frozenset[str]) -> str:
    return canonical_json(key.document.model_dump(mode="json", exclude=set(exclude)))


def _numbers(value: object, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return
    if isinstance(value, (int, float)):
        yield path, value
    elif isinstance(value, Mapping):
        for key in value:
            yield from _numbers(value[key], f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{path}.{index}" if path else str(index))


def canonical_json(value: object) -> str:
    """JSON with sorted keys, no spaces and no non-finite numbers: same value, same bytes.

    Raises:
        ValueError: when a number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_sha256(value: object) -> str:
    """SHA-256 of :func:`canonical_json`, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def is_finite_number(value: object) -> bool:
    """True for an int or a finite float, false for bool and everything else."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
