"""How much a lookup and the compute of a GPU beside it slow each other: measured together, not guessed from each alone.

The GPU runs decoder layers while the prefetcher's side stream serves lookups one after the other. Lookups are timed
alone right before, compute alone right before and right after. With overlap ``O`` of a compute pass that takes ``C``
and took ``C0`` alone, compute ran at speed ``1 − (C − C0) ÷ O`` while the lookups ran; a lookup that ran wholly beside
compute had the speed ``L0 ÷ L``. All is enqueued behind a kernel that only waits: launches take longer than the lookups
of a decode step, which would all be over before the compute beside them began. Samples stay as they come, noise above 1
included; only median and quartiles are brought into (0, 1].

What lookups take from compute on a CPU is no speed: see ``lookup_overhead``.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tiercast_profiles.document import Quantity
from tiercast_profiles.hardware import Interference, InterferencePoint, LookupPath, ProbeResult, Tier
from tiercast_profiles.rng import stream
from tiercast_profiles.stats import median
from tiercast_runtime.batch import BatchPlan
from tiercast_runtime.paths.base import LookupPath as RuntimePath
from tiercast_runtime.prefetch import LookupTiming, Prefetcher
from tiercast_runtime.prefetch_cuda import EventClock
from tiercast_runtime.probes.gather import random_ids
from tiercast_runtime.probes.hold import LEAST_HOLD_NS, MOST_HOLD_NS, hold
from tiercast_runtime.probes.step_bench import StepBench
from tiercast_runtime.probes.timing import (
    Clock,
    Effort,
    Spread,
    collect,
    cuda_event,
    not_measured,
    probe_result,
    rounded,
)

Mix = tuple[list[int], list[tuple[int, int]]]  # contexts of decoding sequences; chunks as (start, tokens)
SIZE_MIXES: tuple[Mix, ...] = (
    ([128] * 8, []),
    ([128] * 64, []),
    ([128] * 256, []),
    ([], [(0, 32)]),
    ([], [(0, 256)]),
)
GRID_RATIOS = (0.125, 0.5, 1.0)  # programs of a GPU's gather over its multiprocessors

MAX_LOOKUPS = 256  # lookups queued beside one compute pass
DECODE_SEQUENCES, DECODE_CONTEXT = 8, 128
CHUNK_TOKENS = 32
MIN_OVERLAP_RATIO = 0.2  # of the compute pass; less says nothing about its speed
OVERLAP_TO_SEE_RATIO = 0.4  # asked for where a step alone gives less
MIN_SPEED = 0.01  # a ratio lies in (0, 1]
HOLD_MARGIN = 1.5  # times what the launches of a trial take the host


@dataclass(frozen=True, slots=True)
class Contender:
    """A path to run beside compute: ``path`` serves ``num_tables`` layers that all have ``num_rows`` rows.

    ``num_programs`` is the grid of a path the GPU drives, ``num_threads`` the threads of one the host drives.
    """

    tier: Tier
    name: LookupPath
    path: RuntimePath
    num_tables: int
    num_rows: int
    num_programs: int | None = None
    num_threads: int | None = None


def measure_interference(
    bench: StepBench, contender: Contender, effort: Effort, clock: Clock = time.perf_counter_ns
) -> tuple[Interference | None, tuple[ProbeResult, ...]]:
    """Speeds of a GPU's compute and of lookups beside each other, pooled over a decode batch and a chunk.

    Returns:
        The entry, or None where lookups and compute never overlapped enough; and the probes.
    """
    cases = []
    prefetcher = Prefetcher(contender.path, "step_entry", clock)
    try:
        with torch.inference_mode():
            for decode_contexts, chunks in _mixes(bench):
                batch = bench.batch(bench.step(decode_contexts, chunks))
                cases.append(_Duel(bench, batch, contender, prefetcher, clock))
            spreads = {spread.key: spread for spread in collect([duel.run for duel in cases], effort, clock)}
    finally:
        prefetcher.close()
    name = f"interference.{contender.tier}.{contender.name}"
    compute, lookup = spreads.get("compute"), spreads.get("lookup")
    if compute is None or lookup is None:
        reason = "lookups and compute never ran beside each other for long enough to tell"
        return None, (not_measured(name, reason),)
    parameters: dict[str, str | int | float] = {"model": bench.model.name, "threads": torch.get_num_threads()}
    probes = (
        probe_result(f"{name}.compute_speed", compute, "ratio", parameters),
        probe_result(f"{name}.lookup_speed", lookup, "ratio", parameters),
    )
    entry = Interference(
        tier=contender.tier,
        path=contender.name,
        compute_speed_ratio=speed_quantity(compute),
        lookup_speed_ratio=speed_quantity(lookup),
    )
    return entry, probes


def measure_sizes(
    bench: StepBench, contender: Contender, mixes: Sequence[Mix], effort: Effort, clock: Clock = time.perf_counter_ns
) -> tuple[tuple[InterferencePoint, ...], tuple[ProbeResult, ...]]:
    """The same speeds, each mix by itself: how they move with the size of the step and of its lookups.

    Args:
        bench: whose layers compute.
        contender: the path, with its own grid or threads.
        mixes: contexts of decoding sequences and chunks of a step; those the bench has no room for are left out.
        effort: for all mixes together.
        clock: ns.

    Returns:
        A point for each mix whose lookups and compute overlapped for long enough, and the probes of all.
    """
    name, points, probes = f"interference.{contender.tier}.{contender.name}.sizes", [], []
    prefetcher = Prefetcher(contender.path, "step_entry", clock)
    try:
        with torch.inference_mode():
            for decode_contexts, chunks in mixes:
                if not has_room(bench, decode_contexts, chunks):
                    continue
                batch = bench.batch(bench.step(decode_contexts, chunks))
                duel = _Duel(bench, batch, contender, prefetcher, clock)
                spreads = {spread.key: spread for spread in collect([duel.run], effort.shared(len(mixes)), clock)}
                compute, lookup = spreads.get("compute"), spreads.get("lookup")
                if compute is None or lookup is None:
                    reason = f"at {batch.num_tokens} tokens lookups and compute hardly ran beside each other"
                    probes.append(not_measured(name, reason))
                    continue
                point = InterferencePoint(
                    num_tokens=batch.num_tokens,
                    num_rows=batch.num_tokens * bench.model.engram.num_rows_per_token,
                    row_bytes=bench.model.engram.row_bytes,
                    num_programs=contender.num_programs,
                    num_threads=contender.num_threads,
                    compute_speed_ratio=speed_quantity(compute),
                    lookup_speed_ratio=speed_quantity(lookup),
                )
                points.append(point)
                parameters: dict[str, str | int | float] = {"model": bench.model.name, "tokens": batch.num_tokens}
                parameters |= {} if contender.num_programs is None else {"programs": contender.num_programs}
                probes.append(probe_result(f"{name}.compute_speed", compute, "ratio", parameters))
                probes.append(probe_result(f"{name}.lookup_speed", lookup, "ratio", parameters))
    finally:
        prefetcher.close()
    return tuple(points), tuple(probes)


def has_room(bench: StepBench, decode_contexts: Sequence[int], chunks: Sequence[tuple[int, int]]) -> bool:
    """Whether a bench has room for a step."""
    room = bench.geometry
    num_tokens = len(decode_contexts) + sum(count for _, count in chunks)
    longest = max([*decode_contexts, *(start + count for start, count in chunks)])
    num_sequences = len(decode_contexts) + len(chunks)
    is_held = num_sequences <= room.num_slots and longest <= room.max_context_tokens
    return is_held and num_tokens <= room.max_step_tokens


def _mixes(bench: StepBench) -> tuple[tuple[list[int], list[tuple[int, int]]], ...]:
    """A decode batch and a chunk of common sizes, as far as the bench has room for them."""
    room = bench.geometry
    chunk = min(CHUNK_TOKENS, room.max_step_tokens, room.max_context_tokens)
    return (
        ([min(DECODE_CONTEXT, room.max_context_tokens)] * min(DECODE_SEQUENCES, room.num_slots), []),
        ([], [(0, chunk)]),
    )


def overlap_ns(begin_ns: int, end_ns: int, timings: Sequence[LookupTiming]) -> int:
    """How much of ``begin … end`` lies inside some lookup; lookups of one worker do not overlap each other."""
    return sum(max(0, min(end_ns, t.ready_ns) - max(begin_ns, t.started_ns)) for t in timings)


def speeds(
    alone_ns: float, beside_ns: float, overlapped_ns: float, lookup_alone_ns: float, lookups_beside_ns: Sequence[float]
) -> tuple[float | None, list[float]]:
    """Speed of compute, None where the overlap is too short to tell, and the speed of each lookup."""
    compute = None
    if overlapped_ns >= MIN_OVERLAP_RATIO * beside_ns:
        compute = 1 - (beside_ns - alone_ns) / overlapped_ns
    return compute, [lookup_alone_ns / lookup for lookup in lookups_beside_ns if lookup > 0]


class _Duel:
    """One batch against one path: alone, together, alone again, and what that says."""

    def __init__(
        self, bench: StepBench, batch: BatchPlan, contender: Contender, prefetcher: Prefetcher, clock: Clock
    ) -> None:
        self._bench, self._batch, self._contender, self._prefetcher = bench, batch, contender, prefetcher
        self._clock = clock
        self._hidden = bench.backbone.embed(batch)
        self._generator = stream(0, f"interference/{contender.name}/{batch.num_tokens}")
        self._num_rows = batch.num_tokens * bench.model.engram.num_rows_per_token
        self._events = EventClock(clock)
        self._hold_ns = LEAST_HOLD_NS
        self._num_lookups = 1
        self._compute()  # compiles, and makes library handles
        self._lookup_alone()
        self._hold_ns = self._time_of_launches()
        first_compute = self._compute()
        first_lookup = self._lookup_alone()
        # The duty of a real step, one lookup per Engram layer, or as much more as it takes to see an effect at all.
        seen = math.ceil(OVERLAP_TO_SEE_RATIO * (first_compute[1] - first_compute[0]) / max(1.0, first_lookup))
        wanted = max(len(bench.model.engram.layer_ids), seen)
        self._num_lookups = min(wanted, MAX_LOOKUPS, contender.num_tables)
        self._hold_ns = self._time_of_launches()

    def run(self) -> list[tuple[str, float]]:
        """One trial."""
        self._events.refresh_if_old()
        lookup_alone_ns = self._lookup_alone()
        before_begin_ns, before_end_ns = self._compute()
        ids = self._fresh_ids()
        hold(self._hold_ns)
        self._prefetcher.begin_step(ids)
        begin_ns, end_ns = self._compute(is_held=True)
        timings = self._drain()
        after_begin_ns, after_end_ns = self._compute()
        alone_ns = (before_end_ns - before_begin_ns + after_end_ns - after_begin_ns) / 2
        inside = [t.ready_ns - t.started_ns for t in timings if begin_ns <= t.started_ns and t.ready_ns <= end_ns]
        overlapped = overlap_ns(begin_ns, end_ns, timings)
        compute, lookups = speeds(alone_ns, end_ns - begin_ns, overlapped, lookup_alone_ns, inside)
        observed = [("lookup", speed) for speed in lookups]
        return observed if compute is None else [("compute", compute), *observed]

    def _time_of_launches(self) -> int:
        """How long to hold: what the host takes for the lookups and the compute of a trial, and half as much again."""
        ids = self._fresh_ids()
        begin_ns = self._clock()
        self._prefetcher.begin_step(ids)
        self._bench.layers_pass(self._hidden, self._batch)
        launched_ns = self._clock() - begin_ns
        self._drain()
        return min(MOST_HOLD_NS, max(LEAST_HOLD_NS, round(HOLD_MARGIN * launched_ns)))

    def _compute(self, *, is_held: bool = False) -> tuple[int, int]:
        """Begin and end of one pass over the layers, on the host's clock; ``is_held``: the stream waits already."""
        if not is_held:
            hold(self._hold_ns)
        begin, end = cuda_event(), cuda_event()
        begin.record()
        self._bench.layers_pass(self._hidden, self._batch)
        end.record()
        torch.cuda.synchronize(self._bench.device)
        return self._events.ns(begin), self._events.ns(end)

    def _lookup_alone(self) -> float:
        ids = self._fresh_ids()
        hold(self._hold_ns)
        self._prefetcher.begin_step(ids)
        return median([float(t.ready_ns - t.started_ns) for t in self._drain()])

    def _drain(self) -> list[LookupTiming]:
        for index in range(self._num_lookups):
            self._prefetcher.rows_for(index)
        return self._prefetcher.take_timings()

    def _fresh_ids(self) -> torch.Tensor:
        """``[lookups, 1, rows]``: fresh random rows for every lookup."""
        ids = [random_ids(self._generator, self._contender.num_rows, self._num_rows) for _ in range(self._num_lookups)]
        return torch.stack(ids).to(self._contender.path.device)


def _clipped(speed: float) -> float:
    return min(1.0, max(MIN_SPEED, speed))


def speed_quantity(spread: Spread[str]) -> Quantity:
    """Median and quartiles of speed ratios, brought into (0, 1]."""
    low, value, high = (rounded(_clipped(speed)) for speed in (spread.low, spread.value, spread.high))
    return Quantity(value=value, low=low, high=high)
