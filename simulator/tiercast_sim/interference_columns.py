"""Many steps at once where compute and a running lookup slow each other.

No max–plus form exists: speeds change whenever one of the two starts or ends. But a step has few such moments, two an
Engram layer, and every step takes its n-th one together with all others. Progress is integer, in ns × speed, as in
``links``, so that the result is that of the event engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiercast_sim.maxplus import Column, StepColumns
from tiercast_sim.work import SPEED_ONE

LONGEST_NS = 2**63 // SPEED_ONE
"""A duration of this many ns, times its speed, no longer fits 64 bits."""


@dataclass(frozen=True, slots=True)
class LookupColumns:
    """Lookups of a step, ``[num_layers, num_steps] int64`` each: length at full speed, speed alone and beside compute.

    All lengths are positive. ``wait_ns`` is how long the worker takes to begin each; nobody slows anybody meanwhile.
    """

    duration_ns: Column
    speed_alone: Column
    speed_beside: Column
    wait_ns: Column


class _Steps:
    """Where every step stands: its clock, its worker, and when each lookup was ready."""

    def __init__(self, pre_ns: Column, lookups: LookupColumns) -> None:
        self.now = pre_ns.copy()
        self.num_layers = len(lookups.duration_ns)
        self.lookups = lookups
        self.head = np.zeros(len(pre_ns), dtype=np.int64)
        self.left = lookups.duration_ns[0] * SPEED_ONE
        self.waiting = lookups.wait_ns[0].copy()
        self.ready = np.empty_like(lookups.duration_ns)

    def end_heads(self, which: Column) -> None:
        """Take ended lookups off the workers of these steps; they turn to the next ones."""
        self.ready[self.head[which], which] = self.now[which]
        self.head[which] += 1
        busy = which[self.head[which] < self.num_layers]
        self.left[busy] = self.lookups.duration_ns[self.head[busy], busy] * SPEED_ONE
        self.waiting[busy] = self.lookups.wait_ns[self.head[busy], busy]

    def turn(self, which: Column, most_ns: Column | None = None) -> Column:
        """Let workers of these steps come nearer to beginning their lookup, by no more than ``most_ns``; how far."""
        elapsed: Column = self.waiting[which] if most_ns is None else np.minimum(self.waiting[which], most_ns)
        self.now[which] += elapsed
        self.waiting[which] -= elapsed
        return elapsed

    def compute(self, segment_ns: Column, compute_speed: int) -> None:
        """Run a segment of compute to its end; lookups go on beside it."""
        left = segment_ns * SPEED_ONE
        running = np.flatnonzero(left > 0)
        while len(running):
            is_alone = self.head[running] == self.num_layers
            alone = running[is_alone]
            self.now[alone] += -(-left[alone] // SPEED_ONE)
            running = running[~is_alone]
            left[running] -= self.turn(running, -(-left[running] // SPEED_ONE)) * SPEED_ONE
            running = running[left[running] > 0]
            speed = self.lookups.speed_beside[self.head[running], running]
            elapsed = np.minimum(-(-left[running] // compute_speed), -(-self.left[running] // speed))
            self.now[running] += elapsed
            left[running] -= elapsed * compute_speed
            self.left[running] -= elapsed * speed
            self.end_heads(running[self.left[running] <= 0])
            running = running[left[running] > 0]

    def wait(self, layer: int) -> None:
        """Stand still until the rows of a layer are there."""
        waiting = np.flatnonzero(self.head <= layer)
        while len(waiting):
            self.turn(waiting)
            self.now[waiting] += -(-self.left[waiting] // self.lookups.speed_alone[self.head[waiting], waiting])
            self.end_heads(waiting)
            waiting = waiting[self.head[waiting] <= layer]


def interfering_columns(
    pre_ns: Column, segments_ns: Column, lookups: LookupColumns, compute_speed: int
) -> tuple[StepColumns, Column] | None:
    """Steps that hand over all lookups when their ids are known, and the time each lookup took ``[num_layers, …]``.

    None where a length times its speed outgrows 64 bits.
    """
    if max(int(segments_ns.max()), int(lookups.duration_ns.max())) >= LONGEST_NS // 2:
        return None
    steps = _Steps(pre_ns, lookups)
    wanted, stall = np.empty_like(lookups.duration_ns), np.empty_like(lookups.duration_ns)
    for layer in range(len(lookups.duration_ns)):
        steps.compute(segments_ns[layer], compute_speed)
        wanted[layer] = steps.now
        steps.wait(layer)
        stall[layer] = steps.now - wanted[layer]
    steps.compute(segments_ns[-1], compute_speed)
    issued = np.broadcast_to(pre_ns, wanted.shape)
    service = np.diff(steps.ready, axis=0, prepend=pre_ns[np.newaxis]) - lookups.wait_ns
    return StepColumns(steps.now, wanted, issued, steps.ready, stall), service


def interfering_step(
    pre_ns: int, segments_ns: Sequence[int], lookups: Sequence[tuple[int, ...]], compute_speed: int
) -> int:
    """Length of one such step; of each lookup its length, its speed alone and beside compute, and its wait."""
    now_ns, head = pre_ns, 0
    left, waiting = lookups[0][0] * SPEED_ONE, lookups[0][3]
    for layer, segment_ns in enumerate(segments_ns):
        todo = segment_ns * SPEED_ONE
        while todo > 0:
            if head == len(lookups):
                now_ns += -(-todo // SPEED_ONE)
                break
            if waiting:
                elapsed = min(-(-todo // SPEED_ONE), waiting)
                now_ns += elapsed
                todo -= elapsed * SPEED_ONE
                waiting -= elapsed
                continue
            speed = lookups[head][2]
            elapsed = min(-(-todo // compute_speed), -(-left // speed))
            now_ns += elapsed
            todo -= elapsed * compute_speed
            left -= elapsed * speed
            if left <= 0:
                head += 1
                left, waiting = (lookups[head][0] * SPEED_ONE, lookups[head][3]) if head < len(lookups) else (0, 0)
        while layer < len(lookups) and head <= layer:
            now_ns += waiting - (-left // lookups[head][1])
            head += 1
            left, waiting = (lookups[head][0] * SPEED_ONE, lookups[head][3]) if head < len(lookups) else (0, 0)
    return now_ns
