"""What chance does to a prediction: the same scenario under several seeds, with a Student-t interval of the mean.

The band of a metric says what the uncertain inputs may do to it, at one seed; the interval over seeds says how well
the seeds at hand fix its mean, at the nominal inputs. Assumption A70: the two are combined by adding the half width
over seeds to both ends of the band, which is wider than either and assumes nothing about how they go together.
"""

import math
import statistics
from collections.abc import Sequence

from tiercast_profiles.compare import flat_metrics
from tiercast_profiles.errors import BadInput
from tiercast_profiles.record import Metric, ReplicateMetric, Replicates, RunRecord
from tiercast_profiles.scenario import MAX_SEED, ResolvedScenario
from tiercast_sim.simulate import simulate

CONFIDENCE_RATIO = 0.95
SETTLED = ("memory_bytes.", "rows_per_token", "kv_capacity_tokens")
"""Metrics that no seed moves."""


def simulate_replicates(resolved: ResolvedScenario, num_seeds: int, *, keep_samples: bool = True) -> RunRecord:
    """Predict the scenario at its own seed, and at the seeds after it for an interval over seeds.

    Raises:
        BadInput: fewer than two seeds, or the seeds run past the largest there is.
        TiercastError: as :func:`tiercast_sim.simulate.simulate`.
    """
    first = resolved.scenario.seed
    if num_seeds < 2:
        raise BadInput(f"num_seeds={num_seeds}; an interval over seeds needs at least 2")
    if first + num_seeds - 1 > MAX_SEED:
        raise BadInput(f"seed={first} leaves no room for {num_seeds} seeds; the largest seed is {MAX_SEED}")
    record = simulate(resolved, keep_samples=keep_samples)
    values = {name: [metric.value] for name, (_, metric) in flat_metrics(record.metrics).items()}
    for seed in range(first + 1, first + num_seeds):
        scenario = resolved.scenario.model_copy(update={"seed": seed})
        other = simulate(resolved.model_copy(update={"scenario": scenario}), with_bounds=False, keep_samples=False)
        for name, (_, metric) in flat_metrics(other.metrics).items():
            values.setdefault(name, []).append(metric.value)
    own = {name: metric for name, (_, metric) in flat_metrics(record.metrics).items()}
    found = {
        name: over_seeds(seen, own[name])
        for name, seen in values.items()
        if len(seen) == num_seeds and name in own and not name.startswith(SETTLED)
    }
    replicates = Replicates(num_seeds=num_seeds, confidence_ratio=CONFIDENCE_RATIO, metrics=found)
    return record.model_copy(update={"metrics": record.metrics.model_copy(update={"replicates": replicates})})


def over_seeds(values: Sequence[float], own: Metric) -> ReplicateMetric:
    """Mean over seeds with its interval, and that interval together with the metric's own band."""
    mean = statistics.fmean(values)
    half = t_quantile(CONFIDENCE_RATIO, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    low = own.value if own.low is None else own.low
    high = own.value if own.high is None else own.high
    return ReplicateMetric(
        mean=mean,
        low=mean - half,
        high=mean + half,
        combined_low=min(low, mean) - half,
        combined_high=max(high, mean) + half,
    )


def t_quantile(confidence_ratio: float, degrees: int) -> float:
    """The t with P(−t ≤ T ≤ t) = ``confidence_ratio`` for Student's law with whole ``degrees`` of freedom.

    Abramowitz & Stegun 26.7.3 and 26.7.4 give that probability in closed form; the angle is found by halving.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central(middle, degrees) < confidence_ratio else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _central(angle: float, degrees: int) -> float:
    cosine = math.cos(angle)
    is_odd = degrees % 2 == 1
    term, total = (cosine, cosine) if is_odd else (1.0, 1.0)
    for k in range(3 if is_odd else 2, degrees, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    if not is_odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + (math.sin(angle) * total if degrees > 1 else 0.0))
