"""Threads and room on a disk that the system refuses: one clear line, and nothing half done."""

import contextlib
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_plan.sweep_state import sweep_state  # noqa: E402
from tiercast_profiles.errors import FileProblem, MissingCapability  # noqa: E402
from tiercast_profiles.store import write_text  # noqa: E402
from tiercast_runtime import table, table_file  # noqa: E402
from tiercast_runtime.engine import Engine  # noqa: E402
from tiercast_runtime.kernel_aio import PreadPool  # noqa: E402
from tiercast_runtime.paths.cpu_gather import CpuGatherPath  # noqa: E402

CPU = torch.device("cpu")
FULL_DEVICE = Path("/dev/full")
needs_full_device = pytest.mark.skipif(not FULL_DEVICE.exists(), reason="no /dev/full here")
ROOM_BYTES = 16 * 1024  # of a disk that fills up: less than any file written here


@pytest.fixture
def engram(mini_model):
    return mini_model("v41").engram


# threads


@pytest.fixture
def allow_threads(monkeypatch):
    """Let that many threads whose name begins so start; the next one is refused as the system refuses it."""

    def allow(name, count):
        real, started = threading.Thread.start, []

        def start(thread):
            if thread.name.startswith(name):
                if len(started) == count:
                    raise RuntimeError("can't start new thread")
                started.append(thread)
            real(thread)

        monkeypatch.setattr(threading.Thread, "start", start)
        return started

    return allow


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    assert "can't start new thread); allow this process more threads" in text
    return text


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_gather_thread_that_cannot_start_is_one_line_and_no_other_writes_afterwards(engram, allow_threads, allowed):
    started = allow_threads("tiercast-gather", allowed)
    tables = [table.ResidentTable(engram, layer, "packed", CPU) for layer in (0, 1)]
    path = CpuGatherPath(tables, CPU, num_threads=4)
    many = torch.from_numpy(np.random.default_rng(0).integers(0, tables[0].num_rows, (700, engram.num_rows_per_token)))
    for _ in range(2):  # the second time the pool is closed, which is no other fault
        with pytest.raises(MissingCapability, match="cannot start a gather thread") as caught:
            path.fetch(0, many)
        assert "\n" not in str(caught.value)
    assert not any(thread.is_alive() for thread in started)
    assert len(started) == allowed
    few = many[:10]
    assert np.array_equal(path.fetch(0, few).rows.numpy(), table.expected_rows(engram, 0, few.reshape(-1).numpy()))
    path.close()


def test_a_read_thread_that_cannot_start_is_one_line_and_no_other_reads_on(tmp_path, allow_threads):
    (started, file) = allow_threads("tiercast-pread", 1), tmp_path / "rows"
    file.write_bytes(bytes(range(256)) * 16)
    offsets, lengths = np.arange(8, dtype=np.int64) * 512, np.full(8, 512, dtype=np.int64)
    memory = memoryview(bytearray(4096))
    pool = PreadPool(4)
    with file.open("rb") as stream, pytest.raises(MissingCapability, match="cannot start a read thread") as caught:
        pool.read(stream.fileno(), offsets, lengths, lengths, memory)
    one_line(caught)
    assert not any(thread.is_alive() for thread in started)
    pool.close()


@pytest.mark.usefixtures("one_compute_thread")
def test_a_lookup_thread_that_cannot_start_is_one_line(mini_scenario, tmp_path, allow_threads):
    allow_threads("tiercast-lookup", 0)
    with pytest.raises(MissingCapability, match="cannot start the lookup thread") as caught:
        Engine(mini_scenario({"tier": "dram", "prefetch": "step_entry"}), CPU, tmp_path)
    one_line(caught)


def test_a_thread_that_fills_a_table_and_cannot_start_is_one_line(engram, allow_threads):
    allow_threads("ThreadPoolExecutor", 0)
    with pytest.raises(MissingCapability, match="cannot start a thread that fills a table") as caught:
        table.HostTable(engram, 0, "packed")
    one_line(caught)


