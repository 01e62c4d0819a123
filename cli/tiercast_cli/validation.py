"""Bench and simulate the same scenarios, and say how right the predictions are."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tiercast_cli import case_scores
from tiercast_cli.case_scores import AT_PACE, Failure, ScoredCase, scored_case
from tiercast_cli.measuring import CANNOT_RUN, Measured, measure
from tiercast_cli.validation_case import Case, predict
from tiercast_profiles.compare import ranking, tied_neighbours
from tiercast_profiles.errors import CheckFailed, TiercastError
from tiercast_profiles.record import RunRecord
from tiercast_profiles.scores import Score
from tiercast_profiles.stats import relative_error

if TYPE_CHECKING:
    from tiercast_profiles.model import ModelSpec
    from tiercast_profiles.scenario import ResolvedScenario

DEMO_ARMS = ("demo-resident", "demo-prefetch", "demo-no-prefetch", "demo-no-engram")
RANKED_BY = "output_tokens_per_s"


@dataclass(frozen=True, slots=True)
class Validation:
    """Scenarios measured and predicted, and those that could not be.

    ``pace_untimed`` says why the machine's pace was not timed, ``apart`` why the runs did not take turns, where so.
    """

    cases: tuple[Case, ...] = ()
    failures: tuple[Failure, ...] = ()
    pace_untimed: str = ""
    apart: str = ""

    @property
    def scored(self) -> tuple[ScoredCase, ...]:
        """The cases reduced to what is scored, penalties included where a baseline is among them."""
        return tuple(scored_case(case, baseline_of(case, self.cases)) for case in self.cases)

    @property
    def scores(self) -> dict[str, tuple[Score, ...]]:
        """Scores of all cases, and at the pace of the machine where that was timed; empty for a single scenario."""
        if len(self.cases) + len(self.failures) < 2:
            return {}
        scored = self.scored
        found = {"all": case_scores.scores(scored, len(self.failures))}
        if any(case.pace is not None for case in scored):
            found[AT_PACE] = case_scores.scores(scored, len(self.failures), is_at_pace=True)
        return found


@dataclass(frozen=True, slots=True)
class MeasuredCases:
    """Scenarios that were run; ``pace_model`` is the model whose reference steps were timed around the runs, if any."""

    found: Measured
    pace_untimed: str = ""
    pace_model: "ModelSpec | None" = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """The order of the cases by measured and by predicted throughput.

    ``measured_ties`` are neighbours of the measured order whose intervals overlap: there the measurement itself does
    not decide.
    """

    measured: tuple[str, ...]
    predicted: tuple[str, ...]
    measured_ties: tuple[tuple[str, str], ...]

    @property
    def agrees(self) -> bool:
        """Whether the simulator puts the cases in the measured order."""
        return self.measured == self.predicted

    @property
    def agrees_up_to_ties(self) -> bool:
        """Whether the predicted order departs from the measured one only where the measurement does not decide."""
        tied = {frozenset(pair) for pair in self.measured_ties}
        place = {name: index for index, name in enumerate(self.predicted)}
        for index, better in enumerate(self.measured):
            for offset, worse in enumerate(self.measured[index + 1 :]):
                is_swapped = place[better] > place[worse]
                if is_swapped and not (offset == 0 and frozenset((better, worse)) in tied):
                    return False
        return True


def run_cases(
    scenarios: "Mapping[str, ResolvedScenario]",
    *,
    repeats: int,
    folder: Path | None,
    report: Callable[[str, float], None],
    needs_all: bool = False,
) -> Validation:
    """Bench every scenario in rounds, the machine's pace timed around each run, then predict each.

    One that cannot be run or predicted fails by itself.

    Raises:
        TiercastError: why the first scenario failed, where all did, or where any did and ``needs_all``.
    """
    measured = measured_cases(scenarios, repeats=repeats, folder=folder, report=report)
    return predicted_cases(list(scenarios), scenarios, measured, report, needs_all=needs_all)


def measured_cases(
    scenarios: "Mapping[str, ResolvedScenario]",
    *,
    repeats: int,
    folder: Path | None,
    report: Callable[[str, float], None],
    between: Callable[[], None] | None = None,
    is_paced: bool = True,
) -> MeasuredCases:
    """Bench every scenario in rounds, the machine's pace timed around each run; one that cannot be run is named.

    ``between`` is called where the pace is timed, or instead of it where not ``is_paced``.
    """
    from tiercast_cli.probing import PaceBetweenRuns, look_of, standing_still
    from tiercast_runtime.bench import bench_in_rounds

    pace = PaceBetweenRuns(list(scenarios.values()), folder)
    look = look_of(pace, between) if is_paced or between is None else standing_still(between)

    def bench(chosen: "Sequence[ResolvedScenario]") -> Sequence[RunRecord]:
        with closing(pace):  # what it holds is free again before the engines of other scenarios are made
            return bench_in_rounds(
                chosen,
                repeats=repeats,
                folder=folder,
                progress=lambda ratio: report("run", ratio),
                between=look,
            )

    found = measure(scenarios, bench, failing=(TiercastError,))
    return MeasuredCases(found, pace.untimed if is_paced else "", pace.model)


def predicted_cases(
    names: Sequence[str],
    scenarios: "Mapping[str, ResolvedScenario]",
    measured: MeasuredCases,
    report: Callable[[str, float], None],
    *,
    needs_all: bool = False,
) -> Validation:
    """Predict each scenario that was measured; ``names`` are all that were asked for, in order.

    Raises:
        TiercastError: why the first scenario failed, where all did, or where any did and ``needs_all``.
    """
    found, errors = measured.found, measured.found.errors
    reasons = {name: str(error) for name, error in errors.items()}
    cases = []
    for name, record in found.records.items():
        report(f"simulate {name}", 1.0)
        try:
            cases.append(predict(name, scenarios[name], record, with_baselines=True))
        except CANNOT_RUN as error:
            errors[name], reasons[name] = error, f"not predicted: {error}"
    failed = [name for name in names if name in errors]
    if failed and (needs_all or not cases):
        raise errors[failed[0]]
    failures = tuple(Failure(case=name, reason=reasons[name]) for name in failed)
    return Validation(tuple(cases), failures, measured.pace_untimed, found.apart)


def baseline_of(case: Case, cases: Sequence[Case]) -> Case | None:
    """The case without Engram that did the same work on the same machine; None where there is none, or this is one.

    Of several the one in the same graph mode is taken.
    """
    if case.measured.placement.tier == "none":
        return None
    fitting = [
        other
        for other in cases
        if other.measured.placement.tier == "none" and _work(other.measured) == _work(case.measured)
    ]
    mode = case.measured.placement.graph_mode
    return min(fitting, key=lambda other: other.measured.placement.graph_mode != mode, default=None)


def _work(record: RunRecord) -> tuple[object, ...]:
    """What a case without tables must share with one that has them to be its baseline."""
    scenario, source = record.scenario, record.provenance
    machine = (source.hardware_sha256, scenario.parallel, scenario.engine)
    return (record.workload_sha256, source.model_sha256, scenario.speculative, *machine)


def rank(cases: Sequence[Case]) -> Ranking | None:
    """The rankings of cases that did the same work; None for a single case or for different work."""
    if len(cases) < 2 or len({case.measured.workload_sha256 for case in cases}) > 1:
        return None
    measured = {case.name: case.measured.metrics.output_tokens_per_s for case in cases}
    order = ranking({name: metric.value for name, metric in measured.items()})
    predicted = ranking({case.name: case.predicted.metrics.output_tokens_per_s.value for case in cases})
    return Ranking(order, predicted, tied_neighbours(order, measured))


def worst_error(cases: Sequence[Case], metric: str) -> float | None:
    """Largest absolute error of a metric over the cases; None where it was measured in none."""
    errors = [
        abs(found.error_ratio)
        for case in cases
        if (found := case.comparison.metric(metric)) is not None and found.error_ratio is not None
    ]
    return max(errors, default=None)


def as_json(result: Validation) -> dict[str, object]:
    """The tables of ``validate`` as data: per case the metrics of both records and their errors, then the scores."""
    cases = result.cases
    order = rank(cases)
    return {
        "cases": [
            {
                "name": case.name,
                "comparison": case.comparison,
                "measured_warnings": case.measured.provenance.warnings,
                "predicted_warnings": case.predicted.provenance.warnings,
                "pace": case.pace,
                "at_pace": None if case.at_pace is None else at_pace_json(case),
            }
            for case in cases
        ],
        "failures": result.failures,
        "scores": result.scores,
        "penalty": {case.name: case.metrics["penalty"] for case in result.scored if "penalty" in case.metrics},
        "pace_untimed": result.pace_untimed,
        "ran_apart": result.apart,
        "ranking": None
        if order is None
        else {
            "by": RANKED_BY,
            "measured": order.measured,
            "predicted": order.predicted,
            "measured_ties": order.measured_ties,
            "agrees": order.agrees,
            "agrees_up_to_ties": order.agrees_up_to_ties,
        },
        "worst_error_ratio": {name: worst_error(cases, name) for name in (RANKED_BY, "step_ms.p50")},
    }


def at_pace_json(case: Case) -> dict[str, dict[str, float | None]]:
    """Per metric the prediction at the pace of the machine, with its error as in the comparison."""
    found = {}
    for metric in case.comparison.metrics:
        value = case.metric(metric.name, of="at_pace")
        if value is not None:
            real = metric.measured.value
            error = relative_error(value.value, real) if real != 0 else None
            found[metric.name] = {"predicted": value.value, "difference": value.value - real, "error_ratio": error}
    return found


def check(result: Validation, max_error_ratio: float | None) -> None:
    """Hold a validation against what was asked for: every scenario run, and no throughput error above the limit.

    Raises:
        CheckFailed: naming the scenarios that could not be run, or the worst error.
    """
    if result.failures:
        num_all = len(result.cases) + len(result.failures)
        named = ", ".join(failure.case for failure in result.failures)
        raise CheckFailed(f"{len(result.failures)} of {num_all} scenarios could not be run or predicted: {named}")
    check_error(result.cases, max_error_ratio)


def check_error(cases: Sequence[Case], max_error_ratio: float | None) -> None:
    """Hold the throughput errors against the limit that was asked for, if one was.

    Raises:
        CheckFailed: naming the worst error.
    """
    worst = worst_error(cases, RANKED_BY)
    if max_error_ratio is not None and worst is not None and worst > max_error_ratio:
        raise CheckFailed(
            f"worst {RANKED_BY} error {100 * worst:.1f} % exceeds the allowed {100 * max_error_ratio:.1f} %"
        )
