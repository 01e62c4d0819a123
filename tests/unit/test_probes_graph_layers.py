"""Component times of captured steps, with capture replaced by calling again: what is captured, divided and merged."""

import contextlib
import itertools
import threading
import weakref

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.hardware import ComputePoint, ComputeTable  # noqa: E402
from tiercast_runtime.layer import EngramLayer  # noqa: E402
from tiercast_runtime.paths.base import StagedRows  # noqa: E402
from tiercast_runtime.probes.graph_layers import ENGRAM_COMPONENTS, graph_tables, measure_graphs  # noqa: E402
from tiercast_runtime.probes.layers import LayerGrid, measure_layers  # noqa: E402
from tiercast_runtime.probes.step_bench import StepBench  # noqa: E402
from tiercast_runtime.probes.timing import Effort, Spread  # noqa: E402

ONCE = Effort(0, num_warm_ups=1, min_rounds=3, max_rounds=3)
CPU = torch.device("cpu")
GRID = LayerGrid(sequences=(1, 3), contexts=(16, 48), chunks=(2, 4, 20), starts=(0,))
BETWEEN = LayerGrid(sequences=(1, 3), contexts=(16, 48), chunks=(4, 20), starts=(0,), captured=(2,))
pytestmark = pytest.mark.usefixtures("one_compute_thread")


class Event:
    """A point in a stream; one with a clock reads it."""

    def __init__(self, clock=lambda: 0):
        self.clock, self.at = clock, None

    def record(self):
        self.at = self.clock()


class Replays:
    """Capture keeps the work, and a replay does it again; timers read the clock of the measurement."""

    def __init__(self, clock=lambda: 0):
        self.clock, self.num_captures = clock, 0
        self.edge, self.side = Event, contextlib.nullcontext

    def capture(self, work):
        work()
        self.num_captures += 1

        class Graph:
            replay = staticmethod(work)

        return Graph()

    def timer(self):
        return Event(self.clock)

    def side_waits(self, event):
        assert event.at is not None

    main_waits = side_waits

    def host_ns(self, timer):
        return timer.at

    def end_step(self):
        pass


def tables(mini_model, dialect):
    with StepBench(mini_model(dialect), CPU, GRID.geometry) as bench:
        eager = measure_layers(bench, GRID, 1, ONCE)
        backend = Replays()
        graphs = measure_graphs(bench, GRID, ONCE, backend, itertools.count(0, 1_000).__next__)
        return eager, graph_tables(graphs.spreads, eager.table, eager.plain), backend


def samples(mini_model, **sections):
    """By probe and sequences, where every reading of the clock is 6 µs behind the one before."""
    clock = itertools.count(0, 6_000).__next__
    with StepBench(mini_model("v41", **sections), CPU, GRID.geometry) as bench:
        graphs = measure_graphs(bench, GRID, ONCE, Replays(clock), clock)
    names = {probe.name.removeprefix("layers.graph.") for probe in graphs.probes}
    return {
        name: {
            probe.parameters["sequences"]: probe.samples
            for probe in graphs.probes
            if probe.name == f"layers.graph.{name}"
        }
        for name in names
    }


class Forgetful(Replays):
    """As CUDA: a graph keeps nothing of what it reads or writes, and a replay uses the places all the same."""

    def capture(self, work):
        super().capture(work)
        tensors = [weakref.ref(tensor) for tensor in _tensors_of(work)]

        class Graph:
            @staticmethod
            def replay():
                assert all(ref() is not None for ref in tensors), "memory of a graph was given back"

        return Graph()


def _tensors_of(work):
    """What the cells of a function and of those it calls refer to."""
    found = []
    for cell in work.__closure__ or ():
        content = cell.cell_contents
        each = content if isinstance(content, list) else [content]
        found += [one for one in each if isinstance(one, torch.Tensor)]
        found += [one.rows for one in each if isinstance(one, StagedRows)]
        if callable(content) and getattr(content, "__closure__", None):
            found += _tensors_of(content)
    return found


def test_what_the_graphs_read_and_write_stays(mini_model):
    with StepBench(mini_model("v41"), CPU, GRID.geometry) as bench:
        spreads = measure_graphs(bench, GRID, ONCE, Forgetful(), itertools.count(0, 1_000).__next__).spreads
    assert {key[0] for key in (spread.key for spread in spreads)} >= {"embed", "linear", "mlp", "engram_place"}


