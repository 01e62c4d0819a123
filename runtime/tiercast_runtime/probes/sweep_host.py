"""The gather sweep on the CPU: the runtime's own gather of rows out of one block, by row size, footprint and batch.

A sample is the fastest of a few passes, each long enough for the clock and after one untimed pass of its kind: what is
swept is what the machine does when nothing disturbs it, since its neighbours can only add time. What a lookup costs in
a step, its first call after other work included, is for the lookup curves, which are timed in place. The gathered rows
are compared with the block before anything is timed.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from tiercast_profiles.gather import SMALL_PAGE_BYTES, GatherSweep
from tiercast_profiles.quantiles import PROBE_UNSTABLE_RATIO, is_unstable
from tiercast_profiles.units import NS_PER_US
from tiercast_runtime.host_loops import RowGather
from tiercast_runtime.host_pages import MemoryRequest
from tiercast_runtime.probes.block_content import WrongRows, fill_random
from tiercast_runtime.probes.host import core_cache_bytes
from tiercast_runtime.probes.kept_memory import KeptMemory, LentBlock
from tiercast_runtime.probes.numa import own_and_remote
from tiercast_runtime.probes.round_trip import round_trip_ns
from tiercast_runtime.probes.sweep_fit import fit_sweep
from tiercast_runtime.probes.sweep_grid import Arm, Spot, SweepPlan, as_point, is_held_out, refine
from tiercast_runtime.probes.sweep_ids import RowSource
from tiercast_runtime.probes.timing import Case, Clock, Effort, collect, rounded

Bytes = npt.NDArray[np.uint8]
BlockT = TypeVar("BlockT", Bytes, torch.Tensor)
Ids = npt.NDArray[np.int64]

PASS_ROWS, PASS_BYTES = 4096, 1 << 20  # rows of a timed pass, and bytes it may move
NUM_PASSES = 3
NUM_LOOKS = 2  # rounds that decide where to refine
MAX_CALLS, MAX_CALLS_TOGETHER = 64, 16  # of a pass, and of one by several threads, each of which wakes all of them


def sweep_host(
    block: LentBlock,
    arm: Arm,
    plan: SweepPlan,
    effort: Effort,
    source: RowSource,
    *,
    is_full: bool = True,
    clock: Clock = time.perf_counter_ns,
) -> GatherSweep:
    """Sweep one arm over a filled block and fit its model.

    Args:
        block: in the pages and on the node of the arm, see :func:`placed_block`; as large as the largest footprint.
        arm: pages, order, place and threads.
        plan: coordinates.
        effort: of each of the passes over the points.
        source: draws row ids in the arm's order.
        is_full: all payloads, or the few.
        clock: ns.

    Raises:
        WrongRows: a gather delivered wrong bytes.
    """
    footprints = plan.footprints(len(block.array))
    spots = plan.coarse(footprints, (arm.num_threads,), is_full=is_full)
    with _cases(block, arm, source, clock) as case_of:
        times = measure_spots(spots, plan, effort, case_of, clock)
    blank = GatherSweep(
        path="cpu_gather",
        pages=arm.pages,
        order=arm.order,
        place="remote" if arm.is_remote else "local",
        num_threads=arm.num_threads,
        huge_page_ratio=block.huge_page_ratio(),
        unique_row_ratio=rounded(source.unique_ratio(spots[-1])),
        round_trip_ns=rounded(round_trip_ns(block.array, clock)),
        points=(as_point(spots[0], times[spots[0]], is_out=False),),
    )
    unique = {spot: rounded(source.unique_ratio(spot)) for spot in times}
    return assemble_sweep(blank, times, source.num_distinct_rows, unique, is_host=True, core_cache=core_cache_bytes())


def time_again(
    block: LentBlock,
    arm: Arm,
    spots: Sequence[Spot],
    effort: Effort,
    source: RowSource,
    *,
    clock: Clock = time.perf_counter_ns,
) -> dict[Spot, float]:
    """Median times in µs of some spots as :func:`sweep_host` times them.

    Raises:
        WrongRows: a gather delivered wrong bytes.
    """
    with _cases(block, arm, source, clock) as case_of:
        spreads = collect([case_of(spot) for spot in spots], effort, clock)
    return {spread.key: spread.value / NS_PER_US for spread in spreads}


def measure_spots(
    spots: Sequence[Spot],
    plan: SweepPlan,
    effort: Effort,
    case_of: Callable[[Spot], Case[Spot]],
    clock: Clock = time.perf_counter_ns,
) -> dict[Spot, tuple[float, ...]]:
    """Samples in µs of the coarse spots and of those that refinement adds.

    A first short look at the coarse ones only says where to refine. Then all are timed in the same rounds: a machine
    drifts, and a point must not look bent because it was timed at another time than its neighbours. Points that this
    leaves unstable are timed for as many rounds again.
    """
    cases = {spot: case_of(spot) for spot in spots}
    look = Effort(0, num_warm_ups=0, min_rounds=NUM_LOOKS, max_rounds=NUM_LOOKS)
    first = {spread.key: spread.value for spread in collect(list(cases.values()), look, clock)}
    cases |= {spot: case_of(spot) for spot in refine(first, round(plan.num_refined_ratio * len(spots)))}
    samples = {spread.key: spread.samples for spread in collect(list(cases.values()), effort, clock)}
    shaky = [cases[spot] for spot in cases if is_unstable(samples[spot], PROBE_UNSTABLE_RATIO)]
    for spread in collect(shaky, effort, clock) if shaky else []:
        samples[spread.key] = (*samples[spread.key], *spread.samples)
    return {spot: tuple(rounded(sample / NS_PER_US) for sample in values) for spot, values in samples.items()}


def assemble_sweep(
    blank: GatherSweep,
    times: dict[Spot, tuple[float, ...]],
    num_distinct_rows: int | None = None,
    unique_row_ratios: Mapping[Spot, float] | None = None,
    *,
    is_host: bool = False,
    core_cache: int | None = None,
) -> GatherSweep:
    """The sweep with all its points, the held-out ones marked before the fit sees them, and the model of the others.

    ``unique_row_ratios`` are shares of different rows in a gather; without them no row is asked for twice.
    ``core_cache`` is what a core of a host has for itself, in bytes; None where that is not known, and for a GPU.
    """
    label, unique = blank.label, unique_row_ratios or {}
    points = [
        as_point(spot, times[spot], is_out=is_held_out(label, spot), unique_row_ratio=unique.get(spot, 1.0))
        for spot in sorted(times)
    ]
    fitted = fit_sweep(points, num_distinct_rows, is_host=is_host, core_cache_bytes=core_cache)
    outstanding = None
    if fitted.model is not None and blank.round_trip_ns is not None:
        largest = max(spot.footprint_bytes for spot in times)
        grown = 1 + fitted.model.memory_ratio * largest / (largest + fitted.model.cache_reach_bytes)
        each_ns = (fitted.model.request_ns + fitted.model.byte_ns * fitted.model.request_bytes) * grown
        outstanding = rounded(blank.round_trip_ns / each_ns) if each_ns > 0 else None
    return blank.model_copy(
        update={
            "points": fitted.points,
            "model": fitted.model,
            "score": fitted.score,
            "num_requests_outstanding": outstanding,
        }
    )


@contextmanager
def placed_block(
    num_bytes: int, arm: Arm, memory: KeptMemory | None = None, *, near: int | None = None
) -> Iterator[LentBlock]:
    """A filled block in the arm's pages, on the node it asks for; this thread runs on the own one meanwhile.

    ``memory`` lends it; by default it is taken and given back. ``near`` is the node of the device that gathers, if one
    does: that is the own one then.
    """
    memory = memory or KeptMemory()
    with own_and_remote(is_remote=arm.is_remote, near=near), memory.lent(num_bytes, MemoryRequest(arm.pages)) as block:
        fill_random(block.array)
        yield block


def parts_of(block: BlockT, spot: Spot) -> list[BlockT]:
    """The first ``footprint_bytes`` of a block as tables ``[rows, piece]`` that lie one behind the other."""
    num_rows = (spot.footprint_bytes - SMALL_PAGE_BYTES * (len(spot.piece_bytes) - 1)) // spot.row_bytes
    parts, first = [], 0
    for size in spot.piece_bytes:
        parts.append(block[first : first + num_rows * size].reshape(num_rows, size))
        first += -(-num_rows * size // SMALL_PAGE_BYTES) * SMALL_PAGE_BYTES
    return parts


Gather = Callable[[RowGather, Ids, Bytes], None]


@contextmanager
def _gatherer(num_threads: int) -> Iterator[Gather]:
    """The gather by one thread, or cut in equal shares among several."""
    if num_threads == 1:
        yield RowGather.gather
        return
    with ThreadPoolExecutor(num_threads) as pool:

        def together(rows: RowGather, ids: Ids, target: Bytes) -> None:
            shares = zip(np.array_split(ids, num_threads), np.array_split(target, num_threads), strict=True)
            for done in [pool.submit(rows.gather, some, into) for some, into in shares]:
                done.result()

        yield together


@contextmanager
def _cases(block: LentBlock, arm: Arm, source: RowSource, clock: Clock) -> Iterator[Callable[[Spot], Case[Spot]]]:
    """Makes the case of each spot, while the threads of the arm are there."""
    most_calls = MAX_CALLS if arm.num_threads == 1 else MAX_CALLS_TOGETHER
    with _gatherer(arm.num_threads) as gather:
        yield lambda spot: _case(spot, block.array, gather, source, clock, most_calls=most_calls)


def _case(spot: Spot, block: Bytes, gather: Gather, source: RowSource, clock: Clock, *, most_calls: int) -> Case[Spot]:
    parts = parts_of(block, spot)
    table_rows = len(parts[0])
    target = np.empty((spot.num_rows, spot.row_bytes), dtype=np.uint8)
    ids = source.draw(spot, table_rows)
    rows = RowGather(parts, spot.row_bytes)
    gather(rows, ids, target)
    if not np.array_equal(target, np.concatenate([part[ids] for part in parts], axis=1)):
        raise WrongRows("a gather delivered other rows than were asked for; nothing it times can be trusted")
    num_calls = max(1, min(most_calls, min(PASS_ROWS, PASS_BYTES // spot.row_bytes) // spot.num_rows))

    def one_pass() -> float:
        batches = source.draws(spot, table_rows, num_calls)
        start_ns = clock()
        for batch in batches:
            gather(rows, batch, target)
        return (clock() - start_ns) / num_calls

    def case() -> list[tuple[Spot, float]]:
        one_pass()
        return [(spot, min(one_pass() for _ in range(NUM_PASSES)))]

    return case
