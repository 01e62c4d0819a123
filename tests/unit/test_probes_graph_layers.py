"""Component times of captured steps, with capture replaced by calling again: what is captured, divided and merged."""

import itertools

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_runtime.probes.graph_layers import graph_tables, measure_graphs  # noqa: E402
from tiercast_runtime.probes.layers import LayerGrid, measure_layers  # noqa: E402
from tiercast_runtime.probes.step_bench import StepBench  # noqa: E402
from tiercast_runtime.probes.timing import Effort  # noqa: E402

ONCE = Effort(0, num_warm_ups=1, min_rounds=3, max_rounds=3)
CPU = torch.device("cpu")
GRID = LayerGrid(sequences=(1, 3), contexts=(16, 48), chunks=(2, 4, 20), starts=(0,))
pytestmark = pytest.mark.usefixtures("one_compute_thread")


class Replays:
    """Capture keeps the work, and a replay does it again."""

    def __init__(self):
        self.num_captures = 0

    def capture(self, work):
        work()
        self.num_captures += 1

        class Graph:
            replay = staticmethod(work)

        return Graph()

    def end_step(self):
        pass


def tables(mini_model, dialect, clock=None):
    with StepBench(mini_model(dialect), CPU, GRID.geometry) as bench:
        eager = measure_layers(bench, GRID, 1, ONCE)
        if clock is not None:
            bench.clock = clock
        backend = Replays()
        ticks = clock or itertools.count(0, 1_000).__next__
        graphs = measure_graphs(bench, GRID, ONCE, backend, ticks)
        return eager.table, graph_tables(graphs.spreads, eager.table), backend


@pytest.mark.parametrize("dialect", ["v41", "demo"])
def test_graph_tables_know_every_component_of_the_eager_one(mini_model, dialect):
    eager, graphs, backend = tables(mini_model, dialect)
    full, pieces = graphs
    assert (full.graph_mode, pieces.graph_mode) == ("full", "piecewise")
    assert set(full.components) == set(pieces.components) == set(eager.components)
    places = {name: [(p.num_tokens, p.context_tokens) for p in full.components[name]] for name in full.components}
    # 2 tokens lie between the batches, 4 and 20 beyond them: those keep the time of single calls
    assert places["linear"] == [(1, 0), (3, 0), (4, 0), (20, 0)]
    assert places["attention_decode"] == [(1, 16), (1, 48), (3, 16), (3, 48)]
    for single in ("attention_prefill", "attention_verify"):
        assert full.components[single] == eager.components[single]
    assert [p.time_us for p in full.components["lookup_issue"]][:2] == [0, 0]
    assert pieces.components["hash"] == eager.components["hash"]
    assert pieces.components["linear"] == full.components["linear"]
    assert full.components["linear"][2:] == tuple(p for p in eager.components["linear"] if p.num_tokens > 3)
    # per batch: embed, hash, linear, module, module with copy, two attentions, head, MLP; and the whole step
    assert backend.num_captures == 2 * (9 + 1)
    assert full.shape_sha256 == eager.shape_sha256
    assert full.engram_sha256 == eager.engram_sha256


def test_a_layer_is_its_share_of_all_layers_and_overhead_is_what_is_left(mini_model):
    _, graphs, _ = tables(mini_model, "v41", itertools.count(0, 6_000).__next__)
    points = {name: graphs[0].components[name][0].time_us for name in graphs[0].components}
    assert points["linear"] == points["attention_decode"] == 1.0  # six layers in one lap of 6 µs
    assert points["engram_module"] == 3.0  # two Engram layers
    assert points["head"] == points["embed"] == points["hash"] == 6.0
    # the clock is read some times within a step; four parts of 6 µs are not overhead
    assert points["step_overhead"] > 0
    assert points["step_overhead"] % 6 == 0


def test_the_mlp_of_a_graph_is_a_probe_and_no_component(mini_model):
    with StepBench(mini_model("v41"), CPU, GRID.geometry) as bench:
        graphs = measure_graphs(bench, GRID, ONCE, Replays(), itertools.count(0, 6_000).__next__)
    mlp = {p.parameters["sequences"]: p.samples for p in graphs.probes if p.name == "layers.graph.mlp"}
    assert mlp == {1: (1.0,) * 3, 3: (1.0,) * 3}  # six layers in one lap of 6 µs, in every round


def test_a_refused_capture_says_so(mini_model, monkeypatch):
    def refuse(self, work):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(Replays, "capture", refuse)
    with pytest.raises(Exception, match="operation not permitted"):
        tables(mini_model, "v41")
