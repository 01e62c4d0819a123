"""One measured record out of several of the same scenario, each of a run at another time."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel

from tiercast_profiles.quantiles import is_unstable, median
from tiercast_profiles.record import Metric, Metrics, RunRecord
from tiercast_profiles.stats import spread_metric

UNSTABLE_THROUGHPUT = "throughput varies by more than 10 % between repeats; other work may share this machine"
AROUND = ("pace_", "cores_used_by_others")  # facts that say how the machine was around a run
FACT_DIGITS = 4


def together(records: Sequence[RunRecord]) -> RunRecord:
    """The record that a bench with as many repeats would have written, had it run them at these times.

    Metrics are medians with quartiles; facts, samples and spans those of the run with the median throughput, but for
    what was timed around the runs, of which the median is taken as of the metrics, and ``repeats``, which are counted.

    Args:
        records: one or more, measured, of one scenario and one repeat each.

    Raises:
        ValueError: they are of several scenarios, or hold repeats already.
    """
    if len({record.scenario_sha256 for record in records}) != 1:
        raise ValueError("records of one scenario are put together, and at least one")
    if any(record.provenance.facts.get("repeats", 1) != 1 for record in records):
        raise ValueError("a record of several repeats holds medians, of which no quartiles can be taken")
    if len(records) == 1:
        return records[0]
    speeds = [record.metrics.output_tokens_per_s.value for record in records]
    middle = records[sorted(range(len(records)), key=lambda place: speeds[place])[len(records) // 2]]
    warnings = _distinct(warning for record in records for warning in record.provenance.warnings)
    if is_unstable(speeds) and UNSTABLE_THROUGHPUT not in warnings:
        warnings.append(UNSTABLE_THROUGHPUT)
    provenance = middle.provenance.model_copy(update={"facts": _facts(records, middle), "warnings": tuple(warnings)})
    return middle.model_copy(update={"provenance": provenance, "metrics": _metrics(records)})


def _distinct(warnings: Iterable[str]) -> list[str]:
    """Each warning once, the first of those that differ in their numbers only."""
    first: dict[str, str] = {}
    for warning in warnings:
        first.setdefault(re.sub(r"\d+(\.\d+)?", "#", warning), warning)
    return list(first.values())


def _facts(records: Sequence[RunRecord], middle: RunRecord) -> dict[str, str | int | float | bool]:
    facts = {**middle.provenance.facts, "repeats": len(records)}
    for name in [name for name in facts if name.startswith(AROUND)]:
        found = [record.provenance.facts.get(name) for record in records]
        if any(value is None for value in found):
            del facts[name]  # around some of the runs it was not timed: a median would be of the others
        else:
            facts[name] = round(median([float(value) for value in found if value is not None]), FACT_DIGITS)
    return facts


def _metrics(records: Sequence[RunRecord]) -> Metrics:
    found = {name: _merged([getattr(record.metrics, name) for record in records]) for name in Metrics.model_fields}
    # What the machine has room for is not measured, and is the same in every run.
    found["kv_capacity_tokens"] = records[0].metrics.kv_capacity_tokens
    found["runs_output_tokens_per_s"] = tuple(record.metrics.output_tokens_per_s.value for record in records)
    return Metrics(**found)


def _merged(values: Sequence[Any]) -> Any:  # Any: every kind of field of the metrics
    """The same field of several records as one: metrics as spreads, other numbers as medians."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    first = known[0]
    if isinstance(first, Metric):
        return spread_metric([metric.value for metric in known])
    if isinstance(first, BaseModel):
        fields = {name: _merged([getattr(value, name) for value in known]) for name in type(first).model_fields}
        return type(first)(**fields)
    if isinstance(first, tuple):
        # No layers in a run without a decode step; then there is nothing to say of all runs.
        return tuple(_merged(entries) for entries in zip(*known, strict=True)) if all(known) else ()
    return median(known) if isinstance(first, float) else first
