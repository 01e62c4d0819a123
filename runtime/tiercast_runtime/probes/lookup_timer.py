"""Times a lookup where the runtime makes it, with caches as a step leaves them.

Paths the host drives run in the prefetcher's worker thread, the others in the compute thread. Before each lookup the
compute thread streams a matrix through the caches for as long as a short step lasts, as the layers before a lookup do:
a gather repeated in a loop finds its code, its staging memory and a busy core waiting, and took half the time it takes
in a step. A few tenths of a millisecond in between are not enough: the worker is still awake.
"""

from collections.abc import Callable
from typing import Self

import torch

from tiercast_runtime.paths.base import LookupPath
from tiercast_runtime.prefetch import Prefetcher
from tiercast_runtime.probes.timing import Clock

DISTURBING_SIDE = 1448  # a matrix of 8 MiB: the weights of a small layer, more than a private cache holds
NUM_DISTURBING = 16  # about 5 ms, a short step: the worker falls asleep and its caches fill
NUM_DISTURBING_A_DRIVE = 48  # about 16 ms: a core and a drive sleep deeper the longer nothing is asked of them


def disturber(num_products: int = NUM_DISTURBING) -> Callable[[], None]:
    """What streams a matrix of 8 MiB through the caches of the thread that calls it, so many times."""
    matrix, vector = torch.ones(DISTURBING_SIDE, DISTURBING_SIDE), torch.ones(1, DISTURBING_SIDE)

    def disturb() -> None:
        for _ in range(num_products):
            torch.mm(vector, matrix)

    return disturb


class LookupTimer:
    """Times lookups of one path over one table; host memory to host memory.

    Args:
        path: what to time; it stays its owner's.
        clock: ns.
        num_disturbing: products of a vector with a matrix of 8 MiB before each lookup.
    """

    def __init__(self, path: LookupPath, clock: Clock, *, num_disturbing: int = NUM_DISTURBING) -> None:
        self._path = path
        self._clock = clock
        self._disturb = disturber(num_disturbing)
        self._prefetcher = Prefetcher(path, "step_entry", clock) if path.is_host_driven else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def time_ns(self, row_ids: torch.Tensor) -> float:
        """Time of one lookup of ``row_ids [T, R] int64``, from its start in the thread that makes it to its rows."""
        self._disturb()
        if self._prefetcher is None:
            start_ns = self._clock()
            self._path.fetch(0, row_ids)
            return float(self._clock() - start_ns)
        self._prefetcher.begin_step(row_ids.unsqueeze(0))
        self._prefetcher.rows_for(0)
        (timing,) = self._prefetcher.take_timings()
        return float(timing.ready_ns - timing.started_ns)

    def close(self) -> None:
        """Stop the worker."""
        if self._prefetcher is not None:
            self._prefetcher.close()
