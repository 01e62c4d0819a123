"""The lookup worker as a process of its own: ``python -m tiercast_runtime.lookup_process``.

A worker thread shares the interpreter lock with the thread that computes, and slows it down by every call it makes; a
process beside it does not (benchmarks/bench_lookup_worker.py prints both). Jobs and rows travel in one shared memory
file, two eventfds say "go" and "done", and the process ends when the pipe from its parent closes, however the parent
ended.

Started by ``prefetch_process`` with a JSON description of the tables on standard input; never by hand.
"""

import json
import mmap
import os
import select
import sys
import time

import numpy as np
import numpy.typing as npt

from tiercast_profiles.errors import BadInput, FileProblem, TiercastError
from tiercast_runtime.disk_reads import DiskReader, DiskTable

# One job is a row of int64 fields at the start of the shared memory, job k in row k mod MAX_JOBS.
MAX_JOBS = 4096
WHERE_FIELDS = ("layer", "count", "ids", "inverse", "rows", "capacity")
OUTCOME_FIELDS = ("status", "num_unique", "num_read", "num_hit", "started_ns", "ready_ns")
FIELDS = (*WHERE_FIELDS, *OUTCOME_FIELDS)
LAYER, COUNT, IDS, INVERSE, ROWS, CAPACITY = range(len(WHERE_FIELDS))
STATUS, NUM_UNIQUE, NUM_READ, NUM_HIT, STARTED_NS, READY_NS = range(len(WHERE_FIELDS), len(FIELDS))
CLEAR_CACHES = -1  # in place of a layer: forget what the caches hold
FILL_CACHE = -2  # this minus a layer, in its place: fill its cache with the rows of the ids, hottest first
ERROR_BYTES = 4096
JOBS_BYTES = MAX_JOBS * len(FIELDS) * 8
HEADER_BYTES = -(-(JOBS_BYTES + ERROR_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE

STATUS_DONE, STATUS_BAD_INPUT, STATUS_FILE_PROBLEM, STATUS_FAILED = 1, 2, 3, 4
ERRORS: dict[int, type[TiercastError]] = {STATUS_BAD_INPUT: BadInput, STATUS_FILE_PROBLEM: FileProblem}


class SharedMemory:
    """The shared memory file as arrays; grows when the file has grown."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, 0)

    @property
    def num_bytes(self) -> int:
        """Bytes mapped."""
        return len(self._map)

    def remap(self) -> None:
        """Map the file anew at its present size; arrays handed out before keep the old mapping."""
        self._map = mmap.mmap(self._descriptor, 0)

    def jobs(self) -> npt.NDArray[np.int64]:
        """``[MAX_JOBS, fields] int64``."""
        return self.int64(0, MAX_JOBS * len(FIELDS)).reshape(MAX_JOBS, len(FIELDS))

    def int64(self, offset: int, count: int) -> npt.NDArray[np.int64]:
        """``[count] int64`` at an offset."""
        return np.frombuffer(self._map, dtype=np.int64, count=count, offset=offset)

    def uint8(self, offset: int, count: int) -> npt.NDArray[np.uint8]:
        """``[count] uint8`` at an offset."""
        return np.frombuffer(self._map, dtype=np.uint8, count=count, offset=offset)

    def write_error(self, text: str) -> None:
        """Leave the text of a failure, cut to what fits."""
        data = text.encode("utf-8", errors="replace")[: ERROR_BYTES - 8]
        self.int64(JOBS_BYTES, 1)[0] = len(data)
        self.uint8(JOBS_BYTES + 8, len(data))[:] = np.frombuffer(data, dtype=np.uint8)

    def read_error(self) -> str:
        """The text of the last failure."""
        length = int(self.int64(JOBS_BYTES, 1)[0])
        return bytes(self.uint8(JOBS_BYTES + 8, length)).decode("utf-8", errors="replace")


def serve(job: npt.NDArray[np.int64], disks: list[DiskReader], memory: SharedMemory) -> None:
    """Do one job in place: read its rows and fill in what came of it."""
    job[STARTED_NS] = time.perf_counter_ns()
    if int(job[LAYER]) == CLEAR_CACHES:
        for each in disks:
            if each.cache is not None:
                each.cache.clear()
        job[STATUS] = STATUS_DONE
        return
    is_fill = int(job[LAYER]) <= FILL_CACHE
    disk, count = disks[FILL_CACHE - int(job[LAYER]) if is_fill else int(job[LAYER])], int(job[COUNT])
    try:
        if is_fill:
            disk.fill_cache(memory.int64(int(job[IDS]), count).copy())
            job[STATUS] = STATUS_DONE
            return
        unique, inverse = disk.unique(memory.int64(int(job[IDS]), count))
        width = disk.table.row_bytes
        rows = memory.uint8(int(job[ROWS]), len(unique) * width).reshape(len(unique), width)
        missing = disk.fetch(unique, rows)
        memory.int64(int(job[INVERSE]), count)[:] = inverse
        job[NUM_UNIQUE], job[NUM_READ] = len(unique), np.count_nonzero(missing)
        job[NUM_HIT] = count - np.count_nonzero(missing[inverse])
        status = STATUS_DONE
    except BadInput as error:
        memory.write_error(str(error))
        status = STATUS_FILE_PROBLEM if isinstance(error, FileProblem) else STATUS_BAD_INPUT
    except Exception as error:  # whatever it is, the parent raises it where the rows are asked for
        memory.write_error(f"{type(error).__name__}: {error}")
        status = STATUS_FAILED
    job[READY_NS] = time.perf_counter_ns()
    job[STATUS] = status


def main() -> None:
    """Serve jobs until the parent closes the pipe."""
    memory_fd, go_fd, done_fd = (int(number) for number in sys.argv[1:4])
    description = json.loads(sys.stdin.buffer.readline())
    tables = [
        DiskTable(**{**table, "part_offsets": tuple(table["part_offsets"]), "part_widths": tuple(table["part_widths"])})
        for table in description["tables"]
    ]
    options = {name: description[name] for name in ("depth", "mode", "cache_slots", "cache_policy")}
    disks = [DiskReader(table, **options) for table in tables]
    memory = SharedMemory(memory_fd)
    poll = select.poll()
    poll.register(go_fd, select.POLLIN)
    poll.register(sys.stdin.fileno(), select.POLLHUP)
    os.eventfd_write(done_fd, 1)  # ready
    number = 0
    while True:
        if not any(descriptor == go_fd for descriptor, _ in poll.poll()):
            break
        os.eventfd_read(go_fd)
        job = memory.jobs()[number % MAX_JOBS]
        if int(job[CAPACITY]) > memory.num_bytes:
            memory.remap()
            job = memory.jobs()[number % MAX_JOBS]
        serve(job, disks, memory)
        number += 1
        os.eventfd_write(done_fd, 1)
    for disk in disks:
        disk.close()


if __name__ == "__main__":
    main()
