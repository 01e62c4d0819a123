"""What a run of the validation suite says: scores of all, open and held-out cases, the order of arms, failures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import geometric_mean

from tiercast_cli import validation
from tiercast_profiles.compare import flat_metrics, overlap
from tiercast_profiles.document import Strict
from tiercast_profiles.record import Metric, RunRecord
from tiercast_profiles.scores import Pair, Score, score
from tiercast_profiles.suite import Suite

RELATIVE = ("output_tokens_per_s", "ttft_ms.p50", "tpot_ms.p50", "step_ms.p50")
DIFFERENCES = (("stall_ms_per_step", "ms"), ("hidden_ratio", "points"), ("penalty", "points"))
ORDERED = ("output_tokens_per_s", "stall_ms_per_step", "hidden_ratio")
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
    def half_spread(self) -> float | None:
        """Half of that spread."""
        low, high = self.measured.low, self.measured.high
        return None if low is None or high is None else (high - low) / 2


class SuiteCase(Strict):
    """One case: what it was and its metrics on both sides; penalties are against the baseline arm of its work.

    ``cores_used_by_others`` is what other processes used of the machine during the runs; None where it is not known.
    ``pace`` is the time of reference steps around the runs over their time in the profile, ``disk_pace`` that of reads.
    """

    name: str
    is_held_out: bool
    workload_sha256: str
    metrics: dict[str, MeasuredAndPredicted]
    differing_inputs: tuple[str, ...]
    cores_used_by_others: float | None = None
    pace: float | None = None
    disk_pace: float | None = None

    def is_inside_spread(self, metric: str) -> bool | None:
        """Whether the prediction lies within the machine's own spread over repeats; None where there is none."""
        both = self.metrics.get(metric)
        return None if both is None else both.has_inside(both.predicted.value)


class Order(Strict):
    """Which of two cases has more of a metric, over all pairs of a group.

    ``group`` is a work, whose arms are compared, or an arm, compared over the works. A pair is decided where the
    measured intervals do not overlap; ``wrong`` are the decided pairs, the larger measured one first, that the
    prediction does not put in that order.
    """

    metric: str
    group: str
    num_pairs: int
    num_decided: int
    wrong: tuple[tuple[str, str], ...]


class SuiteResult(Strict):
    """Everything a page about the suite needs.

    ``profile_sha256`` is that of the machine the cases ran on, ``predicted_from_sha256`` that of the profile they were
    predicted from; the two differ where another profile was put to the test. ``decode_step_ms`` is one fixed piece of
    work timed before and after the cases.
    """

    schema_version: int = 1
    hardware_name: str
    profile_sha256: str
    predicted_from: str
    predicted_from_sha256: str
    held_out_declared: str
    repeats: int
    cases: tuple[SuiteCase, ...]
    failures: tuple[Failure, ...]
    scores: dict[str, tuple[Score, ...]]
    orders: tuple[Order, ...]
    decode_step_ms: dict[str, Metric]

    def score_of(self, metric: str, group: str = "all") -> Score:
        """The score of one metric over a group of cases: ``all``, ``open``, ``held out`` or ``at pace``."""
        return next(found for found in self.scores[group] if found.metric == metric)


@dataclass(frozen=True, slots=True)
class RunPace:
    """How slow the machine was around the runs of a case: times then over times in the profile."""

    compute_ratio: float
    disk_ratio: float


def pace_in(measured: RunRecord) -> RunPace | None:
    """The pace in a record's facts, of compute the geometric mean over the reference steps; None where none was timed.

    A machine whose drive was not timed has the drive of its profile.
    """
    found = {name: float(value) for name, value in measured.provenance.facts.items() if name.startswith("pace_")}
    disk = found.pop("pace_disk", 1.0)
    return RunPace(geometric_mean(found.values()), disk) if found else None


def suite_cases(
    suite: Suite,
    held_out: Sequence[str],
    cases: Sequence[validation.Case],
    paced: Mapping[str, tuple[RunPace, RunRecord]],
) -> tuple[SuiteCase, ...]:
    """The cases reduced to what is scored, penalties against the baseline arm of the same work included.

    ``paced``: what is predicted at the pace the machine had, for cases predicted from the profile they ran beside.
    """
    by_name = {case.name: case for case in cases}
    return tuple(_case(suite, case, by_name, paced, case.name in held_out) for case in cases)


