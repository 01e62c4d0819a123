"""Lookups and compute that take now longer and now less: how long steps are, and stand still in the mean.

A stall is what a lookup takes beyond its window. Where the two are about as long, a lookup of the mean length may just
fit into the mean window while every other one does not, so that the mean stall is more than that of the means.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tiercast_profiles.scenario import Prefetch
from tiercast_sim.maxplus import step_columns
from tiercast_sim.work import SPEED_ONE, StepWork

Column = npt.NDArray[np.int64]

ALWAYS_ALIKE: tuple[float, ...] = ()


class Cases:
    """Times over their mean in equally likely cases, by size.

    Args:
        by_size: size (rows or tokens) to ratios, equally many for all sizes; none: nothing is known.
    """

    def __init__(self, by_size: Mapping[int, tuple[float, ...]]) -> None:
        self._sizes_log = np.log(sorted(by_size))
        self._columns = np.array([by_size[size] for size in sorted(by_size)]).T
        self._found: dict[int, tuple[float, ...]] = {}

    def at(self, size: int) -> tuple[float, ...]:
        """Ratios at a size, with a mean of 1; empty where nothing is known.

        Straight lines over the logarithm of the size between those that were timed, held outside.
        """
        if not self.are_known:
            return ALWAYS_ALIKE
        known = self._found.get(size)
        if known is None:
            size_log = np.log(max(1, size))
            ratios = np.array([np.interp(size_log, self._sizes_log, column) for column in self._columns])
            known = self._found[size] = tuple((ratios / ratios.mean()).tolist())
        return known

    @property
    def are_known(self) -> bool:
        """True where any size was timed."""
        return len(self._columns) > 0

    def lengths_ns(self, num_tokens: Column, computing_ns: Column, else_ns: Column) -> Column | None:
        """Steps as long as they are in every case, which percentiles are taken from; None where nothing is known.

        Assumption A110: what a step computes has the cases of A109, one step's independent of the next one's; what it
        does else, host work in front of its lookups and standing still, is as long as in the mean.

        Args:
            num_tokens: ``[num_steps] int64``, of each step.
            computing_ns: ``[num_steps] int64``, what it computes.
            else_ns: ``[num_steps] int64``, the rest of its length.

        Returns:
            ``[num_steps * num_cases] int64``.
        """
        if not self.are_known:
            return None
        sizes, places = np.unique(num_tokens, return_inverse=True)
        ratios = np.array([self.at(size) for size in sizes.tolist()])[places]
        return (np.rint(ratios * computing_ns[:, None]).astype(np.int64) + else_ns[:, None]).ravel()


def mean_stalls_ns(work: StepWork, prefetch: Prefetch, speed_beside: int = SPEED_ONE) -> tuple[int, ...]:
    """Mean time a step has stood still by each Engram layer, all earlier ones included; empty where no case stalls.

    Assumption A107: all lookups of a step take the same of the equally likely cases, the worker is free when they are
    handed over, and nobody else is on the drive. Lookups run at their speed beside compute throughout.

    Assumption A109: all segments of a step take the same of theirs, whichever the lookups take; this counts where
    lookups lie apart too.

    Args:
        work: the step; lookups without ``time_ratios`` never differ.
        prefetch: with ``off`` a lookup is all stall, and the mean that of the mean lookup.
        speed_beside: of a lookup beside compute, in units of 1e-9.
    """
    lookups = work.lookups
    if prefetch == "off" or not any(lookup.time_ratios for lookup in lookups):
        return ()
    shortest = min(work.time_ratios, default=1.0)
    alone_ns = [lookup.duration_ns * SPEED_ONE / speed_beside for lookup in lookups]
    latest_ns, window_ns = 0.0, 0.0
    for lookup, duration_ns, segment_ns in zip(lookups, alone_ns, work.segments_ns, strict=False):
        latest_ns += lookup.wait_ns + duration_ns * max(lookup.time_ratios, default=1.0)
        window_ns += segment_ns * shortest
        if latest_ns > window_ns:
            break
    else:
        return ()
    of_compute = np.array(work.time_ratios or (1.0,))
    num_cases = max(len(lookup.time_ratios) for lookup in lookups)
    on_worker = [
        lookup.wait_ns + np.rint(duration_ns * np.array(lookup.time_ratios or (1.0,) * num_cases))
        for lookup, duration_ns in zip(lookups, alone_ns, strict=True)
    ]
    # Every case of the lookups meets every case of compute.
    lookups_ns = np.repeat(_whole(on_worker), len(of_compute), axis=1)
    segments_ns = np.tile(_whole(np.rint(np.outer(work.segments_ns, of_compute))), num_cases)
    steps = step_columns(np.zeros(lookups_ns.shape[1], dtype=np.int64), segments_ns, lookups_ns, prefetch)
    return tuple(np.rint(np.cumsum(steps.stall_ns, axis=0).mean(axis=1)).astype(int).tolist())


def _whole(values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    return np.array(values, dtype=np.int64)
