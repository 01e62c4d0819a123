"""Compute times of a step, from the machine's own component table where it fits, from a roofline elsewhere."""

from dataclasses import dataclass
from itertools import pairwise

from tiercast_profiles.document import Bound
from tiercast_profiles.hardware import VERIFY_TOKENS, Component, ComputeTable
from tiercast_profiles.model import Engram
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import NS_PER_US
from tiercast_sim.breakdown import Ledger
from tiercast_sim.compute_table import TableTimes
from tiercast_sim.overheads import LookupOverheads
from tiercast_sim.roofline import Roofline
from tiercast_sim.settling import SettlingShares, Unsettled
from tiercast_sim.work import StepPlan

BACKBONE_COMPONENTS: tuple[Component, ...] = (
    "embed",
    "linear",
    "attention_decode",
    "attention_prefill",
    "head",
    "step_overhead",
)
ENGRAM_COMPONENTS: tuple[Component, ...] = ("engram_module", "hash", "lookup_issue")


@dataclass(frozen=True, slots=True)
class StepCompute:
    """Compute of a step in ns, lookups apart.

    ``segments_ns``: from the hand-over of the lookups to each Engram layer's need of its rows, then to the step's end;
    the module of an Engram layer stands at the start of the segment behind it.
    """

    pre_ns: float
    segments_ns: tuple[float, ...]


def is_of_shape(table: ComputeTable, engram: Engram) -> bool:
    """Whether a component table was measured with an Engram layer that computes what this one does.

    Profiles of earlier versions name the whole Engram, tables included, instead of its shape.
    """
    return table.engram_sha256 in (engram.shape_sha256, engram.sha256)


def find_table(resolved: ResolvedScenario) -> tuple[ComputeTable | None, tuple[str, ...]]:
    """The component table that was measured for this backbone in this graph mode, and what to warn of.

    Assumption A97: without Engram layers the decoder's own parts take what they take in a model that has none, where
    the profile holds such a table; with them, what they take between Engram layers, whose weights share the caches.
    """
    shape = resolved.model.backbone.shape_sha256
    tables = [table for table in resolved.hardware.compute if table.shape_sha256 == shape]
    if not tables:
        return None, ()
    matching = [table for table in tables if table.graph_mode == resolved.placement.graph_mode]
    if not matching:
        modes = ", ".join(sorted({table.graph_mode for table in tables}))
        return None, (
            f"compute of {resolved.model.name} was measured in graph mode {modes} only; "
            f"{resolved.placement.graph_mode} uses the roofline",
        )
    if resolved.scenario.parallel.tensor > 1:
        return None, ("compute was measured on one rank; tensor parallel uses the roofline",)
    plain = [table for table in matching if table.engram_sha256 is None]
    exact = [table for table in matching if is_of_shape(table, resolved.model.engram)]
    others = [table for table in matching if table not in plain and table not in exact]
    has_engram = resolved.placement.tier != "none"
    return next(iter((*exact, *others, *plain) if has_engram else (*plain, *exact, *others))), ()


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