def grouped_scores(
    cases: Sequence[SuiteCase], failures: Sequence[Failure], held_out: Sequence[str]
) -> dict[str, tuple[Score, ...]]:
    """Scores of all cases, of those a constant may have been chosen on, and of those held out.

    Group ``at pace`` is all cases again, the predictions taken to the speed the machine had around each run.
    """
    groups = {
        "all": list(cases),
        "open": [case for case in cases if not case.is_held_out],
        "held out": [case for case in cases if case.is_held_out],
    }
    scores = {}
    for group, members in groups.items():
        failed = [one for one in failures if group == "all" or (one.case in held_out) == (group == "held out")]
        scores[group] = _scores(members, len(failed))
    if any(case.pace is not None for case in cases):
        scores[AT_PACE] = _scores(cases, len(failures), is_at_pace=True)
    return scores


def orders(cases: Sequence[SuiteCase]) -> tuple[Order, ...]:
    """Of each metric that is ranked: the arms of every work, and every arm over the works."""
    works: dict[str, list[SuiteCase]] = {}
    arms: dict[str, list[SuiteCase]] = {}
    for case in cases:
        work, arm = case.name.split("/")
        works.setdefault(work, []).append(case)
        arms.setdefault(arm, []).append(case)
    groups = [(f"work {name}", members) for name, members in works.items()]
    groups += [(f"arm {name}", members) for name, members in arms.items()]
    found = (_order(metric, group, members) for metric in ORDERED for group, members in groups)
    return tuple(order for order in found if order.num_pairs)


def _order(metric: str, group: str, cases: Sequence[SuiteCase]) -> Order:
    known = [(case.name, case.metrics[metric]) for case in cases if metric in case.metrics]
    num_pairs = num_decided = 0
    wrong = []
    for one, other in combinations(known, 2):
        num_pairs += 1
        if overlap(one[1].measured, other[1].measured):
            continue
        num_decided += 1
        more, less = sorted((one, other), key=lambda item: -item[1].measured.value)
        if more[1].predicted.value <= less[1].predicted.value:
            wrong.append((more[0], less[0]))
    return Order(metric=metric, group=group, num_pairs=num_pairs, num_decided=num_decided, wrong=tuple(wrong))


def _case(
    suite: Suite,
    case: validation.Case,
    by_name: Mapping[str, validation.Case],
    paced: Mapping[str, tuple[RunPace, RunRecord]],
    is_held_out: bool,
) -> SuiteCase:
    pace, again = paced.get(case.name, (None, None))
    then = {} if again is None else flat_metrics(again.metrics)
    metrics = {}
    for name in (*RELATIVE, *(name for name, _ in DIFFERENCES)):
        measured, predicted = case.metric(name, of="measured"), case.metric(name, of="predicted")
        if measured is not None and predicted is not None:
            at_pace = then[name][1].value if name in then else None
            metrics[name] = MeasuredAndPredicted(measured=measured, predicted=predicted, at_pace=at_pace)
    baseline = by_name.get(f"{case.name.split('/')[0]}/{suite.baseline}")
    if baseline is not None and baseline is not case:
        pair = [
            validation.penalty(record.metrics.output_tokens_per_s, base.metrics.output_tokens_per_s)
            for record, base in ((case.measured, baseline.measured), (case.predicted, baseline.predicted))
        ]
        at_pace = None
        if again is not None and baseline.name in paced:
            base_again = paced[baseline.name][1]
            lost = validation.penalty(again.metrics.output_tokens_per_s, base_again.metrics.output_tokens_per_s)
            at_pace = lost.value
        metrics["penalty"] = MeasuredAndPredicted(measured=pair[0], predicted=pair[1], at_pace=at_pace)
    others = case.measured.provenance.facts.get("cores_used_by_others")
    return SuiteCase(
        name=case.name,
        is_held_out=is_held_out,
        workload_sha256=case.measured.workload_sha256,
        metrics=metrics,
        differing_inputs=tuple(difference.path for difference in case.comparison.differing_inputs),
        cores_used_by_others=None if others is None else float(others),
        pace=None if pace is None else pace.compute_ratio,
        disk_pace=None if pace is None else pace.disk_ratio,
    )


def _scores(cases: Sequence[SuiteCase], num_failed: int, *, is_at_pace: bool = False) -> tuple[Score, ...]:
    found = [(name, "ratio") for name in RELATIVE] + list(DIFFERENCES)
    return tuple(
        score(name, unit, pairs, num_failed=num_failed)
        for name, unit in found
        if (pairs := tuple(_pairs(cases, name, unit, is_at_pace))) or not is_at_pace
    )


def _pairs(cases: Sequence[SuiteCase], metric: str, unit: str, is_at_pace: bool) -> Iterator[Pair]:
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
