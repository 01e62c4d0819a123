"""One profile of a machine out of several that were taken of it at different times.

A machine that others share is a tenth faster or slower a minute later, and a profile knows only its own minute. The
pooled profile says what the machine is over all of them: every number is the median of the profiles', and its band
reaches from the lowest of their low ends to the highest of their high ends, so that predictions carry the drift.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from tiercast_profiles.document import Quantity
from tiercast_profiles.errors import BadInput
from tiercast_profiles.gather import GatherSweep
from tiercast_profiles.hardware import (
    ComputePoint,
    ComputeTable,
    Efficiency,
    HardwareProfile,
    HostCachePoint,
    Interference,
    InterferencePoint,
    LatencyPoint,
    LookupCurve,
    LookupPoint,
    OverheadPoint,
    ProbeResult,
    SettlingPoint,
    StepSpread,
    TimeSpread,
)
from tiercast_profiles.quantiles import PROBE_UNSTABLE_RATIO, is_unstable, median

UNSTABLE_OVER_TIME = "interquartile range above 5 % of the median, over all profiles pooled"
_KEYS: Mapping[type[BaseModel], tuple[str, ...]] = {
    LookupCurve: ("tier", "path"),
    LookupPoint: ("num_rows", "row_bytes", "footprint_bytes"),
    LatencyPoint: ("read_ratio",),
    TimeSpread: ("num_rows",),
    HostCachePoint: ("num_rows", "row_bytes"),
    ComputeTable: ("model_name", "shape_sha256", "engram_sha256", "graph_mode", "num_threads"),
    ComputePoint: ("num_tokens", "context_tokens"),
    SettlingPoint: ("num_sequences",),
    StepSpread: ("num_tokens",),
    Efficiency: ("model_name", "graph_mode", "precision"),
    Interference: ("tier", "path"),
    OverheadPoint: ("num_rows",),
    InterferencePoint: ("num_tokens", "num_rows", "row_bytes", "num_programs", "num_threads"),
}
"""What tells the entries of a list apart; the same entry of several profiles is pooled."""
_CHOSEN: Mapping[str, Callable[[Sequence[float]], float]] = {"low_us": min, "high_us": max, "num_points": min}
"""Ends of a band that a schema writes as fields of their own; of the points that several fits rest on, the fewest."""


def pool(profiles: Sequence[HardwareProfile]) -> HardwareProfile:
    """The machine over all the times it was profiled.

    Probes keep the samples of all profiles. Of the gather sweeps of one kind the one with the middle held-out error
    stands for all: its fitted model belongs to its own points. An entry that only some profiles have (a probe that once
    found nothing) is pooled over those.

    Args:
        profiles: two or more, measured, of one machine, from the same probes of the same models.

    Raises:
        BadInput: fewer than two, a datasheet among them, or they differ in what no time changes; names the field.
    """
    if len(profiles) < 2:
        raise BadInput(f"{len(profiles)} profile given; pool two or more, taken of one machine at several times")
    for profile in profiles:
        if profile.calibration != "measured":
            raise BadInput(f"{profile.name} is a datasheet; only profiles that probes wrote can be pooled")
    first = profiles[0]
    _check_tables(profiles)
    dates = sorted({str(profile.sources["probe"].date) for profile in profiles if "probe" in profile.sources})
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}" if dates else "unknown days"
    fields = {
        name: _pooled([getattr(profile, name) for profile in profiles], name)
        for name in HardwareProfile.model_fields
        if name not in ("description", "sources", "evidence", "gather_sweeps", "probes")
    }
    sweeps, probes = _sweeps(profiles), _probes(profiles)
    return HardwareProfile(
        **fields,
        description=f"{first.description} Pooled over {len(profiles)} profiles of {days}: medians, and bands over all.",
        sources={key: source for profile in reversed(profiles) for key, source in profile.sources.items()},
        evidence=_evidence(profiles, len(sweeps)),
        gather_sweeps=sweeps,
        probes=probes,
    )


def _check_tables(profiles: Sequence[HardwareProfile]) -> None:
    """That all of them time the layers of the same models and know the same lookups.

    Raises:
        BadInput: naming what one of them lacks.
    """
    for words, found in (
        ("lookups of", [{f"{curve.tier} by {curve.path}" for curve in profile.lookups} for profile in profiles]),
        ("layer times of", [{_model_words(table) for table in profile.compute} for profile in profiles]),
    ):
        for number, (profile, names) in enumerate(zip(profiles, found, strict=True), start=1):
            lacking = sorted(set.union(*found) - names)
            if lacking:
                raise BadInput(
                    f"profile {number} ({profile.name}) has no {words} {', '.join(lacking)}, which another one has; "
                    "pool profiles of the same probes and models"
                )


def _model_words(table: ComputeTable) -> str:
    engram = "without Engram" if table.engram_sha256 is None else f"Engram {table.engram_sha256[:8]}"
    return f"{table.model_name} ({engram}, {table.graph_mode}, {table.num_threads} threads)"


def _pooled(values: Sequence[Any], path: str) -> Any:  # Any: every kind of field of a profile
    """One value out of the same field of several profiles.

    Raises:
        BadInput: words, counts or shapes differ.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    first = known[0]
    if isinstance(first, Quantity):
        return _quantity(known)
    if isinstance(first, BaseModel):
        return _model(known, path)
    if isinstance(first, tuple):
        return _entries(known, path)
    if isinstance(first, dict):
        keys = dict.fromkeys(key for value in known for key in value)
        return {key: _pooled([value.get(key) for value in known], f"{path}.{key}") for key in keys}
    if isinstance(first, float):
        return median(known)
    if any(value != first for value in known):
        shown = ", ".join(dict.fromkeys(str(value) for value in known))
        raise BadInput(f"{path} is {shown}; pool profiles of one machine, taken by the same probes")
    return first


