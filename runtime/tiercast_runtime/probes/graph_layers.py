"""Component times of decoding steps as captured graphs: what the engine replays, without the launches in between.

Each component is captured for all layers at once, as a step walks through them, and divided by their number: weights
and cached tokens come from memory as they do in a step. Replays are enqueued behind work that keeps the device busy, so
that between two events lies device time alone. What a step takes beside, from scheduling to the sampled tokens on the
host, is a whole step less its parts: one of the backbone alone, one with Engram layers as a single graph and one in
pieces (``graph_steps`` says what is in each). The MLP, a part of ``linear``, is captured once more by itself; no table
has it.

Assumption A92: steps with prompt tokens run without a graph, so beyond the largest decode batch the tables of graph
modes hold the times of single calls, and so does attention of steps that verify drafts. ``piecewise`` differs from
``full`` in its lookups, which the host issues, in the copy that brings a layer's rows to where its graph has them, and
in what a step takes beside its parts. Without Engram layers there is nothing to cut at, and both modes are one.

Rows come to the module in token order, without an inverse: so path ``uva`` delivers them, and of those without
duplicates the copy in front of a piece makes such.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from tiercast_profiles.graph_buckets import MAX_GRAPH_ROWS
from tiercast_profiles.hardware import Component, ComputePoint, ComputeTable, ProbeResult
from tiercast_profiles.scenario import GraphMode
from tiercast_profiles.units import NS_PER_US
from tiercast_runtime.graph_backend import Graph, GraphBackend
from tiercast_runtime.paths.base import StagedRows
from tiercast_runtime.probes.graph_steps import Wholes, WholeSteps, WholeTime, whole_steps
from tiercast_runtime.probes.layers import COMPONENT_ORDER, LayerGrid
from tiercast_runtime.probes.step_bench import BenchStep, StepBench
from tiercast_runtime.probes.timing import Case, Clock, Effort, Spread, Stopwatch, collect, probe_result, rounded

GraphKey = tuple[str, int, int]  # component, or one of the parts below; sequences, context
PLACE = "engram_place"  # the module with the copy of its rows before it
# With Engram layers, by mode; that of pieces holds the wait for lookups that gather nothing, and is in no table.
FULL_OVERHEAD, PIECES_OVERHEAD = "engram_step_overhead", "pieces_step_overhead"
# What the table of pieces has instead: the overhead without that wait, and the way of the first lookup.
PIECES_UNSTALLED, PIECES_WAY = "pieces_unstalled_overhead", "pieces_way"
ENGRAM_COMPONENTS: tuple[Component, ...] = ("engram_module", "hash", "lookup_issue")
PIECES_STARTS: tuple[Component, ...] = ("hash", "lookup_issue")  # single calls in front of the first piece
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
    counts = sorted({count for count in (*grid.sequences, *grid.captured) if count <= MAX_GRAPH_ROWS})
    with torch.inference_mode(), whole_steps(bench, counts, backend, clock) as wholes:
        cases: list[Case[GraphKey]] = []
        for count in counts:
            steps = [bench.step([context] * count, []) for context in grid.contexts]
            cases.append(_Captured(bench, steps, backend, wholes, clock).run)
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


def graph_tables(
    found: Sequence[Spread[GraphKey]], eager: ComputeTable, plain: ComputeTable
) -> tuple[ComputeTable, ...]:
    """Tables of modes ``full`` and ``piecewise`` with Engram layers, then of both without.

    Of a point that was measured twice the first counts. How single calls settle behind a chunk says nothing of graphs.

    Args:
        found: of all parts of the grid.
        eager: of single calls with Engram layers; it serves where no graph runs.
        plain: the same without them.
    """
    spreads: dict[GraphKey, Spread[GraphKey]] = {}
    for spread in found:
        spreads.setdefault(spread.key, spread)
    full = _merged(spreads, eager, {"step_overhead": FULL_OVERHEAD}, ())
    names: dict[Component, str] = {"step_overhead": PIECES_UNSTALLED, "engram_module": PLACE}
    pieces = _merged(spreads, eager, names, ("hash", "lookup_issue"))
    pieces["step_overhead"] = tuple(_without_start(point, eager) for point in pieces["step_overhead"])
    pieces["lookup_way"] = tuple(_point(key, spreads[key]) for key in sorted(spreads) if key[0] == PIECES_WAY)
    alone = _merged(spreads, plain, {}, ())
    modes: tuple[GraphMode, ...] = ("full", "piecewise")
    return (
        *(_table(eager, mode, components) for mode, components in zip(modes, (full, pieces), strict=True)),
        *(_table(plain, mode, alone) for mode in modes),
    )


def _table(eager: ComputeTable, mode: GraphMode, components: dict[Component, tuple[ComputePoint, ...]]) -> ComputeTable:
    return eager.model_copy(update={"graph_mode": mode, "components": components, "settling": None})


def _merged(
    spreads: dict[GraphKey, Spread[GraphKey]],
    eager: ComputeTable,
    names: Mapping[Component, str],
    single: tuple[Component, ...],
) -> dict[Component, tuple[ComputePoint, ...]]:
    """Points of graphs up to the largest batch, and those of single calls beyond it.

    ``names`` are those parts go by that do not go by their component's, ``single`` the components no graph holds.
    """
    counts = sorted({key[1] for key in spreads})
    merged: dict[Component, tuple[ComputePoint, ...]] = {}
    for component in COMPONENT_ORDER:
        if eager.engram_sha256 is None and component in ENGRAM_COMPONENTS:
            continue
        calls = eager.components.get(component, ())
        if component in (*single, "attention_prefill", "attention_verify"):
            points = calls
        else:
            name = names.get(component, component)
            captured = [_point(key, spreads[key]) for key in sorted(spreads) if key[0] == name]
            if component == "lookup_issue":
                # The graph itself starts its lookups: the compute thread hands over nothing.
                captured = [
                    ComputePoint(num_tokens=count, context_tokens=0, time_us=0, low_us=0, high_us=0) for count in counts
                ]
            beyond = tuple(point for point in calls if point.num_tokens > counts[-1])
            points = (*captured, *beyond) if component != "attention_decode" else tuple(captured)
        if points:
            merged[component] = points
    return merged


def _without_start(overhead: ComputePoint, eager: ComputeTable) -> ComputePoint:
    """What a step in pieces takes beside its parts, without the single calls that hash and hand its lookups over.

    Whoever adds the step up adds them as ``eager`` has them, on straight lines between its points: these very times
    make the sum the whole step again.
    """
    starts_us = 0.0
    for component in PIECES_STARTS:
        points = eager.components[component]
        sizes, times_us = [point.num_tokens for point in points], [point.time_us for point in points]
        starts_us += float(np.interp(overhead.num_tokens, sizes, times_us))
    low_us, time_us, high_us = (
        rounded(max(0.0, number - starts_us)) for number in (overhead.low_us, overhead.time_us, overhead.high_us)
    )
    return overhead.model_copy(update={"low_us": low_us, "time_us": time_us, "high_us": high_us})


def _point(key: GraphKey, spread: Spread[GraphKey]) -> ComputePoint:
    low, value, high = (rounded(max(0.0, number)) for number in (spread.low, spread.value, spread.high))
    return ComputePoint(num_tokens=key[1], context_tokens=key[2], time_us=value, low_us=low, high_us=high)


class _Captured:
    """The components of one batch size at all contexts, each captured by itself."""

    def __init__(
        self, bench: StepBench, steps: list[BenchStep], backend: GraphBackend, wholes: Wholes, clock: Clock
    ) -> None:
        self._bench, self._steps, self._wholes, self._clock = bench, steps, wholes, clock
        self._batches = [bench.batch(step) for step in steps]
        batch, backbone, layers = self._batches[0], bench.backbone, range(bench.model.backbone.num_layers)
        self._count = batch.num_tokens
        hidden = backbone.empty_hidden(self._count)
        self._staged = bench.staged(batch)
        placed = [_copy_of(staged) for staged in self._staged]
        self._held = hidden, placed  # a graph keeps nothing alive that it reads or writes

        def embed() -> None:
            hidden.copy_(backbone.embed(batch))

        def linear() -> None:
            for index in layers:
                backbone.linear_only(index, hidden, batch)

        def mlp() -> None:
            for index in layers:
                backbone.mlp_only(index, hidden)

        def module(*, is_placed: bool) -> None:
            for target, staged, layer in zip(placed, self._staged, bench.engram_layers, strict=True):
                if is_placed:
                    target.rows.copy_(staged.rows)
                layer.forward(hidden, target if is_placed else staged, batch)

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
        """Every component once, and what whole steps take beside their parts."""
        watch = Stopwatch(self._bench.device, self._clock)
        for _ in range(NUM_FILLERS):
            self._filler.replay()
        watch.lap()
        for _, graph, _ in self._graphs:
            graph.replay()
            watch.lap()
        laps = watch.laps_ns()
        found = [(key, lap / share) for (key, _, share), lap in zip(self._graphs, laps, strict=True)]
        return found + self._overheads(dict(zip([key for key, _, _ in self._graphs], laps, strict=True)))

    def _overheads(self, laps_ns: dict[GraphKey, float]) -> list[tuple[GraphKey, float]]:
        """Whole steps of the first context less their parts, whose laps are those of all layers."""
        step, count = self._steps[0], self._count
        context = step.plan.decodes[0].decode_position + 1
        backbone_ns = laps_ns["attention_decode", count, context]
        backbone_ns += sum(laps_ns[name, count, 0] for name in ("embed", "linear", "head"))
        full_ns = backbone_ns + laps_ns["hash", count, 0] + laps_ns["engram_module", count, 0]
        pieces_ns = backbone_ns + laps_ns[PLACE, count, 0]

        def settled(whole: WholeSteps) -> WholeTime:
            # as a server runs them: the host's code and data of a step are in its caches since the one before
            return [whole.time(step) for _ in range(NUM_WHOLE_STEPS)][-1]

        plain, full, pieces = (settled(each) for each in (self._wholes.plain, self._wholes.full, self._wholes.pieces))
        return [
            (("step_overhead", count, 0), plain.total_ns - backbone_ns),
            ((FULL_OVERHEAD, count, 0), full.total_ns - full_ns),
            ((PIECES_OVERHEAD, count, 0), pieces.total_ns - pieces_ns),
            ((PIECES_UNSTALLED, count, 0), pieces.total_ns - pieces_ns - pieces.stall_ns),
            ((PIECES_WAY, count, 0), pieces.way_ns),
        ]


def _copy_of(staged: StagedRows) -> StagedRows:
    assert staged.inverse is None, "a graph gets its rows in token order"
    return StagedRows(torch.empty_like(staged.rows), None, staged.num_rows, staged.num_rows_read)
