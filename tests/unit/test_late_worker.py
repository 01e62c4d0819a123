"""A worker that gets its core late: who wants rows makes the lookup, in the same order and never two at once."""

import threading
from queue import SimpleQueue
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import FileProblem  # noqa: E402
from tiercast_runtime import prefetch_lanes  # noqa: E402
from tiercast_runtime.engine import Engine  # noqa: E402
from tiercast_runtime.paths.base import StagedRows  # noqa: E402
from tiercast_runtime.prefetch import LookupTiming, Prefetcher  # noqa: E402

CPU = torch.device("cpu")
WORKER, COMPUTE = "tiercast-lookup", threading.current_thread().name
FETCH_NS, TIMEOUT_S = 100, 30
STEP_ENTRY, PREV_STEP = "step_entry", "prev_step"


class Sleeper:
    """The queue a worker sleeps at, as it is where the worker gets no core: nothing is got from it before ``wake``."""

    def __init__(self):
        self._leave = threading.Semaphore(0)
        self._queue = SimpleQueue()
        self.put = self._queue.put

    def get(self):
        item = self._queue.get()
        assert self._leave.acquire(timeout=TIMEOUT_S), "a test wakes the worker in the end"
        return item

    def wake(self, num_times=1_000):
        self._leave.release(num_times)


class WatchedTurn:
    """The worker's lock. ``is_refused`` is set when a thread has to wait for it."""

    def __init__(self):
        self.is_refused = threading.Event()
        self._lock = threading.Lock()
        self.locked = self._lock.locked

    def __enter__(self):
        if not self._lock.acquire(blocking=False):
            self.is_refused.set()
            self._lock.acquire()

    def __exit__(self, *_):
        self._lock.release()


class Path:
    """Rows that carry their first id, in two slots a layer as real paths have them; FETCH_NS on the clock each.

    ``hooks`` by layer run inside a fetch. Notes ``(layer, first id, thread)`` and whether two fetches ever overlapped.
    """

    name, device, is_host_driven, facts = "fake", CPU, True, {}

    def __init__(self):
        self.now, self.fetched, self.hooks, self.overlapped = 1_000, [], {}, threading.Event()
        self.began = {layer: threading.Event() for layer in range(4)}
        self._one_at_a_time = threading.Lock()
        self._slots, self._turns = {}, dict.fromkeys(range(4), 0)

    def clock(self):
        return self.now

    def fetch(self, layer_index, row_ids):
        if not self._one_at_a_time.acquire(blocking=False):
            self.overlapped.set()
            raise AssertionError("two fetches at once")
        try:
            first_id = int(row_ids[0, 0])
            self.fetched.append((layer_index, first_id, threading.current_thread().name))
            self.began[layer_index].set()
            if layer_index in self.hooks:
                self.hooks[layer_index]()
            self.now += FETCH_NS
            self._turns[layer_index] ^= 1
            key = (layer_index, self._turns[layer_index], row_ids.numel())
            if key not in self._slots:
                self._slots[key] = torch.empty((row_ids.numel(), 1), dtype=torch.int64)
            return StagedRows(self._slots[key].fill_(first_id), None, row_ids.numel(), row_ids.numel())
        finally:
            self._one_at_a_time.release()

    def check(self):
        pass

    @property
    def order(self):
        return [(layer, first_id) for layer, first_id, _ in self.fetched]

    @property
    def threads(self):
        return [thread for *_, thread in self.fetched]


@pytest.fixture
def path():
    return Path()


@pytest.fixture
def sleeper(monkeypatch):
    """What the next worker sleeps at."""
    made = Sleeper()
    monkeypatch.setattr(prefetch_lanes, "queue", SimpleNamespace(SimpleQueue=lambda: made))
    return made


@pytest.fixture
def make(path):
    """Makes a prefetcher that steals; closed in the end, woken if need be."""
    made = []

    def prefetcher(mode=STEP_ENTRY):
        made.append(Prefetcher(path, mode, path.clock, steals=True))
        return made[-1]

    yield prefetcher
    for each in made:
        wakeups = each._lane._worker._wakeups
        if isinstance(wakeups, Sleeper):
            wakeups.wake()
        each.close()


def ids(first_id, num_layers=2, num_tokens=1):
    """Row ids of a step; layer ``n`` begins with ``first_id + n``."""
    steps = torch.arange(num_layers)[:, None, None] + first_id
    return steps.expand(num_layers, num_tokens, 3).contiguous()


