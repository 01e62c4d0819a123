"""What serves lookups where the CPU is the device: the compute thread itself, or one worker thread beside it."""

import queue
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from tiercast_profiles.errors import TiercastError
from tiercast_runtime.paths.base import LookupPath, StagedRows
from tiercast_runtime.threads import start

_LIVENESS_S = 1.0  # how often a waiter looks whether the worker still runs


@dataclass(frozen=True, slots=True)
class LookupTiming:
    """One lookup on one clock. ``started_ns`` is when the thread that made it or the side stream turned to it.

    ``stall_ns`` is how long the compute thread (on a GPU: the compute stream) stood still for it; 0 when the rows were
    there first. Waking up after the rows arrived is part of the stall.
    """

    layer_index: int
    issued_ns: int
    started_ns: int
    ready_ns: int
    stall_ns: int
    num_rows: int
    num_rows_read: int
    num_rows_hit: int = 0
    is_early: bool = False  # handed over by the step before the one that took the rows


class InlineLane:
    """Prefetch ``off`` on the CPU: the compute thread fetches."""

    def __init__(self, path: LookupPath, clock: Callable[[], int]) -> None:
        self._path = path
        self._clock = clock
        self._row_ids: torch.Tensor | None = None
        self._timings: list[LookupTiming] = []

    def begin_step(self, row_ids: torch.Tensor) -> None:
        """Keep the ids until the layers ask."""
        self._row_ids = row_ids

    def rows_for(self, layer_index: int) -> StagedRows:
        """Fetch now."""
        assert self._row_ids is not None, "begin_step comes before rows_for"
        issued_ns = self._clock()
        try:
            staged = self._path.fetch(layer_index, self._row_ids[layer_index])
        except BaseException:
            self._timings.clear()  # a step that fails is in no record, nor in the next step's samples
            raise
        ready_ns = self._clock()
        staged.keep()
        self._timings.append(
            LookupTiming(
                layer_index,
                issued_ns,
                issued_ns,
                ready_ns,
                ready_ns - issued_ns,
                staged.num_rows,
                *staged.counts(),
            )
        )
        return staged

    def clear_cache(self) -> None:
        """Forget cached rows; between steps the path is idle."""
        self._path.clear_cache()

    def fill_cache(self, layer_index: int, row_ids: npt.NDArray[np.int64]) -> None:
        """Fill an empty cache; between steps the path is idle."""
        self._path.fill_cache(layer_index, row_ids)

    def take_timings(self) -> list[LookupTiming]:
        """Hand over what was timed."""
        timings, self._timings = self._timings, []
        return timings

    def close(self) -> None:
        """Nothing runs."""


@dataclass(slots=True)
class Job:
    """One lookup on its way through the worker, which fills everything but the first four fields."""

    layer_index: int
    row_ids: torch.Tensor
    issued_ns: int
    is_early: bool = False
    started_ns: int = 0
    ready_ns: int = 0
    staged: StagedRows | None = None
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Worker:
    """One thread that runs jobs in the order given. It outlives failures: each job keeps its own.

    With ``run_up_to`` another thread runs jobs that this one has not begun: in the same order, never two at once.
    """

    def __init__(self, work: Callable[[Job], None]) -> None:
        self._work = work
        self._jobs: deque[Job] = deque()
        self._turn = threading.Lock()  # held by the thread that runs a job, from before it takes it
        self._wakeups: queue.SimpleQueue[bool] = queue.SimpleQueue()  # True for each job put, False for the end
        self._thread = threading.Thread(target=self._run, name="tiercast-lookup", daemon=True)
        start(self._thread, "the lookup thread")

    def _run(self) -> None:
        while self._wakeups.get():
            with self._turn:
                if self._jobs:  # else the one it was woken for has been run by another thread
                    self._run_next()

    def _run_next(self) -> None:
        job = self._jobs.popleft()
        try:
            self._work(job)
        except BaseException as error:  # re-raised in the thread that asked
            job.error = error
        job.done.set()

    def put(self, job: Job) -> None:
        """Hand a job over."""
        self._jobs.append(job)
        self._wakeups.put(True)

    def run_up_to(self, job: Job) -> None:
        """Run what was put up to ``job`` in this thread, unless the worker is in a job or has ended.

        A worker in a job is awake and comes to the others itself. One that wakes up meanwhile waits for the job that
        runs here and goes on with the next.
        """
        while not job.done.is_set() and self._thread.is_alive() and not self._turn.locked():
            with self._turn:  # and no acquire that may fail: an interrupt right behind it would leave the lock taken
                if not job.done.is_set():  # the worker may have been first
                    self._run_next()

    def wait(self, job: Job) -> None:
        """Wait until a job is done.

        Raises:
            TiercastError: the thread has ended and left the job undone; without this the wait would have no end.
        """
        while not job.done.is_set():
            if not self._thread.is_alive() and not job.done.is_set():
                raise TiercastError("the lookup thread has ended; make a new prefetcher, or use prefetch off")
            job.done.wait(_LIVENESS_S)

    def close(self) -> None:
        """End the thread after the jobs it has."""
        if self._thread.is_alive():
            self._wakeups.put(False)
            self._thread.join()


