"""Two runs side by side: what was changed, what it did, and what it costs or saves.

Two predictions for one machine and one model are uncertain in the same inputs. Their intervals are therefore paired:
end against end (Assumption A18 puts all bands at the same end at once), which tells a small change that holds at every
end from one that the bands drown. Everything else is compared interval against interval.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from tiercast_plan.cost import CostReport, TokenKind
from tiercast_profiles.compare import flat_metrics
from tiercast_profiles.document import Document, Strict
from tiercast_profiles.record import Metric, RunRecord
from tiercast_profiles.scenario import ResolvedScenario

Verdict = Literal["same", "higher", "lower", "undecided"]
# What a reader of a change asks first; every other metric is in the record.
SHOWN_METRICS = (
    "output_tokens_per_s",
    "total_tokens_per_s",
    "ttft_ms.p50",
    "ttft_ms.p99",
    "tpot_ms.p50",
    "tpot_ms.p99",
    "stall_ms_per_step",
    "hidden_ratio",
    "penalty_ratio.no_engram",
    "kv_capacity_tokens",
    "cache_hit_ratio",
)


class InputChange(Strict):
    """One input that differs, as text; None where a side does not have it."""

    path: str
    before: str | None
    after: str | None


class MetricChange(Strict):
    """One metric of both. ``change_ratio`` is after ÷ before − 1, None where before is 0 and for ratios.

    ``low`` and ``high`` bound ``after − before``: end against end where ``is_paired``, interval against interval
    otherwise; None where a side has no interval.
    """

    name: str
    unit: str
    before: Metric
    after: Metric
    change: float
    change_ratio: float | None
    low: float | None
    high: float | None
    is_paired: bool
    verdict: Verdict


class CostChange(Strict):
    """Money of both; ``change`` is after − before."""

    name: str
    before: Decimal
    after: Decimal
    change: Decimal


class Difference(Strict):
    """What was changed between two runs and what it did. ``cost_problem`` says why money is missing."""

    before_name: str
    after_name: str
    inputs: tuple[InputChange, ...]
    metrics: tuple[MetricChange, ...]
    money: tuple[CostChange, ...]
    cost_problem: str | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: its name, its record, its cost, and its documents where they are at hand."""

    name: str
    record: RunRecord
    cost: CostReport | None
    resolved: ResolvedScenario | None
    cost_problem: str | None = None


def difference(before: Side, after: Side) -> Difference:
    """Set two runs against each other."""
    is_paired = _is_paired(before.record, after.record)
    known, found = flat_metrics(before.record.metrics), flat_metrics(after.record.metrics)
    return Difference(
        before_name=before.name,
        after_name=after.name,
        inputs=tuple(_input_changes(before, after)),
        metrics=tuple(
            _metric_change(name, known[name][0], known[name][1], found[name][1], is_paired)
            for name in SHOWN_METRICS
            if name in known and name in found
        ),
        money=tuple(_cost_changes(before.cost, after.cost)),
        cost_problem=before.cost_problem or after.cost_problem,
    )


def _is_paired(before: RunRecord, after: RunRecord) -> bool:
    ours, theirs = before.provenance, after.provenance
    return (
        before.kind == after.kind == "simulated"
        and ours.hardware_name == theirs.hardware_name
        and ours.model_name == theirs.model_name
    )


def _metric_change(name: str, unit: str, before: Metric, after: Metric, is_paired: bool) -> MetricChange:
    change = after.value - before.value
    ends = _ends(before, after, is_paired)
    low, high = (None, None) if ends is None else ends
    return MetricChange(
        name=name,
        unit=unit,
        before=before,
        after=after,
        change=change,
        change_ratio=None if before.value == 0 or unit == "ratio" else change / before.value,
        low=low,
        high=high,
        is_paired=is_paired,
        verdict=_verdict(change, low, high),
    )


def _ends(before: Metric, after: Metric, is_paired: bool) -> tuple[float, float] | None:
    """Bounds of after − before, or None where a side has no interval."""
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return None
    change = after.value - before.value
    if is_paired:
        changes = (change, after.low - before.low, after.high - before.high)
        return min(changes), max(changes)
    return after.low - before.high, after.high - before.low


def _verdict(change: float, low: float | None, high: float | None) -> Verdict:
    low, high = (change if low is None else low), (change if high is None else high)
    if low == high == 0:
        return "same"
    if low > 0 or high < 0:
        return "higher" if low > 0 else "lower"
    return "undecided"


def _cost_changes(before: CostReport | None, after: CostReport | None) -> Iterator[CostChange]:
    if before is None or after is None:
        return
    pairs: list[tuple[str, Decimal, Decimal]] = [("usd_per_hour", before.usd_per_hour, after.usd_per_hour)]
    kinds: tuple[TokenKind, ...] = ("total", "output")
    pairs += [
        (f"usd_per_mtok.{kind}", before.usd_per_mtok[kind].value, after.usd_per_mtok[kind].value) for kind in kinds
    ]
    for name, ours, theirs in pairs:
        yield CostChange(name=name, before=ours, after=theirs, change=theirs - ours)


def _input_changes(before: Side, after: Side) -> Iterator[InputChange]:
    ours = dict(_leaves(before.record.scenario.model_dump(mode="json")))
    theirs = dict(_leaves(after.record.scenario.model_dump(mode="json")))
    natural = (before.record.placement.model_dump(mode="json"), after.record.placement.model_dump(mode="json"))
    ours |= dict(_leaves({"placement": natural[0]}))
    theirs |= dict(_leaves({"placement": natural[1]}))
    for kind, left, right in _documents(before, after):
        # Documents of one name that differ were changed by hand; those of two names differ in nearly everything.
        if left.name == right.name:
            ours |= dict(_leaves(_body(left), kind))
            theirs |= dict(_leaves(_body(right), kind))
    for path in [*ours, *(path for path in theirs if path not in ours)]:
        left_text, right_text = ours.get(path), theirs.get(path)
        if left_text != right_text:
            yield InputChange(path=path, before=left_text, after=right_text)


def _documents(before: Side, after: Side) -> Iterator[tuple[str, Document, Document]]:
    if before.resolved is not None and after.resolved is not None:
        for kind in ("hardware", "model", "prices"):
            yield kind, getattr(before.resolved, kind), getattr(after.resolved, kind)


def _body(document: Document) -> dict[str, object]:
    return document.model_dump(
        mode="json", exclude={"schema_version", "name", "description", "sources", "evidence", "probes"}
    )


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted paths with their values as text; a number with a band is one of them; nothing for what is not set."""
    if isinstance(value, Mapping) and set(value) == {"value", "low", "high"}:
        yield path, f"{value['value']} [{value['low']} .. {value['high']}]"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}.{index}")
    elif value is not None:
        yield path, str(value)