class ComputeModel:
    """Compute times of steps at one bound."""

    def __init__(self, resolved: ResolvedScenario, bound: Bound) -> None:
        backbone = resolved.model.backbone
        self.has_late_layers = backbone.num_prefill_layers < backbone.num_layers
        self.flops_per_pair = 4 * backbone.num_attention_heads * backbone.head_dim
        self.has_engram = resolved.placement.tier != "none"
        self.layers_by_segment = layers_by_segment(resolved)
        table, notes = find_table(resolved)
        warnings = list(notes)
        self._table = None if table is None else TableTimes(table, bound)
        self._measured: frozenset[Component] = frozenset()
        if table is not None and self._table is not None:
            known: tuple[Component, ...] = BACKBONE_COMPONENTS
            if table.engram_sha256 is None or is_of_shape(table, resolved.model.engram):
                known += ENGRAM_COMPONENTS
            measured: set[Component] = set()
            for name in known:
                if self._table.has(name):
                    measured.add(name)
            self._measured = frozenset(measured)
            wanted = BACKBONE_COMPONENTS + (ENGRAM_COMPONENTS if self.has_engram else ())
            missing = [name for name in wanted if name not in self._measured]
            if resolved.scenario.speculative.draft_tokens and not self._table.has("attention_verify"):
                warnings.append(
                    "attention of steps that verify drafts is not measured for this model: that of one token, times "
                    "what the roofline makes of several"
                )
            if missing:
                warnings.append(f"compute of {', '.join(missing)} is not measured for this model; the roofline serves")
        self.is_measured = bool(self._measured)
        self._verifies = self._table is not None and self._table.has("attention_verify")
        has_drafts = resolved.scenario.speculative.draft_tokens > 0
        needs_roofline = len(self._measured) < len(BACKBONE_COMPONENTS + ENGRAM_COMPONENTS)
        needs_roofline |= has_drafts and not self._verifies
        self._roofline = Roofline(resolved, bound) if needs_roofline else None
        self.warnings = tuple(warnings)
        settling = None if table is None else table.settling
        self.settling = None if settling is None else SettlingShares(settling)
        placement = resolved.placement
        self._hands_over = placement.prefetch != "off" and placement.path != "device"
        self._overheads = LookupOverheads.of(resolved, bound)
        self._rows_per_token = resolved.model.engram.num_rows_per_token
        self._linear_ns: dict[tuple[int, bool], float] = {}
        self._by_tokens: dict[tuple[Component, int], float] = {}
        self.largest_step_tokens = 0
        self.num_early = sum(early for early, _ in self.layers_by_segment)
        self.num_late = sum(late for _, late in self.layers_by_segment)
        # Assumption A75: drafts are drafted before the step that verifies them, one after another for the whole batch.
        self._draft_step_ns = (resolved.scenario.speculative.draft_step_us or 0.0) * NS_PER_US
        self.ledger = Ledger()

    def largest_measured_tokens(self) -> float | None:
        """Largest token count of a measured layer, or None where compute is a roofline."""
        if self._table is None or "linear" not in self._measured:
            return None
        return self._table.largest_tokens("linear")

    def step(self, plan: StepPlan, unsettled: Unsettled | None = None) -> StepCompute:
        """Compute of one step; ``unsettled`` has noted it, and without it the step counts as settled.

        Assumption A6: prompt tokens run only the prefill layers; the last token of a completed prompt runs the layers
        behind them too, because it is the one that is sampled.
        """
        num_tokens = plan.num_tokens
        self.note_tokens(num_tokens)
        ended = [chunk.end - 1 for chunk in plan.chunks if chunk.is_last]
        num_samples = plan.num_decode_tokens + len(ended)
        decode_ns = self.attention_decode_ns(plan.decode_positions, 1 + plan.num_draft_tokens)
        linear_ns = self.linear_ns(num_tokens, is_late=False)
        early_ns = linear_ns + decode_ns
        prefill_ns = 0.0
        for chunk in plan.chunks:
            chunk_ns = self.attention_prefill_ns(chunk.num_tokens, chunk.start)
            early_ns += chunk_ns
            prefill_ns += chunk_ns
        late_linear_ns = late_ended_ns = late_ns = 0.0
        if self.has_late_layers:
            late_linear_ns = self.linear_ns(num_samples, is_late=True)
            late_ended_ns = self.attention_decode_ns(ended, 1)
            late_ns = late_linear_ns + decode_ns + late_ended_ns
        overhead_ns = self.tokenwise_ns("step_overhead", plan.num_decodes + len(plan.chunks))
        draft_ns = plan.num_draft_tokens * self._draft_step_ns if plan.decode_positions else 0.0
        pre_ns = overhead_ns + draft_ns
        hash_ns = issue_ns = module_ns = over_ranks_ns = 0.0
        if self.has_engram:
            hash_ns, issue_ns = self.tokenwise_ns("hash", num_tokens), self.issue_ns(num_tokens)
            pre_ns += hash_ns + issue_ns
            module_ns, over_ranks_ns = self.module_ns(num_tokens), self.over_ranks_ns(num_tokens)
        segments = [
            num_early * early_ns + num_late * late_ns + (module_ns if index else 0.0)
            for index, (num_early, num_late) in enumerate(self.layers_by_segment)
        ]
        embed_ns, head_ns = self.tokenwise_ns("embed", num_tokens), self.tokenwise_ns("head", num_samples)
        segments[0] += embed_ns
        segments[-1] += head_ns
        settling_ns = 0.0
        if self.settling is not None and unsettled is not None and plan.num_decodes:
            share = self.settling.of(plan.num_decodes, unsettled)
            settling_ns = sum(segments) * share
            segments = [segment * (1.0 + share) for segment in segments]
        reduce_ns = self.reduce_ns(num_tokens, num_samples)
        num_modules = len(self.layers_by_segment) - 1
        self.ledger.book(
            (
                overhead_ns,
                draft_ns,
                hash_ns,
                issue_ns,
                embed_ns,
                self.num_early * linear_ns + self.num_late * late_linear_ns - reduce_ns,
                (self.num_early + self.num_late) * decode_ns + self.num_late * late_ended_ns,
                self.num_early * prefill_ns,
                num_modules * (module_ns - over_ranks_ns),
                head_ns,
                reduce_ns,
                num_modules * over_ranks_ns,
                settling_ns,
            )
        )
        return StepCompute(pre_ns, tuple(segments))

    def issue_ns(self, num_tokens: int) -> float:
        """Handing the lookups of a step over.

        Assumption A99: what is looked up where it is needed (``off``, path ``device``) is not handed over; its curve
        has all it takes. A profile that timed the hand-over of the path says it, else the component ``lookup_issue``.
        """
        if not self._hands_over:
            return 0.0
        if self._overheads is None:
            return self.tokenwise_ns("lookup_issue", num_tokens)
        return self._overheads.issue_ns(num_tokens * self._rows_per_token)

    def linear_ns(self, num_tokens: int, *, is_late: bool) -> float:
        """One decoder layer without attention; ``is_late``: behind the prefill layers."""
        key = (num_tokens, is_late)
        known = self._linear_ns.get(key)
        if known is None:
            if self._table is not None and "linear" in self._measured:
                known = self._table.time_ns("linear", num_tokens)
            else:
                known = self.roofline.linear_ns(num_tokens, is_late=is_late)
            self._linear_ns[key] = known
        return known

    def attention_decode_ns(self, positions: list[int], tokens_per_sequence: int) -> float:
        """Attention of one layer for sequences that feed tokens at these positions."""
        if not positions:
            return 0.0
        if self._table is not None and "attention_decode" in self._measured:
            is_padded = self._table.table.context_statistic == "max"
            context = 1 + (max(positions) if is_padded else sum(positions) / len(positions))
            if tokens_per_sequence > 1:
                return self._verify_ns(positions, context + tokens_per_sequence - 1, tokens_per_sequence)
            return self._table.time_ns("attention_decode", len(positions), context)
        return self.roofline.attention_decode_ns(positions, tokens_per_sequence)

    def _verify_ns(self, positions: list[int], end: float, tokens_per_sequence: int) -> float:
        """Attention of sequences that feed drafts, the last of which sees ``end`` tokens.

        Keys and values are read once and arithmetic grows by the token (A15): linear through what was measured for
        one token and for ``VERIFY_TOKENS``, else the time of one token in proportion to the roofline.
        """
        assert self._table is not None, "the caller found a table"
        one_ns = self._table.time_ns("attention_decode", len(positions), end)
        if not self._verifies:
            several, one = (self.roofline.attention_decode_ns(positions, n) for n in (tokens_per_sequence, 1))
            return one_ns * several / one
        several_ns = self._table.time_ns("attention_verify", len(positions), end)
        share = (tokens_per_sequence - 1) / (VERIFY_TOKENS - 1)
        return max(0.0, one_ns + (several_ns - one_ns) * share)

    def attention_prefill_ns(self, num_tokens: int, start: int) -> float:
        """Attention of one layer for a chunk of a prompt behind ``start`` earlier tokens."""
        if self._table is not None and "attention_prefill" in self._measured:
            return self._table.time_ns("attention_prefill", num_tokens, start)
        return self.roofline.attention_prefill_ns(num_tokens, start)

    def tokenwise_ns(self, component: Component, count: int) -> float:
        """A component whose time depends on a count alone."""
        key = (component, count)
        known = self._by_tokens.get(key)
        if known is None:
            if self._table is not None and component in self._measured:
                known = self._table.time_ns(component, count)
            else:
                known = self._roofline_ns(component, count)
            self._by_tokens[key] = known
        return known

    def _roofline_ns(self, component: Component, count: int) -> float:
        roofline = self.roofline
        if component == "step_overhead":
            return roofline.step_overhead_ns()
        if component in ("hash", "lookup_issue"):
            return roofline.launch_ns()
        if component == "embed":
            return roofline.embed_ns(count)
        if component == "head":
            return roofline.head_ns(count)
        assert component == "engram_module", component
        return roofline.engram_module_ns(count)

    @property
    def roofline(self) -> Roofline:
        """The roofline, which serves every component without a measurement."""
        assert self._roofline is not None, "a component without a measurement needs the roofline"
        return self._roofline

    def table_of(self, component: Component) -> TableTimes | None:
        """The measured table that serves a component, or None where the roofline does."""
        return self._table if component in self._measured else None

    def note_tokens(self, num_tokens: int) -> None:
        """Remember the largest step, for the warning that it lies beyond what was measured."""
        self.largest_step_tokens = max(self.largest_step_tokens, num_tokens)

    def module_ns(self, num_tokens: int) -> float:
        """One Engram layer once its rows are staged, the all-gather over the ranks included."""
        module_ns = self.tokenwise_ns("engram_module", num_tokens)
        return module_ns + self.over_ranks_ns(num_tokens)

    def over_ranks_ns(self, num_tokens: int) -> float:
        """The all-gather of staged rows that is part of :meth:`module_ns`."""
        return 0.0 if self._roofline is None else self._roofline.gather_over_ranks_ns(num_tokens)

    def reduce_ns(self, num_tokens: int, num_samples: int) -> float:
        """The all-reduces of all layers of a step, which are part of :meth:`linear_ns`."""
        if self._roofline is None or "linear" in self._measured:  # a measured table is one rank's
            return 0.0
        late_ns = self.num_late * self._roofline.reduce_ns(num_samples) if self.num_late else 0.0
        return self.num_early * self._roofline.reduce_ns(num_tokens) + late_ns
