"""Compute of many steps at once: the sums of ``ComputeModel.step``, in its order, on columns.

What depends on a token count alone is asked for once a count. Attention, which depends on every position, is
arithmetic on columns; each operation is the scalar one, so that both forms round to the same nanosecond.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tiercast_sim.compute import ComputeModel
from tiercast_sim.compute_table import Line
from tiercast_sim.schedule_columns import Batches, Column, Schedule, longest_positions

Times = npt.NDArray[np.float64]
MARKS_PER_COUNT = 4  # a table this much longer than the column is still faster than a sort
EXACT = 2**53
"""Whole numbers below this are the same in float64; above it columns and Python's integers part."""


def distinct_of(counts: Column) -> tuple[Column, npt.NDArray[np.intp]]:
    """Distinct values of non-negative ``counts``, ascending, and where among them each count is.

    As ``np.unique`` with its inverse, without the sort where the counts are dense enough to be marked in a table.
    """
    size = int(counts.max(initial=0)) + 1
    if size > MARKS_PER_COUNT * len(counts) + 1024:
        distinct, where = np.unique(counts, return_inverse=True)
        return distinct, where
    is_there = np.zeros(size, dtype=np.bool_)
    is_there[counts] = True
    place = np.cumsum(is_there, dtype=np.intp) - 1
    return np.flatnonzero(is_there).astype(np.int64), place[counts]


def each(counts: Column, price: Callable[[int], float]) -> Times:
    """``price`` of every count, asked for once a distinct count."""
    distinct, where = distinct_of(counts)
    return np.array([price(count) for count in distinct.tolist()], dtype=np.float64)[where]


def step_columns(
    compute: ComputeModel, schedule: Schedule, batches: Batches
) -> tuple[Column, npt.NDArray[np.int64]] | None:
    """``pre_ns`` ``[num_steps]`` and ``segments_ns`` ``[num_segments, num_steps]`` of every step, in whole ns.

    None where whole numbers outgrow float64, so that only the step-by-step form is exact.
    """
    if largest_product(compute, schedule, batches) >= EXACT:
        return None
    tokens = batches.num_tokens
    compute.note_tokens(int(tokens.max()))
    samples = batches.num_decodes + batches.num_ended
    decode_ns, ended_ns = _attention_decode(compute, schedule, batches)
    linear_ns = each(tokens, lambda count: compute.linear_ns(count, is_late=False))
    early_ns = linear_ns + decode_ns
    # Chunks of a step are added one after another, as the scalar form does: sums of floats depend on their order.
    chunk_ns = _attention_prefill(compute, schedule)
    rank = np.arange(len(chunk_ns)) - np.searchsorted(schedule.chunk_step, schedule.chunk_step)
    for turn in range(int(rank.max(initial=-1)) + 1):
        chosen = rank == turn
        early_ns[schedule.chunk_step[chosen]] += chunk_ns[chosen]
    late_linear_ns = late_ns = np.zeros(len(tokens))
    if compute.has_late_layers:
        late_linear_ns = each(samples, lambda count: compute.linear_ns(count, is_late=True))
        late_ns = late_linear_ns + decode_ns + ended_ns
    sequences = batches.num_decodes + batches.num_chunks
    pre_ns = each(sequences, lambda count: compute.tokenwise_ns("step_overhead", count))
    module_ns = np.zeros(len(tokens))
    if compute.has_engram:
        pre_ns = pre_ns + each(
            tokens, lambda count: compute.tokenwise_ns("hash", count) + compute.tokenwise_ns("lookup_issue", count)
        )
        module_ns = each(tokens, compute.module_ns)
    segments = [
        num_early * early_ns + num_late * late_ns + (module_ns if index else 0.0)
        for index, (num_early, num_late) in enumerate(compute.layers_by_segment)
    ]
    embed_ns = each(tokens, lambda count: compute.tokenwise_ns("embed", count))
    head_ns = each(samples, lambda count: compute.tokenwise_ns("head", count))
    segments[0] = segments[0] + embed_ns
    segments[-1] = segments[-1] + head_ns
    priced = np.array([pre_ns, *segments])
    if not np.all(priced < EXACT):  # infinite, or not a number, or beyond whole numbers
        return None
    layer_ns = compute.num_early * linear_ns.sum() + compute.num_late * late_linear_ns.sum()
    attention_ns = (compute.num_early + compute.num_late) * decode_ns.sum() + compute.num_late * ended_ns.sum()
    prefill_ns = compute.num_early * chunk_ns.sum()
    sums = (layer_ns, attention_ns, prefill_ns, module_ns.sum(), embed_ns.sum(), head_ns.sum())
    _book(compute, batches, sums)
    whole = np.rint(priced).astype(np.int64)
    return whole[0], whole[1:]


