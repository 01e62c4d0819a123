"""Component times of a model by tokens, sequences and context: the table the simulator adds a step up from."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from tiercast_profiles.hardware import Component, ComputePoint, ComputeTable, ProbeResult
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.units import NS_PER_US
from tiercast_runtime.memory import available_host_bytes
from tiercast_runtime.probes.step_bench import BenchStep, ComponentKey, Geometry, StepBench
from tiercast_runtime.probes.timing import Case, Clock, Effort, Spread, collect, probe_result, rounded

COMPONENT_ORDER: tuple[Component, ...] = (
    "embed",
    "linear",
    "attention_decode",
    "attention_prefill",
    "engram_module",
    "hash",
    "lookup_issue",
    "head",
    "step_overhead",
)
DECODE_CACHE_RATIO = 0.6  # of free memory, for the cache of a decode batch; weights and buffers take little beside it
WholeKey = tuple[Literal["whole"], int, int]
LayerKey = ComponentKey | WholeKey


@dataclass(frozen=True, slots=True)
class LayerGrid:
    """Steps to time: decode batches by sequences and context, single chunks by tokens and the context before them."""

    sequences: tuple[int, ...]
    contexts: tuple[int, ...]
    chunks: tuple[int, ...]
    starts: tuple[int, ...]

    @property
    def geometry(self) -> Geometry:
        """Room the grid needs."""
        return Geometry(
            num_slots=max(self.sequences, default=1),
            max_context_tokens=max(*self.contexts, max(self.starts, default=0) + max(self.chunks, default=0), 1),
            max_step_tokens=max(*self.chunks, *self.sequences, 1),
        )


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """One model's table and the probes it comes from."""

    table: ComputeTable
    spreads: dict[ComponentKey, Spread[LayerKey]]
    probes: tuple[ProbeResult, ...]

    def time_us(self, component: Component, num_tokens: int) -> float:
        """Measured time of a component at a measured number of tokens, over all its contexts the shortest."""
        points = [p for p in self.table.components[component] if p.num_tokens == num_tokens]
        return min(points, key=lambda point: point.context_tokens).time_us


def grids_that_fit(grid: LayerGrid, model: ModelSpec, device: torch.device) -> tuple[LayerGrid, ...]:
    """The grid in parts that each fit: as it is where its cache takes no more than a quarter of free memory.

    The cache gives every sequence the longest context, and a chunk of many tokens wants a long one: then chunks are a
    part of their own with one sequence, and so is each context of decode batches, with the sequences that fit most of
    free memory.
    """
    spec = model.backbone
    per_token = spec.num_layers * 2 * spec.num_kv_heads * spec.head_dim * (4 if device.type == "cpu" else 2)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_host_bytes()
    whole = grid.geometry
    if whole.num_slots * whole.max_context_tokens * per_token <= free // 4:
        return (grid,)
    parts = []
    by_counts: dict[tuple[int, ...], list[int]] = {}
    for context in grid.contexts:
        kept = tuple(count for count in grid.sequences if count * context * per_token <= free * DECODE_CACHE_RATIO)
        by_counts.setdefault(kept or grid.sequences[:1], []).append(context)
    parts += [LayerGrid(counts, tuple(contexts), (), ()) for counts, contexts in by_counts.items()]
    return (*parts, LayerGrid((), (), grid.chunks, grid.starts))


def joined(parts: Sequence[LayerTimes]) -> LayerTimes:
    """The times of all parts of a grid as one table; a point that several parts measured is the first one's."""
    components: dict[Component, tuple[ComputePoint, ...]] = {}
    for name in COMPONENT_ORDER:
        points: dict[tuple[int, int], ComputePoint] = {}
        for part in parts:
            for point in part.table.components.get(name, ()):
                points.setdefault((point.num_tokens, point.context_tokens), point)
        if points:
            components[name] = tuple(points[key] for key in sorted(points))
    spreads: dict[ComponentKey, Spread[LayerKey]] = {}
    for part in reversed(parts):
        spreads |= part.spreads
    table = parts[0].table.model_copy(update={"components": components})
    return LayerTimes(table, spreads, tuple(probe for part in parts for probe in part.probes))


