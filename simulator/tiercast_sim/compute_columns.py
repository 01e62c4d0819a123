"""Compute of many steps at once: the sums of ``ComputeModel.step``, in its order, on columns.

What depends on a token count alone is asked for once a count. Attention, which depends on every position, is
arithmetic on columns; each operation is the scalar one, so that both forms round to the same nanosecond.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiercast_profiles.hardware import Component
from tiercast_sim.compute import ComputeModel
from tiercast_sim.compute_table import Line
from tiercast_sim.schedule_columns import Batches, Column

Times = npt.NDArray[np.float64]
MARKS_PER_COUNT = 4  # a table this much longer than the column is still faster than a sort
MOST_KEPT = 2**20  # counts beyond are priced each time
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


class CountPrices:
    """Prices that depend on a count alone: each count is priced once a run."""

    def __init__(self, price: Callable[[int], float]) -> None:
        self._price = price
        self._known = np.full(0, np.nan)

    def of(self, distinct: Column) -> Times:
        """Prices of ascending counts."""
        size = int(distinct[-1]) + 1
        if size > MOST_KEPT:
            return np.array([self._price(count) for count in distinct.tolist()], dtype=np.float64)
        if size > len(self._known):
            more = np.full(max(size, 2 * len(self._known)) - len(self._known), np.nan)
            self._known = np.concatenate((self._known, more))
        unknown = distinct[np.isnan(self._known[distinct])]
        if len(unknown):
            self._known[unknown] = [self._price(count) for count in unknown.tolist()]
        return self._known[distinct]


class Counts:
    """A column of counts, as its distinct values, where each stands, and how often it comes."""

    def __init__(self, counts: Column) -> None:
        self.distinct, self.where = distinct_of(counts)
        self._how_often = np.bincount(self.where)

    def total(self, prices: Times) -> float:
        """The sum over all counts of what each distinct one is priced at."""
        return float((prices * self._how_often).sum())


class ComputePrices:
    """What the compute of a step has that depends on a count alone."""

    def __init__(self, compute: ComputeModel) -> None:
        def tokenwise(component: Component) -> CountPrices:
            return CountPrices(lambda count: compute.tokenwise_ns(component, count))

        self.compute = compute
        self.linear = CountPrices(lambda count: compute.linear_ns(count, is_late=False))
        self.late_linear = CountPrices(lambda count: compute.linear_ns(count, is_late=True))
        self.overhead, self.embed, self.head = tokenwise("step_overhead"), tokenwise("embed"), tokenwise("head")
        self.hash, self.issue = tokenwise("hash"), CountPrices(compute.issue_ns)
        self.module, self.over_ranks = tokenwise("engram_module"), CountPrices(compute.over_ranks_ns)
        self.reduce = CountPrices(lambda count: compute.reduce_ns(count, 0))
        self.late_reduce = CountPrices(lambda count: compute.reduce_ns(0, count))


@dataclass(frozen=True, slots=True)
class ComputeColumns:
    """``pre_ns`` ``[num_steps]`` and ``segments_ns`` ``[num_segments, num_steps]`` of every step, in whole ns.

    ``parts_ns`` are the sums that the ledger takes of a step, over all of them.
    """

    pre_ns: Column
    segments_ns: Column
    parts_ns: tuple[float, ...]


def step_columns(
    prices: ComputePrices,
    batches: Batches,
    longest: tuple[Column, Column] | None,
    unsettled: tuple[Column, Column] | None = None,
) -> ComputeColumns | None:
    """Compute of the steps of ``batches``; ``longest`` is needed where :func:`needs_longest` says so.

    ``unsettled`` are steps since prompts and their tokens, needed where the table says how batches settle.

    None where whole numbers outgrow float64, so that only the step-by-step form is exact.
    """
    compute = prices.compute
    if largest_product(compute, batches) >= EXACT:
        return None
    num_steps = len(batches.num_decodes)
    tokens = Counts(batches.num_tokens)
    samples = Counts(batches.num_decodes + batches.num_ended)
    compute.note_tokens(int(tokens.distinct[-1]))
    decode_ns, ended_ns = _attention_decode(compute, batches, longest)
    linear_ns = prices.linear.of(tokens.distinct)[tokens.where]
    early_ns = linear_ns + decode_ns
    # Chunks of a step are added one after another, as the scalar form does: sums of floats depend on their order.
    chunk_ns = _attention_prefill(compute, batches)
    rank = np.arange(len(chunk_ns)) - np.searchsorted(batches.chunk_step, batches.chunk_step)
    for turn in range(int(rank.max(initial=-1)) + 1):
        chosen = rank == turn
        early_ns[batches.chunk_step[chosen]] += chunk_ns[chosen]
    late_linear_ns = late_ns = np.zeros(num_steps)
    if compute.has_late_layers:
        late_linear_ns = prices.late_linear.of(samples.distinct)[samples.where]
        late_ns = late_linear_ns + decode_ns + ended_ns
    sequences = Counts(batches.num_decodes + batches.num_chunks)
    overhead_ns = pre_ns = prices.overhead.of(sequences.distinct)[sequences.where]
    module_ns = np.zeros(num_steps)
    hash_ns = issue_ns = over_ranks_ns = 0.0
    if compute.has_engram:
        hashes, issues = prices.hash.of(tokens.distinct), prices.issue.of(tokens.distinct)
        over_ranks = prices.over_ranks.of(tokens.distinct)
        pre_ns = pre_ns + (hashes + issues)[tokens.where]
        module_ns = (prices.module.of(tokens.distinct) + over_ranks)[tokens.where]
        hash_ns, issue_ns, over_ranks_ns = tokens.total(hashes), tokens.total(issues), tokens.total(over_ranks)
    segments = [
        num_early * early_ns + num_late * late_ns + (module_ns if index else 0.0)
        for index, (num_early, num_late) in enumerate(compute.layers_by_segment)
    ]
    embed_ns = prices.embed.of(tokens.distinct)[tokens.where]
    head_ns = prices.head.of(samples.distinct)[samples.where]
    segments[0] = segments[0] + embed_ns
    segments[-1] = segments[-1] + head_ns
    settling_ns = 0.0
    if compute.settling is not None:
        assert unsettled is not None, "how long each step is from prompts is given where it counts"
        shares = compute.settling.column(batches.num_decodes, *unsettled)
        settling_ns = float((sum(segments) * shares).sum())
        segments = [segment * (1.0 + shares) for segment in segments]
    priced = np.array([pre_ns, *segments])
    if not np.all(priced < EXACT):  # infinite, or not a number, or beyond whole numbers
        return None
    reduce_ns = tokens.total(prices.reduce.of(tokens.distinct))
    if compute.num_late:
        reduce_ns += samples.total(prices.late_reduce.of(samples.distinct))
    num_modules = len(compute.layers_by_segment) - 1
    parts_ns = (
        float(overhead_ns.sum()),
        0.0,  # no drafts here
        hash_ns,
        issue_ns,
        float(embed_ns.sum()),
        float(compute.num_early * linear_ns.sum() + compute.num_late * late_linear_ns.sum()) - reduce_ns,
        float((compute.num_early + compute.num_late) * decode_ns.sum() + compute.num_late * ended_ns.sum()),
        float(compute.num_early * chunk_ns.sum()),
        num_modules * (float(module_ns.sum()) - over_ranks_ns),
        float(head_ns.sum()),
        reduce_ns,
        num_modules * over_ranks_ns,
        settling_ns,
    )
    whole = np.rint(priced).astype(np.int64)
    return ComputeColumns(whole[0], whole[1:], parts_ns)


def largest_product(compute: ComputeModel, batches: Batches) -> int:
    """An upper bound of every whole number the columns multiply out."""
    chunk_ends = batches.chunk_start + batches.chunk_tokens
    pairs = int(batches.chunk_tokens.max(initial=0)) * int(chunk_ends.max(initial=0))
    seen = int((batches.position_sum + batches.ended_sum + batches.num_decodes + batches.num_ended).max())
    return max(pairs, seen) * compute.flops_per_pair


def needs_longest(compute: ComputeModel) -> bool:
    """True where attention follows the longest context of a batch, as a measured table of padded batches says."""
    table = compute.table_of("attention_decode")
    return table is not None and table.table.context_statistic == "max"


def _attention_decode(
    compute: ComputeModel, batches: Batches, longest: tuple[Column, Column] | None
) -> tuple[Times, Times]:
    """Of the decoding sequences, and of the last tokens of prompts that end."""
    table = compute.table_of("attention_decode")
    decodes, ended = batches.num_decodes, batches.num_ended
    assert (longest is not None) == needs_longest(compute), "the longest contexts are given where they count"
    if table is None:
        roofline = compute.roofline
        seen, ended_seen = batches.window_sum + decodes, batches.ended_window_sum + ended
        return roofline.attention_columns_ns(seen, seen), roofline.attention_columns_ns(ended_seen, ended_seen)
    if longest is not None:
        contexts, ended_contexts = (1 + longest[0]).astype(np.float64), (1 + longest[1]).astype(np.float64)
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


def _attention_prefill(compute: ComputeModel, batches: Batches) -> Times:
    tokens, start = batches.chunk_tokens, batches.chunk_start
    if compute.table_of("attention_prefill") is None:
        return compute.roofline.prefill_columns_ns(tokens, start)
    pairs, where = np.unique(np.stack((tokens, start)), axis=1, return_inverse=True)
    times = [compute.attention_prefill_ns(count, first) for count, first in pairs.T.tolist()]
    return np.array(times, dtype=np.float64)[where.reshape(-1)]