def _book(compute: ComputeModel, batches: Batches, sums: tuple[float, float, float, float, float, float]) -> None:
    """Write down where the compute of all steps went, as ``ComputeModel.step`` does of one."""
    tokens, samples = batches.num_tokens, batches.num_decodes + batches.num_ended
    layer_ns, attention_ns, prefill_ns, module_ns, embed_ns, head_ns = sums

    def total(counts: Column, price: Callable[[int], float]) -> float:
        return float(each(counts, price).sum())

    hash_ns = issue_ns = over_ranks_ns = 0.0
    if compute.has_engram:
        hash_ns = total(tokens, lambda count: compute.tokenwise_ns("hash", count))
        issue_ns = total(tokens, lambda count: compute.tokenwise_ns("lookup_issue", count))
        over_ranks_ns = total(tokens, compute.over_ranks_ns)
    reduce_ns = total(tokens, lambda count: compute.reduce_ns(count, 0))
    if compute.num_late:
        reduce_ns += total(samples, lambda count: compute.reduce_ns(0, count))
    num_modules = len(compute.layers_by_segment) - 1
    overhead_ns = total(batches.num_decodes + batches.num_chunks, lambda n: compute.tokenwise_ns("step_overhead", n))
    compute.ledger.book(
        (
            overhead_ns,
            0.0,  # no drafts here
            hash_ns,
            issue_ns,
            embed_ns,
            layer_ns - reduce_ns,
            attention_ns,
            prefill_ns,
            num_modules * (module_ns - over_ranks_ns),
            head_ns,
            reduce_ns,
            num_modules * over_ranks_ns,
        )
    )


def largest_product(compute: ComputeModel, schedule: Schedule, batches: Batches) -> int:
    """An upper bound of every whole number the columns multiply out."""
    longest = int((schedule.prompt_tokens + schedule.output_tokens).max())
    pairs = int(schedule.chunk_tokens.max(initial=0)) * longest
    seen = int(batches.position_sum.max() + batches.ended_sum.max()) + schedule.num_steps
    return max(pairs, seen) * compute.flops_per_pair


def _attention_decode(compute: ComputeModel, schedule: Schedule, batches: Batches) -> tuple[Times, Times]:
    """Of the decoding sequences, and of the last tokens of prompts that end."""
    table = compute.table_of("attention_decode")
    decodes, ended = batches.num_decodes, batches.num_ended
    if table is None:
        roofline = compute.roofline
        seen, ended_seen = batches.window_sum + decodes, batches.ended_window_sum + ended
        return roofline.attention_columns_ns(seen, seen), roofline.attention_columns_ns(ended_seen, ended_seen)
    if table.table.context_statistic == "max":
        longest, last = longest_positions(schedule)
        contexts, ended_contexts = (1 + longest).astype(np.float64), (1 + last).astype(np.float64)
    else:
        contexts, ended_contexts = _mean(batches.position_sum, decodes), _mean(batches.ended_sum, ended)

    def times(counts: Column, context: Times) -> Times:
        found = np.zeros(len(counts))
        for count in np.unique(counts).tolist():
            if count:
                chosen = counts == count
                line, share = table.lines_around("attention_decode", count)
                found[chosen] = _between(line, share, context[chosen])
        return found

    return times(decodes, contexts), times(ended, ended_contexts)


def _mean(position_sum: Column, counts: Column) -> Times:
    """Mean context: a position and the token itself."""
    mean: Times = (1 + position_sum / np.maximum(counts, 1)).astype(np.float64)
    return mean


def _between(lines: tuple[Line, Line] | tuple[Line], share: float, contexts: Times) -> Times:
    low = _interpolate(lines[0], contexts)
    if len(lines) == 1:
        return low
    between: Times = np.maximum(0.0, low + (_interpolate(lines[1], contexts) - low) * share)
    return between


def _interpolate(line: Line, x: Times) -> Times:
    """As ``compute_table.interpolate``."""
    xs, ys = np.array(line[0]), np.array(line[1])
    if len(xs) == 1:
        return np.full(len(x), ys[0])
    above = np.clip(np.searchsorted(xs, x), 1, len(xs) - 1)
    slope = (ys[above] - ys[above - 1]) / (xs[above] - xs[above - 1])
    found: Times = np.maximum(0.0, ys[above - 1] + slope * (x - xs[above - 1]))
    return found


def _attention_prefill(compute: ComputeModel, schedule: Schedule) -> Times:
    tokens, start = schedule.chunk_tokens, schedule.chunk_start
    if compute.table_of("attention_prefill") is None:
        return compute.roofline.prefill_columns_ns(tokens, start)
    pairs, where = np.unique(np.stack((tokens, start)), axis=1, return_inverse=True)
    times = [compute.attention_prefill_ns(count, first) for count, first in pairs.T.tolist()]
    return np.array(times, dtype=np.float64)[where.reshape(-1)]