def _model(values: Sequence[BaseModel], path: str) -> BaseModel:
    fields = {}
    for name in type(values[0]).model_fields:
        found, choose = [getattr(value, name) for value in values], _CHOSEN.get(name)
        fields[name] = _pooled(found, f"{path}.{name}") if choose is None else choose(found)
    return type(values[0])(**fields)


def _entries(values: Sequence[tuple[Any, ...]], path: str) -> tuple[Any, ...]:
    """Lists of measured entries, matched by what tells them apart, in order of first coming; numbers by place."""
    kinds = {type(entry) for value in values for entry in value}
    if not kinds:
        return ()
    if kinds == {float}:
        return tuple(median(column) for column in zip(*values, strict=True))
    names = _KEYS[kinds.pop()]
    by_key: dict[Hashable, list[Any]] = {}
    for value in values:
        for entry in value:
            by_key.setdefault(tuple(getattr(entry, name) for name in names), []).append(entry)
    return tuple(_model(entries, path) for entries in by_key.values())


def _quantity(values: Sequence[Quantity]) -> Quantity:
    """The median; a band where one of them has one or they differ."""
    middle = median([value.value for value in values])
    low = min(value.value if value.low is None else value.low for value in values)
    high = max(value.value if value.high is None else value.high for value in values)
    return Quantity(value=middle) if low == high else Quantity(value=middle, low=low, high=high)


def _sweeps(profiles: Sequence[HardwareProfile]) -> tuple[GatherSweep, ...]:
    by_label: dict[str, list[GatherSweep]] = {}
    for profile in profiles:
        for sweep in profile.gather_sweeps:
            by_label.setdefault(sweep.label, []).append(sweep)
    return tuple(_middle_sweep(sweeps) for sweeps in by_label.values())


def _middle_sweep(sweeps: Sequence[GatherSweep]) -> GatherSweep:
    """The sweep whose model is neither the best nor the worst on the points held out of its fit."""
    errors = [None if sweep.score is None else sweep.score.held_out_median_ratio for sweep in sweeps]
    scored = sorted((error, place) for place, error in enumerate(errors) if error is not None)
    return sweeps[scored[(len(scored) - 1) // 2][1]] if scored else sweeps[0]


def _probes(profiles: Sequence[HardwareProfile]) -> tuple[ProbeResult, ...]:
    """Each probe once, with the samples of all; judged anew over them."""
    by_key: dict[Hashable, list[ProbeResult]] = {}
    for profile in profiles:
        for probe in profile.probes:
            by_key.setdefault((probe.name, probe.unit, tuple(sorted(probe.parameters.items()))), []).append(probe)
    return tuple(_probe(probes) for probes in by_key.values())


def _probe(probes: Sequence[ProbeResult]) -> ProbeResult:
    used = [probe for probe in probes if probe.status in ("ok", "unstable")]
    if len(used) < 2:
        return (used or list(probes))[0]
    samples = tuple(sample for probe in used for sample in probe.samples)
    is_shaky = bool(samples) and is_unstable(samples, PROBE_UNSTABLE_RATIO)
    reason = next((probe.reason for probe in used if probe.status == "ok"), "")
    return used[0].model_copy(
        update={
            "samples": samples,
            "status": "unstable" if is_shaky else "ok",
            "reason": UNSTABLE_OVER_TIME if is_shaky else reason,
        }
    )


def _evidence(profiles: Sequence[HardwareProfile], num_sweeps: int) -> dict[str, str]:
    """Where the numbers come from, as the profiles say it; sweeps are counted anew."""
    found = {
        path: source
        for profile in reversed(profiles)
        for path, source in profile.evidence.items()
        if not path.startswith("gather_sweeps.")
    }
    derived = next((key for key, source in profiles[0].sources.items() if source.kind == "derived"), None)
    if derived is not None:
        for index in range(num_sweeps):
            found |= {f"gather_sweeps.{index}.{part}": derived for part in ("model", "score")}
    return found
