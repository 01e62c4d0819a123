"""Times what a GPU does with work, without the time the host takes to hand it over."""

from collections.abc import Callable

import torch

from tiercast_profiles.units import GIB, NS_PER_MS
from tiercast_runtime.probes.timing import cuda_event

Timed = Callable[[Callable[[], object]], float]
FILL_BYTES = GIB  # many times the cache
MOST_RETRIES = 6
MOST_PASSES = 1 << MOST_RETRIES  # over the buffer: some 30 ms, behind which no host is late with a lookup


class DeviceTimer:
    """Times work that is enqueued while the device is still going through a buffer, in ns of the device.

    The buffer is written, so that nothing of before is in the cache, and then read, so that what is in the cache need
    not be written back within the sample. Where the device was done before all was enqueued, it is enqueued again
    behind twice as many passes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._filled = torch.empty(FILL_BYTES // 8, dtype=torch.int64, device=device)
        self._num_passes = 1

    def __call__(self, work: Callable[[], object]) -> float:
        """Time of what ``work`` enqueues; it is called more than once where the host was late. The last time counts."""
        while True:
            begin, end = cuda_event(), cuda_event()
            torch.cuda.synchronize(self._device)
            for _ in range(self._num_passes):
                self._filled.zero_()
                self._filled.sum()
            begin.record()
            work()
            end.record()
            was_busy = not begin.query()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            end.synchronize()
            if was_busy or self._num_passes >= MOST_PASSES:
                return float(begin.elapsed_time(end)) * NS_PER_MS
            self._num_passes *= 2
