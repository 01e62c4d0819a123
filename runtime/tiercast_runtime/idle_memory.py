"""Tables in host memory that stand still, kept mapped by the host of a virtual machine.

The host may take memory away that nothing has read for some seconds, and gives it back at the first touch: microseconds
a page, once, of which the guest's own counters say nothing. An engine that serves reads all through its tables; one
that waits for its turn, or a table between two samples of a probe, does not, and would be found slow for a reason that
is not its own. Reading a byte of every page every few seconds prevents that (``benchmarks/bench_idle_memory.py``).
"""

import time
from collections.abc import Callable
from typing import Protocol
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from tiercast_profiles.gather import SMALL_PAGE_BYTES
from tiercast_profiles.units import NS_PER_S

EVERY_NS = 2 * NS_PER_S  # where memory was taken away, little had gone after ten seconds
MOST_SHARE = 20  # a twentieth of the time at most, however large the tables are


class Block(Protocol):
    """A block of host memory: ``array [n] uint8``, empty once it is closed."""

    array: npt.NDArray[np.uint8]

    @property
    def is_pinned(self) -> bool:
        """Whether it is locked in memory, which a host cannot take away."""
        ...


class Touch:
    """Touches every page of some blocks, now and then.

    Args:
        clock: ns.
    """

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._blocks: WeakSet[Block] = WeakSet()
        self._clock = clock
        self._next_ns = 0

    def watch(self, block: Block) -> None:
        """Touch this one too, as long as there is anything that holds it."""
        self._blocks.add(block)

    def __call__(self) -> bool:
        """Touch all that are not pinned, where it is time again; whether it was."""
        begun_ns = self._clock()
        if begun_ns < self._next_ns:
            return False
        for block in list(self._blocks):
            if block.is_pinned:
                continue
            array = block.array
            if len(array):
                array[::SMALL_PAGE_BYTES].max()
        self._next_ns = begun_ns + max(EVERY_NS, MOST_SHARE * (self._clock() - begun_ns))
        return True


touch_blocks = Touch()
"""Touches the host blocks of this process: see :class:`Touch`."""
