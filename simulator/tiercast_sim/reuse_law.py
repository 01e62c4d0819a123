"""Distinct n-grams in windows of a stream, and a power law through them that reaches beyond the text."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiercast_sim.cache_curves import NEVER, Accesses, lru_hits

NUM_WINDOWS = 32
LONGEST_SHARE, SHORTEST_SHARE = 2, 64  # windows from 1/64 to 1/2 of the stream
MIN_ACCESSES = 4096  # below, the windows span too little to fit two parameters


@dataclass(frozen=True, slots=True)
class ReuseLaw:
    """W(w) = ``scale`` × w ** ``exponent`` distinct n-grams in w consecutive reads of S interleaved streams.

    An LRU cache of W(w) n-grams misses the share dW/dw of the reads once it is full (Xiang et al. 2013, HOTL: a higher
    order theory of locality; Denning and Schwartz 1972 for the working set). ``residual_ratio`` is the largest distance
    of that from the hit ratio measured on the second half of the text, ``distinct_residual_ratio`` the largest relative
    distance of W from the mean number counted, both over the windows fitted: ``shortest_window`` to
    ``longest_window`` reads.
    """

    num_streams: int
    scale: float
    exponent: float
    shortest_window: int
    longest_window: int
    distinct_residual_ratio: float
    residual_ratio: float

    def distinct(self, window: float) -> float:
        """Distinct n-grams in a window of reads."""
        return self.scale * math.pow(window, self.exponent)

    def hit_ratio(self, num_entries: float) -> float:
        """Share of reads an LRU cache of this many n-grams serves on an endless text of this kind."""
        window = max(1.0, math.pow(num_entries / self.scale, 1 / self.exponent))
        return min(1.0, max(0.0, 1 - self.exponent * self.distinct(window) / window))


def footprint(previous: Accesses, windows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Mean number of distinct keys over all windows of each length ``[num windows]``, from the absences of the keys.

    A key is absent from the windows that fit between two uses, before the first or behind the last (Xiang et al. 2011,
    Linear-time modeling of program working set).
    """
    num = len(previous)
    repeats, firsts = np.flatnonzero(previous != NEVER), np.flatnonzero(previous == NEVER)
    is_last = np.ones(num, dtype=np.bool_)
    is_last[previous[repeats]] = False
    absences = np.sort(np.concatenate((repeats - previous[repeats], firsts + 1, num - np.flatnonzero(is_last))))
    longer = np.concatenate((np.cumsum(absences[::-1])[::-1], [0]))
    index = np.searchsorted(absences, windows, side="right")
    num_absent = longer[index] - windows * (len(absences) - index)
    mean: npt.NDArray[np.float64] = len(firsts) - num_absent / (num - windows + 1)
    return mean


def fit(previous: Accesses, distances: Accesses, num_streams: int) -> ReuseLaw | None:
    """The law of a stream, by least squares of logarithms; None where it is too short or too even for two parameters.

    ``distances`` are the stack distances of the repeats of ``previous``, in order.
    """
    num = len(previous)
    if num < MIN_ACCESSES:
        return None
    windows = np.unique(np.geomspace(num // SHORTEST_SHARE, num // LONGEST_SHARE, NUM_WINDOWS).astype(np.int64))
    counted = footprint(previous, windows)
    exponent, log_scale = (float(part) for part in np.polyfit(np.log(windows), np.log(counted), 1))
    if not 0.01 < exponent <= 1:  # as good as no new n-grams, or more than reads
        return None
    law = ReuseLaw(num_streams, float(np.exp(log_scale)), exponent, int(windows[0]), int(windows[-1]), 0.0, 0.0)
    fitted = np.array([law.distinct(window) for window in windows.tolist()])
    half = num // 2
    late = distances[np.flatnonzero(previous != NEVER) >= half]
    apart = [abs(law.hit_ratio(entries) - lru_hits(late, int(entries)) / (num - half)) for entries in fitted.tolist()]
    return ReuseLaw(
        num_streams=num_streams,
        scale=law.scale,
        exponent=exponent,
        shortest_window=law.shortest_window,
        longest_window=law.longest_window,
        distinct_residual_ratio=float(np.abs(fitted / counted - 1).max()),
        residual_ratio=max(apart),
    )
