"""Quantiles of plain numbers, and when samples lie too far apart to be trusted."""

import math
from collections.abc import Sequence

PROBE_UNSTABLE_RATIO = 0.05  # interquartile range over median above which a probe is flagged
MAX_MEDIANS = 3.0  # a sample beyond is another process having the core, which a run of seconds sees as rarely


def quantile(values: Sequence[float], ratio: float) -> float:
    """Linear-interpolated quantile (the usual definition 7) of a non-empty sequence.

    Raises:
        ValueError: when ``values`` is empty or ``ratio`` lies outside [0, 1].
    """
    if not values:
        raise ValueError("no values to take a quantile of")
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio={ratio} must lie in [0, 1]")
    return quantile_of_sorted(sorted(values), ratio)


def quantile_of_sorted(ordered: Sequence[float], ratio: float) -> float:
    """As :func:`quantile`, of values that ascend already."""
    below, above, share = quantile_places(len(ordered), ratio)
    return ordered[below] + (ordered[above] - ordered[below]) * share


def quantile_places(count: int, ratio: float) -> tuple[int, int, float]:
    """Places of the two of ``count`` ascending values that a quantile lies between, and its share of the way."""
    position = ratio * (count - 1)
    below = math.floor(position)
    return below, min(below + 1, count - 1), position - below


def median(values: Sequence[float]) -> float:
    """Middle value."""
    return quantile(values, 0.5)


def capped_mean(values: Sequence[float]) -> float:
    """Mean, in which no value counts for more than ``MAX_MEDIANS`` medians."""
    most = MAX_MEDIANS * median(values)
    return sum(min(value, most) for value in values) / len(values)


def is_unstable(values: Sequence[float], limit_ratio: float = 0.10) -> bool:
    """True when the interquartile range exceeds ``limit_ratio`` of the median: such samples need a flag."""
    middle = median(values)
    return middle <= 0 or (quantile(values, 0.75) - quantile(values, 0.25)) / middle > limit_ratio
