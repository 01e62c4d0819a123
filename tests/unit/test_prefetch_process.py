"""The lookup worker that is a process: same rows as the oracle, every failure reported, nothing left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tiercast_profiles.errors import BadInput, FileProblem, MissingCapability, TiercastError
from tiercast_runtime.paths.disk import DiskPath
from tiercast_runtime.prefetch import Prefetcher
from tiercast_runtime.prefetch_lanes import WorkerLane
from tiercast_runtime.prefetch_process import ProcessLane, is_supported
from tiercast_runtime.table import FileTable, expected_rows

pytestmark = pytest.mark.skipif(not is_supported(), reason="needs memfd and eventfd (Linux)")
CPU = torch.device("cpu")


@pytest.fixture(params=["packed", "split", "padded"])
def path(request, mini_model, tmp_path):
    engram = mini_model("v41").engram
    tables = [FileTable(engram, layer, request.param, tmp_path) for layer in range(2)]
    path = DiskPath(tables, CPU)
    path.engram, path.files = engram, [table.path for table in tables]
    yield path
    path.close()


@pytest.fixture
def lane(path):
    prefetcher = Prefetcher(path, "step_entry")
    assert isinstance(prefetcher._lane, ProcessLane)
    yield prefetcher
    prefetcher.close()


def ids_of(path, tokens: int, seed: int) -> torch.Tensor:
    columns = path.engram.num_rows_per_token
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 300, size=(2, tokens, columns)))


def gathered(staged) -> np.ndarray:
    return staged.rows.numpy()[staged.inverse.numpy().reshape(-1)]


def test_rows_equal_the_oracle_through_growth_and_reuse_of_slots(path, lane) -> None:
    for step, tokens in enumerate((1, 3, 0, 40, 7, 200, 2)):
        ids = ids_of(path, tokens, step)
        lane.begin_step(ids)
        for layer in range(2):
            staged = lane.rows_for(layer)
            wanted = expected_rows(path.engram, layer, ids[layer].reshape(-1).numpy())
            assert np.array_equal(gathered(staged), wanted)
            assert staged.num_rows == ids[layer].numel()
            assert staged.num_rows_read == len(np.unique(ids[layer].numpy()))
        timings = lane.take_timings()
        assert [t.layer_index for t in timings] == [0, 1]
        for timing in timings:
            assert timing.issued_ns <= timing.started_ns <= timing.ready_ns
        assert timings[0].ready_ns <= timings[1].started_ns  # one worker, in layer order


def test_rows_stay_valid_until_the_second_next_lookup_of_the_layer(path, lane) -> None:
    first = ids_of(path, 5, 1)
    lane.begin_step(first)
    kept = [lane.rows_for(layer) for layer in range(2)]
    lane.begin_step(ids_of(path, 90, 2))  # larger: the shared memory grows under the rows kept
    for layer in range(2):
        lane.rows_for(layer)
        assert np.array_equal(
            gathered(kept[layer]), expected_rows(path.engram, layer, first[layer].reshape(-1).numpy())
        )


def test_an_id_outside_the_table_is_refused_and_the_lane_goes_on(path, lane) -> None:
    bad = ids_of(path, 2, 3)
    bad[1, 0, 0] = 10_000
    lane.begin_step(bad)
    lane.rows_for(0)
    with pytest.raises(BadInput, match="row id 10000"):
        lane.rows_for(1)
    ids = ids_of(path, 2, 4)
    lane.begin_step(ids)
    for layer in range(2):
        wanted = expected_rows(path.engram, layer, ids[layer].reshape(-1).numpy())
        assert np.array_equal(gathered(lane.rows_for(layer)), wanted)
    assert [timing.layer_index for timing in lane.take_timings()] == [0, 1], "a failed step is in no timing"


def test_a_truncated_file_is_an_error_never_a_wrong_row(path, lane) -> None:
    os.truncate(path.files[1], 4096)
    lane.begin_step(ids_of(path, 30, 5))
    lane.rows_for(0)
    with pytest.raises(FileProblem, match="ends too early"):
        lane.rows_for(1)


def test_a_dead_process_is_reported(path, lane) -> None:
    os.kill(lane._lane._process.pid, signal.SIGKILL)
    lane._lane._process.wait()
    lane.begin_step(ids_of(path, 2, 6))
    with pytest.raises(TiercastError, match="ended with code -9"):
        lane.rows_for(0)


def test_closing_ends_the_process_and_its_descriptors(path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    prefetcher = Prefetcher(path, "step_entry")
    process = prefetcher._lane._process
    prefetcher.close()
    prefetcher.close()
    assert process.returncode == 0
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("how", ["refused", "gone at once"])
def test_a_process_that_does_not_start_is_one_line_and_leaves_no_descriptor(path, monkeypatch, how) -> None:
    real = subprocess.Popen

    def start(_, **options):
        if how == "refused":
            raise BlockingIOError(11, "Resource temporarily unavailable")
        process = real([sys.executable, "-c", "pass"], **options)
        process.wait()
        return process

    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(MissingCapability, match=r"^the lookup process could not be started \(.*\); use prefetch off$"):
        ProcessLane(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_callers_own_clock_gets_the_thread(path) -> None:
    prefetcher = Prefetcher(path, "step_entry", clock=lambda: 0)
    assert isinstance(prefetcher._lane, WorkerLane)
    prefetcher.close()
