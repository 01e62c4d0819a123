"""Steps of an uncontended run priced a range at a time: compute, lookups and how they meet, all on columns.

A step leaves nothing to the next but the moment it ends, so that any range can be priced by itself, and again.
"""

from dataclasses import dataclass

import numpy as np

from tiercast_profiles.document import Bound
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import NS_PER_S
from tiercast_sim.compute import ComputeModel
from tiercast_sim.compute_columns import ComputePrices, distinct_of, needs_longest, step_columns
from tiercast_sim.interference_columns import LookupColumns, interfering_columns
from tiercast_sim.links import lone_speed
from tiercast_sim.maxplus import StepColumns
from tiercast_sim.maxplus import step_columns as maxplus_columns
from tiercast_sim.schedule_columns import Column, Schedule, batches_of, longest_positions
from tiercast_sim.step_table import LayerColumns, StepTable
from tiercast_sim.tiers import LookupCosts, interference_speeds
from tiercast_sim.work import SPEED_ONE, LookupWork


@dataclass(frozen=True, slots=True)
class PricedSteps:
    """A range of steps, and what the ledger takes of them (``ComputeColumns.parts_ns``, whole ns, ns of gathers)."""

    table: StepTable
    parts_ns: tuple[float, ...]
    priced_ns: int
    gather_ns: int


class StepPricer:
    """Prices the steps of a plan on one replica at one bound."""

    def __init__(
        self,
        resolved: ResolvedScenario,
        bound: Bound,
        compute: ComputeModel,
        lookups: LookupCosts | None,
        schedule: Schedule,
        *,
        replica: int = 0,
    ) -> None:
        placement = resolved.placement
        self._prices, self._schedule, self._replica = ComputePrices(compute), schedule, replica
        self._window = resolved.model.backbone.attention_window_tokens
        self._longest = longest_positions(schedule) if needs_longest(compute) else None
        self._prefetch = placement.prefetch
        self._is_device_path = placement.path == "device"
        self._num_layers = len(compute.layers_by_segment) - 1
        speeds = (SPEED_ONE, SPEED_ONE)
        if lookups is not None and not self._is_device_path and placement.prefetch != "off":
            speeds = interference_speeds(resolved, bound)[:2]
        self._compute_speed = speeds[0]
        self._interferes = speeds != (SPEED_ONE, SPEED_ONE)
        self._lookups = None if lookups is None else LookupPrices(lookups, speeds[1])
        self._rows_per_token = 0 if lookups is None else resolved.model.engram.num_rows_per_token * self._num_layers

    def steps(self, first: int, last: int, start_ns: int) -> PricedSteps | None:
        """The steps first … last − 1 of one block, the first of which may start at ``start_ns``.

        None where a number outgrows exact columns.
        """
        batches = batches_of(self._schedule, self._window, first, last)
        longest = None
        if self._longest is not None:
            longest = (self._longest[0][first:last], self._longest[1][first:last])
        compute = step_columns(self._prices, batches, longest)
        if compute is None:
            return None
        pre_ns, segments_ns, tokens = compute.pre_ns, compute.segments_ns, batches.num_tokens
        nothing = np.zeros((self._num_layers, last - first), dtype=np.int64)
        rows_read = bytes_per_rank = nothing
        if self._lookups is None:
            timed: tuple[StepColumns, Column] | None
            timed = (maxplus_columns(pre_ns, segments_ns, nothing, "off"), nothing)
        else:
            columns = self._lookups.columns(tokens, self._num_layers)
            rows_read, bytes_per_rank = columns.rows_read, columns.bytes_per_rank
            timed = self._timed(pre_ns, segments_ns, columns)
        if timed is None:
            return None
        times, service_ns = timed
        gather_ns = int(service_ns.sum()) if self._is_device_path else 0
        idle_ns = self._schedule.idle_before(first, last)
        end_ns = start_ns + np.cumsum(times.duration_ns + idle_ns)
        table = StepTable(
            start_ns=end_ns - times.duration_ns,
            duration_ns=times.duration_ns,
            prefill_tokens=batches.num_prefill_tokens,
            decode_sequences=batches.num_decodes,
            pre_ns=pre_ns,
            rows=tokens * self._rows_per_token,
            layers=LayerColumns(
                wanted_ns=times.wanted_ns,
                issued_ns=times.issued_ns,
                ready_ns=times.ready_ns,
                stall_ns=times.stall_ns,
                service_ns=service_ns,
                rows_read=rows_read,
                bytes_per_rank=bytes_per_rank,
            ),
            replica=self._replica,
        )
        return PricedSteps(table, compute.parts_ns, int(pre_ns.sum()) + int(segments_ns.sum()), gather_ns)

    def used_units(self) -> dict[str, float]:
        """Units of each shared resource that the lookups of a run take, by how often each token count comes."""
        return {} if self._lookups is None else self._lookups.used_units(self._num_layers)

    def count(self, table: StepTable) -> None:
        """Note that these steps are part of the run, for :meth:`used_units`."""
        if self._lookups is not None:
            self._lookups.count(table.prefill_tokens + table.decode_sequences)

    def _timed(
        self, pre_ns: Column, segments_ns: Column, lookups: "_LookupColumns"
    ) -> tuple[StepColumns, Column] | None:
        """Times of the steps, and what each lookup took; None where they outgrow 64 bits."""
        if self._is_device_path:
            segments_ns[1:] += lookups.duration_ns
            return _gathered(pre_ns, segments_ns, lookups.duration_ns), lookups.duration_ns
        if self._interferes:
            columns = LookupColumns(lookups.duration_ns, lookups.speed_alone, lookups.speed_beside)
            return interfering_columns(pre_ns, segments_ns, columns, self._compute_speed)
        return maxplus_columns(pre_ns, segments_ns, lookups.service_ns, self._prefetch), lookups.service_ns


