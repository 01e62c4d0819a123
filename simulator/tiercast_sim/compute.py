"""Compute times of a step, from the machine's own component table where it fits, from a roofline elsewhere."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tiercast_profiles.document import Bound
from tiercast_profiles.graph_buckets import MAX_GRAPH_ROWS
from tiercast_profiles.hardware import Component, ComputeTable
from tiercast_profiles.model import Engram
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import NS_PER_US
from tiercast_sim.breakdown import Ledger
from tiercast_sim.compute_table import TableTimes, has_host_times
from tiercast_sim.lanes import Lane, Lanes, behind_launches, segments_of
from tiercast_sim.overheads import LookupOverheads
from tiercast_sim.roofline import Roofline
from tiercast_sim.settling import SettlingShares, Unsettled
from tiercast_sim.table_choice import (
    BACKBONE_COMPONENTS,
    ENGRAM_COMPONENTS,
    find_table,
    graph_sizes,
    measured_components,
    table_of_single_calls,
)
from tiercast_sim.time_spread import Cases
from tiercast_sim.work import StepPlan

Counted = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepCompute:
    """Compute of a step in ns, lookups apart.

    ``segments_ns``: from the hand-over of the lookups to each Engram layer's need of its rows, then to the step's end;
    the module of an Engram layer stands at the start of the segment behind it.
    """

    pre_ns: float
    segments_ns: tuple[float, ...]


def layers_by_segment(resolved: ResolvedScenario) -> tuple[tuple[int, int], ...]:
    """Layers of each segment of a step: those that prefill runs, and those behind them."""
    backbone = resolved.model.backbone
    layer_ids = resolved.model.engram.layer_ids if resolved.placement.tier != "none" else ()
    edges = (0, *layer_ids, backbone.num_layers)
    counts = []
    for first, last in pairwise(edges):
        num_early = min(last, backbone.num_prefill_layers) - min(first, backbone.num_prefill_layers)
        counts.append((num_early, last - first - num_early))
    return tuple(counts)


def _cases_of(tables: list[ComputeTable]) -> Cases:
    """How far steps lie apart in the last of the tables, that of single calls."""
    return Cases({spread.num_tokens: spread.time_ratios for table in tables[-1:] for spread in table.spreads})


@dataclass(frozen=True, slots=True)
class _Parts:
    """Parts of a step in one lane, in ns; those of layers are of one layer."""

    linear_ns: float
    late_linear_ns: float
    decode_ns: float
    late_ended_ns: float
    prefill_ns: float
    module_ns: float
    embed_ns: float
    head_ns: float
    segments_ns: list[float]


class ComputeModel:
    """Compute times of steps at one bound.

    ``single`` prices steps of single calls, ``captured`` those that run as graphs; None without a table of graphs.
    ``cases`` say by tokens how far steps lie apart.
    """

    def __init__(self, resolved: ResolvedScenario, bound: Bound) -> None:
        backbone = resolved.model.backbone
        self.has_late_layers = backbone.num_prefill_layers < backbone.num_layers
        self.flops_per_pair = 4 * backbone.num_attention_heads * backbone.head_dim
        self.has_engram = resolved.placement.tier != "none"
        self.layers_by_segment = layers_by_segment(resolved)
        self.num_early = sum(early for early, _ in self.layers_by_segment)
        self.num_late = sum(late for _, late in self.layers_by_segment)
        has_drafts = resolved.scenario.speculative.draft_tokens > 0
        table, notes = find_table(resolved)
        warnings = list(notes)
        tables: list[ComputeTable] = []
        if table is not None:
            single = table_of_single_calls(resolved, table)
            tables = [table] if single is table else [table, single]
            if has_drafts and not single.components.get("attention_verify"):
                warnings.append(
                    "attention of steps that verify drafts is not measured for this model: that of one token, times "
                    "what the roofline makes of several"
                )
        needs_roofline = not tables
        for index, known in enumerate(tables):
            measured = measured_components(known, resolved.model.engram)
            unused: tuple[Component, ...] = ("attention_prefill",) if index + 1 < len(tables) else ()
            wanted = BACKBONE_COMPONENTS + (ENGRAM_COMPONENTS if self.has_engram else ())
            missing = [name for name in wanted if name not in measured and name not in unused]
            if missing:
                where = "" if index == 0 else " in single calls"
                warnings.append(
                    f"compute of {', '.join(missing)} is not measured for this model{where}; the roofline serves"
                )
            needs_roofline |= bool(set(BACKBONE_COMPONENTS + ENGRAM_COMPONENTS) - measured - set(unused))
            if index + 1 == len(tables):
                needs_roofline |= has_drafts and not known.components.get("attention_verify")
        self._roofline = Roofline(resolved, bound) if needs_roofline else None
        self.warnings = tuple(warnings)
        self.captured: Lanes | None = None
        self._most_captured = 0
        if table is None:
            self.single = Lanes(Lane(None, frozenset(), self._roofline), None, None)
        else:
            priced = [self._lanes(known, resolved.model.engram, bound) for known in tables]
            self.single = priced[-1]
            if table.graph_mode != "eager":
                self.captured = replace(priced[0], sizes=graph_sizes(resolved))
                attention = priced[0].device.table_of("attention_decode")
                most = MAX_GRAPH_ROWS if attention is None else int(attention.largest_tokens("attention_decode"))
                self._most_captured = min(most, MAX_GRAPH_ROWS)
        self.is_measured = any(measured_components(known, resolved.model.engram) for known in tables)
        placement = resolved.placement
        self._hands_over = placement.prefetch != "off" and placement.path != "device"
        self._overheads = LookupOverheads.of(resolved, bound)
        self._rows_per_token = resolved.model.engram.num_rows_per_token
        self.largest_step_tokens = 0
        # Assumption A75: drafts are drafted before the step that verifies them, one after another for the whole batch.
        self._draft_step_ns = (resolved.scenario.speculative.draft_step_us or 0.0) * NS_PER_US
        self.cases = _cases_of(tables)
        self.ledger = Ledger()

    def _lanes(self, table: ComputeTable, engram: Engram, bound: Bound) -> Lanes:
        measured = measured_components(table, engram)
        return Lanes(
            Lane(TableTimes(table, bound), measured, self._roofline),
            Lane(TableTimes(table, "host"), measured) if has_host_times(table) else None,
            None if table.settling is None else SettlingShares(table.settling),
        )

    @property
    def ways(self) -> tuple[Lanes, ...]:
        """All that any step may be priced by."""
        return (self.single,) if self.captured is None else (self.single, self.captured)

    @property
    def settles(self) -> bool:
        """True where a decode batch takes longer behind prompts."""
        return any(lanes.settling is not None for lanes in self.ways)

    def lanes_of(self, num_decodes: int, *, has_chunks: bool, has_drafts: bool = False) -> Lanes:
        """What prices a step: that of graphs where one was captured for it (Assumption A92)."""
        if self.captured is None or has_chunks or has_drafts or not 0 < num_decodes <= self._most_captured:
            return self.single
        return self.captured

    def are_captured(self, num_decodes: Counted, num_chunks: Counted) -> npt.NDArray[np.bool_]:
        """Which steps of a column without drafts :meth:`lanes_of` prices as graphs."""
        found: npt.NDArray[np.bool_] = (num_chunks == 0) & (num_decodes > 0) & (num_decodes <= self._most_captured)
        return found

    def largest_measured_tokens(self) -> float | None:
        """Largest token count of a measured layer, or None where compute is a roofline.

        Of single calls: a batch that is larger than the graphs is one of them.
        """
        table = self.single.device.table_of("linear")
        return None if table is None else table.largest_tokens("linear")

    def step(self, plan: StepPlan, unsettled: Unsettled | None = None) -> StepCompute:
        """Compute of one step; ``unsettled`` has noted it, and without it the step counts as settled.

        Assumption A6: prompt tokens run only the prefill layers; the last token of a completed prompt runs the layers
        behind them too, because it is the one that is sampled.
        """
        num_tokens = plan.num_tokens
        self.note_tokens(num_tokens)
        ended = [chunk.end - 1 for chunk in plan.chunks if chunk.is_last]
        num_samples = plan.num_decode_tokens + len(ended)
        has_drafts = plan.num_draft_tokens > 0
        lanes = self.lanes_of(plan.num_decodes, has_chunks=bool(plan.chunks), has_drafts=has_drafts)
        pre_of_device, (overhead_ns, hash_ns, issue_ns) = self.before_ns(
            lanes, num_tokens, plan.num_decodes + len(plan.chunks)
        )
        draft_ns = plan.num_draft_tokens * self._draft_step_ns if plan.decode_positions else 0.0
        pre_ns = overhead_ns + draft_ns
        pre_ns += hash_ns + issue_ns
        over_ranks_ns = self.over_ranks_ns(num_tokens) if self.has_engram else 0.0
        rows = (lanes.num_rows(num_tokens), lanes.num_rows(num_samples))
        parts = self._parts(lanes.device, plan, rows, ended, over_ranks_ns)
        segments, waiting_ns = parts.segments_ns, 0.0
        if lanes.host is not None:
            calls = self._parts(lanes.host, plan, rows, ended, 0.0).segments_ns
            segments = behind_launches(segments, calls, parts.head_ns)
            waiting_ns = sum(segments) - sum(parts.segments_ns)
            waiting_ns += overhead_ns + hash_ns + issue_ns - sum(pre_of_device)
        settling_ns = 0.0
        if lanes.settling is not None and unsettled is not None and plan.num_decodes:
            share = lanes.settling.of(plan.num_decodes, unsettled)
            settling_ns = sum(segments) * share
            segments = [segment * (1.0 + share) for segment in segments]
        reduce_ns = self.reduce_ns(lanes, num_tokens, num_samples)
        num_modules = len(self.layers_by_segment) - 1
        self.ledger.book(
            (
                pre_of_device[0],
                draft_ns,
                pre_of_device[1],
                pre_of_device[2],
                parts.embed_ns,
                self.num_early * parts.linear_ns + self.num_late * parts.late_linear_ns - reduce_ns,
                (self.num_early + self.num_late) * parts.decode_ns + self.num_late * parts.late_ended_ns,
                self.num_early * parts.prefill_ns,
                num_modules * (parts.module_ns - over_ranks_ns),
                parts.head_ns,
                reduce_ns,
                num_modules * over_ranks_ns,
                settling_ns,
                max(0.0, waiting_ns),
            )
        )
        return StepCompute(pre_ns, tuple(segments))

    def _parts(
        self, lane: Lane, plan: StepPlan, rows: tuple[int, int], ended: list[int], over_ranks_ns: float
    ) -> _Parts:
        """One lane of a step; ``rows`` are those of its tokens and of its samples, as they run."""
        num_rows, num_sampled = rows
        decode_ns = lane.attention_decode_ns(plan.decode_positions, 1 + plan.num_draft_tokens)
        linear_ns = lane.linear_ns(num_rows, is_late=False)
        early_ns = linear_ns + decode_ns
        prefill_ns = 0.0
        for chunk in plan.chunks:
            chunk_ns = lane.attention_prefill_ns(chunk.num_tokens, chunk.start)
            early_ns += chunk_ns
            prefill_ns += chunk_ns
        late_linear_ns = late_ended_ns = late_ns = 0.0
        if self.has_late_layers:
            late_linear_ns = lane.linear_ns(num_sampled, is_late=True)
            late_ended_ns = lane.attention_decode_ns(ended, 1)
            late_ns = late_linear_ns + decode_ns + late_ended_ns
        module_ns = 0.0
        if self.has_engram:
            module_ns = lane.tokenwise_ns("engram_module", num_rows) + over_ranks_ns
            module_ns += lane.more_chunks_ns(len(plan.chunks) - (not plan.decode_positions))
        embed_ns, head_ns = lane.tokenwise_ns("embed", num_rows), lane.tokenwise_ns("head", num_sampled)
        segments = segments_of(self.layers_by_segment, early_ns, late_ns, module_ns, (embed_ns, head_ns))
        return _Parts(
            linear_ns, late_linear_ns, decode_ns, late_ended_ns, prefill_ns, module_ns, embed_ns, head_ns, segments
        )

    def before_ns(
        self, lanes: Lanes, num_tokens: int, num_sequences: int
    ) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Host overhead, hash and handing over in front of the layers: in the device's times, and as long as they take.

        Assumption A102: each finds the device idle, so that its calls and its work begin together.
        """
        overhead_ns, hash_ns, issue_ns = device = self._before_ns(lanes, lanes.device, num_tokens, num_sequences)
        if lanes.host is None:
            return device, device
        host = self._before_ns(lanes, lanes.host, num_tokens, num_sequences)
        return device, (max(overhead_ns, host[0]), max(hash_ns, host[1]), max(issue_ns, host[2]))

    def _before_ns(self, lanes: Lanes, lane: Lane, num_tokens: int, num_sequences: int) -> tuple[float, float, float]:
        overhead_ns = lane.tokenwise_ns("step_overhead", num_sequences)
        if not self.has_engram:
            return overhead_ns, 0.0, 0.0
        hash_ns = lane.tokenwise_ns("hash", lanes.num_rows(num_tokens))
        return overhead_ns, hash_ns, self.issue_ns(lane, num_tokens)

    def issue_ns(self, lane: Lane, num_tokens: int) -> float:
        """Handing the lookups of a step over.

        Assumption A99: what is looked up where it is needed (``off``, path ``device``) is not handed over; its curve
        has all it takes. A profile that timed the hand-over of the path says it, else the component ``lookup_issue``.
        """
        if not self._hands_over:
            return 0.0
        if self._overheads is None:
            return lane.tokenwise_ns("lookup_issue", num_tokens)
        return self._overheads.issue_ns(num_tokens * self._rows_per_token)

    def note_tokens(self, num_tokens: int) -> None:
        """Remember the largest step, for the warning that it lies beyond what was measured."""
        self.largest_step_tokens = max(self.largest_step_tokens, num_tokens)

    def over_ranks_ns(self, num_tokens: int) -> float:
        """The all-gather of staged rows, which an Engram layer begins with."""
        return 0.0 if self._roofline is None else self._roofline.gather_over_ranks_ns(num_tokens)

    def reduce_ns(self, lanes: Lanes, num_tokens: int, num_samples: int) -> float:
        """The all-reduces of all layers of a step, which are part of what its layers take."""
        if self._roofline is None or lanes.device.table_of("linear") is not None:  # a measured table is one rank's
            return 0.0
        late_ns = self.num_late * self._roofline.reduce_ns(num_samples) if self.num_late else 0.0
        return self.num_early * self._roofline.reduce_ns(num_tokens) + late_ns
