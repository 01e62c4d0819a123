"""A step as a max–plus recursion: no events, no queue objects, only sums and maxima.

One worker serves the lookups in the order they were handed over, so that a lookup is ready at
``max(handed over, worker free) + its time``, what the worker takes to begin it included; a segment of compute ends at
its start plus its length, and an Engram layer goes on at the maximum of the moment it is reached and the moment its
rows are there. It holds where a lookup keeps one speed from start to end: nothing shares its resources, and compute and
lookups do not slow each other.
The form for one step takes whole numbers and is the clock of plans that are made by time; the form for many takes
columns, one entry per step or scenario.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tiercast_profiles.scenario import Prefetch

Column = npt.NDArray[np.int64]


class StepTimes(NamedTuple):
    """Durations of one step in ns: compute before the ids are known, segments of compute, lookups by layer.

    ``segments_ns`` has one entry more than ``lookups_ns``; ``early_ns`` are lookups for the next step (``prev_step``).
    """

    pre_ns: int
    segments_ns: tuple[int, ...]
    lookups_ns: tuple[int, ...] = ()
    early_ns: tuple[int, ...] = ()


class Carry(NamedTuple):
    """What one step leaves to the next: when it ended, when the worker is free, when early lookups are ready."""

    now_ns: int = 0
    free_ns: int = 0
    early_ready_ns: tuple[int, ...] = ()


class LayerPassage(NamedTuple):
    """One Engram layer: when it wanted its rows, when they were handed over and ready, how long it stood."""

    wanted_ns: int
    issued_ns: int
    ready_ns: int
    stall_ns: int


def step(times: StepTimes, prefetch: Prefetch, carry: Carry) -> tuple[Carry, tuple[LayerPassage, ...]]:
    """One step from ``carry.now_ns`` on: what it leaves behind, and how its Engram layers passed."""
    now_ns = known_ns = carry.now_ns + times.pre_ns
    free_ns = carry.free_ns
    ready: list[int] = []
    early: list[int] = []
    if prefetch != "off":
        for lookups_ns, ends in ((times.lookups_ns, ready), (times.early_ns, early)):
            for lookup_ns in lookups_ns:
                if lookup_ns:  # a lookup of no rows is ready at once and queues behind nothing
                    free_ns = max(known_ns, free_ns) + lookup_ns
                ends.append(free_ns if lookup_ns else known_ns)
    passages = []
    for index, lookup_ns in enumerate(times.lookups_ns):
        wanted_ns = now_ns + times.segments_ns[index]
        issued_ns = known_ns
        if prefetch == "off":
            issued_ns = wanted_ns
            if lookup_ns:
                free_ns = max(wanted_ns, free_ns) + lookup_ns
            ready.append(free_ns if lookup_ns else wanted_ns)
        now_ns = max(wanted_ns, ready[index])
        if carry.early_ready_ns:
            now_ns = max(now_ns, carry.early_ready_ns[index])
        passages.append(LayerPassage(wanted_ns, issued_ns, ready[index], now_ns - wanted_ns))
    end_ns = now_ns + sum(times.segments_ns[len(times.lookups_ns) :])
    return Carry(end_ns, free_ns, tuple(early)), tuple(passages)


@dataclass(frozen=True, slots=True)
class StepColumns:
    """Many independent steps at once; times in ns after each step's own start.

    ``duration_ns`` ``[num_steps] int64``; the others ``[num_layers, num_steps] int64``.
    """

    duration_ns: Column
    wanted_ns: Column
    issued_ns: Column
    ready_ns: Column
    stall_ns: Column


def step_columns(pre_ns: Column, segments_ns: Column, lookups_ns: Column, prefetch: Prefetch) -> StepColumns:
    """Steps that leave nothing to each other, all at once: the worker of each is free when it starts.

    Args:
        pre_ns: ``[num_steps] int64``.
        segments_ns: ``[num_layers + 1, num_steps] int64``.
        lookups_ns: ``[num_layers, num_steps] int64``.
        prefetch: ``off``, or any mode that hands over all of a step's own lookups when its ids are known.
    """
    wanted, issued, ready, stall = (np.empty_like(lookups_ns) for _ in range(4))
    now = pre_ns.copy()
    free = pre_ns.copy()
    for index, lookup in enumerate(lookups_ns):
        np.add(now, segments_ns[index], out=wanted[index])
        issued[index] = wanted[index] if prefetch == "off" else pre_ns
        if prefetch == "off":
            np.add(wanted[index], lookup, out=ready[index])
        else:
            free = free + lookup
            ready[index] = np.where(lookup > 0, free, pre_ns)
        np.maximum(wanted[index], ready[index], out=now)
        np.subtract(now, wanted[index], out=stall[index])
    for segment in segments_ns[len(lookups_ns) :]:
        now += segment
    return StepColumns(now, wanted, issued, ready, stall)
