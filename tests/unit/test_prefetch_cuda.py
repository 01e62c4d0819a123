"""The GPU lane's order of events, with streams and events replaced by a log: what waits for what, and when."""

import contextlib
import threading
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import FileProblem  # noqa: E402
from tiercast_runtime.paths.base import StagedRows  # noqa: E402
from tiercast_runtime.prefetch import LookupTiming, Prefetcher  # noqa: E402


class FakeGpu:
    """One clock in ms that every record moves by one; streams by thread, as CUDA has them."""

    def __init__(self):
        self.now_ms = 0
        self.lock = threading.Lock()
        self.local = threading.local()
        self.log = []

    def current(self):
        return getattr(self.local, "stream", "compute")

    def tick(self):
        with self.lock:
            self.now_ms += 1
            return self.now_ms


class FakeEvent:
    gpu: FakeGpu

    def __init__(self, enable_timing=False):
        self.at_ms, self.stream = None, None

    def record(self):
        self.at_ms, self.stream = self.gpu.tick(), self.gpu.current()

    def synchronize(self):
        assert self.at_ms is not None, "an event is waited for only once it is recorded"

    def elapsed_time(self, other):
        return float(other.at_ms - self.at_ms)


class FakeStream:
    gpu: FakeGpu

    def __init__(self, device=None, priority=0):
        self.name = "side"

    def wait_event(self, event):
        assert event.at_ms is not None
        self.gpu.log.append((self.name, "waits for", event.stream, event.at_ms))


class FakePath:
    name, device = "fake", torch.device("cuda", 0)

    def __init__(self, gpu, is_host_driven):
        self.gpu, self.is_host_driven, self.failures, self.checks = gpu, is_host_driven, {}, 0

    def fetch(self, layer_index, row_ids):
        if layer_index in self.failures:
            raise self.failures[layer_index]
        self.gpu.log.append((self.gpu.current(), "fetches", layer_index, threading.current_thread().name))
        rows = SimpleNamespace(record_stream=lambda stream: self.gpu.log.append(("rows of", layer_index, stream.name)))
        return StagedRows(rows, None, 6, 6)

    def check(self):
        self.checks += 1


@pytest.fixture
def gpu(monkeypatch):
    fake = FakeGpu()
    monkeypatch.setattr(FakeEvent, "gpu", fake, raising=False)
    monkeypatch.setattr(FakeStream, "gpu", fake, raising=False)
    compute = FakeStream()
    compute.name = "compute"

    @contextlib.contextmanager
    def stream(given):
        fake.local.stream = given.name
        yield
        fake.local.stream = "compute"

    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: compute)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    return fake


def ids():
    return torch.zeros((2, 1, 6), dtype=torch.int64)


def test_device_paths_are_enqueued_at_step_entry_on_the_side_stream(gpu):
    path = FakePath(gpu, is_host_driven=False)
    prefetcher = Prefetcher(path, "step_entry", clock=lambda: 0)  # the anchor is recorded at 1 ms, host time 0
    prefetcher.begin_step(ids())  # issued 2; layer 0: 3, 4; layer 1: 5, 6
    assert [entry[:3] for entry in gpu.log if entry[1] == "fetches"] == [("side", "fetches", 0), ("side", "fetches", 1)]
    for layer in (0, 1):  # the compute stream arrives at 7 and 8
        prefetcher.rows_for(layer)
    assert gpu.log[-4:] == [
        ("compute", "waits for", "side", 4),
        ("rows of", 0, "compute"),
        ("compute", "waits for", "side", 6),
        ("rows of", 1, "compute"),
    ]
    ms = 1_000_000
    assert prefetcher.take_timings() == [
        LookupTiming(0, 1 * ms, 2 * ms, 3 * ms, 0, 6, 6),
        LookupTiming(1, 1 * ms, 4 * ms, 5 * ms, 0, 6, 6),
    ]
    assert path.checks == 1
    prefetcher.close()


