"""What capturing a step needs of CUDA: graphs that share one memory pool, a side stream, and events that outlive both.

An event recorded while a stream is captured is an edge of the graph and nothing else. One that must be read after each
replay is made *external* (cudaEventRecordExternal): the graph then records it like any stream does.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from tiercast_runtime.prefetch_cuda import EventClock


class Event(Protocol):
    """A point in a stream."""

    def record(self) -> None:
        """The point is here, in the current stream."""
        ...


class Graph(Protocol):
    """Captured work."""

    def replay(self) -> None:
        """Enqueue it again."""
        ...


class GraphBackend(Protocol):
    """Captures work of one device; everything is enqueued on the current stream unless it says otherwise."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """Run ``work`` once, so that nothing in it happens for the first time, then capture it."""
        ...

    def edge(self) -> Event:
        """An event for order between streams inside one capture."""
        ...

    def timer(self) -> Event:
        """An event whose time can be read after each replay."""
        ...

    def side(self) -> AbstractContextManager[object]:
        """Enqueue on the side stream inside this context."""
        ...

    def side_waits(self, event: Event) -> None:
        """The side stream goes on only after ``event``."""
        ...

    def main_waits(self, event: Event) -> None:
        """The current stream goes on only after ``event``."""
        ...

    def host_ns(self, timer: Event) -> int:
        """When a timer that the device has passed was passed, on the host's clock."""
        ...

    def end_step(self) -> None:
        """Called between steps, when the device is idle."""
        ...


class CudaGraphs:
    """Capture on a CUDA device. All graphs share one memory pool: no two of them ever run at once."""

    def __init__(self, device: torch.device, clock: Callable[[], int]) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._main = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves these untyped
        self._side = torch.cuda.Stream(device, priority=0)  # type: ignore[no-untyped-call]
        self._clock = EventClock(clock)

    def capture(self, work: Callable[[], None]) -> Graph:
        """See ``GraphBackend.capture``."""
        self._main.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._main):
            work()  # compiles kernels, makes constants and library handles
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream(self._device)
        try:
            # thread_local: a lookup thread may allocate meanwhile, which a global capture would forbid
            with torch.cuda.graph(graph, pool=self._pool, stream=self._main, capture_error_mode="thread_local"):
                work()
        except BaseException:
            torch.cuda.set_stream(before)  # torch leaves the capture's stream current where ending it fails too
            raise
        torch.cuda.synchronize(self._device)
        return graph

    def edge(self) -> Event:
        """See ``GraphBackend.edge``."""
        return torch.cuda.Event()  # type: ignore[no-untyped-call]

    def timer(self) -> Event:
        """See ``GraphBackend.timer``."""
        return torch.cuda.Event(enable_timing=True, external=True)  # type: ignore[no-untyped-call]

    def side(self) -> AbstractContextManager[object]:
        """See ``GraphBackend.side``."""
        return torch.cuda.stream(self._side)

    def side_waits(self, event: Event) -> None:
        """See ``GraphBackend.side_waits``."""
        self._side.wait_event(_as_cuda(event))

    def main_waits(self, event: Event) -> None:
        """See ``GraphBackend.main_waits``."""
        torch.cuda.current_stream(self._device).wait_event(_as_cuda(event))

    def host_ns(self, timer: Event) -> int:
        """See ``GraphBackend.host_ns``."""
        return self._clock.ns(_as_cuda(timer))

    def end_step(self) -> None:
        """See ``GraphBackend.end_step``."""
        self._clock.refresh_if_old()


def _as_cuda(event: Event) -> torch.cuda.Event:
    assert isinstance(event, torch.cuda.Event), "this backend makes CUDA events"
    return event
