"""What is scored of a case and how: the metrics of both sides, penalties against a baseline, one score per metric."""

from collections.abc import Iterator, Sequence

from tiercast_cli.run_pace import RunPace
from tiercast_cli.validation_case import Case, measured_penalty, penalty
from tiercast_profiles.compare import flat_metrics
from tiercast_profiles.document import Strict
from tiercast_profiles.record import Metric
from tiercast_profiles.scores import Pair, Score, score

LATENCIES = tuple(f"{name}.{share}" for name in ("ttft_ms", "tpot_ms", "step_ms") for share in ("p50", "p90"))
RELATIVE = ("output_tokens_per_s", *LATENCIES)
DIFFERENCES = (("stall_ms_per_step", "ms"), ("hidden_ratio", "points"), ("penalty", "points"))
POINTS = 100.0
AT_PACE = "at pace"


class Failure(Strict):
    """A case that could not be measured or predicted; it counts in every score."""

    case: str
    reason: str


class MeasuredAndPredicted(Strict):
    """One metric of one case.

    ``at_pace`` is what the same profile predicts with layers and reads from a drive as slow as they were around these
    runs; None where that was not timed.
    """

    measured: Metric
    predicted: Metric
    at_pace: float | None = None

    def has_inside(self, value: float) -> bool | None:
        """Whether a value lies within the machine's own spread over repeats; None where there is none."""
        low, high = self.measured.low, self.measured.high
        return None if low is None or high is None else low <= value <= high

    @property
    def is_in_interval(self) -> bool | None:
        """Whether what was measured lies within the predicted interval; None where none was predicted."""
        low, high = self.predicted.low, self.predicted.high
        return None if low is None or high is None else low <= self.measured.value <= high

    @property
    def half_interval_ratio(self) -> float:
        """Half the predicted interval over the predicted value; 0 where there is none."""
        low, high = self.predicted.low, self.predicted.high
        return 0.0 if low is None or high is None else (high - low) / 2 / self.predicted.value

    @property
    def half_spread(self) -> float | None:
        """Half of that spread."""
        low, high = self.measured.low, self.measured.high
        return None if low is None or high is None else (high - low) / 2


class ScoredCase(Strict):
    """One case: what it was and its metrics on both sides.

    ``cores_used_by_others`` is what other processes used of the machine during the runs; None where it is not known.
    ``step_paces`` are times of reference steps around the runs over those in the profile, ``pace`` their geometric
    mean, ``disk_pace`` that of reads from a drive; None, or empty, where they were not timed.
    """

    name: str
    workload_sha256: str
    metrics: dict[str, MeasuredAndPredicted]
    differing_inputs: tuple[str, ...]
    cores_used_by_others: float | None = None
    pace: float | None = None
    disk_pace: float | None = None
    step_paces: dict[str, float] = {}

    @property
    def run_pace(self) -> RunPace | None:
        """The pace around the runs of this case; None where it was not timed."""
        return RunPace(self.step_paces, self.disk_pace) if self.step_paces else None

    def is_inside_spread(self, metric: str) -> bool | None:
        """Whether the prediction lies within the machine's own spread over repeats; None where there is none."""
        both = self.metrics.get(metric)
        return None if both is None else both.has_inside(both.predicted.value)


def scored_case(case: Case, baseline: Case | None) -> ScoredCase:
    """A case reduced to what is scored; its penalty is against the ``baseline``, where there is one beside it."""
    again = {} if case.at_pace is None else flat_metrics(case.at_pace.metrics)
    metrics = {}
    for name in (*RELATIVE, *(name for name, _ in DIFFERENCES)):
        measured, predicted = case.metric(name, of="measured"), case.metric(name, of="predicted")
        if measured is not None and predicted is not None:
            at_pace = again[name][1].value if name in again else None
            metrics[name] = MeasuredAndPredicted(measured=measured, predicted=predicted, at_pace=at_pace)
    if baseline is not None and baseline is not case:
        metrics["penalty"] = _penalty(case, baseline)
    facts, pace = case.measured.provenance.facts, case.pace
    others = facts.get("cores_used_by_others")
    return ScoredCase(
        name=case.name,
        workload_sha256=case.measured.workload_sha256,
        metrics=metrics,
        differing_inputs=tuple(difference.path for difference in case.comparison.differing_inputs),
        cores_used_by_others=None if others is None else float(others),
        pace=None if pace is None else pace.compute_ratio,
        disk_pace=None if pace is None else pace.disk_ratio,
        step_paces={} if pace is None else dict(pace.step_ratios),
    )


def scores(cases: Sequence[ScoredCase], num_failed: int, *, is_at_pace: bool = False) -> tuple[Score, ...]:
    """One score per metric; ``is_at_pace``: of what is predicted at the pace the machine had around the runs."""
    found = [(name, "ratio") for name in RELATIVE] + list(DIFFERENCES)
    return tuple(
        score(name, unit, pairs, num_failed=num_failed)
        for name, unit in found
        if (pairs := tuple(_pairs(cases, name, unit, is_at_pace))) or not is_at_pace
    )


def _penalty(case: Case, baseline: Case) -> MeasuredAndPredicted:
    at_pace = None
    if case.at_pace is not None and baseline.at_pace is not None:
        speed, base = (one.metrics.output_tokens_per_s for one in (case.at_pace, baseline.at_pace))
        at_pace = penalty(speed, base).value
    predicted, base = (one.predicted.metrics.output_tokens_per_s for one in (case, baseline))
    return MeasuredAndPredicted(
        measured=measured_penalty(case.measured, baseline.measured), predicted=penalty(predicted, base), at_pace=at_pace
    )


def _pairs(cases: Sequence[ScoredCase], metric: str, unit: str, is_at_pace: bool) -> Iterator[Pair]:
    factor = POINTS if unit == "points" else 1.0
    for case in cases:
        both = case.metrics.get(metric)
        if both is None or (is_at_pace and both.at_pace is None):
            continue
        predicted = both.predicted.value if not is_at_pace or both.at_pace is None else both.at_pace
        yield Pair(
            case=case.name,
            measured=both.measured.value * factor,
            predicted=predicted * factor,
            is_inside_spread=both.has_inside(predicted),
            half_spread=None if both.half_spread is None else both.half_spread * factor,
        )
