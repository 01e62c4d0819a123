"""Lookups that take now longer and now less: how long a step stands still for them in the mean.

A stall is what a lookup takes beyond its window. Where the two are about as long, a lookup of the mean length may just
fit while every other one does not, so that the mean stall is more than that of the mean lookup.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from tiercast_profiles.hardware import TimeSpread
from tiercast_profiles.scenario import Prefetch
from tiercast_sim.maxplus import step_columns
from tiercast_sim.work import SPEED_ONE, StepWork

ALWAYS_ALIKE: tuple[float, ...] = ()


@lru_cache(maxsize=4096)
def ratios_at(spreads: tuple[TimeSpread, ...], num_rows: int) -> tuple[float, ...]:
    """Times of lookups of so many rows over their mean, in equally likely cases; empty where nothing is known.

    Straight lines over the logarithm of rows between the sizes that were timed, held outside. Their mean is 1.
    """
    if not spreads:
        return ALWAYS_ALIKE
    known = sorted(spreads, key=lambda spread: spread.num_rows)
    rows_log = np.log([spread.num_rows for spread in known])
    columns = np.array([spread.time_ratios for spread in known])
    found = np.array([np.interp(np.log(max(1, num_rows)), rows_log, column) for column in columns.T])
    return tuple((found / found.mean()).tolist())


def mean_stalls_ns(work: StepWork, prefetch: Prefetch, speed_beside: int = SPEED_ONE) -> tuple[int, ...]:
    """Mean time a step has stood still by each Engram layer, all earlier ones included; empty where no case stalls.

    Assumption A107: all lookups of a step take the same of the equally likely cases, the worker is free when they are
    handed over, and nobody else is on the drive. Lookups run at their speed beside compute throughout.

    Args:
        work: the step; lookups without ``time_ratios`` never differ.
        prefetch: with ``off`` a lookup is all stall, and the mean that of the mean lookup.
        speed_beside: of a lookup beside compute, in units of 1e-9.
    """
    lookups = work.lookups
    if prefetch == "off" or not any(lookup.time_ratios for lookup in lookups):
        return ()
    alone_ns = [lookup.duration_ns * SPEED_ONE / speed_beside for lookup in lookups]
    latest_ns, window_ns = 0.0, 0
    for lookup, duration_ns, segment_ns in zip(lookups, alone_ns, work.segments_ns, strict=False):
        latest_ns += lookup.wait_ns + duration_ns * max(lookup.time_ratios, default=1.0)
        window_ns += segment_ns
        if latest_ns > window_ns:
            break
    else:
        return ()
    num_cases = max(len(lookup.time_ratios) for lookup in lookups)
    on_worker = np.array(
        [
            np.full(num_cases, lookup.wait_ns) + np.rint(duration_ns * _cases(lookup.time_ratios, num_cases))
            for lookup, duration_ns in zip(lookups, alone_ns, strict=True)
        ],
        dtype=np.int64,
    )
    segments = np.repeat(np.array(work.segments_ns, dtype=np.int64)[:, np.newaxis], num_cases, axis=1)
    steps = step_columns(np.zeros(num_cases, dtype=np.int64), segments, on_worker, prefetch)
    return tuple(np.rint(np.cumsum(steps.stall_ns, axis=0).mean(axis=1)).astype(int).tolist())


def _cases(ratios: Sequence[float], num_cases: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return np.array(ratios) if ratios else np.ones(num_cases)
