"""Faults: a clear error or a documented fallback, never a wrong row, and nothing left behind."""

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import signal
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import FileProblem, MissingCapability, TiercastError  # noqa: E402
from tiercast_runtime import aio, kernel_aio, memory, table, table_file  # noqa: E402
from tiercast_runtime.engine import Engine  # noqa: E402
from tiercast_runtime.paths.cpu_gather import CpuGatherPath  # noqa: E402
from tiercast_runtime.paths.disk import DiskPath  # noqa: E402
from tiercast_runtime.paths.staging import Slot  # noqa: E402
from tiercast_runtime.prefetch_lanes import WorkerLane  # noqa: E402
from tiercast_runtime.prefetch_process import ProcessLane, is_supported  # noqa: E402

CPU = torch.device("cpu")
needs_process = pytest.mark.skipif(not is_supported(), reason="needs memfd and eventfd (Linux)")


@pytest.fixture
def engram(mini_model):
    return mini_model("v41").engram


@pytest.fixture
def disk(engram, tmp_path):
    path = DiskPath([table.FileTable(engram, layer, "packed", tmp_path) for layer in (0, 1)], CPU)
    yield path
    path.close()


def ids(tokens=3):
    return torch.arange(2 * tokens * 6).reshape(2, tokens, 6)


def rows_of(staged):
    return staged.rows.numpy()[staged.inverse.numpy().reshape(-1)]


# the drive


@pytest.mark.parametrize(
    ("result", "message"),
    [(-errno.EIO, r"failed \(Input/output error\)"), (0, "ends too early"), (100, "ends too early: .* gave 100 of")],
)
def test_what_the_kernel_reports_of_one_read_among_many_is_an_error(engram, disk, monkeypatch, result, message):
    if disk.readers[0].mode != "aio_direct":
        pytest.skip("no native AIO on this machine")
    real = kernel_aio.NativeAio._reap

    def one_fails(self, context, num_awaited):
        count = real(self, context, num_awaited)
        self._events["result"][count - 1] = result
        return count

    some = torch.tensor([[0, 60, 120, 180, 240, 299]])
    with monkeypatch.context() as patch:
        patch.setattr(kernel_aio.NativeAio, "_reap", one_fails)
        with pytest.raises(FileProblem, match=message) as caught:
            disk.fetch(0, some)
    assert str(disk.disk_tables[0].path) in str(caught.value)
    again = rows_of(disk.fetch(0, some))  # the context was left clean: the next lookup is whole
    assert np.array_equal(again, table.expected_rows(engram, 0, some.numpy().reshape(-1)))


@pytest.fixture
def submissions(monkeypatch):
    """Lets ``answer(call, size)`` stand between a lookup and the kernel's taking of reads, and lists what was asked.

    ``answer`` gives how many of the ``size`` reads of call number ``call`` are handed on, or raises.
    """

    def watch(answer):
        real, sizes = kernel_aio._system_call, []

        def system_call(library, number, *arguments):
            if number != kernel_aio._SYSCALLS[platform.machine()][3]:
                return real(library, number, *arguments)
            context, size, pointers = arguments
            sizes.append(size.value)
            return real(library, number, context, ctypes.c_long(answer(len(sizes) - 1, size.value)), pointers)

        monkeypatch.setattr(kernel_aio, "_system_call", system_call)
        return sizes

    return watch


@pytest.fixture(params=[False, True], ids=["asleep", "polling"])
def scattered(request, tmp_path):
    """A reader of depth 32 of a file, 100 rows far apart and what must come."""
    content = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)
    content.tofile(tmp_path / "data")
    reader = aio.RowReader(tmp_path / "data", depth=32, polls=request.param)
    if reader.mode != "aio_direct":
        pytest.skip("no native AIO on this machine")
    offsets = np.arange(100) * 10_240
    yield reader, offsets, np.stack([content[offset : offset + 264] for offset in offsets])
    reader.close()


def refuse(code):
    raise OSError(code, os.strerror(code))


def read(reader, offsets):
    out = np.zeros((len(offsets), 264), dtype=np.uint8)
    reader.read_rows(offsets, out)
    return out


def test_a_drive_with_nothing_to_do_gets_a_few_reads_first_and_then_as_many_as_it_has(scattered, submissions):
    reader, offsets, expected = scattered
    sizes = submissions(lambda _, size: size)
    assert np.array_equal(read(reader, offsets), expected)
    assert sizes[:4] == [4, 4, 8, 16]  # up to the depth; how many are given afterwards is the drive's doing
    assert sum(sizes) == 100
    sizes.clear()
    assert np.array_equal(read(reader, offsets[:7]), expected[:7])
    assert sizes == [4, 3]


