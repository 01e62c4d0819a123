"""Prefetch: lookups run beside the layers that do not need their rows yet.

Row ids depend on token ids only, so all lookups of a step can start when the step does (arXiv 2601.07372 §2.5). One
worker serves them in layer order: a second one beside it would only fight for the same link (vLLM #56926).
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch

from tiercast_profiles.errors import MissingCapability
from tiercast_profiles.scenario import Prefetch
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

    def take_timings(self) -> list[LookupTiming]:
        """Timings since the last call, in layer order."""
        ...

    def close(self) -> None:
        """Stop."""
        ...


class Prefetcher:
    """Feeds the Engram layers of each step with rows.

    A step is ``begin_step``, then ``rows_for`` once per layer in layer order, then ``take_timings``. With mode ``off``
    the lookup is made when the layer asks and its whole time is stall. At most one step's lookups are held at a time.
    The path stays its owner's: ``close`` stops the worker only.

    Path ``device`` has nothing to fetch ahead: its gather is a kernel like any other, run where the layer needs it. Its
    time is compute and its stall 0 in every mode (INV-6).

    Raises:
        MissingCapability: mode ``prev_step``.
    """

    def __init__(self, path: LookupPath, mode: Prefetch, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        if mode == "prev_step":
            raise MissingCapability("the runtime has no prefetch 'prev_step'; it has off and step_entry")
        self.mode: Prefetch = mode
        self._path = path
        self._is_compute = path.name == "device"
        self._lane: Lane
        if self._is_compute:
            mode = "off"
        if path.device.type == "cuda":
            from tiercast_runtime.prefetch_cuda import CudaLane

            self._lane = CudaLane(path, mode, clock)
        elif mode == "off":
            self._lane = InlineLane(path, clock)
        elif isinstance(path, DiskPath) and is_supported() and clock is time.perf_counter_ns:
            # Another process cannot read a clock that is the caller's own: such a caller gets the thread.
            self._lane = ProcessLane(path)
        else:
            self._lane = WorkerLane(path, clock)

    def begin_step(self, row_ids: torch.Tensor) -> None:
        """Take the row ids ``[layers, T, R] int64`` of a step; with prefetch its lookups start now.

        The caller leaves ``row_ids`` unchanged until the step's rows have been taken.
        """
        self._lane.begin_step(row_ids)

    def rows_for(self, layer_index: int) -> StagedRows:
        """The rows of one layer, waiting for them if they are not there yet.

        Raises:
            BadInput: a row id outside the table.
            FileProblem: the rows could not be read; whatever failed in the worker is raised here.
        """
        return self._lane.rows_for(layer_index)

    def clear_cache(self) -> None:
        """Forget the rows of the caches in front of the tier, wherever the reads are made; between steps only."""
        self._lane.clear_cache()

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
