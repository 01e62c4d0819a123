"""Prefetch: lookups run beside the layers that do not need their rows yet.

Row ids depend on token ids only, so all lookups of a step can start when the step does (arXiv 2601.07372 §2.5). One
worker serves them in layer order: a second one beside it would only fight for the same link (vLLM #56926).
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from tiercast_profiles.scenario import Prefetch
from tiercast_runtime.early_rows import HeldRows
from tiercast_runtime.paths.base import LookupPath, StagedRows
from tiercast_runtime.paths.disk import DiskPath
from tiercast_runtime.prefetch_lanes import InlineLane, LookupTiming, WorkerLane
from tiercast_runtime.prefetch_process import ProcessLane, is_supported

__all__ = ["Lane", "LookupTiming", "Prefetcher"]


class Lane(Protocol):
    """What serves lookups: a thread or a process on the CPU, a side stream on a GPU."""

    def begin_step(self, row_ids: torch.Tensor) -> None:
        """Take the row ids of a step."""
        ...

    def rows_for(self, layer_index: int) -> StagedRows:
        """Hand over the rows of one layer, waiting if it must."""
        ...

    def clear_cache(self) -> None:
        """Forget the rows of the caches in front of the tier."""
        ...

    def fill_cache(self, layer_index: int, row_ids: npt.NDArray[np.int64]) -> None:
        """Fill the empty cache of a layer, hottest row first."""
        ...

    def take_timings(self) -> list[LookupTiming]:
        """Timings since the last call, in layer order."""
        ...

    def close(self) -> None:
        """Stop."""
        ...


class AheadLane(Lane, Protocol):
    """A lane that can also hold lookups made a step ahead."""

    def look_ahead(self, row_ids: torch.Tensor) -> None:
        """Take row ids of the next step, to be served behind this step's."""
        ...

    def early_rows_for(self, layer_index: int) -> StagedRows:
        """Hand over what ``look_ahead`` asked for, waiting if it must; valid until the second next ``look_ahead``."""
        ...