@pytest.mark.parametrize("dialect", ["v41", "demo"])
def test_graph_tables_know_every_component_of_the_eager_one(mini_model, dialect):
    times, (full, pieces, *_), backend = tables(mini_model, dialect)
    eager = times.table
    assert (full.graph_mode, pieces.graph_mode) == ("full", "piecewise")
    assert set(full.components) == set(pieces.components) - {"lookup_way"} == set(eager.components)
    assert [(p.num_tokens, p.time_us > 0) for p in pieces.components["lookup_way"]] == [(1, True), (3, True)]
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
    # per batch: embed, hash, linear, module, module with copy, two attentions, head, MLP; and the whole step without
    # Engram, with it, and with it in three pieces
    assert backend.num_captures == 2 * (9 + 1 + 1 + 3)
    assert full.shape_sha256 == eager.shape_sha256
    assert full.engram_sha256 == pieces.engram_sha256 == eager.engram_sha256 is not None
    assert full.settling is pieces.settling is None


def test_graph_tables_without_engram_have_the_backbone_alone(mini_model):
    times, found, _ = tables(mini_model, "v41")
    keys = {(table.engram_sha256, table.graph_mode) for table in found}
    assert len(keys) == len(found) == 4
    full, _, *plain = found
    assert [table.graph_mode for table in plain] == ["full", "piecewise"]
    for table in plain:
        assert table.engram_sha256 is None
        assert set(table.components) == set(times.plain.components) == set(full.components) - set(ENGRAM_COMPONENTS)
        assert table.components["attention_decode"] == full.components["attention_decode"]
        for name in ("embed", "linear", "head"):
            assert table.components[name][:2] == full.components[name][:2]
        assert table.components["linear"][2:] == tuple(p for p in times.plain.components["linear"] if p.num_tokens > 3)
        assert table.components["linear"][2:] != full.components["linear"][2:]
        assert table.settling is None


def test_more_sizes_can_be_timed_as_graphs_than_by_single_calls(mini_model):
    with StepBench(mini_model("v41"), CPU, BETWEEN.geometry) as bench:
        times = measure_layers(bench, BETWEEN, 1, ONCE)
        eager = times.table
        ten_us = {
            name: tuple(p.model_copy(update={"time_us": 10.0 * p.num_tokens}) for p in eager.components[name])
            for name in ("hash", "lookup_issue")
        }
        eager = eager.model_copy(update={"components": eager.components | ten_us})
        graphs = measure_graphs(bench, BETWEEN, ONCE, Replays(), itertools.count(0, 100_000).__next__)
    full, pieces, *_ = graph_tables(graphs.spreads, eager, times.plain)
    assert [p.num_tokens for p in full.components["linear"]] == [1, 2, 3, 4, 20]
    assert [p.num_tokens for p in full.components["attention_decode"]] == [1, 1, 2, 2, 3, 3]
    assert [p.num_tokens for p in eager.components["linear"]] == [1, 3, 4, 20]
    whole = {s.key[1]: s.value for s in graphs.spreads if s.key[0] == "pieces_unstalled_overhead"}
    # two sequences are hashed and handed over in what lies between one and three: twice 20 µs
    assert {p.num_tokens: whole[p.num_tokens] - p.time_us for p in pieces.components["step_overhead"][:3]} == {
        1: 20.0,
        2: 40.0,
        3: 60.0,
    }


def test_a_layer_is_its_share_of_all_layers_and_overhead_is_what_is_left(mini_model):
    found = samples(mini_model)
    for count in (1, 3):
        times = {name: by_count[count][0] for name, by_count in found.items()}
        assert times["linear"] == times["attention_decode"] == 1.0  # six layers in one lap of 6 µs
        assert times["engram_module"] == times["engram_place"] == 3.0  # two Engram layers
        assert times["head"] == times["embed"] == times["hash"] == 6.0
        # Of the backbone alone the clock is read when the step starts, its batch is there, the graph starts and has
        # ended, all is booked, and behind the record: five spans, of which the four parts are no overhead.
        assert times["step_overhead"] == (5 - 4) * 6
        # With Engram it is read in the graph when the lookups are issued, and at both ends of each of two and where its
        # layer asks for it; the hash and the module are parts too.
        assert times["engram_step_overhead"] == (5 + 1 + 2 * 3 - 6) * 6


