"""Waiting for a drive: with the core kept while that may help, asleep where it would not."""

import platform

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_runtime import aio, kernel_aio, paths, polling, prefetch_process, table  # noqa: E402
from tiercast_runtime.paths.disk import DiskPath  # noqa: E402
from tiercast_runtime.prefetch_process import ProcessLane  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture
def waits(monkeypatch):
    """How many reads each call that looks for ended ones wanted; 0 is a look that does not wait."""
    real, wanted = kernel_aio._system_call, []

    def system_call(library, number, *arguments):
        if number == kernel_aio._SYSCALLS[platform.machine()][2]:
            wanted.append(arguments[1].value)
        return real(library, number, *arguments)

    monkeypatch.setattr(kernel_aio, "_system_call", system_call)
    return wanted


@pytest.mark.parametrize("polls", [False, True])
def test_a_reader_that_polls_never_sleeps_before_its_limit(tmp_path, monkeypatch, waits, polls):
    monkeypatch.setattr(polling, "LIMIT_NS", 10**12)
    content = np.arange(1 << 20, dtype=np.uint32).view(np.uint8)
    content.tofile(tmp_path / "data")
    reader = aio.RowReader(tmp_path / "data", depth=32, polls=polls)
    if reader.mode != "aio_direct":
        pytest.skip("no native AIO on this machine")
    offsets, rows = np.arange(100) * 20_480, np.zeros((100, 264), dtype=np.uint8)
    reader.read_rows(offsets, rows)
    assert np.array_equal(rows, np.stack([content[at : at + 264] for at in offsets]))
    assert set(waits) == {0} if polls else min(waits) >= 1
    waits.clear()
    monkeypatch.setattr(polling, "LIMIT_NS", 0)  # a drive that is stuck is waited for asleep
    reader.read_rows(offsets, rows)
    assert min(waits) >= 1
    reader.close()


@pytest.mark.parametrize(("prefetch", "polls"), [("off", True), ("step_entry", False)])
def test_the_thread_that_computes_polls_where_it_reads_itself(mini_scenario, tmp_path, prefetch, polls):
    resolved = mini_scenario({"tier": "nvme", "prefetch": prefetch})
    path = paths.open_path(resolved, table.build_tables(resolved, CPU, tmp_path), CPU)
    assert all(reader.polls is polls for reader in path.readers)
    path.close()


@pytest.mark.skipif(not prefetch_process.is_supported(), reason="needs memfd and eventfd (Linux)")
@pytest.mark.parametrize(("num_cores", "limit_ns", "sleeps"), [(2, 10**12, False), (2, 0, True), (1, 10**12, True)])
def test_rows_of_the_lookup_process_are_polled_for_where_it_has_a_core(
    mini_model, tmp_path, monkeypatch, num_cores, limit_ns, sleeps
):
    monkeypatch.setattr(polling, "LIMIT_NS", limit_ns)
    monkeypatch.setattr(prefetch_process, "num_cores", lambda: num_cores)
    engram = mini_model("v41").engram
    path = DiskPath([table.FileTable(engram, layer, "packed", tmp_path) for layer in range(2)], CPU)
    lane, timeouts = ProcessLane(path), []
    real = lane._collect
    monkeypatch.setattr(lane, "_collect", lambda timeout_ms: (timeouts.append(timeout_ms), real(timeout_ms)))
    ids = torch.zeros((2, 1, engram.num_rows_per_token), dtype=torch.int64)
    for _ in range(20):  # in one of them at least the rows are not there yet
        lane.begin_step(ids)
        for layer in range(2):
            rows = lane.rows_for(layer)
            assert np.array_equal(rows.rows.numpy(), table.expected_rows(engram, layer, np.zeros(1, np.int64)))
        lane.take_timings()
    assert (None in timeouts) is sleeps
    lane.close()
    path.close()
