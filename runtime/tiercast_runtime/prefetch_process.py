"""Prefetch from files on a CPU: the worker is a process, which never holds the compute thread's interpreter lock.

See ``lookup_process`` for the other side.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections import defaultdict, deque
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch

from tiercast_profiles.errors import MissingCapability, TiercastError
from tiercast_runtime.cache import hot_places
from tiercast_runtime.device import num_cores
from tiercast_runtime.lookup_process import (
    CAPACITY,
    CLEAR_CACHES,
    COUNT,
    ERRORS,
    FILL_CACHE,
    HEADER_BYTES,
    IDS,
    LAYER,
    MAX_JOBS,
    NUM_HIT,
    NUM_READ,
    NUM_UNIQUE,
    OUTCOME_FIELDS,
    READY_NS,
    STARTED_NS,
    STATUS,
    STATUS_DONE,
    SharedMemory,
)
from tiercast_runtime.paths.base import StagedRows
from tiercast_runtime.paths.disk import DiskPath
from tiercast_runtime.paths.staging import host_ids
from tiercast_runtime.polling import polling_ends_ns
from tiercast_runtime.prefetch_lanes import LookupTiming

_SLOTS_PER_LAYER = 2
_START_TIMEOUT_MS = 60_000
_EXIT_CODE_TIMEOUT_S = 1.0
_ALIGNMENT_BYTES = 64


def is_supported() -> bool:
    """True where the kernel has what the lane needs (Linux: memfd and eventfd)."""
    return hasattr(os, "memfd_create") and hasattr(os, "eventfd")


@dataclass(frozen=True, slots=True)
class _Slot:
    """Room for one lookup: ids, inverse and rows ``[capacity, row_bytes]``, and their places in the shared memory."""

    ids: npt.NDArray[np.int64]
    inverse: npt.NDArray[np.int64]
    rows: npt.NDArray[np.uint8]
    places: tuple[int, int, int]


@dataclass(slots=True)
class _Flight:
    """One lookup under way."""

    number: int
    layer_index: int
    slot: _Slot
    shape: tuple[int, int]
    issued_ns: int
    is_early: bool


class ProcessLane:
    """Lookups of a step, served in layer order by one process beside this one.

    Raises:
        MissingCapability: the process could not be started.
    """

    def __init__(self, path: DiskPath) -> None:
        self._row_bytes = [table.row_bytes for table in path.disk_tables]
        self._cache_slots = path.cache_slots
        self._polls = num_cores() > 1  # on a single one the process would not get to read
        # By layer, whether a lookup is made ahead, and turn: each kind takes turns of its own.
        self._slots: dict[tuple[int, bool, int], _Slot] = {}
        self._turns = [[0] * len(path.disk_tables) for _ in range(2)]
        self._memory_fd = os.memfd_create("tiercast-lookups")
        os.ftruncate(self._memory_fd, HEADER_BYTES)
        self._end = HEADER_BYTES
        self._memory = SharedMemory(self._memory_fd)
        self._jobs = self._memory.jobs()
        self._go_fd = os.eventfd(0, os.EFD_SEMAPHORE)
        self._done_fd = os.eventfd(0, os.EFD_SEMAPHORE)
        descriptors = (self._memory_fd, self._go_fd, self._done_fd)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tiercast_runtime.lookup_process", *map(str, descriptors)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,  # never written to: its end tells that the process is gone
                pass_fds=descriptors,
                start_new_session=True,  # Ctrl-C is this side's to handle; the pipe tells the other
            )
        except OSError as error:
            self._close_descriptors()
            raise _not_started(error) from None
        assert self._process.stdin is not None, "a pipe was asked for"
        assert self._process.stdout is not None, "a pipe was asked for"
        self._poll = select.poll()
        self._poll.register(self._done_fd, select.POLLIN)
        self._poll.register(self._process.stdout.fileno(), select.POLLHUP)
        self._num_jobs, self._num_done = 0, 0
        self._flights: dict[int, _Flight] = {}
        self._early: dict[int, deque[_Flight]] = defaultdict(deque)
        self._timings: list[LookupTiming] = []
        self._is_open, self._is_gone = True, False
        tables = [asdict(table) for table in path.disk_tables]
        try:
            options = {"depth": path.depth, "mode": path.mode, "cache_slots": path.cache_slots}
            line = json.dumps({"tables": tables, **options, "cache_policy": path.cache_policy})
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
            self._await(_START_TIMEOUT_MS)
        except (BrokenPipeError, TiercastError) as error:
            self.close()
            raise _not_started(error) from None
        except BaseException:
            self.close()
            raise

    def begin_step(self, row_ids: torch.Tensor) -> None:
        """Hand over every layer's lookup.

        Raises:
            TiercastError: the process is gone; it stays gone.
        """
        if self._is_gone:
            raise _gone(self._process)
        assert not self._flights, "the rows of the step before have not all been taken"
        for flight in self._hand_over(row_ids, is_early=False):
            self._flights[flight.layer_index] = flight

    def look_ahead(self, row_ids: torch.Tensor) -> None:
        """Hand over lookups for the next step behind those of this one."""
        for flight in self._hand_over(row_ids, is_early=True):
            self._early[flight.layer_index].append(flight)

    def _hand_over(self, row_ids: torch.Tensor, *, is_early: bool) -> list[_Flight]:
        # Two lookups of the last step, two of this one.
        assert 4 * len(row_ids) <= MAX_JOBS, "more lookups in a step than there are places for jobs"
        issued_ns, flights = time.perf_counter_ns(), list[_Flight]()
        num_layers, num_tokens, rows_per_token = row_ids.shape
        num_ids = num_tokens * rows_per_token
        ids = host_ids(row_ids).reshape(num_layers, num_ids)
        for layer_index in range(num_layers):
            slot = self._next_slot(layer_index, num_ids, is_early)
            slot.ids[:num_ids] = ids[layer_index]
            where = (layer_index, num_ids, *slot.places, self._end)
            self._jobs[self._num_jobs % MAX_JOBS] = where + (0,) * len(OUTCOME_FIELDS)
            shape = (num_tokens, rows_per_token)
            flights.append(_Flight(self._num_jobs, layer_index, slot, shape, issued_ns, is_early))
            self._num_jobs += 1
        os.eventfd_write(self._go_fd, num_layers)  # one call: each would wake the process, and that takes the caller
        return flights

    def early_rows_for(self, layer_index: int) -> StagedRows:
        """Wait for the layer's oldest lookup made ahead; its rows stay until the second next one made ahead."""
        return self._take(self._early[layer_index].popleft())

    def rows_for(self, layer_index: int) -> StagedRows:
        """Wait for the layer's lookup."""
        return self._take(self._flights.pop(layer_index, None))

    def _take(self, flight: _Flight | None) -> StagedRows:
        assert flight is not None, "begin_step comes before rows_for, and a layer's rows are taken once"
        stall_ns = 0
        self._collect(0)
        if self._num_done <= flight.number:
            arrived_ns, polling_ends = time.perf_counter_ns(), polling_ends_ns(polls=self._polls)
            while self._num_done <= flight.number:
                self._collect(0 if time.perf_counter_ns() < polling_ends else None)
            stall_ns = time.perf_counter_ns() - arrived_ns
        job: list[int] = self._jobs[flight.number % MAX_JOBS].tolist()
        if job[STATUS] != STATUS_DONE:
            text = self._memory.read_error()
            self._abandon()
            raise ERRORS.get(job[STATUS], RuntimeError)(text)
        num_rows, num_read, num_hit = job[COUNT], job[NUM_READ], job[NUM_HIT]
        rows = torch.from_numpy(flight.slot.rows[: job[NUM_UNIQUE]])
        inverse = torch.from_numpy(flight.slot.inverse[:num_rows].reshape(flight.shape))
        self._timings.append(
            LookupTiming(
                flight.layer_index,
                flight.issued_ns,
                job[STARTED_NS],
                job[READY_NS],
                stall_ns,
                num_rows,
                num_read,
                num_hit,
                flight.is_early,
            )
        )
        return StagedRows(rows, inverse, num_rows, num_read, num_hit)

    def clear_cache(self) -> None:
        """Have the process forget the rows its caches hold; returns when it has."""
        self._do(CLEAR_CACHES, np.empty(0, np.int64))

    def fill_cache(self, layer_index: int, row_ids: npt.NDArray[np.int64]) -> None:
        """Have the process fill a layer's empty cache; returns when it has.

        Raises:
            FileProblem: the rows could not be read.
        """
        if self._cache_slots:
            kept, _ = hot_places(row_ids, self._cache_slots)
            self._do(FILL_CACHE - layer_index, kept)

    def _do(self, what: int, ids: npt.NDArray[np.int64]) -> None:
        """Have the process do something that is no lookup, and wait for it."""
        assert not self._flights, "caches are cleared and filled between steps"
        place = self._reserve(ids.nbytes)
        os.ftruncate(self._memory_fd, self._end)
        self._memory.remap()
        self._memory.int64(place, len(ids))[:] = ids
        job = self._jobs[self._num_jobs % MAX_JOBS]
        job[:] = 0
        job[LAYER], job[COUNT], job[CAPACITY], job[IDS] = what, len(ids), self._end, place
        self._num_jobs += 1
        os.eventfd_write(self._go_fd, 1)
        while self._num_done < self._num_jobs:
            self._collect(None)
        if job[STATUS] != STATUS_DONE:
            raise ERRORS.get(int(job[STATUS]), RuntimeError)(self._memory.read_error())

    def take_timings(self) -> list[LookupTiming]:
        """Hand over what was timed."""
        timings, self._timings = self._timings, []
        return timings

    def _next_slot(self, layer_index: int, num_ids: int, is_early: bool) -> _Slot:
        """The layer's slot whose turn it is; one that is too small is given a new place at the end of the memory."""
        turns = self._turns[is_early]
        turns[layer_index] = (turns[layer_index] + 1) % _SLOTS_PER_LAYER
        key = (layer_index, is_early, turns[layer_index])
        slot = self._slots.get(key)
        if slot is None or num_ids > len(slot.ids):
            slot = self._slots[key] = self._new_slot(1 << (max(1, num_ids) - 1).bit_length(), layer_index)
        return slot

    def _new_slot(self, capacity: int, layer_index: int) -> _Slot:
        """Room for so many ids and as many rows at the end of the memory."""
        width = self._row_bytes[layer_index]
        ids, inverse, rows = (self._reserve(capacity * size) for size in (8, 8, width))
        os.ftruncate(self._memory_fd, self._end)
        self._memory.remap()
        return _Slot(
            self._memory.int64(ids, capacity),
            self._memory.int64(inverse, capacity),
            self._memory.uint8(rows, capacity * width).reshape(capacity, width),
            (ids, inverse, rows),
        )

    def _reserve(self, num_bytes: int) -> int:
        place = self._end
        self._end += -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        return place

    def _collect(self, timeout_ms: int | None) -> None:
        """Count the jobs done so far; None waits for one at least."""
        while self._num_done < self._num_jobs:
            events = dict(self._poll.poll(timeout_ms))
            if self._done_fd in events:
                os.eventfd_read(self._done_fd)
                self._num_done += 1
                timeout_ms = 0
                continue
            if events:
                self._is_gone = True
                self._flights.clear()
                self._early.clear()
                raise _gone(self._process)
            return

    def _await(self, timeout_ms: int) -> None:
        events = dict(self._poll.poll(timeout_ms))
        if self._done_fd not in events:
            raise _gone(self._process)
        os.eventfd_read(self._done_fd)

    def _abandon(self) -> None:
        """Let the rest of a failed step run out, so the next step starts with an idle worker."""
        while self._num_done < self._num_jobs:
            self._collect(None)
        self._flights.clear()
        self._early.clear()
        self._timings.clear()  # a step that fails is in no record, nor in the next step's samples

    def close(self) -> None:
        """End the process; a second call does nothing. Rows handed out stay readable."""
        if not self._is_open:
            return
        self._is_open = False
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # what a process that is gone was still to be told
                    stream.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        for descriptor in (self._memory_fd, self._go_fd, self._done_fd):
            os.close(descriptor)
        # The mapping holds a descriptor of its own until the last rows are let go.
        self._slots.clear()
        del self._memory, self._jobs


def _not_started(error: Exception) -> MissingCapability:
    return MissingCapability(f"the lookup process could not be started ({error}); use prefetch off")


def _gone(process: "subprocess.Popen[bytes]") -> TiercastError:
    try:
        # its pipe closes a moment before its exit code is there
        what = f"ended with code {process.wait(timeout=_EXIT_CODE_TIMEOUT_S)}"
    except subprocess.TimeoutExpired:
        what = "does not answer"
    return TiercastError(f"the lookup process {what}; run again, or use prefetch off")
