"""Captured decode steps, with capture replaced by calling again: buckets, padding, static buffers, the way back."""

import contextlib
import itertools

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.graph_buckets import MAX_GRAPH_ROWS, bucket_for, bucket_sizes  # noqa: E402
from tiercast_runtime.engine import Engine  # noqa: E402
from tiercast_runtime.graph_lookups import CapturedLookups  # noqa: E402
from tiercast_runtime.graph_plan import graph_mode_here, pieces  # noqa: E402
from tiercast_runtime.paths.base import StagedRows  # noqa: E402

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_compute_thread")


class FakeEvent:
    """``at`` is the place in the backend's log where it was last recorded."""

    def __init__(self, backend):
        self.backend, self.at = backend, None

    def record(self):
        self.at = next(self.backend.ticks)
        self.backend.log.append((self.backend.stream, "records", self.at))


class FakeGraphs:
    """A capture keeps the function; a replay calls it, so only static buffers can bring new inputs."""

    def __init__(self, *, fails=False):
        self.ticks, self.log, self.stream = itertools.count(1), [], "main"
        self.fails, self.num_captures, self.num_replays = fails, 0, 0

    def capture(self, work):
        if self.fails:
            raise RuntimeError("CUDA error: out of memory\nand more")
        work()
        self.num_captures += 1
        backend = self

        class Graph:
            def replay(self):
                backend.num_replays += 1
                work()

        return Graph()

    def edge(self):
        return FakeEvent(self)

    def timer(self):
        return FakeEvent(self)

    @contextlib.contextmanager
    def side(self):
        self.stream = "side"
        yield
        self.stream = "main"

    def side_waits(self, event):
        self.log.append(("side", "waits", event.at))

    def main_waits(self, event):
        self.log.append(("main", "waits", event.at))

    def host_ns(self, timer):
        return timer.at

    def end_step(self):
        self.log.clear()


def with_mode(resolved, mode):
    return resolved.model_copy(update={"placement": resolved.placement.model_copy(update={"graph_mode": mode})})


def test_buckets_are_bounded_and_hold_every_batch():
    assert bucket_sizes(1) == (1,)
    assert bucket_sizes(3) == (1, 2, 3)
    assert bucket_sizes(20) == (1, 2, 4, 8, 16, 20)
    for largest in (1, 64, 100, 512, 5000):
        sizes = bucket_sizes(largest)
        assert len(sizes) <= 40
        assert sizes[-1] == min(largest, MAX_GRAPH_ROWS)
        for count in range(1, sizes[-1] + 1):
            bucket = bucket_for(count, sizes)
            assert count <= bucket <= max(count + 7, 1.25 * count)
    assert bucket_for(MAX_GRAPH_ROWS + 1, bucket_sizes(5000)) is None


def test_a_step_is_cut_where_rows_are_needed():
    assert pieces(6, ()) == (range(6),)
    assert pieces(6, (1, 3)) == (range(1), range(1, 3), range(3, 6))
    assert pieces(6, (0,)) == (range(0), range(6))


def test_a_mode_that_cannot_be_run_is_replaced_with_its_reason(mini_scenario):
    def placement(mode, **fields):
        return with_mode(mini_scenario({"tier": "dram", **fields}), mode).placement

    assert graph_mode_here(placement("eager"), CPU) == ("eager", "")
    assert graph_mode_here(placement("piecewise"), CPU, has_backend=True) == ("piecewise", "")
    mode, reason = graph_mode_here(placement("full"), CPU, has_backend=True)
    assert mode == "piecewise"
    assert "cpu_gather" in reason
    mode, reason = graph_mode_here(placement("full"), CPU)
    assert mode == "eager"
    assert "CUDA" in reason
    uva = placement("full", prefetch="prev_step").model_copy(update={"path": "uva"})
    assert "prev_step" in graph_mode_here(uva, CPU, has_backend=True)[1]


