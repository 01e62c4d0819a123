"""Steps of an uncontended run priced a range at a time: compute, lookups and how they meet, all on columns.

A step leaves nothing to the next but the moment it ends, so that any range can be priced by itself, and again.
"""

from dataclasses import dataclass

import numpy as np

from tiercast_profiles.document import Bound
from tiercast_profiles.scenario import Prefetch, ResolvedScenario
from tiercast_sim.compute import ComputeModel
from tiercast_sim.compute_columns import needs_longest, step_columns
from tiercast_sim.count_prices import ComputePrices
from tiercast_sim.interference import interference_speeds
from tiercast_sim.interference_columns import LookupColumns, interfering_columns
from tiercast_sim.lookup_prices import LookupPrices, PricedLookups
from tiercast_sim.maxplus import StepColumns
from tiercast_sim.maxplus import step_columns as maxplus_columns
from tiercast_sim.schedule_columns import Column, Schedule, batches_of, longest_positions
from tiercast_sim.settling import unsettled_columns
from tiercast_sim.step_clock import StepClock
from tiercast_sim.step_table import LayerColumns, StepTable
from tiercast_sim.tiers import LookupCosts
from tiercast_sim.work import SPEED_ONE


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
        *,
        replica: int = 0,
    ) -> None:
        placement, window = resolved.placement, resolved.model.backbone.attention_window_tokens
        self._prices, self.replica, self.window = ComputePrices(compute), replica, window
        self._schedule: Schedule | None = None
        self._longest: tuple[Column, Column] | None = None
        self._unsettled: tuple[Column, Column] | None = None
        self._prefetch: Prefetch = placement.prefetch
        self._is_device_path = placement.path == "device"
        self.num_layers = len(compute.layers_by_segment) - 1
        speeds = (SPEED_ONE, SPEED_ONE)
        if lookups is not None and not self._is_device_path and placement.prefetch != "off":
            speeds = interference_speeds(resolved, bound)[:2]
        self._compute_speed = speeds[0]
        self._interferes = speeds != (SPEED_ONE, SPEED_ONE)
        self._lookups = None if lookups is None else LookupPrices(lookups, speeds[1])
        self._rows_per_token = 0 if lookups is None else resolved.model.engram.num_rows_per_token * self.num_layers

    def follow(self, schedule: Schedule) -> None:
        """Take the plan whose steps are to be priced."""
        self._schedule = schedule
        self._longest = longest_positions(schedule) if needs_longest(self._prices.compute) else None
        self._unsettled = unsettled_columns(schedule) if self._prices.compute.settles else None

    def clock(self) -> StepClock:
        """The same prices one step at a time, for a plan that has to be made by the clock."""
        return StepClock(
            self._prices,
            self._lookups,
            self._prefetch,
            is_device_path=self._is_device_path,
            compute_speed=self._compute_speed if self._interferes else None,
        )

    def steps(self, first: int, last: int, start_ns: int) -> PricedSteps | None:
        """The steps first … last − 1 of one block, the first of which may start at ``start_ns``.

        None where a number outgrows exact columns.
        """
        schedule = self._schedule
        assert schedule is not None, "a plan is given before its steps are priced"
        batches = batches_of(schedule, self.window, first, last)
        longest, unsettled = _range(self._longest, first, last), _range(self._unsettled, first, last)
        compute = step_columns(self._prices, batches, longest, unsettled)
        if compute is None:
            return None
        pre_ns, segments_ns, tokens = compute.pre_ns, compute.segments_ns, batches.num_tokens
        nothing = np.zeros((self.num_layers, last - first), dtype=np.int64)
        rows_read = bytes_per_rank = nothing
        taken_ns = 0
        if self._lookups is None:
            timed: tuple[StepColumns, Column] | None
            timed = (maxplus_columns(pre_ns, segments_ns, nothing, "off"), nothing)
        else:
            columns = self._lookups.columns(tokens, self.num_layers)
            rows_read, bytes_per_rank = columns.rows_read, columns.bytes_per_rank
            taken_ns = int(columns.taken_ns.sum())
            timed = self._timed(pre_ns, segments_ns, columns)
        if timed is None:
            return None
        times, service_ns = timed
        gather_ns = int(service_ns.sum()) if self._is_device_path else 0
        idle_ns = schedule.idle_before(first, last)
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
            replica=self.replica,
        )
        priced_ns = int(pre_ns.sum()) + int(segments_ns.sum()) - taken_ns
        return PricedSteps(table, compute.parts_ns, priced_ns, gather_ns)

    def used_units(self) -> dict[str, float]:
        """Units of each shared resource that the lookups of a run take, by how often each token count comes."""
        return {} if self._lookups is None else self._lookups.used_units(self.num_layers)

    def lengths_ns(self, table: StepTable) -> Column | None:
        """How long these steps are in every case; None where steps never differ."""
        else_ns = table.pre_ns + table.layers.stall_ns.sum(axis=0)
        num_tokens = table.prefill_tokens + table.decode_sequences
        return self._prices.compute.cases.lengths_ns(num_tokens, table.duration_ns - else_ns, else_ns)

    def count(self, table: StepTable) -> None:
        """Note that these steps are part of the run, for :meth:`used_units`."""
        if self._lookups is not None:
            self._lookups.count(table.prefill_tokens + table.decode_sequences)

    def _timed(self, pre_ns: Column, segments_ns: Column, lookups: PricedLookups) -> tuple[StepColumns, Column] | None:
        """Times of the steps, and what each lookup took; None where they outgrow 64 bits."""
        if self._is_device_path:
            segments_ns[1:] += lookups.duration_ns
            return _gathered(pre_ns, segments_ns, lookups.duration_ns), lookups.duration_ns
        segments_ns[1:] += lookups.taken_ns
        if self._interferes:
            columns = LookupColumns(lookups.duration_ns, lookups.speed_alone, lookups.speed_beside, lookups.wait_ns)
            return interfering_columns(pre_ns, segments_ns, columns, self._compute_speed)
        on_worker_ns = lookups.wait_ns + lookups.service_ns
        return maxplus_columns(pre_ns, segments_ns, on_worker_ns, self._prefetch), lookups.service_ns


def _range(columns: tuple[Column, Column] | None, first: int, last: int) -> tuple[Column, Column] | None:
    return None if columns is None else (columns[0][first:last], columns[1][first:last])


def _gathered(pre_ns: Column, segments_ns: Column, gather_ns: Column) -> StepColumns:
    """Times of steps whose rows the device gathers inside its modules: nothing stands still (Assumption A9)."""
    wanted = pre_ns + np.cumsum(segments_ns[:-1], axis=0)
    duration = pre_ns + segments_ns.sum(axis=0)
    return StepColumns(duration, wanted, wanted, wanted + gather_ns, np.zeros_like(gather_ns))
