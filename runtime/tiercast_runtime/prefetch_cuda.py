"""Prefetch on a GPU: one side stream beside the compute stream, an event per layer between the two.

Paths that only enqueue device work (``device``, ``uva``) are enqueued by the caller; paths the host drives
(``cpu_gather``, ``disk``) run in one worker thread that owns the side stream. All times are read from events and put on
the host's clock, so a timeline shows both.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from tiercast_profiles.scenario import Prefetch
from tiercast_profiles.units import NS_PER_MS, NS_PER_S
from tiercast_runtime.paths.base import LookupPath, StagedRows
from tiercast_runtime.prefetch_lanes import Job, LookupTiming, Worker

_ANCHOR_LIFE_NS = NS_PER_S  # elapsed_time is a float32 of milliseconds: after one second its step is 60 ns


class EventClock:
    """Puts GPU events on the host's clock through an event whose host time is known."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._anchor = _event()
        self._anchor_ns = 0
        self.refresh()

    def refresh(self) -> None:
        """Take a new anchor; the current stream is idle afterwards."""
        anchor = _event()
        anchor.record()
        anchor.synchronize()
        self._anchor, self._anchor_ns = anchor, self._clock()

    def refresh_if_old(self) -> None:
        """Take a new anchor where the old one has become imprecise."""
        if self._clock() - self._anchor_ns > _ANCHOR_LIFE_NS:
            self.refresh()

    def ns(self, event: torch.cuda.Event) -> int:
        """Host time of an event that has happened."""
        elapsed_ms = float(self._anchor.elapsed_time(event))
        return self._anchor_ns + round(elapsed_ms * NS_PER_MS)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped


@dataclass(slots=True)
class _Flight(Job):
    """One lookup and the events around it."""

    issued: torch.cuda.Event = field(default_factory=_event)
    started: torch.cuda.Event = field(default_factory=_event)
    ready: torch.cuda.Event = field(default_factory=_event)
    arrived: torch.cuda.Event = field(default_factory=_event)