@pytest.mark.parametrize(
    "answer",
    [
        lambda _, size: min(size, 3),
        lambda call, size: refuse(errno.EAGAIN) if call % 2 else size,
        lambda _call, _size: 1,
    ],
    ids=["three at a time", "every other call refused", "one at a time"],
)
def test_a_kernel_short_of_room_gets_the_rest_later(scattered, submissions, answer):
    reader, offsets, expected = scattered
    sizes = submissions(answer)
    assert np.array_equal(read(reader, offsets), expected)
    assert len(sizes) > 10


@pytest.mark.parametrize(("code", "first"), [(errno.EBADF, 0), (errno.EBADF, 1), (errno.EBADF, 5), (errno.EAGAIN, 0)])
def test_a_kernel_that_takes_no_more_reads_is_an_error_once_those_in_flight_have_ended(
    scattered, submissions, monkeypatch, code, first
):
    reader, offsets, expected = scattered
    with monkeypatch.context() as patch:
        num_reaped, real = [], kernel_aio.NativeAio._reap
        patch.setattr(
            kernel_aio.NativeAio, "_reap", lambda *arguments: num_reaped.append(real(*arguments)) or num_reaped[-1]
        )
        is_broken = True
        sizes = submissions(lambda call, size: refuse(code) if is_broken and call >= first else size)
        with pytest.raises(FileProblem, match=f"cannot be submitted .*{os.strerror(code)}"):
            read(reader, offsets)
        assert sum(num_reaped) == sum(sizes[:first])
        is_broken = False
        assert np.array_equal(read(reader, offsets), expected)


@pytest.mark.parametrize("mode", [None, "pread_direct", "pread_buffered"])
def test_one_read_at_a_time_meets_the_same_faults(tmp_path, monkeypatch, mode):
    file = tmp_path / "data"
    file.write_bytes(bytes(range(256)) * 64)
    try:
        reader = aio.RowReader(file, depth=1, mode=mode)
    except MissingCapability:
        pytest.skip("this file system refuses direct I/O")
    assert reader.mode != "aio_direct", "records say how it was read"
    offsets = np.array([0, 5000, 12_000])
    expected = np.stack([(np.arange(offset, offset + 264) % 256).astype(np.uint8) for offset in offsets])
    assert np.array_equal(read(reader, offsets), expected)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", lambda *_: refuse(errno.EIO))
        with pytest.raises(FileProblem, match=r"read at offset 0 failed \(Input/output error\)"):
            read(reader, offsets)
    os.truncate(file, 8192)
    with pytest.raises(FileProblem, match=r"ends too early: offset 1[12],[0-9]{3} gave 0 of"):
        read(reader, offsets)
    assert np.array_equal(read(reader, offsets[:2]), expected[:2])
    reader.close()
    with pytest.raises(FileProblem, match="Bad file descriptor"):
        read(reader, offsets[:1])


@pytest.mark.usefixtures("one_compute_thread")
@pytest.mark.parametrize("prefetch", ["off", "step_entry"])
def test_a_table_file_cut_while_the_engine_serves_ends_the_run_with_one_line(mini_scenario, tmp_path, prefetch):
    with Engine(mini_scenario({"tier": "nvme", "prefetch": prefetch}), CPU, tmp_path) as engine:
        os.truncate(engine.tables[0].path, engine.tables[0].file.part_offsets[0])
        with pytest.raises(FileProblem, match="ends too early"):
            engine.run()


def test_a_file_found_again_that_the_drive_cannot_read_is_one_line(engram, tmp_path, monkeypatch):
    table.FileTable(engram, 0, "packed", tmp_path)

    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(FileProblem, match=r"cannot be read \(Input/output error\)"):
        table.FileTable(engram, 0, "packed", tmp_path)


# writing