class Prefetcher:
    """Feeds the Engram layers of each step with rows.

    A step is ``begin_step``, then ``rows_for`` once per layer in layer order, then ``take_timings``. With mode ``off``
    the lookup is made when the layer asks and its whole time is stall. At most one step's lookups are held at a time.
    With mode ``prev_step`` a step may also ``look_ahead`` once, behind its ``begin_step``; the next step waits for all
    of that and takes from the front what it has tokens for (see ``early``).
    The path stays its owner's: ``close`` stops the worker only. With ``steals`` a lookup that a worker thread on a CPU
    has not begun when its rows are wanted is made by the thread that wants them (see ``WorkerLane``).

    Path ``device`` has nothing to fetch ahead: its gather is a kernel like any other, run where the layer needs it. Its
    time is compute and its stall 0 in every mode (INV-6).
    """

    def __init__(
        self,
        path: LookupPath,
        mode: Prefetch,
        clock: Callable[[], int] = time.perf_counter_ns,
        *,
        steals: bool = False,
    ) -> None:
        self.mode: Prefetch = mode
        self._path = path
        self._is_compute = path.name == "device"
        self._lane: Lane
        self._ahead: AheadRows | None = None
        if self._is_compute:
            mode = "off"
        lane: AheadLane
        if path.device.type == "cuda":
            from tiercast_runtime.prefetch_cuda import CudaLane

            lane = CudaLane(path, mode, clock)
            self._lane, self._ahead = lane, AheadRows(lane) if mode == "prev_step" else None
        elif mode == "off":
            self._lane = InlineLane(path, clock)
        elif isinstance(path, DiskPath) and is_supported() and clock is time.perf_counter_ns:
            # Another process cannot read a clock that is the caller's own: such a caller gets the thread.
            lane = ProcessLane(path)
            self._lane, self._ahead = lane, AheadRows(lane) if mode == "prev_step" else None
        else:
            lane = WorkerLane(path, clock, steals=steals)
            self._lane, self._ahead = lane, AheadRows(lane) if mode == "prev_step" else None

    @property
    def looks_ahead(self) -> bool:
        """True when lookups for the next step can be handed over (``prev_step``, unless the device gathers)."""
        return self._ahead is not None

    def begin_step(self, row_ids: torch.Tensor) -> None:
        """Take the row ids ``[layers, T, R] int64`` of a step; with prefetch its lookups start now.

        The caller leaves ``row_ids`` unchanged until the step's rows have been taken.
        """
        if self._ahead is not None:
            self._ahead.begin_step(row_ids, 0, 0)
        else:
            self._lane.begin_step(row_ids)

    def begin_split_step(self, row_ids: torch.Tensor, first_early: int, num_early: int) -> None:
        """Begin a step of which ``num_early`` tokens from ``first_early`` on were looked up ahead (``prev_step``).

        ``row_ids`` ``[layers, T, R]`` are those of the other tokens.
        """
        assert self._ahead is not None, "only prev_step has tokens that were looked up ahead"
        self._ahead.begin_step(row_ids, first_early, num_early)

    def look_ahead(self, row_ids: torch.Tensor) -> None:
        """Hand over lookups ``[layers, T, R]`` for later steps, behind the step's own (``prev_step``)."""
        assert self._ahead is not None, "only prev_step looks ahead"
        self._ahead.look_ahead(row_ids)

    def rows_for(self, layer_index: int) -> StagedRows:
        """The rows of one layer, waiting for them if they are not there yet.

        Raises:
            BadInput: a row id outside the table.
            FileProblem: the rows could not be read; whatever failed in the worker is raised here.
        """
        return self._lane.rows_for(layer_index) if self._ahead is None else self._ahead.rows_for(layer_index)

    def clear_cache(self) -> None:
        """Forget the rows of the caches in front of the tier, wherever the reads are made; between steps only."""
        self._lane.clear_cache()

    def fill_cache(self, layer_index: int, row_ids: npt.NDArray[np.int64]) -> None:
        """Fill the layer's empty cache with rows ``[n]``, hottest first; between steps only.

        Raises:
            FileProblem: the rows could not be read.
        """
        self._lane.fill_cache(layer_index, row_ids)

    def take_timings(self) -> list[LookupTiming]:
        """Timings of the lookups whose rows were taken since the last call, in the order taken.

        On a GPU this waits for those lookups.

        Raises:
            BadInput: the device found a row id outside its table.
        """
        timings = self._lane.take_timings()
        self._path.check()
        return [replace(timing, stall_ns=0) for timing in timings] if self._is_compute else timings

    def close(self) -> None:
        """Stop the worker after what it is doing; a second call does nothing."""
        self._lane.close()


class AheadRows:
    """Mode ``prev_step``: joins what a lane fetched ahead with what it fetches for the step itself."""

    def __init__(self, lane: AheadLane) -> None:
        self._lane = lane
        self._held: dict[int, HeldRows] = {}
        self._num_in_flight = 0  # tokens the step before handed over
        self._num_handed = 0
        self._first, self._num_early = 0, 0
        self._shape = (0, 0)
        self._has_own = False

    def begin_step(self, row_ids: torch.Tensor, first_early: int, num_early: int) -> None:
        """See ``Prefetcher.begin_split_step``."""
        self._num_in_flight, self._num_handed = self._num_handed, 0
        num_own = int(row_ids.shape[1])
        self._first, self._num_early = first_early, num_early
        self._shape = (num_own + num_early, int(row_ids.shape[2]))
        self._has_own = num_own > 0 or num_early == 0
        if self._has_own:
            self._lane.begin_step(row_ids)

    def look_ahead(self, row_ids: torch.Tensor) -> None:
        """See ``Prefetcher.look_ahead``."""
        self._num_handed = int(row_ids.shape[1])
        self._lane.look_ahead(row_ids)

    def rows_for(self, layer_index: int) -> StagedRows:
        """Wait for what was made ahead, then for the step's own, and put both in token order."""
        held = self._held.setdefault(layer_index, HeldRows())
        try:
            if self._num_in_flight:
                held.add(self._lane.early_rows_for(layer_index), self._num_in_flight)
            own = self._lane.rows_for(layer_index) if self._has_own else None
        except BaseException:
            self._held.clear()
            self._num_in_flight = self._num_handed = 0
            raise
        return held.merge(own, self._first, self._num_early, self._shape)
