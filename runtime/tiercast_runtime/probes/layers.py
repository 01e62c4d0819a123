"""Component times of a model by tokens, sequences and context: the table the simulator adds a step up from."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeGuard

import numpy as np
import torch

from tiercast_profiles.hardware import (
    VERIFY_TOKENS,
    Component,
    ComputePoint,
    ComputeTable,
    ProbeResult,
    StepSpread,
)
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.quantiles import median
from tiercast_profiles.units import NS_PER_US
from tiercast_runtime.memory import available_host_bytes
from tiercast_runtime.probes.alike import cases_of_alike
from tiercast_runtime.probes.settling import (
    MAX_CHUNK_TOKENS,
    NUM_SETTLING_STEPS,
    fit_settling,
    settling_of,
    settling_probes,
)
from tiercast_runtime.probes.step_bench import BenchStep, ComponentKey, Geometry, HostKey, Part, PartKey, StepBench
from tiercast_runtime.probes.timing import Case, Clock, Effort, Spread, collect, probe_result, rounded

COMPONENT_ORDER: tuple[Component, ...] = (
    "embed",
    "linear",
    "attention_decode",
    "attention_verify",
    "attention_prefill",
    "engram_module",
    "engram_chunk",
    "hash",
    "lookup_issue",
    "head",
    "step_overhead",
)
NUM_CHUNKS = 4  # of a step with several, to see what each of them adds to an Engram layer
MIN_SIZES_OF_LAW = 3  # below these a time and a share cannot be told apart
NUM_TURNS = 2  # of a decode batch with Engram between steps without it, at the typical context
DECODE_CACHE_RATIO = 0.6  # of free memory, for the cache of a decode batch; weights and buffers take little beside it
PLAIN_COMPONENTS: tuple[Component, ...] = ("embed", "linear", "head", "step_overhead")  # that Engram layers change
PLAIN_PARTS: tuple[Part, ...] = (*PLAIN_COMPONENTS, "mlp")  # what is kept of a walk without Engram
SETTLING_COMPONENTS: tuple[Component, ...] = ("embed", "linear", "attention_decode", "engram_module", "head")
STEP_COMPONENTS: tuple[Component, ...] = (*SETTLING_COMPONENTS, "attention_prefill")

WholeKey = tuple[Literal["whole"], int, int]
PlainKey = tuple[Literal["plain"], Part, int]
RatioKey = tuple[Literal["ratio"], Part, int]  # without Engram over with it
SettlingKey = tuple[Literal["settling"], int, int]  # sequences, steps behind a chunk
StepKey = tuple[Literal["step"], int, int]  # tokens, context: compute of a whole step that was walked through
LayerKey = PartKey | HostKey | WholeKey | PlainKey | RatioKey | SettlingKey | StepKey


@dataclass(frozen=True, slots=True)
class LayerGrid:
    """Steps to time: decode batches by sequences and context, single chunks by tokens and the context before them.

    ``captured`` are sizes of decode batches that are timed as graphs only, none of them the largest.
    """

    sequences: tuple[int, ...]
    contexts: tuple[int, ...]
    chunks: tuple[int, ...]
    starts: tuple[int, ...]
    captured: tuple[int, ...] = ()

    @property
    def verifying(self) -> tuple[tuple[int, int], ...]:
        """Sequences and context of the steps that verify drafts: every other batch, the shortest and longest context.

        Attention alone is taken from them, which is close to linear in both.
        """
        counts = sorted({*self.sequences[::2], *self.sequences[-1:]})
        contexts = sorted({*self.contexts[:1], *self.contexts[-1:]})
        return tuple((count, context) for count in counts for context in contexts)

    @property
    def typical_context(self) -> int:
        """The context at which batches settle: keys and values of a server's length take their part of the caches."""
        return self.contexts[(len(self.contexts) - 1) // 2]

    @property
    def disturbing_tokens(self) -> int:
        """Tokens of the chunk behind which decode batches are watched to settle; 0 where the grid has none."""
        return max((count for count in self.chunks if count <= MAX_CHUNK_TOKENS), default=0)

    @property
    def tokens_of_several(self) -> int:
        """Tokens of each of several chunks that together are no longer than one of the grid; 0 where none is so long.

        A step with them is to have the tokens of one that was timed.
        """
        shortest = min(self.chunks, default=0)
        return shortest if 0 < shortest * NUM_CHUNKS <= max(self.chunks, default=0) else 0

    @property
    def geometry(self) -> Geometry:
        """Room the grid needs; the chunk that disturbs a batch has a slot beside it."""
        most = max(self.sequences, default=0)
        beside = self.disturbing_tokens if self.sequences else 0
        return Geometry(
            num_slots=max(1, most + (beside > 0), NUM_CHUNKS if self.tokens_of_several else 0),
            max_context_tokens=max(*self.contexts, max(self.starts, default=0) + max(self.chunks, default=0), 1),
            max_step_tokens=max(*self.chunks, beside + most, VERIFY_TOKENS * most, 1),
        )


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """One model's table and the probes it comes from.

    ``plain`` is the table of the model without its Engram layers: their weights push those of the decoder out of the
    caches, so that the decoder alone is faster. It is the other table times what both were found to differ by in turns:
    what Engram costs is the difference of the two, and a shared machine changes by more from one second to the next.
    """

    table: ComputeTable
    plain: ComputeTable
    spreads: dict[ComponentKey, Spread[LayerKey]]
    probes: tuple[ProbeResult, ...]

    def time_us(self, component: Component, num_tokens: int) -> float:
        """Measured time of a component at a measured number of tokens, over all its contexts the shortest."""
        points = [p for p in self.table.components[component] if p.num_tokens == num_tokens]
        return min(points, key=lambda point: point.context_tokens).time_us


def grids_that_fit(grid: LayerGrid, model: ModelSpec, device: torch.device) -> tuple[LayerGrid, ...]:
    """The grid in parts that each fit: as it is where its cache takes no more than a quarter of free memory.

    The cache gives every sequence the longest context, and a chunk of many tokens wants a long one: then chunks are a
    part of their own with few sequences, and so is each context of decode batches, with the sequences that fit most of
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
    for counts, contexts in by_counts.items():
        captured = tuple(count for count in grid.captured if count < counts[-1])
        parts.append(LayerGrid(counts, tuple(contexts), (), (), captured))
    return (*parts, LayerGrid((), (), grid.chunks, grid.starts))


def joined(parts: Sequence[LayerTimes]) -> LayerTimes:
    """The times of all parts of a grid as one table; a point that several parts measured is the first one's."""
    spreads: dict[ComponentKey, Spread[LayerKey]] = {}
    for part in reversed(parts):
        spreads |= part.spreads
    table, plain = _one_table([part.table for part in parts]), _one_table([part.plain for part in parts])
    return LayerTimes(table, plain, spreads, tuple(probe for part in parts for probe in part.probes))


def _one_table(parts: Sequence[ComputeTable]) -> ComputeTable:
    components: dict[Component, tuple[ComputePoint, ...]] = {}
    for name in COMPONENT_ORDER:
        points: dict[tuple[int, int], ComputePoint] = {}
        for part in parts:
            for point in part.components.get(name, ()):
                points.setdefault((point.num_tokens, point.context_tokens), point)
        if points:
            components[name] = tuple(points[key] for key in sorted(points))
    spreads: dict[int, StepSpread] = {}
    for part in parts:
        for spread in part.spreads:
            spreads.setdefault(spread.num_tokens, spread)
    in_order = tuple(spreads[count] for count in sorted(spreads))
    return parts[0].model_copy(update={"components": components, "spreads": in_order})


def measure_layers(
    bench: StepBench,
    grid: LayerGrid,
    num_threads: int,
    effort: Effort,
    clock: Clock = time.perf_counter_ns,
    *,
    between: Callable[[], None] | None = None,
) -> LayerTimes:
    """Time every component of a model over the grid.

    Args:
        bench: the model; its geometry must hold the grid.
        grid: steps to time.
        num_threads: compute threads in use, which the table states.
        effort: for the whole grid.
        clock: decides when the budget is used.
        between: called before every step or row of steps that is timed.
    """
    with torch.inference_mode():
        decodes = [[bench.step([context] * count, []) for context in grid.contexts] for count in grid.sequences]
        chunks = [[bench.step([], [(start, count)]) for start in grid.starts] for count in grid.chunks]
        wholes = _whole_steps(bench, grid, decodes)
        beside = [(0, grid.disturbing_tokens)] if grid.disturbing_tokens else []
        mixed = [bench.step([grid.typical_context] * count, beside) if beside else None for count in grid.sequences]
        typical = [bench.step([grid.typical_context] * count, []) for count in grid.sequences]
        most = max(grid.sequences, default=0)
        cases: list[Case[LayerKey]] = [
            _settled_case(bench, decode, steps, beside_chunk, wholes)
            for decode, steps, beside_chunk in zip(typical, decodes, mixed, strict=True)
        ]
        cases += [_verifying_case(bench, bench.verifying_step(*point)) for point in grid.verifying]
        cases += [_chunk_case(bench, steps, most) for steps in chunks]
        if bench.device.type == "cuda" and grid.tokens_of_several:
            cases.append(_several_chunks_case(bench, grid.tokens_of_several))
        cases += [_whole_case(bench, step) for step in wholes if not step.plan.decodes]
        # Only chunks need a warm-up: every other case runs steps like its own before the one it times.
        for step in effort.num_warm_ups * [step for steps in chunks for step in steps]:
            bench.walk(step)
        measured = collect(cases, replace(effort, num_warm_ups=0), clock, between=between)
        spreads = {spread.key: spread for spread in measured}
    components: dict[Component, tuple[ComputePoint, ...]] = {}
    times: dict[ComponentKey, Spread[LayerKey]] = {}
    probes = []
    for component in COMPONENT_ORDER:
        points = []
        for key in sorted(key for key in spreads if _is_component(key) and key[0] == component):
            spread = spreads[key].scaled(1 / NS_PER_US)
            _, count, context = key
            times[component, count, context] = spread
            host = spreads.get(("host", *key))
            points.append(_point(spread, count, context, host))
            parameters: dict[str, str | int | float] = {"model": bench.model.name, "tokens": count, "context": context}
            probes.append(probe_result(f"layers.{component}", spread, "us", parameters))
            if host is not None:
                issued = host.scaled(1 / NS_PER_US)
                probes.append(probe_result(f"layers.host.{component}", issued, "us", parameters))
        if points:
            components[component] = tuple(points)
    plain = _plain_components(components, spreads)
    probes += _plain_probes(bench.model.name, spreads)
    probes += _mlp_probes(bench.model.name, spreads)
    steps = [spread for spread in measured if spread.key[0] == "step"]
    probes += _step_probes(bench.model.name, steps)
    rows_us = _settling_rows(spreads)
    settling = without_settling = None
    if rows_us:
        law = fit_settling(rows_us)
        settling, without_settling = (
            settling_of(law, {count: _settled_us(bench, found, count) for count in rows_us}, grid.disturbing_tokens)
            for found in (components, plain)
        )
        probes += settling_probes(rows_us, law, grid.disturbing_tokens, bench.model.name)
    table = ComputeTable(
        model_name=bench.model.name,
        shape_sha256=bench.model.backbone.shape_sha256,
        engram_sha256=bench.model.engram.shape_sha256,
        graph_mode="eager",
        num_threads=num_threads,
        context_statistic="max" if bench.device.type == "cpu" else "mean",
        components=components,
        settling=settling,
        spreads=_step_spreads(steps),
    )
    changes = {"engram_sha256": None, "components": plain, "settling": without_settling, "spreads": ()}
    without = table.model_copy(update=changes)
    checks = [_whole_probe(bench, step, spreads) for step in wholes]
    return LayerTimes(table, without, times, (*probes, *checks))


def _whole_steps(bench: StepBench, grid: LayerGrid, decodes: list[list[BenchStep]]) -> list[BenchStep]:
    """Steps to run without laps too: a decode batch and the largest chunk; on a GPU the largest batch beside.

    There the first of them may be bound by the host, and then says nothing of what the device's laps add up to.
    """
    wholes = []
    if grid.sequences:
        place = grid.contexts.index(max(grid.contexts[:3]))
        wholes.append(decodes[len(decodes) // 2][place])
        if bench.device.type == "cuda" and decodes[-1][place] is not wholes[0]:
            wholes.append(decodes[-1][place])
    if grid.chunks and grid.chunks[-1] > max(grid.sequences, default=0):
        wholes.append(bench.step([], [(0, grid.chunks[-1])]))
    return wholes


def _mlp_probes(model: str, spreads: dict[LayerKey, Spread[LayerKey]]) -> list[ProbeResult]:
    """The MLP of one layer by tokens, with and without Engram, in µs.

    It is a part of ``linear``, so no table has it: a step added up from one would count it twice.
    """
    probes = []
    for key in sorted(key for key in spreads if key[0] == "mlp" or key[:2] == ("plain", "mlp")):
        name, count = ("layers.plain.mlp", key[2]) if key[0] == "plain" else ("layers.mlp", key[1])
        probes.append(probe_result(name, spreads[key].scaled(1 / NS_PER_US), "us", {"model": model, "tokens": count}))
    return probes


def _is_component(key: LayerKey) -> TypeGuard[ComponentKey]:
    return key[0] in COMPONENT_ORDER


def _step_spreads(steps: Sequence[Spread[LayerKey]]) -> tuple[StepSpread, ...]:
    """How far steps of so many tokens lie apart in what they compute.

    Parts of a step are slow together or not, so that the sum of each walk counts.
    """
    by_tokens = cases_of_alike(steps, lambda key: int(key[1]))
    return tuple(StepSpread(num_tokens=count, time_ratios=ratios) for count, ratios in by_tokens.items())


def _step_probes(model: str, steps: Sequence[Spread[LayerKey]]) -> list[ProbeResult]:
    """Compute of whole steps that were walked through, in µs."""
    return [
        probe_result(
            "layers.step",
            spread.scaled(1 / NS_PER_US),
            "us",
            {"model": model, "tokens": spread.key[1], "context": spread.key[2]},
        )
        for spread in sorted(steps, key=lambda spread: spread.key)
    ]


def _settling_rows(spreads: dict[LayerKey, Spread[LayerKey]]) -> dict[int, list[tuple[float, ...]]]:
    """By sequences the rows of steps behind a chunk, in µs."""
    columns: dict[int, list[tuple[float, ...]]] = {}
    for key in sorted(key for key in spreads if key[0] == "settling"):
        columns.setdefault(key[1], []).append(spreads[key].scaled(1 / NS_PER_US).samples)
    return {count: list(zip(*found, strict=True)) for count, found in columns.items()}


def _plain_components(
    components: dict[Component, tuple[ComputePoint, ...]], spreads: dict[LayerKey, Spread[LayerKey]]
) -> dict[Component, tuple[ComputePoint, ...]]:
    """The table without Engram: the one with it, times what both were found to differ by in turns.

    Assumption A101: what Engram layers take of a decoder layer beside them, by way of the caches, is a time per layer
    plus a share of the layer. Both are fitted to all sizes, for a single one is in the noise; of the head, the
    embedding and the host's work it is a share. Attention is the same.
    """
    plain: dict[Component, tuple[ComputePoint, ...]] = {
        name: points for name, points in components.items() if name.startswith("attention")
    }
    for component in PLAIN_COMPONENTS:
        ratios = {key[2]: spreads[key].samples for key in spreads if key[0] == "ratio" and key[1] == component}
        points = components.get(component, ())
        if not ratios or not points:
            continue
        times_us = {point.num_tokens: point.time_us for point in points}
        share, taken_us = plain_law(ratios, times_us if component == "linear" else None)
        plain[component] = tuple(_times(point, max(0.0, share - taken_us / point.time_us)) for point in points)
    return plain


def plain_law(
    ratios: Mapping[int, Sequence[float]], times_us: Mapping[int, float] | None = None
) -> tuple[float, float]:
    """A share s and a time t such that a component takes s − t ÷ T of its time T where there is no Engram.

    Args:
        ratios: by size, times without over times with Engram, of steps in turns.
        times_us: by size, the time with Engram; None: t is 0.
    """
    middles = {size: median(found) for size, found in ratios.items()}
    if times_us is None or len(middles) < MIN_SIZES_OF_LAW:
        return median([ratio for found in ratios.values() for ratio in found]), 0.0
    sizes = sorted(middles)
    weights = np.sqrt([len(ratios[size]) for size in sizes])
    inverse = np.array([1 / times_us[size] for size in sizes])
    design = np.stack([np.ones(len(sizes)), -inverse], axis=1) * weights[:, None]
    (share, taken_us), *_ = np.linalg.lstsq(design, np.array([middles[size] for size in sizes]) * weights, rcond=None)
    return (float(share), float(taken_us)) if taken_us >= 0 else plain_law(ratios)


def _times(point: ComputePoint, ratio: float) -> ComputePoint:
    low_us, time_us, high_us = (rounded(ratio * value) for value in (point.low_us, point.time_us, point.high_us))
    return point.model_copy(update={"low_us": low_us, "time_us": time_us, "high_us": high_us})


def _plain_probes(model: str, spreads: dict[LayerKey, Spread[LayerKey]]) -> list[ProbeResult]:
    """What was timed without Engram, in µs, and its ratios to the same with it."""
    probes = []
    for component in PLAIN_COMPONENTS:
        for key in sorted(key for key in spreads if key[0] in ("plain", "ratio") and key[1] == component):
            spread = spreads[key]
            parameters: dict[str, str | int | float] = {"model": model, "tokens": key[2]}
            if key[0] == "plain":
                probes.append(probe_result(f"layers.plain.{component}", spread.scaled(1 / NS_PER_US), "us", parameters))
            else:
                probes.append(probe_result(f"layers.plain_ratio.{component}", spread, "ratio", parameters))
    return probes


def _point(
    spread: Spread[LayerKey], num_tokens: int, context_tokens: int, host: Spread[LayerKey] | None
) -> ComputePoint:
    """A point in µs; ``host`` is in ns."""
    return ComputePoint(
        num_tokens=num_tokens,
        context_tokens=context_tokens,
        time_us=rounded(spread.mean),
        low_us=rounded(min(spread.low, spread.mean)),
        high_us=rounded(max(spread.high, spread.mean)),
        host_us=None if host is None else rounded(host.mean / NS_PER_US),
    )


def _chunk_case(bench: StepBench, steps: list[BenchStep], most_sequences: int) -> Case[LayerKey]:
    """Chunks of one size behind each of the starts; the first between two without Engram.

    The head of a chunk's one sample is left out, and of a chunk no larger than a decode batch all but its attention:
    the decode batches say these, and their keys would be the same.
    """

    def is_kept(part: Part, num_tokens: int) -> bool:
        is_large = num_tokens > most_sequences and not (most_sequences and part == "head")
        return is_large or part == "attention_prefill"

    def case() -> list[tuple[LayerKey, float]]:
        found: list[tuple[LayerKey, float]] = []
        for step in steps:
            count = step.plan.num_tokens
            if step is steps[0] and count > most_sequences:
                walked, compared = _between(bench, step, num_settling=0)
                found += [pair for pair in compared if is_kept(pair[0][1], count)]
            else:
                walked = _walked(bench, step)
            found.append(_step_time(bench, step, walked))
            found += [(key, value) for key, value in walked if is_kept(_part(key), count)]
        return found

    return case


def _several_chunks_case(bench: StepBench, num_tokens: int) -> Case[LayerKey]:
    """An Engram layer of a step with several chunks less that of one chunk of as many tokens, for each but the first.

    Its convolution goes chunk by chunk, in launches of their own. On a CPU, which launches nothing, there is nothing
    to see.
    """
    several = bench.step([], [(0, num_tokens)] * NUM_CHUNKS)
    one = bench.step([], [(0, num_tokens * NUM_CHUNKS)])

    def module_ns(step: BenchStep) -> tuple[float, float]:
        bench.walk(step)
        of_device, of_host = bench.walk_lanes(step)
        name = "engram_module"
        return sum(ns for key, ns in of_device if key[0] == name), sum(ns for key, ns in of_host if key[1] == name)

    def case() -> list[tuple[LayerKey, float]]:
        (device_ns, host_ns), (one_ns, one_host_ns) = module_ns(several), module_ns(one)
        return [
            (("engram_chunk", num_tokens, 0), max(0.0, device_ns - one_ns) / (NUM_CHUNKS - 1)),
            (("host", "engram_chunk", num_tokens, 0), max(0.0, host_ns - one_host_ns) / (NUM_CHUNKS - 1)),
        ]

    return case


def _walked(bench: StepBench, step: BenchStep, *, has_engram: bool = True) -> list[tuple[PartKey | HostKey, float]]:
    """The device's times of a step and the host's beside them."""
    of_device, of_host = bench.walk_lanes(step, has_engram=has_engram)
    return [*of_device, *of_host]


def _part(key: PartKey | HostKey) -> Part:
    """What a time is of, whichever of the two it is."""
    return key[1] if key[0] == "host" else key[0]


def _between(
    bench: StepBench, step: BenchStep, num_settling: int
) -> tuple[list[tuple[PartKey | HostKey, float]], list[tuple[PlainKey | RatioKey, float]]]:
    """A step with Engram between two without it, each behind ``num_settling`` like it.

    Returns:
        The walk with Engram; and both without it with the ratio of their mean to it, which a drift leaves as it is.
    """

    def walk(*, has_engram: bool) -> list[tuple[PartKey | HostKey, float]]:
        for _ in range(num_settling):
            bench.walk(step, has_engram=has_engram)
        return _walked(bench, step, has_engram=has_engram)

    before, middle, behind = walk(has_engram=False), walk(has_engram=True), walk(has_engram=False)
    found: list[tuple[PlainKey | RatioKey, float]] = []
    times, behind_times = dict(middle), dict(behind)
    for key, value in before:
        if key[0] != "host" and key[0] in PLAIN_PARTS:
            pair = value, behind_times[key]
            for each in pair:
                found.append((("plain", key[0], key[1]), each))
            found.append((("ratio", key[0], key[1]), sum(pair) / 2 / times[key]))
    return middle, found


def _settled_case(
    bench: StepBench, typical: BenchStep, steps: list[BenchStep], mixed: BenchStep | None, wholes: list[BenchStep]
) -> Case[LayerKey]:
    """Decode batches of one size: in a row behind a chunk, whole; then settled, by component.

    ``mixed`` is the step with the chunk, of which the batch is part, as in a server. Rounds of the grid put steps of
    other shapes in between, and those take the weights out of the nearest cache, which needs several steps to settle
    again: of those only the whole is kept. A longer context brings keys that the one before did not read: of each the
    first is not kept. Those of ``wholes`` are run as wholes too, while they are settled. Last, steps with and without
    Engram take turns.
    """

    def case() -> list[tuple[LayerKey, float]]:
        found: list[tuple[LayerKey, float]] = [*in_a_row(bench, typical, mixed)]
        for step in steps:
            bench.walk(step)
            walked = _walked(bench, step)
            found += [*walked, _step_time(bench, step, walked)]
            if any(step is whole for whole in wholes):
                found.append((_whole_key(step), bench.whole(step)))
        for _ in range(NUM_TURNS):
            walked, compared = _between(bench, typical, num_settling=1)
            found += [*walked, *compared, _step_time(bench, typical, walked)]
        return found

    return case


def in_a_row(bench: StepBench, step: BenchStep, mixed: BenchStep | None) -> list[tuple[SettlingKey, float]]:
    """Compute in ns of the steps in which a batch settles behind ``mixed``; nothing is kept where there is none."""
    if mixed is None:
        # A GPU's cache holds no model: one step like it will do.
        for _ in range(1 if bench.device.type == "cuda" else settling_steps(step)):
            bench.walk(step)
        return []
    bench.walk(mixed)
    times = [_compute_ns(bench, bench.walk(step)) for _ in range(settling_steps(step))]
    count = len(step.plan.decodes)
    return [(("settling", count, number), time_ns) for number, time_ns in enumerate(times)]


def _compute_ns(bench: StepBench, walked: Sequence[tuple[PartKey | HostKey, float]]) -> float:
    """Compute of a whole step that was walked through, on the device."""
    return sum(
        bench.times_a_step(key[0]) * value for key, value in walked if key[0] != "host" and key[0] in STEP_COMPONENTS
    )


def _step_time(
    bench: StepBench, step: BenchStep, walked: Sequence[tuple[PartKey | HostKey, float]]
) -> tuple[StepKey, float]:
    """The same, as the time of a step of so many tokens behind so long a context."""
    plan = step.plan
    starts = [*(decode.decode_position for decode in plan.decodes), *(chunk.start for chunk in plan.chunks)]
    return ("step", plan.num_tokens, max(starts)), _compute_ns(bench, walked)


def _settled_us(bench: StepBench, components: dict[Component, tuple[ComputePoint, ...]], count: int) -> float:
    """Compute of a settled step of so many sequences at the typical context, as a table says it."""
    total_us = 0.0
    for name in SETTLING_COMPONENTS:
        times = [point.time_us for point in components.get(name, ()) if point.num_tokens == count]
        if times:
            total_us += bench.times_a_step(name) * times[(len(times) - 1) // 2]
    return total_us


def _verifying_case(bench: StepBench, step: BenchStep) -> Case[LayerKey]:
    """Attention of a step that verifies drafts, behind one like it; its other parts are those of as many tokens."""

    def case() -> list[tuple[LayerKey, float]]:
        bench.walk(step)
        return [(key, value) for key, value in _walked(bench, step) if _part(key) == "attention_verify"]

    return case


def settling_steps(step: BenchStep) -> int:
    """Steps like it to run before a step that decodes is as a server runs it; none before a chunk of a prompt."""
    return NUM_SETTLING_STEPS if step.plan.decodes else 0


def _whole_case(bench: StepBench, step: BenchStep) -> Case[LayerKey]:
    """A chunk as a whole; decode batches are run as wholes where they are settled."""

    def case() -> list[tuple[LayerKey, float]]:
        return [(_whole_key(step), bench.whole(step))]

    return case


def _whole_key(step: BenchStep) -> WholeKey:
    return "whole", len(step.plan.decodes), step.plan.num_prefill_tokens


def _whole_probe(bench: StepBench, step: BenchStep, spreads: dict[LayerKey, Spread[LayerKey]]) -> ProbeResult:
    """How far the sum of the parts is from the same step run as a whole.

    Where the host issues beside the device, the larger of their two sums counts; the head runs behind its issue.
    """
    walked = {key[0]: key for key, _ in bench.walk(step)}
    sum_ns = issued_ns = 0.0
    for name, key in walked.items():
        if name in STEP_COMPONENTS:
            sum_ns += bench.times_a_step(name) * spreads[key].value
            host = spreads.get(("host", *key))
            issued_ns += 0.0 if host is None else bench.times_a_step(name) * host.value
    if issued_ns:
        sum_ns = max(sum_ns, issued_ns + spreads[walked["head"]].value)
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
