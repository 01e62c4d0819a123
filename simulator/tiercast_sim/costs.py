"""From a step's plan to the times of its parts: compute, and the rows its lookups really fetch."""

from dataclasses import replace

from tiercast_profiles.document import Bound
from tiercast_profiles.hardware import HOST_DRIVEN_PATHS
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import gib_to_bytes
from tiercast_sim.compute import ComputeModel
from tiercast_sim.reuse import RequestNgrams, cache_entries_per_layer
from tiercast_sim.row_counts import RowCounter, TokenBatch
from tiercast_sim.settling import Unsettled
from tiercast_sim.tiers import LookupCosts
from tiercast_sim.time_spread import ALWAYS_ALIKE
from tiercast_sim.work import Chunk, LookupWork, RowCount, StepPlan, StepWork


def needs_ngrams(resolved: ResolvedScenario) -> bool:
    """True when the scenario's rows depend on which n-grams repeat: a path that removes duplicates, or a cache."""
    placement = resolved.placement
    if placement.tier == "none" or placement.path is None:
        return False
    curve = resolved.hardware.curve(placement.tier, placement.path)
    return placement.cache_gib > 0 or (curve is not None and curve.removes_duplicates)


class StepCosts:
    """Prices the steps of one replica at one bound; keeps what its cache holds and what was fetched early."""

    def __init__(
        self,
        resolved: ResolvedScenario,
        bound: Bound,
        replica: int,
        compute: ComputeModel,
        ngrams: RequestNgrams | None,
    ) -> None:
        placement, engram = resolved.placement, resolved.model.engram
        self.compute = compute
        self._rows_per_token = engram.num_rows_per_token
        self._num_layers = len(engram.layer_ids)
        self._is_early = placement.prefetch == "prev_step" and placement.path != "device"
        self._is_device_path = placement.path == "device"
        self.lookups = None if placement.tier == "none" else LookupCosts(resolved, bound, replica)
        self._counter: RowCounter | None = None
        if self.lookups is not None and ngrams is not None:
            cache_bytes, tensor = gib_to_bytes(placement.cache_gib), resolved.scenario.parallel.tensor
            entries = cache_entries_per_layer(cache_bytes, tensor, engram, self.lookups.row_bytes)
            # Assumption A12: a host asks its cache once for each row, so duplicates go on every path it drives.
            is_host_cache = entries > 0 and placement.path in HOST_DRIVEN_PATHS
            removes_duplicates = self.lookups.removes_duplicates or is_host_cache
            self._counter = RowCounter(
                engram, ngrams, replica, entries, removes_duplicates=removes_duplicates, policy=placement.cache_policy
            )
        self._unsettled = Unsettled()
        self._fetched_early: dict[int, tuple[int, int]] = {}  # by request: first token and the one behind the last

    @property
    def wants_upcoming(self) -> bool:
        """True when rows of the next step's prompt tokens are fetched during this one (``prev_step``)."""
        return self._is_early

    def settle(self) -> None:
        """As if the last prompts were long ago."""
        self._unsettled = Unsettled()

    def price(self, plan: StepPlan, upcoming: tuple[Chunk, ...]) -> StepWork:
        """Times of a step. ``upcoming`` are the prompt tokens that may come after it."""
        for request in plan.preempted:
            self._fetched_early.pop(request.request_id, None)
        self._unsettled.note(plan.num_prefill_tokens)
        compute = self.compute.step(plan, self._unsettled)
        segments = [round(segment) for segment in compute.segments_ns]
        pre_ns = round(compute.pre_ns)
        self.compute.ledger.close(pre_ns + sum(segments), 0)
        if self.lookups is None:
            return StepWork(pre_ns, tuple(segments))
        num_rows = plan.num_tokens * self._rows_per_token * self._num_layers
        own = self._lookups(self._not_yet_fetched(plan), plan.num_tokens)
        if self._is_device_path:
            # Assumption A9: the device gathers rows from its own memory as part of the Engram module: time, no stall.
            gathers = tuple(lookup.duration_ns for lookup in own)
            for index, gather_ns in enumerate(gathers):
                segments[index + 1] += gather_ns
            self.compute.ledger.close(sum(gathers), sum(gathers))
            return StepWork(
                pre_ns,
                tuple(segments),
                gather_ns=gathers,
                gather_bytes=tuple(lookup.bytes_per_rank for lookup in own),
                num_rows=num_rows,
                num_rows_gathered=sum(lookup.rows_read for lookup in own),
            )
        early: tuple[LookupWork, ...] = ()
        if self._is_early:
            early = self._lookups(self._take_upcoming(upcoming), 0, is_behind=True)
        for lookups in (own, early):
            for index, lookup in enumerate(lookups):
                segments[index + 1] += lookup.taken_ns
        ratios = self.compute.cases.at(plan.num_tokens) if any(lookup.time_ratios for lookup in own) else ALWAYS_ALIKE
        return StepWork(pre_ns, tuple(segments), own, early, num_rows=num_rows, time_ratios=ratios)

    def _not_yet_fetched(self, plan: StepPlan) -> TokenBatch:
        chunks = plan.chunks
        if self._fetched_early:
            chunks = tuple(part for chunk in chunks if (part := self._rest(chunk)) is not None)
            for chunk in plan.chunks:
                if chunk.is_last:
                    self._fetched_early.pop(chunk.request.request_id, None)
        num_wrong = plan.num_decodes * plan.num_draft_tokens - sum(plan.accepted)
        return TokenBatch(plan.decode_requests, plan.decode_positions, num_wrong, chunks, plan.accepted)

    def _take_upcoming(self, upcoming: tuple[Chunk, ...]) -> TokenBatch:
        """Prompt tokens whose rows are fetched ahead.

        Assumption A5: with ``prev_step`` the engine knows a step early which prompt tokens come next, running prompts
        first, then waiting ones, up to one step's budget; their lookups queue behind the step's own.
        """
        chunks = tuple(part for chunk in upcoming if (part := self._rest(chunk)) is not None)
        for chunk in chunks:
            first, behind = self._fetched_early.get(chunk.request.request_id, (chunk.start, chunk.start))
            first = first if behind == chunk.start else chunk.start
            self._fetched_early[chunk.request.request_id] = (first, chunk.end)
        return TokenBatch(chunks=chunks)

    def _rest(self, chunk: Chunk) -> Chunk | None:
        first, behind = self._fetched_early.get(chunk.request.request_id, (0, 0))
        start = behind if first <= chunk.start < behind else chunk.start
        return Chunk(chunk.request, start, chunk.end - start) if start < chunk.end else None

    def _lookups(self, tokens: TokenBatch, num_ids: int, *, is_behind: bool = False) -> tuple[LookupWork, ...]:
        """One lookup per Engram layer; all layers ask for the same n-grams, hence for equally many rows."""
        assert self.lookups is not None, "tables exist"
        rows = self._rows(tokens)
        first = self._lookup(rows, num_ids, is_behind=is_behind)
        rest = self._lookup(rows, 0, is_behind=True)
        if self.lookups.has_draws and rows.read:
            others = [self._lookup(rows, 0, is_behind=True) for _ in range(self._num_layers - 2)]
            return (first, rest, *others)[: self._num_layers]
        return (first, *([rest] * (self._num_layers - 1)))

    def _lookup(self, rows: RowCount, num_ids: int, *, is_behind: bool) -> LookupWork:
        """A lookup takes the time of the rows it finds, and is booked with those it was asked for."""
        assert self.lookups is not None, "tables exist"
        work = self.lookups.lookup(rows.read, rows.found, num_ids, is_behind=is_behind)
        return work if rows.found == rows.hit else replace(work, rows_hit=rows.hit)

    def _rows(self, tokens: TokenBatch) -> RowCount:
        if self._counter is None or tokens.count == 0:
            return RowCount(read=tokens.count * self._rows_per_token, hit=0, found=0)
        return self._counter.count(tokens)
