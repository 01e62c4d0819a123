"""Prefetch: order, waiting, timing on a fake clock, and failures that reach the one who asked."""

import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import BadInput, FileProblem  # noqa: E402
from tiercast_runtime import table  # noqa: E402
from tiercast_runtime.paths.base import StagedRows  # noqa: E402
from tiercast_runtime.paths.cpu_gather import CpuGatherPath  # noqa: E402
from tiercast_runtime.prefetch import LookupTiming, Prefetcher  # noqa: E402

CPU = torch.device("cpu")
FETCH_NS = 100


class FakeClock:
    """A clock that only the lookups move. ``on_compute_call`` runs when the compute thread reads it."""

    def __init__(self):
        self.now = 1_000
        self.compute_thread = threading.current_thread()
        self.on_compute_call = None

    def __call__(self):
        now = self.now
        if threading.current_thread() is self.compute_thread and self.on_compute_call is not None:
            self.on_compute_call()
        return now


class FakePath:
    """Fetches rows that carry their layer, takes FETCH_NS on the clock, waits at the gate of a layer that has one."""

    name, device, is_host_driven, facts = "fake", CPU, True, {}

    def __init__(self, clock):
        self.clock = clock
        self.gates = {}
        self.failures = {}
        self.fetched = []
        self.began = {layer: threading.Event() for layer in range(8)}

    def fetch(self, layer_index, row_ids):
        self.began[layer_index].set()
        if layer_index in self.gates:
            assert self.gates[layer_index].wait(10)
        self.fetched.append((layer_index, row_ids.tolist(), threading.current_thread().name))
        if layer_index in self.failures:
            raise self.failures[layer_index]
        self.clock.now += FETCH_NS
        rows = torch.full((row_ids.numel(), 3), layer_index, dtype=torch.uint8)
        return StagedRows(rows, None, row_ids.numel(), row_ids.numel() - 1)

    def check(self):
        pass

    def close(self):
        pass


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def path(clock):
    return FakePath(clock)


@pytest.fixture
def prefetcher(path, clock):
    made = Prefetcher(path, "step_entry", clock)
    yield made
    for gate in path.gates.values():
        gate.set()
    made.close()


def ids(num_layers=2, num_tokens=2):
    return torch.arange(num_layers * num_tokens * 3).reshape(num_layers, num_tokens, 3)


def test_off_fetches_when_asked_and_all_of_it_is_stall(path, clock):
    prefetcher = Prefetcher(path, "off", clock)
    prefetcher.begin_step(ids())
    assert path.fetched == []
    clock.now += 50
    assert prefetcher.rows_for(0).rows[0, 0] == 0
    clock.now += 7
    assert prefetcher.rows_for(1).rows[0, 0] == 1
    assert prefetcher.take_timings() == [
        LookupTiming(0, 1050, 1050, 1150, 100, 6, 5),
        LookupTiming(1, 1157, 1157, 1257, 100, 6, 5),
    ]
    assert prefetcher.take_timings() == []
    assert {thread for *_, thread in path.fetched} == {threading.current_thread().name}
    prefetcher.close()


def test_a_lookup_that_is_ready_costs_no_stall_and_one_that_is_not_costs_the_wait(path, clock, prefetcher):
    path.gates[1] = threading.Event()
    prefetcher.begin_step(ids())
    assert path.began[1].wait(10)  # the worker is in layer 1, so layer 0 is there
    assert prefetcher.rows_for(0).rows[0, 0] == 0
    clock.on_compute_call = path.gates[1].set  # layer 1 goes on only once the compute thread waits for it
    assert prefetcher.rows_for(1).rows[0, 0] == 1
    clock.on_compute_call = None
    assert prefetcher.take_timings() == [
        LookupTiming(0, 1000, 1000, 1100, 0, 6, 5),
        LookupTiming(1, 1000, 1100, 1200, 100, 6, 5),  # queued behind layer 0 from 1000 to 1100
    ]


def test_one_worker_serves_layers_in_order_with_their_own_ids(path, prefetcher):
    for step in range(3):
        row_ids = ids(4) + 1000 * step
        prefetcher.begin_step(row_ids)
        for layer in range(4):
            prefetcher.rows_for(layer)
        assert [(layer, asked) for layer, asked, _ in path.fetched] == list(enumerate(row_ids.tolist()))
        assert {thread for *_, thread in path.fetched} == {"tiercast-lookup"}
        path.fetched.clear()
    assert [timing.layer_index for timing in prefetcher.take_timings()] == [0, 1, 2, 3] * 3


