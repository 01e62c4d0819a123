"""Times what a GPU does with work, without the time the host takes to hand it over."""

from collections.abc import Callable

import torch

from tiercast_profiles.units import GIB, NS_PER_MS
from tiercast_runtime.probes.timing import cuda_event

Timed = Callable[[Callable[[], object]], float]
FILL_BYTES = GIB  # as long to fill as it takes to enqueue a lookup, and many times the cache


class DeviceTimer:
    """Times work that is enqueued behind a fill, in ns of the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._filled = torch.empty(FILL_BYTES // 8, dtype=torch.int64, device=device)

    def __call__(self, work: Callable[[], object]) -> float:
        """Time of what ``work`` enqueues."""
        begin, end = cuda_event(), cuda_event()
        torch.cuda.synchronize(self._device)
        self._filled.zero_()
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * NS_PER_MS
