"""One scenario measured and predicted; the two sides know nothing of each other and meet here, through ``compare``."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tiercast_cli.changed_profiles import at_pace
from tiercast_cli.run_pace import RunPace, has_step_times, pace_in
from tiercast_profiles.compare import Comparison, compare, flat_metrics
from tiercast_profiles.record import Metric, RunRecord
from tiercast_profiles.stats import spread_metric

if TYPE_CHECKING:
    from tiercast_profiles.scenario import ResolvedScenario

Side = Literal["measured", "predicted", "at_pace"]


@dataclass(frozen=True, slots=True)
class Case:
    """One scenario, measured and predicted.

    ``pace`` is how slow the machine was around the runs and ``at_pace`` what is predicted from a profile of that pace;
    both are None where it was not timed.
    """

    name: str
    measured: RunRecord
    predicted: RunRecord
    comparison: Comparison
    pace: RunPace | None = None
    at_pace: RunRecord | None = None

    def metric(self, name: str, *, of: Side) -> Metric | None:
        """A metric of one of the records, or None where there is no such record or it does not know the metric."""
        record = {"measured": self.measured, "predicted": self.predicted, "at_pace": self.at_pace}[of]
        found = None if record is None else flat_metrics(record.metrics).get(name)
        return None if found is None else found[1]


def predict(name: str, resolved: "ResolvedScenario", measured: RunRecord, *, with_baselines: bool) -> Case:
    """Predict a measured scenario from its profile, and again at the pace of the machine where the record holds it.

    A pace is that of one profile: beside another one it says nothing.

    Raises:
        InfeasibleScenario: the scenario does not fit the hardware.
        MissingCapability: the simulator lacks something it asks for.
    """
    from tiercast_sim.simulate import simulate

    predicted = simulate(resolved, with_baselines=with_baselines, keep_samples=measured.samples is not None)
    is_of_profile = measured.provenance.hardware_sha256 == resolved.hardware.sha256 and has_step_times(resolved)
    pace = pace_in(measured) if is_of_profile else None
    again = None
    if pace is not None:
        then = resolved.model_copy(update={"hardware": at_pace(resolved.hardware, pace)})
        again = simulate(then, with_baselines=False, with_bounds=False, keep_samples=False)
    return Case(name, measured, predicted, compare(measured, predicted), pace, again)


def measured_penalty(record: RunRecord, baseline: RunRecord) -> Metric:
    """Throughput lost against a baseline that was measured in turns with it: the median over rounds, with quartiles.

    The two runs of a round are seconds apart and meet the same machine; of medians over rounds one may be a fast
    round's and the other a slow one's. Where they were not repeated equally often, it is that of the medians.
    """
    pairs = [metrics.runs_output_tokens_per_s for metrics in (record.metrics, baseline.metrics)]
    if not pairs[0] or len(pairs[0]) != len(pairs[1]):
        return penalty(record.metrics.output_tokens_per_s, baseline.metrics.output_tokens_per_s)
    return spread_metric([1 - speed / base for speed, base in zip(*pairs, strict=True)])


def penalty(value: Metric, baseline: Metric) -> Metric:
    """Throughput lost against a baseline, 1 − value ÷ baseline, with the interval that both intervals allow."""
    ratio = 1 - value.value / baseline.value
    if value.low is None or value.high is None or baseline.low is None or baseline.high is None:
        return Metric(value=ratio)
    return Metric(value=ratio, low=1 - value.high / baseline.low, high=1 - value.low / baseline.high, basis=value.basis)