@dataclass(frozen=True, slots=True)
class _LookupColumns:
    """Lookups of every step, ``[num_layers, num_steps] int64``; ``service_ns`` is their time with nobody beside."""

    duration_ns: Column
    speed_alone: Column
    speed_beside: Column
    service_ns: Column
    rows_read: Column
    bytes_per_rank: Column


class LookupPrices:
    """Lookups by token count: the first of a step, which waits for its ids, and the others."""

    def __init__(self, lookups: LookupCosts, speed_beside_compute: int) -> None:
        self._lookups = lookups
        self._beside = speed_beside_compute
        self._capacities = lookups.capacities()
        self._works: dict[int, tuple[LookupWork, LookupWork]] = {}
        self._known: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._how_often: dict[int, int] = {}

    def columns(self, num_tokens: Column, num_layers: int) -> _LookupColumns:
        """The lookups of steps of so many tokens."""
        distinct, where = distinct_of(num_tokens)
        prices = np.array([self.prices(count) for count in distinct.tolist()], dtype=np.int64)
        found = prices[where]  # [num_steps, first or other, number]
        index = np.minimum(np.arange(num_layers), 1)
        return _LookupColumns(*(np.ascontiguousarray(found[:, index, number].T) for number in range(6)))

    def prices(self, num_tokens: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The six numbers of :class:`_LookupColumns`, of the first lookup and of the others."""
        known = self._known.get(num_tokens)
        if known is None:
            num_rows = num_tokens * self._lookups.rows_per_token
            first, rest = self._lookups.lookup(num_rows, 0, num_tokens), self._lookups.lookup(num_rows, 0, 0)
            self._works[num_tokens] = (first, rest)
            known = self._known[num_tokens] = (self._numbers(first), self._numbers(rest))
        return known

    def count(self, num_tokens: Column) -> None:
        """Note that steps of so many tokens are part of the run."""
        distinct, where = distinct_of(num_tokens)
        for count, times in zip(distinct.tolist(), np.bincount(where).tolist(), strict=True):
            self._how_often[count] = self._how_often.get(count, 0) + times

    def used_units(self, num_layers: int) -> dict[str, float]:
        """Units the lookups of all noted steps take of each shared resource."""
        used = dict.fromkeys(self._capacities, 0.0)
        for count, times in sorted(self._how_often.items()):
            first, rest = self._works[count]
            for work, num_lookups in ((first, times), (rest, times * (num_layers - 1))):
                for resource, units in work.usage:
                    used[resource] += units * work.duration_ns / NS_PER_S * num_lookups
        return used

    def _numbers(self, work: LookupWork) -> tuple[int, ...]:
        # Nobody else on the shared things: a lookup keeps the speed that its own ranks leave each other.
        alone = lone_speed(work.usage, work.rate_bytes_per_s, self._capacities)
        beside = alone
        if self._beside != SPEED_ONE:
            beside = lone_speed(work.usage, work.rate_bytes_per_s, self._capacities, self._beside)
        service_ns = -(-work.duration_ns * SPEED_ONE // alone)
        return (work.duration_ns, alone, beside, service_ns, work.rows_read, work.bytes_per_rank)


def _gathered(pre_ns: Column, segments_ns: Column, gather_ns: Column) -> StepColumns:
    """Times of steps whose rows the device gathers inside its modules: nothing stands still (Assumption A9)."""
    wanted = pre_ns + np.cumsum(segments_ns[:-1], axis=0)
    duration = pre_ns + segments_ns.sum(axis=0)
    return StepColumns(duration, wanted, wanted, wanted + gather_ns, np.zeros_like(gather_ns))
