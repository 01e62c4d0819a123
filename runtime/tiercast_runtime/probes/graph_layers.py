"""Component times of decoding steps as captured graphs: what the engine replays, without the launches in between.

Each component is captured for all layers at once, as a step walks through them, and divided by their number: weights
and cached tokens come from memory as they do in a step. Replays are enqueued behind work that keeps the device busy, so
that between two events lies device time alone. What a step takes beside, from scheduling to the sampled tokens on the
host, is a whole step less its parts. The MLP, a part of ``linear``, is captured once more by itself; no table has it.

Assumption A92: steps with prompt tokens run without a graph, so beyond the largest decode batch the tables of graph
modes hold the times of single calls, and so does attention of steps that verify drafts. ``piecewise`` differs from
``full`` in its lookups, which the host issues, and in the copy that brings a layer's rows to where its graph has them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from tiercast_profiles.hardware import Component, ComputePoint, ComputeTable, ProbeResult
from tiercast_profiles.units import NS_PER_US
from tiercast_runtime.decode_graphs import DecodeGraphs
from tiercast_runtime.graph_backend import Graph, GraphBackend
from tiercast_runtime.graph_plan import MAX_GRAPH_ROWS
from tiercast_runtime.marks import Mark
from tiercast_runtime.network import Network
from tiercast_runtime.probes.layers import COMPONENT_ORDER, LayerGrid
from tiercast_runtime.probes.step_bench import BenchStep, StepBench
from tiercast_runtime.probes.timing import Case, Clock, Effort, Spread, Stopwatch, collect, probe_result, rounded
from tiercast_runtime.recorder import Recorder, StepTimes

GraphKey = tuple[str, int, int]  # component, or one of the parts below; sequences, context
PLACE = "engram_place"  # the module with the copy of its rows before it
NUM_WHOLE_STEPS = 3  # in a row, of which the last counts
NUM_FILLERS = 2  # replays of all layers that keep the device busy while the timed ones are enqueued


@dataclass(frozen=True, slots=True)
class GraphTimes:
    """Times in µs of one part of the grid, and the probes they are."""

    spreads: tuple[Spread[GraphKey], ...]
    probes: tuple[ProbeResult, ...]


def measure_graphs(
    bench: StepBench, grid: LayerGrid, effort: Effort, backend: GraphBackend, clock: Clock = time.perf_counter_ns
) -> GraphTimes:
    """Time decoding steps of the grid as graphs.

    Args:
        bench: the model; its geometry holds the grid.
        grid: decode batches to time.
        effort: for the whole grid.
        backend: how to capture.
        clock: ns.

    Raises:
        RuntimeError: the device refuses a capture.
    """
    counts = [count for count in grid.sequences if count <= MAX_GRAPH_ROWS]
    with torch.inference_mode():
        whole = _WholeSteps(bench, counts, backend, clock)
        cases: list[Case[GraphKey]] = []
        for count in counts:
            steps = [bench.step([context] * count, []) for context in grid.contexts]
            cases.append(_Captured(bench, steps, backend, whole, clock).run)
        spreads = sorted(
            (spread.scaled(1 / NS_PER_US) for spread in collect(cases, effort, clock)), key=lambda spread: spread.key
        )
    probes = []
    for spread in spreads:
        name, sequences, context = spread.key
        parameters: dict[str, str | int | float] = {
            "model": bench.model.name,
            "sequences": sequences,
            "context": context,
        }
        probes.append(probe_result(f"layers.graph.{name}", spread, "us", parameters))
    return GraphTimes(tuple(spreads), tuple(probes))


def graph_tables(found: Sequence[Spread[GraphKey]], eager: ComputeTable) -> tuple[ComputeTable, ComputeTable]:
    """Tables of modes ``full`` and ``piecewise``; ``eager`` serves where no graph runs.

    Of a point that was measured twice the first counts. How single calls settle behind a chunk says nothing of graphs.
    """
    spreads: dict[GraphKey, Spread[GraphKey]] = {}
    for spread in found:
        spreads.setdefault(spread.key, spread)
    counts = sorted({key[1] for key in spreads})
    full, pieces = (_merged(spreads, eager, counts, is_full=is_full) for is_full in (True, False))
    settled = eager.model_copy(update={"settling": None})
    return (
        settled.model_copy(update={"graph_mode": "full", "components": full}),
        settled.model_copy(update={"graph_mode": "piecewise", "components": pieces}),
    )


def _merged(
    spreads: dict[GraphKey, Spread[GraphKey]], eager: ComputeTable, counts: list[int], *, is_full: bool
) -> dict[Component, tuple[ComputePoint, ...]]:
    """Points of graphs up to the largest batch, and those of single calls beyond it."""
    merged: dict[Component, tuple[ComputePoint, ...]] = {}
    for component in COMPONENT_ORDER:
        single = eager.components.get(component, ())
        is_single = component in ("attention_prefill", "attention_verify")
        if is_single or (not is_full and component in ("hash", "lookup_issue")):
            points = single
        else:
            name: str = PLACE if component == "engram_module" and not is_full else component
            captured = [_point(key, spreads[key]) for key in sorted(spreads) if key[0] == name]
            if (
                component == "lookup_issue"
            ):  # the graph itself starts its lookups: the compute thread hands over nothing
                captured = [
                    ComputePoint(num_tokens=count, context_tokens=0, time_us=0, low_us=0, high_us=0) for count in counts
                ]
            beyond = tuple(point for point in single if point.num_tokens > counts[-1])
            points = (*captured, *beyond) if component != "attention_decode" else tuple(captured)
        if points:
            merged[component] = points
    return merged


def _point(key: GraphKey, spread: Spread[GraphKey]) -> ComputePoint:
    low, value, high = (rounded(max(0.0, number)) for number in (spread.low, spread.value, spread.high))
    return ComputePoint(num_tokens=key[1], context_tokens=key[2], time_us=value, low_us=low, high_us=high)


class _WholeSteps:
    """Whole decoding steps of the backbone alone, as the engine runs them, on the host's clock."""

    def __init__(self, bench: StepBench, counts: list[int], backend: GraphBackend, clock: Clock) -> None:
        self._clock = clock
        network = Network(
            backbone=bench.backbone,
            num_layers=bench.model.backbone.num_layers,
            rope_table=bench.builder.rope_table,
            engram_layers=(),
            hasher=None,
            path=None,
            prefetcher=None,
            max_order=bench.model.engram.ngram_orders[-1],
            row_bytes=bench.model.engram.row_bytes,
            rows_per_token=bench.model.engram.num_rows_per_token,
            pad_slot=bench.geometry.num_slots - 1,  # no batch here is padded; captures alone write to it
        )
        self._graphs = DecodeGraphs(
            network, backend, is_full=True, max_rows=counts[-1], device=bench.device, clock=clock
        )
        self._graphs.sizes = tuple(counts)
        self._graphs.capture()
        self._recorder = Recorder(clock(), (), bench.model.engram.num_rows_per_token)

    def time_ns(self, step: BenchStep) -> float:
        """From scheduling to bookkeeping."""
        assert step.scheduler is not None, "a step that decodes has a scheduler"
        clock, graphs, count = self._clock, self._graphs, len(step.plan.decodes)
        start_ns = clock()
        planned = step.scheduler.plan()
        graphs.load(count, sorted(step.plan.decodes, key=lambda sequence: sequence.slot), step.tokens)
        built_ns = clock()
        graphs.run(count, count, _no_lookups)
        computed_ns = clock()
        graphs.take_timings(count, count)
        step.scheduler.complete(planned)
        end_ns = clock()
        self._recorder.step(planned, StepTimes(start_ns, built_ns, built_ns, computed_ns, end_ns, ()), [])
        return float(clock() - start_ns)