# room on a disk


@contextlib.contextmanager
def small_files():
    """No file may grow beyond the room there is: writes come back short, then with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["full disk", "largest file"])
def full(request, tmp_path):
    """A folder in which ``ROOM_BYTES`` can be written, a context in which that holds, and what the system then says."""
    if request.param == "largest file":
        yield tmp_path, small_files, "File too large"
        return
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield folder, contextlib.nullcontext, "No space left on device"
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("layout", ["packed", "split"])
def test_a_table_file_that_does_not_fit_is_one_line_and_leaves_nothing(engram, full, monkeypatch, layout):
    folder, meanwhile, said = full
    monkeypatch.setattr(table_file, "_require_space", lambda *_: None)  # others fill the disk after the look at it
    with meanwhile(), pytest.raises(FileProblem, match=f"cannot be written .{said}.; nothing was left") as caught:
        table.FileTable(engram, 0, layout, folder)
    assert "\n" not in str(caught.value)
    assert names(folder) == []


def test_after_a_disk_was_full_the_table_is_written_whole(engram, tmp_path):
    with small_files(), pytest.raises(FileProblem, match="File too large"):
        table.FileTable(engram, 0, "packed", tmp_path)
    made = table.FileTable(engram, 0, "packed", tmp_path)
    assert not made.file.was_reused
    rows = np.fromfile(made.path, dtype=np.uint8)[made.file.part_offsets[0] :].reshape(made.num_rows, -1)
    assert np.array_equal(rows, table.expected_rows(engram, 0, np.arange(made.num_rows)))


def test_a_record_that_does_not_fit_leaves_the_one_before_it(full):
    folder, meanwhile, said = full
    write_text(folder / "record.json", "the one before")
    with meanwhile(), pytest.raises(FileProblem, match=f"record.json: cannot be written .{said}.") as caught:
        write_text(folder / "record.json", "x" * 4 * ROOM_BYTES)
    assert "\n" not in str(caught.value)
    assert names(folder) == ["record.json"]
    assert (folder / "record.json").read_text() == "the one before"


def test_the_state_of_a_sweep_that_does_not_fit_keeps_what_was_done(full):
    folder, meanwhile, said = full
    path, done = folder / "state", []

    def fill():
        with meanwhile(), sweep_state(path, "s", None) as kept:
            for number in range(ROOM_BYTES):
                kept.add([(str(number), {"a": 1})])
                done.append(str(number))

    with pytest.raises(FileProblem, match=f"state: cannot be .*{said}"):
        fill()
    with path.open("rb+") as file:  # and a kill cut the last line short
        file.truncate(path.stat().st_size - 3)
    before = path.read_bytes()
    with meanwhile(), contextlib.suppress(FileProblem), sweep_state(path, "s", None):
        pass
    assert path.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    assert names(folder) == ["state"]
    if said == "File too large":
        with sweep_state(path, "s", None) as kept:
            assert list(kept.done) == done[: len(kept.done)]
            assert len(done) - len(kept.done) <= 1


@needs_full_device
@pytest.mark.parametrize("arguments", [["models", "list"], ["models", "list", "--json"]])
def test_what_cannot_be_printed_is_one_line_and_exit_code_2(arguments):
    program = "from tiercast_cli.main import main; main()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with FULL_DEVICE.open("w") as stream:
        ended = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            stdout=stream,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=environment,
        )
    assert ended.returncode == 2
    assert ended.stderr == "tiercast: standard output cannot be written (No space left on device)\n"


@needs_full_device
def test_a_record_written_into_a_full_device_is_one_line():
    with pytest.raises(FileProblem, match=r"/dev/full: cannot be written .No space left") as caught:
        write_text(FULL_DEVICE, "a record")
    assert "\n" not in str(caught.value)
    assert FULL_DEVICE.is_char_device(), "it is written into, never replaced"
