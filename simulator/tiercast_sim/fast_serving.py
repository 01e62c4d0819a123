"""A whole run without an event queue: plan by counting steps, price all steps at once, add up.

It serves where nothing contends and nothing depends on time but time itself: one replica in a closed loop, lookups
that depend on token counts alone and are over when their step is.
The result is that of the event engine to the nanosecond; a property test compares the two.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiercast_profiles.columns import RequestColumns, SampleColumns, StepSampleColumns
from tiercast_profiles.document import Bound
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import NS_PER_S
from tiercast_sim.compute import ComputeModel
from tiercast_sim.compute_columns import distinct_of, step_columns
from tiercast_sim.costs import StepCosts, needs_ngrams
from tiercast_sim.interference_columns import LookupColumns, interfering_columns
from tiercast_sim.links import lone_speed
from tiercast_sim.maxplus import StepColumns
from tiercast_sim.maxplus import step_columns as maxplus_columns
from tiercast_sim.memory import MemoryPlan
from tiercast_sim.schedule_columns import Batches, Column, Schedule, batches_of, schedule_of
from tiercast_sim.step_table import LayerColumns, StepTable
from tiercast_sim.tiers import LookupCosts, interference_speeds
from tiercast_sim.work import SPEED_ONE, LookupWork

Rows = npt.NDArray[np.int64]
OUTGROWN = "its numbers outgrow exact columns"


@dataclass(frozen=True, slots=True)
class FastRun:
    """Samples and steps of a run, and the units each shared resource delivered."""

    samples: SampleColumns
    steps: StepTable
    used_units: dict[str, float]


def needs_events(resolved: ResolvedScenario) -> str | None:
    """Why a scenario needs the event engine, or None where arithmetic gives the same run."""
    scenario, placement = resolved.scenario, resolved.placement
    workload, engine = scenario.workload, scenario.engine
    if workload.kind != "closed_loop":
        return "arrivals depend on time"
    if scenario.parallel.num_replicas > 1:
        return "replicas share the stream of requests"
    if scenario.speculative.draft_tokens > 0:
        return "accepted drafts differ by sequence"
    if engine.prefix_caching:
        return "which prefixes are cached depends on the requests before"
    if min(engine.max_num_seqs, workload.concurrency or 0) > engine.max_num_batched_tokens:
        return "decoding sequences take turns"
    if placement.tier == "none":
        return None
    if needs_ngrams(resolved):
        return "rows depend on which n-grams repeat"
    if placement.path == "device":
        return None
    if placement.prefetch == "prev_step":
        return "lookups reach into the next step"
    return None


def fast_run(
    resolved: ResolvedScenario, bound: Bound, compute: ComputeModel, costs: StepCosts, memory: MemoryPlan
) -> FastRun | str:
    """The run of a scenario that :func:`needs_events` lets pass, or why it needs events after all."""
    scenario = resolved.scenario
    num_blocks = memory.kv_capacity_tokens // scenario.engine.kv_block_tokens
    schedule = schedule_of(scenario.workload, scenario.seed, scenario.engine, num_blocks)
    if scenario.engine.kv_reservation == "on_demand" and schedule.peak_blocks > num_blocks:
        return "sequences may be preempted"  # with room for whole requests nobody ever is, and the plans are equal
    batches = batches_of(schedule, resolved.model.backbone.attention_window_tokens)
    priced = step_columns(compute, schedule, batches)
    if priced is None:
        return OUTGROWN
    pre_ns, segments_ns = priced
    lookups = costs.lookups
    num_layers = len(segments_ns) - 1
    gathers = _lookups(lookups, batches, num_layers)
    timed = _timed(resolved, bound, pre_ns, segments_ns, gathers)
    if timed is None:
        return OUTGROWN
    times, service_ns = timed
    end_ns = np.cumsum(times.duration_ns)
    rows_per_layer = resolved.model.engram.num_rows_per_token if lookups is not None else 0
    steps = StepTable(
        start_ns=end_ns - times.duration_ns,
        duration_ns=times.duration_ns,
        prefill_tokens=batches.num_prefill_tokens,
        decode_sequences=batches.num_decodes,
        pre_ns=pre_ns,
        rows=batches.num_tokens * rows_per_layer * num_layers,
        layers=LayerColumns(
            wanted_ns=times.wanted_ns,
            issued_ns=times.issued_ns,
            ready_ns=times.ready_ns,
            stall_ns=times.stall_ns,
            service_ns=service_ns,
            rows_read=gathers.column(lambda work: work.rows_read),
            bytes_per_rank=gathers.column(lambda work: work.bytes_per_rank),
        ),
    )
    gather_ns = 0 if resolved.placement.path != "device" else int(service_ns.sum())
    compute.ledger.close(int(pre_ns.sum()) + int(segments_ns.sum()), gather_ns)
    return FastRun(_samples(schedule, steps, end_ns), steps, gathers.used_units())


@dataclass(frozen=True, slots=True)
class _Lookups:
    """Lookups by layer and distinct token count, and which of them each step has."""

    works: tuple[tuple[LookupWork, ...], ...]
    which: npt.NDArray[np.intp]
    capacities: Mapping[str, float]

    def column(self, read: Callable[[LookupWork], int]) -> Rows:
        """``[num_layers, num_steps]`` of a whole number of each lookup."""
        if not self.works:
            return np.zeros((0, len(self.which)), dtype=np.int64)
        return np.array([[read(work) for work in layer] for layer in self.works], dtype=np.int64)[:, self.which]

    def used_units(self) -> dict[str, float]:
        """Units all lookups together take of each shared resource."""
        found = dict.fromkeys(self.capacities, 0.0)
        how_often = np.bincount(self.which).tolist()
        for layer in self.works:
            for work, count in zip(layer, how_often, strict=True):
                for resource, units in work.usage:
                    found[resource] += units * work.duration_ns / NS_PER_S * count
        return found


def _lookups(lookups: LookupCosts | None, batches: Batches, num_layers: int) -> _Lookups:
    distinct, which = distinct_of(batches.num_tokens)
    if lookups is None:
        return _Lookups((), which, {})
    counts = distinct.tolist()
    rows_per_token = lookups.rows_per_token
    first = tuple(lookups.lookup(count * rows_per_token, 0, count) for count in counts)
    rest = tuple(lookups.lookup(count * rows_per_token, 0, 0) for count in counts)
    return _Lookups((first, *([rest] * (num_layers - 1))), which, lookups.capacities())


def _timed(
    resolved: ResolvedScenario, bound: Bound, pre_ns: Column, segments_ns: Rows, lookups: _Lookups
) -> tuple[StepColumns, Rows] | None:
    """Times of all steps, and what each lookup took; None where they outgrow 64 bits."""
    placement, capacities = resolved.placement, lookups.capacities
    duration_ns = lookups.column(lambda work: work.duration_ns)
    if placement.path == "device":
        segments_ns[1:] += duration_ns
        return _gathered(pre_ns, segments_ns, duration_ns), duration_ns

    def speed(work: LookupWork, cap: int = SPEED_ONE) -> int:
        return lone_speed(work.usage, work.rate_bytes_per_s, capacities, cap)

    if placement.tier != "none" and placement.prefetch != "off":
        compute_speed, lookup_speed, _ = interference_speeds(resolved, bound)
        if (compute_speed, lookup_speed) != (SPEED_ONE, SPEED_ONE):
            beside = lookups.column(lambda work: speed(work, lookup_speed))
            columns = LookupColumns(duration_ns, lookups.column(speed), beside)
            return interfering_columns(pre_ns, segments_ns, columns, compute_speed)
    # Nobody else on the shared things: a lookup keeps the speed that its own ranks leave each other.
    service_ns = lookups.column(lambda work: -(-work.duration_ns * SPEED_ONE // speed(work)))
    return maxplus_columns(pre_ns, segments_ns, service_ns, placement.prefetch), service_ns


def _gathered(pre_ns: Column, segments_ns: Rows, gather_ns: Rows) -> StepColumns:
    """Times of steps whose rows the device gathers inside its modules: nothing stands still (Assumption A9)."""
    wanted = pre_ns + np.cumsum(segments_ns[:-1], axis=0)
    duration = pre_ns + segments_ns.sum(axis=0)
    return StepColumns(duration, wanted, wanted, wanted + gather_ns, np.zeros_like(gather_ns))


def _samples(schedule: Schedule, steps: StepTable, end_ns: Column) -> SampleColumns:
    after = np.concatenate((end_ns, [0]))  # step −1 ended at 0
    requests = RequestColumns(
        arrival_ns=after[schedule.arrival_step],
        first_token_ns=end_ns[schedule.first_step],
        finish_ns=end_ns[schedule.last_step],
        prompt_tokens=schedule.prompt_tokens,
        output_tokens=schedule.output_tokens,
    )
    columns = StepSampleColumns(
        start_ns=steps.start_ns,
        duration_ns=steps.duration_ns,
        prefill_tokens=steps.prefill_tokens,
        decode_sequences=steps.decode_sequences,
        stall_ns=steps.stall_ns,
        lookup_ns=steps.lookup_ns,
        rows=steps.rows,
        rows_read=steps.rows_read,
        rows_hit=np.zeros(0, dtype=np.int64),
    )
    return SampleColumns(requests, columns)
