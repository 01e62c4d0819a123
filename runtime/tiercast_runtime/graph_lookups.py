"""The lookups of a step inside its graph: forked to the side stream, joined where a layer needs its rows."""

from dataclasses import dataclass, field

import torch

from tiercast_runtime.graph_backend import Event, GraphBackend
from tiercast_runtime.paths.base import LookupPath, StagedRows
from tiercast_runtime.prefetch_lanes import LookupTiming


@dataclass(slots=True)
class _Timers:
    """Around one lookup: when the side stream turned to it, when it was done, when its layer asked for it."""

    started: Event
    ready: Event
    arrived: Event


@dataclass(slots=True)
class CapturedLookups:
    """Lookups of one captured step by a path that only enqueues device work.

    ``begin`` and ``rows_for`` are called while the step is captured; ``timings`` and ``windows_ns`` after each replay,
    once the device has passed it. Without prefetch, and on path ``device``, a lookup runs where its layer asks for it.
    """

    backend: GraphBackend
    path: LookupPath
    is_prefetching: bool
    issued: Event = field(init=False)
    _timers: list[_Timers] = field(init=False, default_factory=list)
    _edges: list[Event] = field(init=False, default_factory=list)
    _staged: list[StagedRows] = field(init=False, default_factory=list)  # held, so that no capture reuses their memory
    _row_ids: torch.Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.issued = self.backend.timer()

    def begin(self, row_ids: torch.Tensor) -> None:
        """Start the lookups of ``row_ids [layers, T, R]``; each capture, and the run before it, starts anew."""
        backend = self.backend
        self._row_ids = row_ids
        self._staged, self._edges = [], []
        self._timers = [_Timers(backend.timer(), backend.timer(), backend.timer()) for _ in row_ids]
        self.issued.record()
        if not self.is_prefetching:
            return
        fork = backend.edge()
        fork.record()
        backend.side_waits(fork)
        with backend.side():
            for index, timers in enumerate(self._timers):
                self._fetch(index, timers)
                edge = backend.edge()
                edge.record()
                self._edges.append(edge)

    def rows_for(self, index: int) -> StagedRows:
        """The rows of one layer, padding rows included; the current stream waits for them."""
        timers = self._timers[index]
        timers.arrived.record()
        if self.is_prefetching:
            self.backend.main_waits(self._edges[index])
        else:
            self._fetch(index, timers)
        return self._staged[index]

    def _fetch(self, index: int, timers: _Timers) -> None:
        assert self._row_ids is not None, "begin comes before rows_for"
        timers.started.record()
        self._staged.append(self.path.fetch(index, self._row_ids[index]))
        timers.ready.record()

    def timings(self, num_rows: int) -> list[LookupTiming]:
        """Timings of the step that was replayed last, for the ``num_rows`` rows per layer that its tokens asked for.

        Rows read for padding are left out: they are the same few in every padding token.
        """
        ns = self.backend.host_ns
        issued_ns, found = ns(self.issued), []
        for index, timers in enumerate(self._timers):
            started_ns, ready_ns, arrived_ns = ns(timers.started), ns(timers.ready), ns(timers.arrived)
            first_ns = issued_ns if self.is_prefetching else arrived_ns
            # On path device the gather is compute: nothing was there to hide (INV-6).
            stall_ns = 0 if self.path.name == "device" else max(0, ready_ns - arrived_ns)
            found.append(LookupTiming(index, first_ns, started_ns, ready_ns, stall_ns, num_rows, num_rows))
        return found

    def windows_ns(self) -> tuple[int, ...]:
        """Per layer, from the issue of the lookups to the need for the rows; 0 where nothing is issued ahead."""
        if not self.is_prefetching:
            return (0,) * len(self._timers)
        issued_ns = self.backend.host_ns(self.issued)
        return tuple(self.backend.host_ns(timers.arrived) - issued_ns for timers in self._timers)