def measure_layers(
    bench: StepBench, grid: LayerGrid, num_threads: int, effort: Effort, clock: Clock = time.perf_counter_ns
) -> LayerTimes:
    """Time every component of a model over the grid.

    Args:
        bench: the model; its geometry must hold the grid.
        grid: steps to time.
        num_threads: compute threads in use, which the table states.
        effort: for the whole grid.
        clock: decides when the budget is used.
    """
    with torch.inference_mode():
        decodes = [bench.step([context] * count, []) for count in grid.sequences for context in grid.contexts]
        chunks = [bench.step([], [(start, count)]) for count in grid.chunks for start in grid.starts]
        wholes = []
        if grid.sequences:
            middle = grid.sequences[len(grid.sequences) // 2]
            wholes.append(bench.step([max(grid.contexts[:3])] * middle, []))
        if grid.chunks:
            wholes.append(bench.step([], [(0, grid.chunks[-1])]))
        cases: list[Case[LayerKey]] = [_follow_up_case(bench, step) for step in decodes]
        cases += [_walk_case(bench, step) for step in chunks]
        cases += [_whole_case(bench, step) for step in wholes]
        spreads = {spread.key: spread for spread in collect(cases, effort, clock)}
    components: dict[Component, tuple[ComputePoint, ...]] = {}
    times: dict[ComponentKey, Spread[LayerKey]] = {}
    probes = []
    for component in COMPONENT_ORDER:
        points = []
        for key in sorted(key for key in spreads if key[0] == component):
            spread = spreads[key].scaled(1 / NS_PER_US)
            times[component, key[1], key[2]] = spread
            points.append(
                ComputePoint(
                    num_tokens=key[1],
                    context_tokens=key[2],
                    time_us=rounded(spread.mean),
                    low_us=rounded(min(spread.low, spread.mean)),
                    high_us=rounded(max(spread.high, spread.mean)),
                )
            )
            parameters: dict[str, str | int | float] = {"model": bench.model.name, "tokens": key[1], "context": key[2]}
            probes.append(probe_result(f"layers.{component}", spread, "us", parameters))
        if points:
            components[component] = tuple(points)
    table = ComputeTable(
        model_name=bench.model.name,
        shape_sha256=bench.model.backbone.shape_sha256,
        engram_sha256=bench.model.engram.shape_sha256,
        graph_mode="eager",
        num_threads=num_threads,
        context_statistic="max" if bench.device.type == "cpu" else "mean",
        components=components,
    )
    checks = [_whole_probe(bench, step, spreads) for step in wholes]
    return LayerTimes(table, times, (*probes, *checks))


def _walk_case(bench: StepBench, step: BenchStep) -> Case[LayerKey]:
    def case() -> list[tuple[LayerKey, float]]:
        return list(bench.walk(step))

    return case


def _follow_up_case(bench: StepBench, step: BenchStep) -> Case[LayerKey]:
    """A step that decodes comes after one like it, so its memory is as warm as that one left it: the first is not kept.

    Rounds of the grid put steps of other shapes in between, and after those its weights and buffers have left the
    caches.
    """

    def case() -> list[tuple[LayerKey, float]]:
        bench.walk(step)
        return list(bench.walk(step))

    return case


def _whole_case(bench: StepBench, step: BenchStep) -> Case[LayerKey]:
    def case() -> list[tuple[LayerKey, float]]:
        if step.plan.decodes:
            bench.whole(step)  # as in _follow_up_case
        return [(_whole_key(step), bench.whole(step))]

    return case


def _whole_key(step: BenchStep) -> WholeKey:
    return "whole", len(step.plan.decodes), step.plan.num_prefill_tokens


def _whole_probe(bench: StepBench, step: BenchStep, spreads: dict[LayerKey, Spread[LayerKey]]) -> ProbeResult:
    """How far the sum of the parts is from the same step run as a whole."""
    walked = {key[0]: key for key, _ in bench.walk(step)}
    num_layers = bench.model.backbone.num_layers
    counts = {
        "embed": 1,
        "linear": num_layers,
        "attention_decode": num_layers,
        "attention_prefill": num_layers,
        "engram_module": len(bench.engram_layers),
        "head": 1,
    }
    sum_ns = sum(counts[name] * spreads[key].value for name, key in walked.items() if name in counts)
    whole = spreads[_whole_key(step)]
    return probe_result(
        "layers.sum_of_parts",
        Spread(whole.key, tuple(sum_ns / sample for sample in whole.samples)),
        "ratio",
        {
            "model": bench.model.name,
            "sequences": len(step.plan.decodes),
            "chunk_tokens": step.plan.num_prefill_tokens,
            "what": "median sum of component times / time of the same step as a whole",
        },
    )