class CudaLane:
    """Lookups of a step on one side stream, those of the next one behind them, or on the compute stream (``off``)."""

    def __init__(self, path: LookupPath, mode: Prefetch, clock: Callable[[], int]) -> None:
        self._path = path
        self._is_prefetching = mode != "off"
        self._clock = clock
        self._event_clock = EventClock(clock)
        # Priority 0 is the lowest there is: where blocks compete for multiprocessors, lookups do not go first.
        self._side = torch.cuda.Stream(path.device, priority=0)  # type: ignore[no-untyped-call]
        self._worker = Worker(self._serve) if path.is_host_driven and self._is_prefetching else None
        self._row_ids: torch.Tensor | None = None
        self._pending: dict[int, _Flight] = {}
        self._early: dict[int, deque[_Flight]] = defaultdict(deque)
        self._taken: list[_Flight] = []

    def begin_step(self, row_ids: torch.Tensor) -> None:
        """Start the lookups of all layers behind what the compute stream has been given so far."""
        assert not self._pending, "the rows of the step before have not all been taken"
        self._row_ids = row_ids
        if self._is_prefetching:
            self._pending = {flight.layer_index: flight for flight in self._start(row_ids, is_early=False)}

    def look_ahead(self, row_ids: torch.Tensor) -> None:
        """Start lookups for the next step behind those of this one."""
        for flight in self._start(row_ids, is_early=True):
            self._early[flight.layer_index].append(flight)

    def _start(self, row_ids: torch.Tensor, *, is_early: bool) -> list[_Flight]:
        issued, issued_ns = _event(), self._clock()
        issued.record()
        if row_ids.is_cuda:
            row_ids.record_stream(self._side)
        flights = [
            _Flight(layer_index, row_ids[layer_index], issued_ns, is_early, issued=issued)
            for layer_index in range(len(row_ids))
        ]
        for flight in flights:
            if self._worker is not None:
                self._worker.put(flight)
                continue
            try:
                self._enqueue(flight)
            except Exception as error:  # as a worker's failure: raised where the rows are asked for
                flight.error = error
        return flights

    def _enqueue(self, flight: _Flight) -> None:
        with torch.cuda.stream(self._side):
            self._side.wait_event(flight.issued)
            flight.started.record()
            flight.staged = self._path.fetch(flight.layer_index, flight.row_ids)
            flight.ready.record()
            flight.staged.keep()

    def _serve(self, job: Job) -> None:
        assert isinstance(job, _Flight), "this lane puts flights"
        torch.cuda.set_device(self._path.device)
        self._enqueue(job)

    def rows_for(self, layer_index: int) -> StagedRows:
        """Make the compute stream wait for the layer's rows, and the host too where the host moves them."""
        if not self._is_prefetching:
            assert self._row_ids is not None, "begin_step comes before rows_for"
            issued, ready = _event(), _event()
            issued.record()
            row_ids = self._row_ids[layer_index]
            flight = _Flight(
                layer_index, row_ids, self._clock(), issued=issued, started=issued, ready=ready, arrived=issued
            )
            try:
                flight.staged = self._path.fetch(layer_index, row_ids)
            except BaseException:
                self._abandon()
                raise
            ready.record()
            flight.staged.keep()
            self._taken.append(flight)
            return flight.staged
        return self._take(self._pending.pop(layer_index, None))

    def early_rows_for(self, layer_index: int) -> StagedRows:
        """The same for the layer's oldest lookup that was made ahead; its rows stay valid as long as they are held."""
        return self._take(self._early[layer_index].popleft())

    def _take(self, flight: _Flight | None) -> StagedRows:
        assert flight is not None, "begin_step comes before rows_for, and a layer's rows are taken once"
        current = torch.cuda.current_stream(self._path.device)
        flight.arrived.record()
        if self._worker is not None:
            self._worker.wait(flight)
        if flight.error is not None:
            self._abandon()
            raise flight.error
        staged = flight.staged
        assert staged is not None, "a job without an error has rows"
        current.wait_event(flight.ready)
        for tensor in (staged.rows, staged.inverse):
            if tensor is not None:
                tensor.record_stream(current)  # its memory belongs to the side stream's pool
        self._taken.append(flight)
        return staged

    def _abandon(self) -> None:
        if self._worker is not None:
            for flight in (*self._pending.values(), *(f for flights in self._early.values() for f in flights)):
                self._worker.wait(flight)
        self._pending.clear()
        self._early.clear()
        self._taken.clear()  # a step that fails is in no record, nor in the next step's samples

    def clear_cache(self) -> None:
        """Forget cached rows; between steps the path is idle."""
        self._path.clear_cache()

    def fill_cache(self, layer_index: int, row_ids: npt.NDArray[np.int64]) -> None:
        """Fill an empty cache; between steps the path is idle."""
        self._path.fill_cache(layer_index, row_ids)

    def take_timings(self) -> list[LookupTiming]:
        """Read the events of the lookups taken; waits until the compute stream has passed them."""
        timings = []
        for flight in self._taken:
            flight.ready.synchronize()
            flight.arrived.synchronize()
            staged = flight.staged
            assert staged is not None, "only lookups with rows are taken"
            ready_ns = self._event_clock.ns(flight.ready)
            timings.append(
                LookupTiming(
                    flight.layer_index,
                    self._event_clock.ns(flight.issued),
                    self._event_clock.ns(flight.started),
                    ready_ns,
                    max(0, ready_ns - self._event_clock.ns(flight.arrived)),
                    staged.num_rows,
                    *staged.counts(),
                    flight.is_early,
                )
            )
        self._taken.clear()
        self._event_clock.refresh_if_old()
        return timings

    def close(self) -> None:
        """Stop the worker."""
        if self._worker is not None:
            self._worker.close()