def _no_lookups(_windows: torch.Tensor) -> tuple[int, Mark]:
    raise AssertionError("a step without Engram layers looks nothing up")


class _Captured:
    """The components of one batch size at all contexts, each captured by itself."""

    def __init__(
        self, bench: StepBench, steps: list[BenchStep], backend: GraphBackend, whole: _WholeSteps, clock: Clock
    ) -> None:
        self._bench, self._steps, self._whole, self._clock = bench, steps, whole, clock
        self._batches = [bench.batch(step) for step in steps]  # held: the graphs read their tensors
        batch, backbone, layers = self._batches[0], bench.backbone, range(bench.model.backbone.num_layers)
        self._count = batch.num_tokens
        hidden = backbone.empty_hidden(self._count)
        self._staged = bench.staged(batch)
        rows = [torch.empty_like(staged.rows) for staged in self._staged]

        def embed() -> None:
            hidden.copy_(backbone.embed(batch))

        def linear() -> None:
            for index in layers:
                backbone.linear_only(index, hidden, batch)

        def mlp() -> None:
            for index in layers:
                backbone.mlp_only(index, hidden)

        def module(*, is_placed: bool) -> None:
            for target, staged, layer in zip(rows, self._staged, bench.engram_layers, strict=True):
                if is_placed:
                    target.copy_(staged.rows)
                layer.forward(hidden, staged, batch)

        def attend(number: int) -> Callable[[], None]:
            def all_layers() -> None:
                for index in layers:
                    backbone.attention_only(index, self._batches[number])

            return all_layers

        works: list[tuple[GraphKey, Callable[[], object], int]] = [
            (("embed", self._count, 0), embed, 1),  # first: it makes the hidden state anew
            (("hash", self._count, 0), lambda: bench.hasher.row_ids(batch.windows), 1),
            (("linear", self._count, 0), linear, len(layers)),
            (("engram_module", self._count, 0), lambda: module(is_placed=False), len(bench.engram_layers)),
            ((PLACE, self._count, 0), lambda: module(is_placed=True), len(bench.engram_layers)),
        ]
        for number, step in enumerate(steps):
            context = step.plan.decodes[0].decode_position + 1
            works.append((("attention_decode", self._count, context), attend(number), len(layers)))
        works.append((("head", self._count, 0), lambda: backbone.head(hidden, batch), 1))
        # Last: it runs a second time a part of the layer, and no other time may change by that.
        works.append((("mlp", self._count, 0), mlp, len(layers)))
        self._graphs: list[tuple[GraphKey, Graph, int]] = [
            (key, backend.capture(cast(Callable[[], None], work)), share) for key, work, share in works
        ]
        self._filler = next(graph for key, graph, _ in self._graphs if key[0] == "linear")

    def run(self) -> list[tuple[GraphKey, float]]:
        """Every component once, and what a whole step takes beside its parts."""
        watch = Stopwatch(self._bench.device, self._clock)
        for _ in range(NUM_FILLERS):
            self._filler.replay()
        watch.lap()
        for _, graph, _ in self._graphs:
            graph.replay()
            watch.lap()
        laps = watch.laps_ns()
        found = [(key, lap / share) for (key, _, share), lap in zip(self._graphs, laps, strict=True)]
        by_key = dict(zip([key for key, _, _ in self._graphs], laps, strict=True))
        step = self._steps[0]
        context = step.plan.decodes[0].decode_position + 1
        parts = [("embed", 0), ("linear", 0), ("attention_decode", context), ("head", 0)]
        parts_ns = sum(by_key[name, self._count, place] for name, place in parts)
        # as a server runs them: the host's code and data of a step are in its caches since the one before
        whole_ns = [self._whole.time_ns(step) for _ in range(NUM_WHOLE_STEPS)][-1]
        found.append((("step_overhead", self._count, 0), whole_ns - parts_ns))
        return found