@pytest.mark.parametrize("call", ["fsync", "fchmod"])
def test_a_failure_after_the_last_row_leaves_nothing(engram, tmp_path, monkeypatch, call):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, call, broken)
    with pytest.raises(FileProblem, match="nothing was left behind"):
        table.FileTable(engram, 0, "packed", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_writing_leaves_nothing(engram, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        table.FileTable(engram, 0, "packed", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(engram, tmp_path):
    name = table_file.file_name(engram, 0, "packed", 300)
    dead, living, other = (tmp_path / f".{name}.{x}.tmp" for x in ("dead", "living", "just-begun"))
    for leftover in (dead, living):
        leftover.write_bytes(b"half a table")
    other.write_bytes(b"")
    with living.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        made = table.FileTable(engram, 0, "packed", tmp_path, num_rows=300)
    assert sorted(tmp_path.iterdir()) == sorted([made.path, living, other])


# pinned memory


class FakeCudart:
    """Registers blocks until it has registered ``allowed`` of them."""

    def __init__(self, allowed):
        self.allowed, self.registered, self.num_calls = allowed, set(), 0

    def cudaHostRegister(self, address, size_bytes, flags):  # noqa: N802  # CUDA's name
        if len(self.registered) >= self.allowed:
            return 2  # cudaErrorMemoryAllocation
        self.registered.add(address)
        self.num_calls += 1
        return 0

    def cudaHostUnregister(self, address):  # noqa: N802
        self.registered.remove(address)
        return 0


@pytest.mark.parametrize("allowed", [0, 1])
def test_memory_that_cannot_be_pinned_is_one_line_and_none_of_it_stays_pinned(engram, monkeypatch, allowed):
    cudart = FakeCudart(allowed)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    with pytest.raises(MissingCapability, match=r"cannot pin .* \(CUDA error 2\); raise the locked-memory limit"):
        table.HostTable(engram, 0, "split", is_pinned=True)
    assert (cudart.num_calls, cudart.registered) == (allowed, set())


def test_a_second_table_that_cannot_be_pinned_lets_the_first_go(mini_scenario, tmp_path, monkeypatch):
    cudart = FakeCudart(1)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    resolved = mini_scenario({"tier": "dram", "row_layout": "packed"})
    uva = resolved.model_copy(update={"placement": resolved.placement.model_copy(update={"path": "uva"})})
    with pytest.raises(MissingCapability, match="cannot pin"):
        table.build_tables(uva, CPU, tmp_path)
    assert (cudart.num_calls, cudart.registered) == (1, set())


def test_a_pinned_table_is_unpinned_when_closed(engram, monkeypatch):
    cudart = FakeCudart(9)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    made = table.HostTable(engram, 0, "split", is_pinned=True)
    assert len(cudart.registered) == 2
    made.close()
    made.close()
    assert cudart.registered == set()


def test_staging_memory_that_is_refused_is_one_line(monkeypatch):
    slot = Slot(264, is_pinned=True)

    def refuse(*_, **__):
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(
        MissingCapability, match=r"pinned staging memory \(CUDA error: out of memory\); raise"
    ) as caught:
        slot.rows(1000)
    assert "\n" not in str(caught.value)


def test_staging_memory_that_is_not_pinned_and_refused_is_one_line_too():
    with pytest.raises(MissingCapability, match=r"cannot get .* of staging memory \(Unable to allocate .*\); raise"):
        Slot(264, is_pinned=False).rows(1 << 44)


def test_a_closed_block_holds_no_memory():
    block = memory.HostBlock(5)
    block.close()
    block.close()
    assert block.array.size == 0


# workers


@needs_process
def test_a_lookup_process_killed_within_a_step_is_reported_once_and_stays_reported(engram, disk):
    lane = ProcessLane(disk)
    with contextlib.closing(lane):
        lane.begin_step(ids())
        assert np.array_equal(rows_of(lane.rows_for(0)), table.expected_rows(engram, 0, ids()[0].reshape(-1).numpy()))
        lane.rows_for(1)
        os.kill(lane._process.pid, signal.SIGSTOP)  # so that the lookups below are surely not served
        lane.begin_step(ids(5))
        os.kill(lane._process.pid, signal.SIGKILL)
        with pytest.raises(TiercastError, match="ended with code -9; run again, or use prefetch off"):
            lane.rows_for(0)
        with pytest.raises(TiercastError, match="ended with code -9"):
            lane.begin_step(ids())


@needs_process
def test_rows_taken_before_the_process_died_stay_right(engram, disk):
    lane = ProcessLane(disk)
    lane.begin_step(ids())
    staged = [lane.rows_for(layer) for layer in (0, 1)]
    os.kill(lane._process.pid, signal.SIGKILL)
    lane.close()
    for layer in (0, 1):
        assert np.array_equal(
            rows_of(staged[layer]), table.expected_rows(engram, layer, ids()[layer].reshape(-1).numpy())
        )


@pytest.mark.usefixtures("one_compute_thread")
@needs_process
def test_an_engine_whose_lookup_process_dies_ends_with_one_line(mini_scenario, tmp_path):
    with Engine(mini_scenario({"tier": "nvme"}), CPU, tmp_path) as engine:
        os.kill(engine.prefetcher._lane._process.pid, signal.SIGKILL)
        with pytest.raises(TiercastError, match="the lookup process ended with code -9"):
            engine.run()


@pytest.mark.parametrize("steals", [False, True])
def test_a_lookup_thread_that_has_ended_is_an_error_not_an_endless_wait(engram, steals):
    tables = [table.ResidentTable(engram, layer, "packed", CPU) for layer in (0, 1)]
    lane = WorkerLane(CpuGatherPath(tables, CPU), lambda: 0, steals=steals)
    lane.close()
    lane.begin_step(ids())
    with pytest.raises(TiercastError, match="the lookup thread has ended"):
        lane.rows_for(0)


@pytest.mark.parametrize("steals", [False, True])
def test_what_a_lookup_thread_cannot_survive_reaches_the_one_who_asked(steals):
    def die(*_):
        raise SystemExit("out of luck")

    lane = WorkerLane(SimpleNamespace(fetch=die), lambda: 0, steals=steals)
    with contextlib.closing(lane):
        lane.begin_step(ids())
        with pytest.raises(SystemExit, match="out of luck"):
            lane.rows_for(0)
