"""Compute of many steps at once: the sums of ``ComputeModel.step``, in its order, on columns.

What depends on a token count alone is asked for once a count. Attention, which depends on every position, is
arithmetic on columns; each operation is the scalar one, so that both forms round to the same nanosecond.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiercast_sim.breakdown import PARTS
from tiercast_sim.compute import ComputeModel
from tiercast_sim.compute_table import Line
from tiercast_sim.count_prices import ComputePrices, Counts, KindPrices, LanePrices, Times
from tiercast_sim.lanes import Lane, segments_of
from tiercast_sim.schedule_columns import Batches, Column

EXACT = 2**53
"""Whole numbers below this are the same in float64; above it columns and Python's integers part."""


@dataclass(frozen=True, slots=True)
class ComputeColumns:
    """``pre_ns`` ``[num_steps]`` and ``segments_ns`` ``[num_segments, num_steps]`` of every step, in whole ns.

    ``parts_ns`` are the sums that the ledger takes of a step, over all of them.
    """

    pre_ns: Column
    segments_ns: Column
    parts_ns: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps that are priced together: what they compute, how often each count comes, and what came before them."""

    batches: Batches
    tokens: Counts
    samples: Counts
    sequences: Counts
    longest: tuple[Column, Column] | None
    unsettled: tuple[Column, Column] | None


def step_columns(
    prices: ComputePrices,
    batches: Batches,
    longest: tuple[Column, Column] | None,
    unsettled: tuple[Column, Column] | None = None,
) -> ComputeColumns | None:
    """Compute of the steps of ``batches``; ``longest`` is needed where :func:`needs_longest` says so.

    ``unsettled`` are steps since prompts and their tokens, needed where a table says how batches settle.

    None where whole numbers outgrow float64, so that only the step-by-step form is exact.
    """
    compute = prices.compute
    if largest_product(compute, batches) >= EXACT:
        return None
    assert (longest is not None) == needs_longest(compute), "the longest contexts are given where they count"
    compute.note_tokens(int(batches.num_tokens.max()))
    if prices.captured is None:
        return _priced(compute, prices.single, batches, longest, unsettled)
    num_steps = len(batches.num_decodes)
    pre_ns = np.zeros(num_steps, dtype=np.int64)
    segments_ns = np.zeros((len(compute.layers_by_segment), num_steps), dtype=np.int64)
    parts_ns = (0.0,) * len(PARTS)
    are_captured = compute.are_captured(batches.num_decodes, batches.num_chunks)
    for kind, chosen in ((prices.single, ~are_captured), (prices.captured, are_captured)):
        if not chosen.any():
            continue
        found = _priced(compute, kind, batches.chosen(chosen), _chosen(longest, chosen), _chosen(unsettled, chosen))
        if found is None:
            return None
        pre_ns[chosen], segments_ns[:, chosen] = found.pre_ns, found.segments_ns
        parts_ns = tuple(known + part for known, part in zip(parts_ns, found.parts_ns, strict=True))
    return ComputeColumns(pre_ns, segments_ns, parts_ns)


def _chosen(columns: tuple[Column, Column] | None, chosen: npt.NDArray[np.bool_]) -> tuple[Column, Column] | None:
    return None if columns is None else (columns[0][chosen], columns[1][chosen])


def _priced(
    compute: ComputeModel,
    kind: KindPrices,
    batches: Batches,
    longest: tuple[Column, Column] | None,
    unsettled: tuple[Column, Column] | None,
) -> ComputeColumns | None:
    """Steps of one kind."""
    steps = Steps(
        batches,
        Counts(batches.num_tokens),
        Counts(batches.num_decodes + batches.num_ended),
        Counts(batches.num_decodes + batches.num_chunks),
        longest if kind.lanes.needs_longest else None,
        unsettled,
    )
    tokens, samples = steps.tokens, steps.samples
    over_ranks = kind.over_ranks.of(tokens.distinct) if compute.has_engram else np.zeros(len(tokens.distinct))
    device = _lane(compute, kind.device, steps, over_ranks)
    segments, pre_ns, waiting_ns = device.segments_ns, device.before.pre_ns(steps), 0.0
    if kind.host is not None:
        host = _lane(compute, kind.host, steps, np.zeros(len(tokens.distinct)))
        segments = _behind_launches(segments, host.segments_ns, device.head_ns)
        alone_ns = device.before.beside(host.before).pre_ns(steps)
        waiting_ns = float(np.sum(segments) - np.sum(device.segments_ns) + np.sum(alone_ns - pre_ns))
        pre_ns = alone_ns
    settling_ns = 0.0
    if kind.lanes.settling is not None:
        assert unsettled is not None, "how long each step is from prompts is given where it counts"
        shares = kind.lanes.settling.column(batches.num_decodes, *unsettled)
        settling_ns = float((sum(segments) * shares).sum())
        segments = [segment * (1.0 + shares) for segment in segments]
    priced = np.array([pre_ns, *segments])
    if not np.all(priced < EXACT):  # infinite, or not a number, or beyond whole numbers
        return None
    reduce_ns = tokens.total(kind.reduce.of(tokens.distinct))
    if compute.num_late:
        reduce_ns += samples.total(kind.late_reduce.of(samples.distinct))
    over_ranks_ns = tokens.total(over_ranks)
    num_modules = len(compute.layers_by_segment) - 1
    parts_ns = (
        float(device.before.overhead[steps.sequences.where].sum()),
        0.0,  # no drafts here
        tokens.total(device.before.hash),
        tokens.total(device.before.issue),
        float(device.embed_ns.sum()),
        float(compute.num_early * device.linear_ns.sum() + compute.num_late * device.late_linear_ns.sum()) - reduce_ns,
        float(
            (compute.num_early + compute.num_late) * device.decode_ns.sum() + compute.num_late * device.ended_ns.sum()
        ),
        float(compute.num_early * device.chunk_ns.sum()),
        num_modules * (float(device.module_ns.sum()) - over_ranks_ns),
        float(device.head_ns.sum()),
        reduce_ns,
        num_modules * over_ranks_ns,
        settling_ns,
        max(0.0, waiting_ns),
    )
    whole = np.rint(priced).astype(np.int64)
    return ComputeColumns(whole[0], whole[1:], parts_ns)


@dataclass(frozen=True, slots=True)
class Before:
    """What runs in front of the layers: by distinct number of sequences, and twice by distinct number of tokens."""

    overhead: Times
    hash: Times
    issue: Times

    def beside(self, host: "Before") -> "Before":
        """As ``ComputeModel.before_ns``: each as long as the lane that takes longer."""
        return Before(
            np.maximum(self.overhead, host.overhead),
            np.maximum(self.hash, host.hash),
            np.maximum(self.issue, host.issue),
        )

    def pre_ns(self, steps: Steps) -> Times:
        """Of each step."""
        total: Times = self.overhead[steps.sequences.where] + (self.hash + self.issue)[steps.tokens.where]
        return total


@dataclass(frozen=True, slots=True)
class LaneColumns:
    """Parts of each step in one lane, in ns; those of layers are of one layer, ``chunk_ns`` is by chunk."""

    before: Before
    linear_ns: Times
    late_linear_ns: Times
    decode_ns: Times
    ended_ns: Times
    chunk_ns: Times
    module_ns: Times
    embed_ns: Times
    head_ns: Times
    segments_ns: list[Times]


def _lane(compute: ComputeModel, prices: LanePrices, steps: Steps, over_ranks: Times) -> LaneColumns:
    """One lane of the steps; ``over_ranks`` is what a module has beside its component, by distinct token count."""
    batches, tokens, samples = steps.batches, steps.tokens, steps.samples
    num_steps = len(batches.num_decodes)
    decode_ns, ended_ns = _attention_decode(prices.lane, batches, steps.longest)
    linear_ns = prices.linear.of(tokens.distinct)[tokens.where]
    early_ns = linear_ns + decode_ns
    # Chunks of a step are added one after another, as the scalar form does: sums of floats depend on their order.
    chunk_ns = _attention_prefill(prices.lane, batches)
    rank = np.arange(len(chunk_ns)) - np.searchsorted(batches.chunk_step, batches.chunk_step)
    for turn in range(int(rank.max(initial=-1)) + 1):
        chosen = rank == turn
        early_ns[batches.chunk_step[chosen]] += chunk_ns[chosen]
    late_linear_ns = late_ns = np.zeros(num_steps)
    if compute.has_late_layers:
        late_linear_ns = prices.late_linear.of(samples.distinct)[samples.where]
        late_ns = late_linear_ns + decode_ns + ended_ns
    hashes = issues = np.zeros(len(tokens.distinct))
    module_ns = np.zeros(num_steps)
    if compute.has_engram:
        hashes, issues = prices.hash.of(tokens.distinct), prices.issue.of(tokens.distinct)
        module_ns = (prices.module.of(tokens.distinct) + over_ranks)[tokens.where]
        if prices.lane.table_of("engram_chunk") is not None:
            more = Counts(np.maximum(batches.num_chunks - (batches.num_decodes == 0), 0))
            module_ns = module_ns + prices.more_chunks.of(more.distinct)[more.where]
    embed_ns = prices.embed.of(tokens.distinct)[tokens.where]
    head_ns = prices.head.of(samples.distinct)[samples.where]
    return LaneColumns(
        before=Before(prices.overhead.of(steps.sequences.distinct), hashes, issues),
        linear_ns=linear_ns,
        late_linear_ns=late_linear_ns,
        decode_ns=decode_ns,
        ended_ns=ended_ns,
        chunk_ns=chunk_ns,
        module_ns=module_ns,
        embed_ns=embed_ns,
        head_ns=head_ns,
        segments_ns=segments_of(compute.layers_by_segment, early_ns, late_ns, module_ns, (embed_ns, head_ns)),
    )


def _behind_launches(device_ns: list[Times], host_ns: list[Times], head_ns: Times) -> list[Times]:
    """As ``lanes.behind_launches``."""
    segments = []
    end_ns = issued_ns = np.zeros(len(head_ns))
    for number, (work_ns, calls_ns) in enumerate(zip(device_ns, host_ns, strict=True), start=1):
        issued_ns = issued_ns + calls_ns
        done_ns = issued_ns + head_ns if number == len(device_ns) else issued_ns
        segment_ns = np.maximum(work_ns, done_ns - end_ns)
        end_ns = end_ns + segment_ns
        segments.append(segment_ns)
    return segments


def largest_product(compute: ComputeModel, batches: Batches) -> int:
    """An upper bound of every whole number the columns multiply out."""
    chunk_ends = batches.chunk_start + batches.chunk_tokens
    pairs = int(batches.chunk_tokens.max(initial=0)) * int(chunk_ends.max(initial=0))
    seen = int((batches.position_sum + batches.ended_sum + batches.num_decodes + batches.num_ended).max())
    return max(pairs, seen) * compute.flops_per_pair


def needs_longest(compute: ComputeModel) -> bool:
    """True where attention of any step follows the longest context of its batch."""
    return any(lanes.needs_longest for lanes in compute.ways)


def _attention_decode(lane: Lane, batches: Batches, longest: tuple[Column, Column] | None) -> tuple[Times, Times]:
    """Of the decoding sequences, and of the last tokens of prompts that end."""
    table, roofline = lane.table_of("attention_decode"), lane.roofline
    decodes, ended = batches.num_decodes, batches.num_ended
    if table is None:
        if roofline is None:
            return np.zeros(len(decodes)), np.zeros(len(decodes))
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


def _attention_prefill(lane: Lane, batches: Batches) -> Times:
    tokens, start = batches.chunk_tokens, batches.chunk_start
    if lane.table_of("attention_prefill") is None:
        return np.zeros(len(tokens)) if lane.roofline is None else lane.roofline.prefill_columns_ns(tokens, start)
    pairs, where = np.unique(np.stack((tokens, start)), axis=1, return_inverse=True)
    times = [lane.attention_prefill_ns(count, first) for count, first in pairs.T.tolist()]
    return np.array(times, dtype=np.float64)[where.reshape(-1)]