def test_lookups_run_while_the_compute_thread_is_elsewhere(path, prefetcher):
    """Nobody asks for rows here, yet both lookups happen."""
    prefetcher.begin_step(ids())
    assert path.began[0].wait(10)
    assert path.began[1].wait(10)
    prefetcher.rows_for(0)
    prefetcher.rows_for(1)


@pytest.mark.parametrize("mode", ["off", "step_entry", "prev_step"])
def test_a_failed_lookup_is_raised_where_the_rows_are_asked_for_and_the_next_step_starts_clean(path, clock, mode):
    prefetcher = Prefetcher(path, mode, clock)
    path.failures[1] = FileProblem("the drive is gone")
    prefetcher.begin_step(ids(3))
    if mode == "prev_step":
        prefetcher.look_ahead(ids(3))
    assert prefetcher.rows_for(0).rows[0, 0] == 0
    with pytest.raises(FileProblem, match="the drive is gone"):
        prefetcher.rows_for(1)
    path.failures.clear()
    prefetcher.begin_step(ids(3))
    assert [int(prefetcher.rows_for(layer).rows[0, 0]) for layer in range(3)] == [0, 1, 2]
    assert [timing.layer_index for timing in prefetcher.take_timings()] == [0, 1, 2]
    prefetcher.close()


def test_a_step_is_not_begun_over_an_unfinished_one(prefetcher):
    prefetcher.begin_step(ids())
    prefetcher.rows_for(0)
    with pytest.raises(AssertionError, match="not all been taken"):
        prefetcher.begin_step(ids())


def test_rows_are_taken_once(prefetcher):
    prefetcher.begin_step(ids())
    prefetcher.rows_for(0)
    with pytest.raises(AssertionError, match="taken once"):
        prefetcher.rows_for(0)


def test_rows_looked_up_ahead_are_counted_where_they_are_waited_for(path, clock):
    prefetcher = Prefetcher(path, "prev_step", clock)
    prefetcher.begin_split_step(ids(), 2, 0)
    prefetcher.look_ahead(ids(num_tokens=3))
    for layer in range(2):
        assert len(prefetcher.rows_for(layer).rows) == 6
    assert [timing.is_early for timing in prefetcher.take_timings()] == [False, False]
    prefetcher.begin_split_step(ids(num_tokens=1), 1, 2)
    for layer in range(2):
        assert prefetcher.rows_for(layer).rows[:, 0].tolist() == [layer] * 9
    timings = prefetcher.take_timings()
    assert [(t.layer_index, t.is_early, t.num_rows) for t in timings] == [
        (0, True, 9),
        (0, False, 3),
        (1, True, 9),
        (1, False, 3),
    ]
    # Layers of the first step, then those looked up ahead, then the second step's own: one worker, first come first.
    assert [len(asked) for _, asked, _ in path.fetched] == [2, 2, 3, 3, 1, 1]
    prefetcher.begin_split_step(ids(num_tokens=0), 0, 1)  # the last of the rows looked up ahead, nothing else
    assert [len(prefetcher.rows_for(layer).rows) for layer in range(2)] == [3, 3]
    assert prefetcher.take_timings() == []
    prefetcher.close()


def test_closing_ends_the_worker(path, clock):
    made = Prefetcher(path, "step_entry", clock)
    made.begin_step(ids())
    made.close()
    made.close()
    assert [layer for layer, *_ in path.fetched] == [0, 1], "what was begun is brought to its end"
    assert not any(thread.name == "tiercast-lookup" and thread.is_alive() for thread in threading.enumerate())


@pytest.mark.parametrize("mode", ["off", "step_entry"])
def test_real_rows_and_a_real_refusal(mini_model, mode):
    engram = mini_model("v41").engram
    tables = [table.ResidentTable(engram, layer, "packed", CPU) for layer in (0, 1)]
    lookups = CpuGatherPath(tables, CPU)
    prefetcher = Prefetcher(lookups, mode)
    row_ids = torch.randint(0, tables[0].num_rows, (2, 9, engram.num_rows_per_token)).clamp_(max=tables[1].num_rows - 1)
    prefetcher.begin_step(row_ids)
    for layer in (0, 1):
        expected = table.expected_rows(engram, layer, row_ids[layer].reshape(-1).numpy())
        assert np.array_equal(prefetcher.rows_for(layer).rows.numpy(), expected)
    for timing in prefetcher.take_timings():
        assert timing.issued_ns <= timing.started_ns <= timing.ready_ns
        assert timing.stall_ns >= 0
    prefetcher.begin_step(torch.full((2, 1, 6), 10**6))
    with pytest.raises(BadInput, match=r"row id 1000000 \(number 0 of the lookup\) lies outside"):
        prefetcher.rows_for(0)
    prefetcher.close()
    lookups.close()
