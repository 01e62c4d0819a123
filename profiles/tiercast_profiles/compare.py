"""Two records side by side: the only place where a measured and a predicted number meet.

Both sides are plain records; ``measured`` and ``predicted`` name their part in the comparison, not their kind, so two
simulations or two measurements compare the same way.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tiercast_profiles.document import Strict
from tiercast_profiles.errors import BadInput
from tiercast_profiles.record import LayerWindow, Metric, Metrics, Percentiles, RecordKind, RunRecord, StepSamples
from tiercast_profiles.stats import relative_error

ABSENT = "absent"
_UNIT_BY_SUFFIX = {
    "tokens_per_s": "tokens/s",
    "gb_per_s": "GB/s",
    "_ms": "ms",
    "ms_per_step": "ms",
    "_us": "us",
    "_ratio": "ratio",
    "capacity_tokens": "tokens",
    "memory_bytes": "bytes",
    "rows_per_token": "rows",
}


class MetricComparison(Strict):
    """One metric of both records.

    ``difference`` is predicted − measured in ``unit``; ``error_ratio`` that over measured, None where that is 0.
    ``is_inside_predicted``: the measured value lies in the predicted interval; None where none was predicted.
    ``is_inside_spread``: the predicted value lies in the spread of the measured repeats; None where there is none.
    ``intervals_meet``: the two intervals overlap, a value without one counting as a point; None where neither has one.
    """

    name: str
    unit: str
    measured: Metric
    predicted: Metric
    difference: float
    error_ratio: float | None
    is_inside_predicted: bool | None
    is_inside_spread: bool | None
    intervals_meet: bool | None


EXPECTED_DIFFERENCES = ("scenario.hardware", "provenance.git_commit")
"""Paths that a measured and a predicted record of one scenario do not share: a simulated one has no commit."""


class InputDifference(Strict):
    """A resolved input the two records do not share, as text."""

    path: str
    measured: str
    predicted: str


class StepComparison(Strict):
    """Whether both served the same steps: prefill tokens and decoding sequences of each, in order."""

    is_identical: bool
    num_measured: int
    num_predicted: int
    first_difference: int | None


class Comparison(Strict):
    """What two records of the same work say about each other; ``steps`` is None where a record kept no samples."""

    measured_kind: RecordKind
    predicted_kind: RecordKind
    measured_sha256: str
    predicted_sha256: str
    workload_sha256: str
    metrics: tuple[MetricComparison, ...]
    only_measured: tuple[str, ...]
    only_predicted: tuple[str, ...]
    differing_inputs: tuple[InputDifference, ...]
    steps: StepComparison | None

    def metric(self, name: str) -> MetricComparison | None:
        """The comparison of one metric, or None where one of the records does not know it."""
        return next((metric for metric in self.metrics if metric.name == name), None)


def compare(measured: RunRecord, predicted: RunRecord) -> Comparison:
    """Set a measured record against a predicted one.

    Raises:
        BadInput: the records are of different work (workload, seed, vocabulary or text).
    """
    if measured.workload_sha256 != predicted.workload_sha256:
        raise BadInput(
            f"records of different work cannot be compared: workload {measured.workload_sha256[:12]} ({measured.kind}) "
            f"against {predicted.workload_sha256[:12]} ({predicted.kind}); "
            "run both with the same workload, seed and text"
        )
    ours, theirs = flat_metrics(measured.metrics), flat_metrics(predicted.metrics)
    return Comparison(
        measured_kind=measured.kind,
        predicted_kind=predicted.kind,
        measured_sha256=measured.sha256,
        predicted_sha256=predicted.sha256,
        workload_sha256=measured.workload_sha256,
        metrics=tuple(
            _compare_metric(name, unit, metric, theirs[name][1])
            for name, (unit, metric) in ours.items()
            if name in theirs
        ),
        only_measured=tuple(name for name in ours if name not in theirs),
        only_predicted=tuple(name for name in theirs if name not in ours),
        differing_inputs=tuple(_differing_inputs(measured, predicted)),
        steps=_compare_steps(measured, predicted),
    )


def ranking(values: Mapping[str, float]) -> tuple[str, ...]:
    """Names by falling value; equal values in the order of their names."""
    return tuple(sorted(values, key=lambda name: (-values[name], name)))


def tied_neighbours(order: Sequence[str], metrics: Mapping[str, Metric]) -> tuple[tuple[str, str], ...]:
    """Neighbours in ``order`` whose intervals overlap: the metric does not decide between them."""
    return tuple((a, b) for a, b in pairwise(order) if overlap(metrics[a], metrics[b]))


def flat_metrics(metrics: Metrics) -> dict[str, tuple[str, Metric]]:
    """Unit and value of every metric of a record by dotted name, in schema order; unknown ones are left out.

    Layers appear by their id: ``layers.14.stall_us``.
    """
    return {name: (unit_of(name), metric) for name, metric in _flatten(metrics, "")}


def unit_of(name: str) -> str:
    """The unit of a metric by its dotted name; empty where it has none."""
    for part in reversed(name.split(".")):
        for suffix, unit in _UNIT_BY_SUFFIX.items():
            if part.endswith(suffix):
                return unit
    return ""


def _flatten(value: object, path: str) -> Iterator[tuple[str, Metric]]:
    if isinstance(value, Metric):
        yield path, value
    elif isinstance(value, Metrics | Percentiles):
        for name in type(value).model_fields:
            yield from _flatten(getattr(value, name), f"{path}.{name}" if path else name)
    elif isinstance(value, LayerWindow):
        for name in type(value).model_fields:
            if name != "layer_id":
                yield from _flatten(getattr(value, name), f"{path}.{value.layer_id}.{name}")
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield from _flatten(value[key], f"{path}.{key}")
    elif isinstance(value, tuple):
        for item in value:
            yield from _flatten(item, path)
    elif isinstance(value, int | float):
        yield path, Metric(value=value)


def overlap(one: Metric, other: Metric) -> bool:
    """Whether two intervals overlap; a value without one counts as a point."""
    low, high = _ends(one)
    other_low, other_high = _ends(other)
    return low <= other_high and other_low <= high


def _ends(metric: Metric) -> tuple[float, float]:
    if metric.low is None or metric.high is None:
        return metric.value, metric.value
    return metric.low, metric.high


def _is_inside(value: float, interval: Metric) -> bool | None:
    if interval.low is None or interval.high is None:
        return None
    return interval.low <= value <= interval.high


def _compare_metric(name: str, unit: str, measured: Metric, predicted: Metric) -> MetricComparison:
    has_interval = measured.low is not None or predicted.low is not None
    return MetricComparison(
        name=name,
        unit=unit,
        measured=measured,
        predicted=predicted,
        difference=predicted.value - measured.value,
        error_ratio=relative_error(predicted.value, measured.value) if measured.value != 0 else None,
        is_inside_predicted=_is_inside(measured.value, predicted),
        is_inside_spread=_is_inside(predicted.value, measured),
        intervals_meet=overlap(measured, predicted) if has_interval else None,
    )


def _resolved_inputs(record: RunRecord) -> dict[str, Any]:  # Any: leaves of a JSON dump
    """Everything that was settled before the run, flattened to dotted paths."""
    inputs = {
        "scenario": record.scenario.model_dump(mode="json"),
        "placement": record.placement.model_dump(mode="json"),
        "provenance": record.provenance.model_dump(mode="json", exclude={"facts", "warnings"}),
    }
    return dict(_leaves(inputs, ""))


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key in sorted(value):
            yield from _leaves(value[key], f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _differing_inputs(measured: RunRecord, predicted: RunRecord) -> Iterator[InputDifference]:
    ours, theirs = _resolved_inputs(measured), _resolved_inputs(predicted)
    # Facts are notes of one producer (a torch version, a thread count); only those both made can disagree.
    for key in set(measured.provenance.facts) & set(predicted.provenance.facts):
        ours[f"facts.{key}"] = measured.provenance.facts[key]
        theirs[f"facts.{key}"] = predicted.provenance.facts[key]
    for path in sorted(set(ours) | set(theirs)):
        left, right = ours.get(path, ABSENT), theirs.get(path, ABSENT)
        if left != right:
            yield InputDifference(path=path, measured=str(left), predicted=str(right))


def _step_sequence(steps: StepSamples) -> list[tuple[int, int]]:
    return list(zip(steps.prefill_tokens, steps.decode_sequences, strict=True))


def _compare_steps(measured: RunRecord, predicted: RunRecord) -> StepComparison | None:
    if measured.samples is None or predicted.samples is None:
        return None
    ours, theirs = _step_sequence(measured.samples.steps), _step_sequence(predicted.samples.steps)
    shorter = min(len(ours), len(theirs))
    first = next((i for i in range(shorter) if ours[i] != theirs[i]), None)
    if first is None and len(ours) != len(theirs):
        first = shorter
    return StepComparison(
        is_identical=first is None, num_measured=len(ours), num_predicted=len(theirs), first_difference=first
    )
