"""Statistics of samples: one definition of every metric, used for measured and simulated runs alike.

Definitions: TTFT is first token minus arrival, queueing included. TPOT is (finish − first token) ÷ (output tokens − 1)
of one request. Throughput counts all tokens of the finished requests over the time from run start to last finish.
``hidden_ratio`` is 1 − stall ÷ time lookups were in flight. ``cache_hit_ratio`` is the share of rows asked for that the
cache had before their lookup; a row that comes twice in a lookup counts twice.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tiercast_profiles.columns import SampleColumns, SampleTotals, StepSampleColumns, StepTotals
from tiercast_profiles.quantiles import is_unstable, median, quantile, quantile_places
from tiercast_profiles.record import Metric, Percentiles, Samples, StepSamples
from tiercast_profiles.units import NS_PER_MS, NS_PER_S

__all__ = [
    "Numbers",
    "SampleStatistics",
    "is_unstable",
    "median",
    "percentiles",
    "quantile",
    "relative_error",
    "spread_metric",
]


def spread_metric(values: Sequence[float]) -> Metric:
    """Median with quartiles of repeats; a single value is a point."""
    if len(values) == 1:
        return Metric(value=values[0])
    return Metric(value=median(values), low=quantile(values, 0.25), high=quantile(values, 0.75), basis="spread")


# Any: whole or floating numbers alike; NumPy has no name for "either" that its own functions keep.
Numbers = npt.NDArray[Any]


def percentiles(values_ns: Sequence[float] | Numbers) -> Percentiles:
    """p50, p90 and p99 in ms of durations in ns."""
    values = np.asarray(values_ns)
    ratios = (0.5, 0.9, 0.99)
    # Only the ranks that are asked for come to their place, and only they become Python's numbers.
    places = sorted({place for ratio in ratios for place in quantile_places(len(values), ratio)[:2]})
    ordered = dict(zip(places, np.partition(values, places)[places].tolist(), strict=True))
    p50, p90, p99 = (Metric(value=_between(ordered, len(values), ratio) / NS_PER_MS) for ratio in ratios)
    return Percentiles(p50=p50, p90=p90, p99=p99)


def _between(ordered: dict[int, float], count: int, ratio: float) -> float:
    below, above, share = quantile_places(count, ratio)
    return ordered[below] + (ordered[above] - ordered[below]) * share


class SampleStatistics:
    """The metrics that follow from samples alone.

    Args:
        samples: of a run.
        lengths_ns: of what its steps stand for, equally many of each, to take percentiles of steps from; None: a step
            stands for itself.

    Raises:
        ValueError: when the samples hold no finished request or no step.
    """

    def __init__(self, samples: Samples | SampleColumns | SampleTotals, lengths_ns: Numbers | None = None) -> None:
        requests = samples.requests
        steps = samples.steps if isinstance(samples, SampleTotals) else _totals(samples.steps)
        num_steps = len(steps.duration_ns)
        if not len(requests.finish_ns) or not num_steps:
            raise ValueError("a record needs at least one finished request and one step")
        finish, first, tokens = map(np.asarray, (requests.finish_ns, requests.first_token_ns, requests.output_tokens))
        elapsed_ns = int(finish.max())
        output, prompt = int(tokens.sum()), _total(requests.prompt_tokens)
        self.output_tokens_per_s = output * NS_PER_S / elapsed_ns
        self.total_tokens_per_s = (output + prompt) * NS_PER_S / elapsed_ns
        self.ttft_ms = percentiles(first - np.asarray(requests.arrival_ns))
        has_more = tokens > 1
        tpot = (finish - first)[has_more] / (tokens[has_more] - 1)
        self.tpot_ms: Percentiles | None = percentiles(tpot) if len(tpot) else None
        self.step_ms = percentiles(steps.duration_ns if lengths_ns is None else lengths_ns)
        stall, lookup = steps.stall_ns, steps.lookup_ns
        self.stall_ms_per_step = stall / num_steps / NS_PER_MS
        self.lookup_ms_per_step = lookup / num_steps / NS_PER_MS
        self.hidden_ratio: float | None = min(1.0, max(0.0, 1 - stall / lookup)) if lookup > 0 else None
        rows = steps.rows
        self.unique_row_ratio: float | None = steps.rows_read / rows if rows > 0 else None
        has_cache = rows > 0 and steps.rows_hit is not None
        self.cache_hit_ratio: float | None = (steps.rows_hit or 0) / rows if has_cache else None


def _totals(steps: StepSamples | StepSampleColumns) -> StepTotals:
    return StepTotals(
        duration_ns=np.asarray(steps.duration_ns),
        stall_ns=_total(steps.stall_ns),
        lookup_ns=_total(steps.lookup_ns),
        rows=_total(steps.rows),
        rows_read=_total(steps.rows_read),
        rows_hit=_total(steps.rows_hit) if len(steps.rows_hit) else None,
    )


def _total(values: Sequence[int] | Numbers) -> int:
    return int(np.asarray(values).sum())


def relative_error(predicted: float, measured: float) -> float:
    """(predicted − measured) ÷ measured.

    Raises:
        ValueError: when ``measured`` is zero.
    """
    if measured == 0:
        raise ValueError("a relative error needs a measured value other than zero")
    return (predicted - measured) / measured
