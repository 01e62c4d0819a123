"""Bench and simulate the same scenario, and put the two records side by side.

The runtime and the simulator know nothing of each other; only their records meet here, through ``compare``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tiercast_profiles.compare import Comparison, compare, flat_metrics, ranking, tied_neighbours
from tiercast_profiles.errors import CheckFailed
from tiercast_profiles.record import Metric, RunRecord

if TYPE_CHECKING:
    from tiercast_profiles.scenario import ResolvedScenario

DEMO_ARMS = ("demo-resident", "demo-prefetch", "demo-no-prefetch", "demo-no-engram")
RANKED_BY = "output_tokens_per_s"


@dataclass(frozen=True, slots=True)
class Case:
    """One scenario, measured and predicted."""

    name: str
    measured: RunRecord
    predicted: RunRecord
    comparison: Comparison

    def metric(self, name: str, *, of: str) -> Metric | None:
        """A metric of the measured or the predicted record (``of``), or None where it is not known."""
        record = self.measured if of == "measured" else self.predicted
        found = flat_metrics(record.metrics).get(name)
        return None if found is None else found[1]


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
) -> list[Case]:
    """Bench every scenario in rounds, then predict each.

    Raises:
        MissingCapability: this machine is not the kind of machine the scenario's hardware describes.
        InfeasibleScenario: one does not fit, or they do not fit together.
    """
    from tiercast_runtime.bench import bench_in_rounds
    from tiercast_sim.simulate import simulate

    measured = bench_in_rounds(
        list(scenarios.values()), repeats=repeats, folder=folder, progress=lambda ratio: report("run", ratio)
    )
    cases = []
    for (name, resolved), record in zip(scenarios.items(), measured, strict=True):
        report(f"simulate {name}", 1.0)
        predicted = simulate(resolved)
        cases.append(Case(name, record, predicted, compare(record, predicted)))
    return cases


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


def penalty(value: Metric, baseline: Metric) -> Metric:
    """Throughput lost against a baseline, 1 − value ÷ baseline, with the interval that both intervals allow."""
    ratio = 1 - value.value / baseline.value
    if value.low is None or value.high is None or baseline.low is None or baseline.high is None:
        return Metric(value=ratio)
    return Metric(value=ratio, low=1 - value.high / baseline.low, high=1 - value.low / baseline.high, basis=value.basis)


def as_json(cases: Sequence[Case]) -> dict[str, object]:
    """The table of ``validate`` as data: per case the metrics of both records and their errors."""
    order = rank(cases)
    return {
        "cases": [
            {
                "name": case.name,
                "comparison": case.comparison,
                "measured_warnings": case.measured.provenance.warnings,
                "predicted_warnings": case.predicted.provenance.warnings,
            }
            for case in cases
        ],
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