def test_rows_the_worker_has_not_begun_are_fetched_by_who_wants_them(path, sleeper, make):
    prefetcher = make()
    prefetcher.begin_step(ids(10, 3))
    path.now += 2_000  # the layers before; the worker has no core
    assert prefetcher.rows_for(0).rows[0, 0] == 10
    assert path.fetched == [(0, 10, COMPUTE)]
    path.now += 50
    assert prefetcher.rows_for(1).rows[0, 0] == 11
    sleeper.wake()
    assert path.began[2].wait(TIMEOUT_S), "the worker, once awake, goes on with what is left"
    assert prefetcher.rows_for(2).rows[0, 0] == 12
    assert path.fetched == [(0, 10, COMPUTE), (1, 11, COMPUTE), (2, 12, WORKER)]
    assert prefetcher.take_timings()[:2] == [
        LookupTiming(0, 1_000, 3_000, 3_100, 100, 3, 3),  # begun when the rows were wanted; all of it is stall
        LookupTiming(1, 1_000, 3_150, 3_250, 100, 3, 3),
    ]
    prefetcher.begin_step(ids(20, 3))  # the wake-ups for lookups it did not make are left over and mean nothing
    assert [int(prefetcher.rows_for(layer).rows[0, 0]) for layer in range(3)] == [20, 21, 22]
    assert path.order == [(0, 10), (1, 11), (2, 12), (0, 20), (1, 21), (2, 22)]


def test_without_leave_to_steal_the_worker_is_waited_for(path, sleeper):
    prefetcher = Prefetcher(path, STEP_ENTRY, path.clock)
    prefetcher.begin_step(ids(10))
    wait = prefetcher._lane._worker.wait
    prefetcher._lane._worker.wait = lambda job: (sleeper.wake(), wait(job))  # only who waits wakes it
    assert [int(prefetcher.rows_for(layer).rows[0, 0]) for layer in (0, 1)] == [10, 11]
    prefetcher.close()
    assert path.threads == [WORKER, WORKER]


def test_a_worker_that_wakes_up_during_a_stolen_fetch_waits_and_goes_on_with_the_next(path, sleeper, make):
    prefetcher = make()
    turn = prefetcher._lane._worker._turn = WatchedTurn()

    def until_the_worker_wants_a_turn():
        sleeper.wake()
        assert turn.is_refused.wait(TIMEOUT_S)

    path.hooks[0] = until_the_worker_wants_a_turn
    prefetcher.begin_step(ids(10))
    assert prefetcher.rows_for(0).rows[0, 0] == 10
    assert path.began[1].wait(TIMEOUT_S)
    assert prefetcher.rows_for(1).rows[0, 0] == 11
    assert path.fetched == [(0, 10, COMPUTE), (1, 11, WORKER)]
    assert not path.overlapped.is_set()


def test_a_worker_that_is_in_another_lookup_is_waited_for(path, make):
    """Only the wait lets the worker out of layer 0, so nobody has fetched layer 1 before it."""
    prefetcher = make()
    leave = threading.Event()
    path.hooks[0] = lambda: leave.wait(TIMEOUT_S)
    prefetcher.begin_step(ids(10))
    assert path.began[0].wait(TIMEOUT_S)
    wait, seen = prefetcher._lane._worker.wait, []

    def note_and_wait(job):
        seen.append(list(path.order))
        leave.set()
        wait(job)

    prefetcher._lane._worker.wait = note_and_wait
    assert prefetcher.rows_for(1).rows[0, 0] == 11
    assert prefetcher.rows_for(0).rows[0, 0] == 10
    assert seen == [[(0, 10)]]
    assert path.fetched == [(0, 10, WORKER), (1, 11, WORKER)]


def test_a_worker_that_wakes_up_first_has_made_the_lookup(path, sleeper, make):
    """Asleep when it was looked at, and there before its place was taken: no other lookup is made instead."""
    prefetcher = make()

    class LateTurn(WatchedTurn):
        def __enter__(self):
            if threading.current_thread().name == COMPUTE:
                sleeper.wake(1)
                assert job.done.wait(TIMEOUT_S)
            super().__enter__()

    prefetcher._lane._worker._turn = LateTurn()
    prefetcher.begin_step(ids(10))
    job = prefetcher._lane._jobs[0]
    assert prefetcher.rows_for(0).rows[0, 0] == 10
    assert path.fetched == [(0, 10, WORKER)]


def test_a_stolen_lookup_that_fails_is_raised_and_the_next_step_starts_clean(path, sleeper, make):
    prefetcher = make()

    def fail():
        sleeper.wake()  # the rest of the step runs out in the worker
        raise FileProblem("the drive is gone")

    path.hooks[0] = fail
    prefetcher.begin_step(ids(10, 3))
    with pytest.raises(FileProblem, match="the drive is gone"):
        prefetcher.rows_for(0)
    assert path.fetched == [(0, 10, COMPUTE), (1, 11, WORKER), (2, 12, WORKER)]
    path.hooks.clear()
    prefetcher.begin_step(ids(20, 3))
    assert [int(prefetcher.rows_for(layer).rows[0, 0]) for layer in range(3)] == [20, 21, 22]
    assert [timing.layer_index for timing in prefetcher.take_timings()] == [0, 1, 2]