class WorkerLane:
    """Prefetch on the CPU: one thread fetches the layers of a step in order, and ahead of the next one if asked to.

    ``steals`` has the thread that wants rows make their lookup where the worker is in none and has not begun it: now
    and then the worker gets its core late, by many times what a lookup takes. What was handed over before it and is
    undone is made before it, so a path sees the same lookups in the same order, which the ranks of a sharded one must
    agree on. A worker that is in a lookup is awake, and waited for. Wrong in a probe, which times the worker.
    """

    def __init__(self, path: LookupPath, clock: Callable[[], int], *, steals: bool = False) -> None:
        self._path = path
        self._clock = clock
        self._steals = steals
        self._jobs: dict[int, Job] = {}
        self._early: dict[int, deque[Job]] = defaultdict(deque)
        self._timings: list[LookupTiming] = []
        self._worker = Worker(self._serve)

    def _serve(self, job: Job) -> None:
        job.started_ns = self._clock()
        job.staged = self._path.fetch(job.layer_index, job.row_ids)
        if job.is_early:
            # The path's two slots per layer turn once more before the step that takes these rows has ended.
            job.staged = replace(job.staged, rows=job.staged.rows.clone())
        job.ready_ns = self._clock()
        job.staged.keep()

    def begin_step(self, row_ids: torch.Tensor) -> None:
        """Queue every layer's lookup."""
        assert not self._jobs, "the rows of the step before have not all been taken"
        issued_ns = self._clock()
        for layer_index in range(len(row_ids)):
            job = Job(layer_index, row_ids[layer_index], issued_ns)
            self._jobs[layer_index] = job
            self._worker.put(job)

    def look_ahead(self, row_ids: torch.Tensor) -> None:
        """Queue lookups for the next step behind those of this one."""
        issued_ns = self._clock()
        for layer_index in range(len(row_ids)):
            job = Job(layer_index, row_ids[layer_index], issued_ns, is_early=True)
            self._early[layer_index].append(job)
            self._worker.put(job)

    def early_rows_for(self, layer_index: int) -> StagedRows:
        """Wait for the layer's oldest lookup that was made ahead."""
        return self._take(self._early[layer_index].popleft())

    def rows_for(self, layer_index: int) -> StagedRows:
        """Wait for the layer's lookup."""
        return self._take(self._jobs.pop(layer_index, None))

    def _take(self, job: Job | None) -> StagedRows:
        assert job is not None, "begin_step comes before rows_for, and a layer's rows are taken once"
        stall_ns = 0
        if not job.done.is_set():
            arrived_ns = self._clock()
            if self._steals:
                # As in the worker: a path's tensor made in inference mode could not be written to there.
                with torch.inference_mode(mode=False):
                    self._worker.run_up_to(job)
            self._worker.wait(job)
            stall_ns = self._clock() - arrived_ns
        if job.error is not None:
            self._abandon()
            raise job.error
        assert job.staged is not None, "a job without an error has rows"
        self._timings.append(
            LookupTiming(
                job.layer_index,
                job.issued_ns,
                job.started_ns,
                job.ready_ns,
                stall_ns,
                job.staged.num_rows,
                *job.staged.counts(),
                job.is_early,
            )
        )
        return job.staged

    def _abandon(self) -> None:
        """Let the rest of a failed step run out, so the next step starts with an idle worker."""
        for job in (*self._jobs.values(), *(job for jobs in self._early.values() for job in jobs)):
            self._worker.wait(job)
        self._jobs.clear()
        self._early.clear()
        self._timings.clear()  # a step that fails is in no record, nor in the next step's samples

    def clear_cache(self) -> None:
        """Forget cached rows; between steps the path is idle."""
        self._path.clear_cache()

    def fill_cache(self, layer_index: int, row_ids: npt.NDArray[np.int64]) -> None:
        """Fill an empty cache; between steps the path is idle."""
        self._path.fill_cache(layer_index, row_ids)

    def take_timings(self) -> list[LookupTiming]:
        """Hand over what was timed."""
        timings, self._timings = self._timings, []
        return timings

    def close(self) -> None:
        """Stop the worker."""
        self._worker.close()