def test_host_paths_run_in_the_worker_and_still_order_the_streams(gpu):
    path = FakePath(gpu, is_host_driven=True)
    prefetcher = Prefetcher(path, "step_entry", clock=lambda: 0)
    for _ in range(2):
        gpu.log.clear()
        prefetcher.begin_step(ids())
        for layer in (0, 1):
            prefetcher.rows_for(layer)
        fetches = [entry for entry in gpu.log if entry[1] == "fetches"]
        assert fetches == [("side", "fetches", layer, "tiercast-lookup") for layer in (0, 1)]
        waits = [entry for entry in gpu.log if entry[:2] == ("compute", "waits for")]
        assert [stream for _, _, stream, _ in waits] == ["side", "side"]
        for timing in prefetcher.take_timings():
            assert timing.issued_ns <= timing.started_ns < timing.ready_ns
    prefetcher.close()


def test_off_runs_on_the_compute_stream_and_is_all_stall(gpu):
    path = FakePath(gpu, is_host_driven=False)
    prefetcher = Prefetcher(path, "off", clock=lambda: 0)
    prefetcher.begin_step(ids())
    assert gpu.log == []
    prefetcher.rows_for(0)
    assert gpu.log == [("compute", "fetches", 0, threading.current_thread().name)]
    (timing,) = prefetcher.take_timings()
    assert timing.stall_ns == timing.ready_ns - timing.issued_ns == 1_000_000
    prefetcher.close()


@pytest.mark.parametrize("mode", ["off", "step_entry"])
@pytest.mark.parametrize("is_host_driven", [False, True])
def test_a_failure_reaches_the_one_who_asks(gpu, is_host_driven, mode):
    path = FakePath(gpu, is_host_driven)
    prefetcher = Prefetcher(path, mode, clock=lambda: 0)
    path.failures[1] = FileProblem("the drive is gone")
    prefetcher.begin_step(ids())
    prefetcher.rows_for(0)
    with pytest.raises(FileProblem, match="the drive is gone"):
        prefetcher.rows_for(1)
    path.failures.clear()
    prefetcher.begin_step(ids())
    prefetcher.rows_for(0)
    assert [timing.layer_index for timing in prefetcher.take_timings()] == [0], "a failed step is in no timing"
    prefetcher.close()


@pytest.mark.parametrize("is_host_driven", [False, True])
def test_lookups_made_ahead_follow_those_of_the_step_on_the_same_side_stream(gpu, is_host_driven):
    path = FakePath(gpu, is_host_driven)
    prefetcher = Prefetcher(path, "prev_step", clock=lambda: 0)
    lane = prefetcher._lane
    for step in range(2):
        lane.begin_step(ids())
        lane.look_ahead(ids())
        if step:
            assert [lane.early_rows_for(layer).num_rows for layer in (0, 1)] == [6, 6]
        for layer in (0, 1):
            lane.rows_for(layer)
        timings = prefetcher.take_timings()
        assert [(t.layer_index, t.is_early) for t in timings if t.is_early] == ([(0, True), (1, True)] if step else [])
        for timing in timings:
            assert timing.issued_ns <= timing.started_ns < timing.ready_ns
    for layer in (0, 1):  # the last ones made ahead may still be on a worker's list
        lane.early_rows_for(layer)
    fetches = [entry for entry in gpu.log if entry[1] == "fetches"]
    assert [(stream, layer) for stream, _, layer, _ in fetches] == [("side", 0), ("side", 1)] * 4
    prefetcher.close()


def test_a_failed_step_leaves_nothing_in_flight(gpu):
    path = FakePath(gpu, is_host_driven=True)
    prefetcher = Prefetcher(path, "prev_step", clock=lambda: 0)
    path.failures[0] = FileProblem("gone")
    prefetcher.begin_step(ids())
    prefetcher.look_ahead(ids())
    with pytest.raises(FileProblem, match="gone"):
        prefetcher.rows_for(0)
    path.failures.clear()
    prefetcher.take_timings()
    prefetcher.begin_split_step(ids(), 0, 0)
    assert prefetcher._lane.rows_for(0).num_rows == 6
    prefetcher.close()
