"""A whole run without an event queue: plan by counting steps, price all steps at once, add up.

It serves where nothing contends: one replica, its requests in a closed loop or arriving by the clock, lookups that
depend on token counts alone and are over when their step is.
The result is that of the event engine to the nanosecond; a property test compares the two.
"""

from dataclasses import dataclass

from tiercast_profiles.document import Bound
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.workload import MAX_REQUESTS
from tiercast_sim.compute import ComputeModel
from tiercast_sim.compute_columns import needs_longest
from tiercast_sim.costs import StepCosts, needs_ngrams
from tiercast_sim.memory import MemoryPlan
from tiercast_sim.priced_run import PricedRun, add_up
from tiercast_sim.run_summary import RunSummary
from tiercast_sim.schedule_columns import schedule_of
from tiercast_sim.source import shapes_of
from tiercast_sim.step_pricing import StepPricer
from tiercast_sim.timed_schedule import timed_schedule


@dataclass(frozen=True, slots=True)
class FastRun:
    """Steps of a run, its sums, and the units each shared resource delivered."""

    steps: PricedRun
    summary: RunSummary
    used_units: dict[str, float]


def needs_events(resolved: ResolvedScenario) -> str | None:
    """Why a scenario needs the event engine, or None where arithmetic gives the same run."""
    scenario, placement = resolved.scenario, resolved.placement
    workload, engine = scenario.workload, scenario.engine
    if scenario.parallel.num_replicas > 1:
        return "replicas share the stream of requests"
    if scenario.speculative.draft_tokens > 0:
        return "accepted drafts differ by sequence"
    if engine.prefix_caching:
        return "which prefixes are cached depends on the requests before"
    if min(engine.max_num_seqs, workload.concurrency or MAX_REQUESTS) > engine.max_num_batched_tokens:
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
    pricer = StepPricer(resolved, bound, compute, costs.lookups)
    end_ns: int | None = None
    if scenario.workload.kind == "closed_loop":
        schedule = schedule_of(scenario.workload, scenario.seed, scenario.engine, num_blocks)
    elif needs_longest(compute):
        return "a measured table follows the longest context of each batch"
    else:
        is_roomy = scenario.engine.kv_reservation == "on_demand"
        shapes, room = shapes_of(scenario.workload, scenario.seed), None if is_roomy else num_blocks
        schedule, end_ns = timed_schedule(shapes, scenario.engine, room, pricer.window, pricer.clock())
    if scenario.engine.kv_reservation == "on_demand" and schedule.peak_blocks > num_blocks:
        return "sequences may be preempted"  # with room for whole requests nobody ever is, and the plans are equal
    pricer.follow(schedule)
    found = add_up(schedule, pricer, compute.ledger)
    if found is None:
        return "its numbers outgrow exact columns"
    assert end_ns in (None, found[1].elapsed_ns), "one by one and in columns the steps are equally long"
    return FastRun(*found, pricer.used_units())
