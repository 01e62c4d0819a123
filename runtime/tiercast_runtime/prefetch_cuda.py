"""Prefetch on a GPU: one side stream beside the compute stream, an event per layer between the two.

Paths that only enqueue device work (``device``, ``uva``) are enqueued by the caller; paths the host drives
(``cpu_gather``, ``disk``) run in one worker thread that owns the side stream. All times are read from events and put on
the host's clock, so a timeline shows both.
"""

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(slots=True)
class _Flight:
    """One lookup: its job and the events around it."""

    job: Job
    issued: torch.cuda.Event
    started: torch.cuda.Event
    ready: torch.cuda.Event
    arrived: torch.cuda.Event


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped


class CudaLane:
    """Lookups of a step on one side stream (``step_entry``) or on the compute stream itself (``off``)."""

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
        self._taken: list[_Flight] = []

    def begin_step(self, row_ids: torch.Tensor) -> None:
        """Start the lookups of all layers behind what the compute stream has been given so far."""
        assert not self._pending, "the rows of the step before have not all been taken"
        self._row_ids = row_ids
        if not self._is_prefetching:
            return
        issued, issued_ns = _event(), self._clock()
        issued.record()
        if row_ids.is_cuda:
            row_ids.record_stream(self._side)
        for layer_index in range(len(row_ids)):
            job = Job(layer_index, row_ids[layer_index], issued_ns)
            flight = _Flight(job, issued, _event(), _event(), _event())
            self._pending[layer_index] = flight
            if self._worker is not None:
                self._worker.put(job)
                continue
            try:
                self._enqueue(flight)
            except Exception as error:  # as a worker's failure: raised where the rows are asked for
                job.error = error

    def _enqueue(self, flight: _Flight) -> None:
        with torch.cuda.stream(self._side):
            self._side.wait_event(flight.issued)
            flight.started.record()
            flight.job.staged = self._path.fetch(flight.job.layer_index, flight.job.row_ids)
            flight.ready.record()

    def _serve(self, job: Job) -> None:
        torch.cuda.set_device(self._path.device)
        self._enqueue(self._pending[job.layer_index])

    def rows_for(self, layer_index: int) -> StagedRows:
        """Make the compute stream wait for the layer's rows, and the host too where the host moves them."""
        current = torch.cuda.current_stream(self._path.device)
        if not self._is_prefetching:
            assert self._row_ids is not None, "begin_step comes before rows_for"
            issued, ready = _event(), _event()
            issued.record()
            job = Job(layer_index, self._row_ids[layer_index], self._clock())
            job.staged = self._path.fetch(layer_index, job.row_ids)
            ready.record()
            self._taken.append(_Flight(job, issued, issued, ready, issued))
            return job.staged
        flight = self._pending.get(layer_index)
        assert flight is not None, "begin_step comes before rows_for, and a layer's rows are taken once"
        flight.arrived.record()
        if self._worker is not None:
            self._worker.wait(flight.job)
        del self._pending[layer_index]
        if flight.job.error is not None:
            self._abandon()
            raise flight.job.error
        staged = flight.job.staged
        assert staged is not None, "a job without an error has rows"
        current.wait_event(flight.ready)
        for tensor in (staged.rows, staged.inverse):
            if tensor is not None:
                tensor.record_stream(current)  # its memory belongs to the side stream's pool
        self._taken.append(flight)
        return staged

    def _abandon(self) -> None:
        if self._worker is not None:
            for flight in self._pending.values():
                self._worker.wait(flight.job)
        self._pending.clear()

    def clear_cache(self) -> None:
        """Forget cached rows; between steps the path is idle."""
        self._path.clear_cache()

    def take_timings(self) -> list[LookupTiming]:
        """Read the events of the lookups taken; waits until the compute stream has passed them."""
        timings = []
        for flight in self._taken:
            flight.ready.synchronize()
            flight.arrived.synchronize()
            staged = flight.job.staged
            assert staged is not None, "only lookups with rows are taken"
            ready_ns = self._event_clock.ns(flight.ready)
            timings.append(
                LookupTiming(
                    flight.job.layer_index,
                    self._event_clock.ns(flight.issued),
                    self._event_clock.ns(flight.started),
                    ready_ns,
                    max(0, ready_ns - self._event_clock.ns(flight.arrived)),
                    staged.num_rows,
                    staged.num_rows_read,
                    staged.num_rows_hit,
                )
            )
        self._taken.clear()
        self._event_clock.refresh_if_old()
        return timings

    def close(self) -> None:
        """Stop the worker."""
        if self._worker is not None:
            self._worker.close()