def test_a_step_in_pieces_has_the_worker_and_the_hand_over_in_it(mini_model):
    before = set(threading.enumerate())
    found = samples(mini_model)
    for count in (1, 3):
        # Read as in a whole graph, and in the hand-over, twice by the worker at each lookup, and where each layer asks;
        # of both layers twice more where they wait. The copy is in the module, and single calls are not left out here.
        assert set(found["pieces_step_overhead"][count]) <= {(5 + 1 + 2 * 3 + waits - 5) * 6 for waits in (0, 2, 4)}
        # A lookup's way goes from the hand-over to its rows: the worker reads the clock at both ends of what it does.
        assert min(found["pieces_way"][count]) >= 2 * 6
        both = zip(found["pieces_step_overhead"][count], found["pieces_unstalled_overhead"][count], strict=True)
        assert all(unstalled <= overhead for overhead, unstalled in both)
    assert set(threading.enumerate()) <= before


def point(count, time_us, context=0):
    return ComputePoint(
        num_tokens=count, context_tokens=context, time_us=time_us, low_us=time_us - 0.5, high_us=time_us + 1
    )


def single_calls(**components):
    return ComputeTable(
        model_name="m",
        shape_sha256="a" * 64,
        engram_sha256="b" * 64,
        graph_mode="eager",
        context_statistic="mean",
        components=components,
    )


def test_each_table_gets_the_overhead_of_its_own_whole_step():
    eager = single_calls(
        hash=(point(1, 7.0), point(2, 8.0), point(3, 9.0)),
        lookup_issue=(point(1, 20.0), point(2, 30.0)),
        step_overhead=(point(1, 99.0), point(2, 99.0)),
    )
    plain = eager.model_copy(
        update={"engram_sha256": None, "components": {"step_overhead": eager.components["step_overhead"]}}
    )
    overheads = {"step_overhead": 10.0, "engram_step_overhead": 25.0, "pieces_unstalled_overhead": 60.0}
    spreads = [
        Spread((name, count, 0), (time_us + count, time_us + count, time_us + count + 4))
        for name, time_us in overheads.items()
        for count in (1, 2)
    ]
    of_a_second_part = Spread(("pieces_unstalled_overhead", 2, 0), (0.0,))  # of the grid: the first counts
    spreads.append(of_a_second_part)
    found = {
        (table.engram_sha256 is not None, table.graph_mode): [
            (p.low_us, p.time_us, p.high_us) for p in table.components["step_overhead"]
        ]
        for table in graph_tables(spreads, eager, plain)
    }
    assert found == {
        (True, "full"): [(26, 26, 28), (27, 27, 29)],
        # Who adds up a step in pieces adds the single calls: 7 + 20 µs of one sequence, 8 + 30 of two.
        (True, "piecewise"): [(34, 34, 36), (24, 24, 26)],
        (False, "full"): [(11, 11, 13), (12, 12, 14)],
        (False, "piecewise"): [(11, 11, 13), (12, 12, 14)],
    }


def test_no_overhead_is_below_zero():
    eager = single_calls(hash=(point(1, 7.0),), lookup_issue=(point(1, 20.0),))
    plain = eager.model_copy(update={"engram_sha256": None, "components": {}})
    names = ("step_overhead", "engram_step_overhead", "pieces_unstalled_overhead")
    spreads = [Spread((name, 1, 0), (time_us,)) for name, time_us in zip(names, (-1.0, -2.0, 26.0), strict=True)]
    found = graph_tables(spreads, eager, plain)
    assert [table.components["step_overhead"][0].time_us for table in found] == [0, 0, 0, 0]


@pytest.mark.parametrize("layer_ids", [[1], [1, 3]])
def test_modules_in_graphs_get_rows_in_token_order(mini_model, monkeypatch, layer_ids):
    forward, seen = EngramLayer.forward, []

    def watched(self, hidden, staged, plan):
        seen.append(staged.inverse)
        return forward(self, hidden, staged, plan)

    monkeypatch.setattr(EngramLayer, "forward", watched)
    samples(mini_model, engram={"layer_ids": layer_ids})
    assert seen
    assert all(inverse is None for inverse in seen)


def test_the_mlp_of_a_graph_is_a_probe_and_no_component(mini_model):
    assert samples(mini_model)["mlp"] == {1: (1.0,) * 3, 3: (1.0,) * 3}  # six layers in one lap of 6 µs, every round


def test_a_refused_capture_says_so(mini_model, monkeypatch):
    def refuse(self, work):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(Replays, "capture", refuse)
    with pytest.raises(Exception, match="operation not permitted"):
        tables(mini_model, "v41")
