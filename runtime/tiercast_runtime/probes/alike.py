"""How far samples lie apart, out of all that take about as long: the few samples of one size would not say it."""

from collections.abc import Callable, Sequence

import numpy as np

from tiercast_profiles.hardware import NUM_SPREAD_CASES
from tiercast_profiles.quantiles import MAX_MEDIANS, capped_mean, median
from tiercast_runtime.probes.timing import KeyT, Spread, rounded

ALIKE_RATIO = 4.0  # two take about as long where one takes no more of the other than this


def means_of_alike(spreads: Sequence[Spread[KeyT]]) -> dict[KeyT, float]:
    """Means by key: the median of its samples, times mean over median of all that take about as long.

    On a virtual drive one lookup in twenty takes two or three times as long as the others. The few samples of one size
    have two of those or none, and their mean would say which.
    """
    return {spread.key: spread.value * capped_mean(_ratios_of_alike(spreads, spread.value)) for spread in spreads}


def cases_of_alike(spreads: Sequence[Spread[KeyT]], size: Callable[[KeyT], int]) -> dict[int, tuple[float, ...]]:
    """By size, times over their mean in equally likely cases, of all samples that take about as long.

    Samples over the median of their key are sorted and cut into as many parts as there are cases; a case is the mean of
    its part. As in means no sample counts for more than three medians. Sizes whose alike have fewer samples than there
    are cases are left out.
    """
    medians: dict[int, list[float]] = {}
    for spread in spreads:
        medians.setdefault(size(spread.key), []).append(spread.value)
    found = {}
    for number, values in sorted(medians.items()):
        ratios = np.sort(np.minimum(_ratios_of_alike(spreads, median(values)), MAX_MEDIANS))
        if len(ratios) < NUM_SPREAD_CASES:
            continue
        cases = np.array([case.mean() for case in np.array_split(ratios, NUM_SPREAD_CASES)])
        found[number] = tuple(map(rounded, (cases / cases.mean()).tolist()))
    return found


def _ratios_of_alike(spreads: Sequence[Spread[KeyT]], value: float) -> list[float]:
    alike = [other for other in spreads if 1 / ALIKE_RATIO <= other.value / value <= ALIKE_RATIO]
    return [sample / other.value for other in alike for sample in other.samples]