@pytest.mark.parametrize("dialect", ["v41", "demo"])
@pytest.mark.parametrize(
    ("placement", "mode"),
    [
        ({"tier": "none"}, "full"),
        ({"tier": "hbm"}, "full"),
        ({"tier": "hbm"}, "piecewise"),
        ({"tier": "dram"}, "piecewise"),
        ({"tier": "dram", "prefetch": "prev_step"}, "piecewise"),
        ({"tier": "nvme", "prefetch": "off"}, "piecewise"),
    ],
)
def test_graphs_compute_the_tokens_of_single_calls(mini_scenario, mini_model, tmp_path, dialect, placement, mode):
    resolved = mini_scenario(placement, model=mini_model(dialect))
    with Engine(resolved, CPU, tmp_path) as engine:
        expected = engine.run()
    backend = FakeGraphs()
    with Engine(with_mode(resolved, mode), CPU, tmp_path, graphs=backend) as engine:
        result = engine.run()
        facts = engine.graph_facts
    assert result.token_ids == expected.token_ids
    assert facts["graph_mode_run"] == mode
    assert facts["graph_steps"] > 0
    num_graphs = 1 if mode == "full" or placement["tier"] == "none" else 3
    assert backend.num_captures == num_graphs * facts["graph_batch_sizes"] == num_graphs * len(bucket_sizes(3))
    assert backend.num_replays == num_graphs * facts["graph_steps"]
    steps, before = result.samples.steps, expected.samples.steps
    assert (steps.rows, steps.decode_sequences) == (before.rows, before.decode_sequences)
    assert len(result.layers) == len(expected.layers)
    for layer, same in zip(result.layers, expected.layers, strict=True):
        assert [step.num_rows_read for step in layer] == [step.num_rows_read for step in same]


def test_a_refused_capture_is_no_graph_and_says_why(mini_scenario, tmp_path):
    resolved = mini_scenario({"tier": "hbm"})
    with Engine(resolved, CPU, tmp_path) as engine:
        expected = engine.run().token_ids
    with Engine(with_mode(resolved, "full"), CPU, tmp_path, graphs=FakeGraphs(fails=True)) as engine:
        assert engine.run().token_ids == expected
        assert engine.graph_facts == {
            "graph_mode_run": "eager",
            "graph_mode_reason": "no graph of 3 rows: CUDA error: out of memory",
        }


def test_a_second_run_captures_nothing_anew(mini_scenario, tmp_path):
    backend = FakeGraphs()
    with Engine(with_mode(mini_scenario({"tier": "hbm"}), "full"), CPU, tmp_path, graphs=backend) as engine:
        first, captures = engine.run(), backend.num_captures
        assert engine.run().token_ids == first.token_ids
    assert backend.num_captures == captures


class FakePath:
    name = "uva"

    def __init__(self, backend):
        self.backend = backend

    def fetch(self, layer_index, row_ids):
        self.backend.log.append((self.backend.stream, "fetches", layer_index))
        return StagedRows(row_ids, None, row_ids.numel(), row_ids.numel())

    def check(self):
        pass


def test_captured_lookups_fork_once_and_join_where_each_layer_asks():
    backend = FakeGraphs()
    lookups = CapturedLookups(backend, FakePath(backend), is_prefetching=True)
    lookups.begin(torch.zeros((2, 3, 4), dtype=torch.int64))  # issued 1, fork 2; layer 0: 3-5, layer 1: 6-8
    assert backend.log[2] == ("side", "waits", 2)
    assert [entry for entry in backend.log if entry[1] == "fetches"] == [("side", "fetches", 0), ("side", "fetches", 1)]
    backend.log.clear()
    for layer in (0, 1):
        assert lookups.rows_for(layer).num_rows == 12
    assert [entry for entry in backend.log if entry[1] == "waits"] == [("main", "waits", 5), ("main", "waits", 8)]
    timings = lookups.timings(num_rows=8)
    assert [(t.issued_ns, t.started_ns, t.ready_ns, t.stall_ns, t.num_rows) for t in timings] == [
        (1, 3, 4, 0, 8),
        (1, 6, 7, 0, 8),
    ]
    assert lookups.windows_ns() == (8, 9)


def test_captured_lookups_without_prefetch_run_where_the_layer_asks_and_stall_for_all_their_time():
    backend = FakeGraphs()
    lookups = CapturedLookups(backend, FakePath(backend), is_prefetching=False)
    lookups.begin(torch.zeros((1, 3, 4), dtype=torch.int64))
    lookups.rows_for(0)
    assert [entry[:2] for entry in backend.log] == [("main", "records")] * 3 + [
        ("main", "fetches"),
        ("main", "records"),
    ]
    (timing,) = lookups.timings(num_rows=12)
    assert (timing.issued_ns, timing.started_ns, timing.ready_ns, timing.stall_ns) == (2, 3, 4, 2)
    assert lookups.windows_ns() == (0,)