def test_an_interrupt_during_a_stolen_fetch_leaves_the_worker_its_turn(path, sleeper, make):
    prefetcher = make()

    def interrupt():
        sleeper.wake()
        raise KeyboardInterrupt

    path.hooks[0] = interrupt
    prefetcher.begin_step(ids(10))
    with pytest.raises(KeyboardInterrupt):
        prefetcher.rows_for(0)
    assert path.order == [(0, 10), (1, 11)]


@pytest.mark.usefixtures("sleeper")
def test_stealing_keeps_the_order_in_which_lookups_were_handed_over(path, make):
    """Ranks of a sharded path make their lookups together: whose worker is late may not change which comes next."""
    prefetcher = make(PREV_STEP)
    prefetcher.begin_split_step(ids(10), 1, 0)
    prefetcher.look_ahead(ids(20))
    assert [int(prefetcher.rows_for(layer).rows[0, 0]) for layer in (0, 1)] == [10, 11]
    assert path.order == [(0, 10), (1, 11)], "what is looked up ahead is nobody's hurry"
    prefetcher.begin_split_step(ids(30), 1, 1)
    assert prefetcher.rows_for(0).rows[:, 0].tolist() == [30] * 3 + [20] * 3
    assert path.order[2:] == [(0, 20), (1, 21), (0, 30)]
    assert prefetcher.rows_for(1).rows[:, 0].tolist() == [31] * 3 + [21] * 3
    assert path.order[2:] == [(0, 20), (1, 21), (0, 30), (1, 31)]
    assert set(path.threads) == {COMPUTE}


@pytest.mark.usefixtures("sleeper")
def test_a_stolen_early_lookup_has_rows_of_its_own(path, make):
    lane = make(PREV_STEP)._lane
    lane.look_ahead(ids(10))
    early = lane.early_rows_for(0)
    for first_id in (20, 30):  # both slots of the layer are written over
        lane.begin_step(ids(first_id))
        assert [int(lane.rows_for(layer).rows[0, 0]) for layer in (0, 1)] == [first_id, first_id + 1]
    assert early.rows[:, 0].tolist() == [10] * 3
    assert lane.take_timings()[0].is_early
    assert set(path.threads) == {COMPUTE}


def test_what_a_path_makes_in_a_stolen_fetch_the_worker_may_write_to(path, sleeper, make):
    """Engines compute in inference mode, workers do not: its tensors refuse to be written to outside of it."""
    prefetcher = make()
    with torch.inference_mode():
        for first_id in (10, 20):  # makes both slots of both layers
            prefetcher.begin_step(ids(first_id))
            assert [int(prefetcher.rows_for(layer).rows[0, 0]) for layer in (0, 1)] == [first_id, first_id + 1]
        assert set(path.threads) == {COMPUTE}
        sleeper.wake()
        path.began[1].clear()
        prefetcher.begin_step(ids(30))
        assert path.began[1].wait(TIMEOUT_S)
        assert [int(prefetcher.rows_for(layer).rows[0, 0]) for layer in (0, 1)] == [30, 31]
    assert path.threads[4:] == [WORKER, WORKER]


def test_whoever_makes_them_lookups_keep_their_order_and_never_overlap(path, make):
    """Nobody is held back here: threads meet as the system has it."""
    prefetcher = make(PREV_STEP)
    expected, in_flight = [], None
    for step in range(300):
        first_id = 100 * step
        prefetcher.begin_split_step(ids(first_id, 3), 1, 0 if in_flight is None else 1)
        expected += [(layer, first_id + layer) for layer in range(3)]
        prefetcher.look_ahead(ids(first_id + 50, 3))
        expected += [(layer, first_id + 50 + layer) for layer in range(3)]
        for layer in range(3):
            rows = [first_id + layer] * 3 + ([] if in_flight is None else [in_flight + layer] * 3)
            assert prefetcher.rows_for(layer).rows[:, 0].tolist() == rows
        in_flight = first_id + 50
    prefetcher.close()
    assert path.order == expected
    assert not path.overlapped.is_set()


@pytest.mark.usefixtures("one_compute_thread")
@pytest.mark.parametrize("prefetch", [STEP_ENTRY, PREV_STEP])
@pytest.mark.parametrize("cache_gib", [0, 3e-6])
def test_an_engine_whose_worker_never_gets_a_core_computes_the_same(
    mini_scenario, tmp_path, sleeper, monkeypatch, prefetch, cache_gib
):
    resolved = mini_scenario({"tier": "dram", "prefetch": prefetch, "cache_gib": cache_gib})
    with Engine(resolved, CPU, tmp_path) as engine:
        stolen = engine.run()
        sleeper.wake()
    monkeypatch.undo()
    with Engine(resolved, CPU, tmp_path) as engine:
        usual = engine.run()
    assert stolen.token_ids == usual.token_ids
    assert stolen.samples.steps.rows == usual.samples.steps.rows
    assert stolen.samples.steps.rows_read == usual.samples.steps.rows_read
