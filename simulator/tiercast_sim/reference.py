"""A step nanosecond by nanosecond and layer by layer: slow, plain, and independent of every other form.

Nothing here is shared with the simulator, the closed form or the max–plus recursion but the durations they are given;
tests run all of them on the same steps. Two machines tick: compute works through its layers, a worker through a queue.
"""

from collections import deque
from dataclasses import dataclass, field

from tiercast_profiles.scenario import Prefetch


@dataclass(slots=True)
class _Rows:
    """Rows of one layer on their way: ns until the worker begins, of work left, and whether they have arrived."""

    left_ns: int
    wait_ns: int = 0

    @property
    def is_here(self) -> bool:
        return self.left_ns == 0


@dataclass(frozen=True, slots=True)
class LayeredStep:
    """Durations of one step: ``layers_ns`` of every layer of the model, ``engram_layers`` which of them wait for rows.

    The tail behind the last layer (head, sampling) is one more entry of ``layers_ns``. ``waits_ns`` pass before the
    worker begins each lookup; empty: none.
    """

    pre_ns: int
    layers_ns: tuple[int, ...]
    engram_layers: tuple[int, ...]
    lookups_ns: tuple[int, ...]
    early_ns: tuple[int, ...] = ()
    waits_ns: tuple[int, ...] = ()

    def asked(self) -> tuple[tuple[int, int], ...]:
        """Each lookup's wait and work."""
        return tuple(zip(self.waits_ns or (0,) * len(self.lookups_ns), self.lookups_ns, strict=True))


@dataclass(slots=True)
class Machine:
    """The clock, the worker's queue, and rows that were asked for one step early."""

    now_ns: int = 0
    queue: deque[_Rows] = field(default_factory=deque)
    early: list[_Rows] = field(default_factory=list)

    def tick(self) -> None:
        """One nanosecond: the first rows in the queue come nearer."""
        self.now_ns += 1
        if self.queue and self.queue[0].wait_ns:
            self.queue[0].wait_ns -= 1
        elif self.queue:
            self.queue[0].left_ns -= 1
            if self.queue[0].is_here:
                self.queue.popleft()

    def ask(self, lookup_ns: int, wait_ns: int = 0) -> _Rows:
        """Put a lookup behind all that were asked for before."""
        rows = _Rows(lookup_ns, wait_ns)
        if lookup_ns:
            self.queue.append(rows)
        return rows


def run_step(step: LayeredStep, prefetch: Prefetch, machine: Machine) -> tuple[int, tuple[int, ...]]:
    """Length of a step and the ns each Engram layer stood still, one tick at a time."""
    start_ns = machine.now_ns
    promised, machine.early = machine.early, []
    for _ in range(step.pre_ns):
        machine.tick()
    rows: list[_Rows] = []
    if prefetch != "off":
        rows = [machine.ask(lookup_ns, wait_ns) for wait_ns, lookup_ns in step.asked()]
        machine.early = [machine.ask(lookup_ns) for lookup_ns in step.early_ns]
    stalls = []
    for layer, layer_ns in enumerate(step.layers_ns):
        if layer in step.engram_layers:
            index = step.engram_layers.index(layer)
            if prefetch == "off":
                rows.append(machine.ask(step.lookups_ns[index]))
            needed = [rows[index], *promised[index : index + 1]]
            stall_ns = 0
            while not all(one.is_here for one in needed):
                machine.tick()
                stall_ns += 1
            stalls.append(stall_ns)
        for _ in range(layer_ns):
            machine.tick()
    return machine.now_ns - start_ns, tuple(stalls)
