"""A whole run without an event queue: plan by counting steps, price all steps at once, add up.

It serves where nothing contends: one replica in a closed loop, or any that share nothing and whose requests arrive by
the clock; lookups that depend on token counts alone and are over when their step is.
The result is that of the event engine to the nanosecond; a property test compares the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tiercast_profiles.document import Bound
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.workload import MAX_REQUESTS, RequestShapes
from tiercast_sim.compute import ComputeModel
from tiercast_sim.compute_columns import needs_longest
from tiercast_sim.costs import StepCosts, needs_ngrams
from tiercast_sim.memory import MemoryPlan
from tiercast_sim.priced_run import PricedRun, add_up
from tiercast_sim.run_summary import RunSummary
from tiercast_sim.schedule_columns import Schedule, schedule_of
from tiercast_sim.side_by_side import SideBySide, summary_of_replicas
from tiercast_sim.source import shapes_of
from tiercast_sim.step_pricing import StepPricer
from tiercast_sim.timed_schedule import timed_schedule


@dataclass(frozen=True, slots=True)
class FastRun:
    """Steps of a run, its sums, and the units each shared resource delivered."""

    steps: PricedRun | SideBySide
    summary: RunSummary
    used_units: dict[str, float]


def needs_events(resolved: ResolvedScenario) -> str | None:
    """Why a scenario needs the event engine, or None where arithmetic gives the same run."""
    scenario, placement = resolved.scenario, resolved.placement
    workload, engine = scenario.workload, scenario.engine
    if scenario.parallel.prefill:
        return "prompts move between replicas"
    if scenario.parallel.num_replicas > 1 and workload.kind == "closed_loop":
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
    curve = None if placement.path is None else resolved.hardware.curve(placement.tier, placement.path)
    if curve is not None and curve.spreads and placement.prefetch != "off":
        return "lookups of one size differ"
    return None


def fast_run(
    resolved: ResolvedScenario, bound: Bound, compute: ComputeModel, costs: Sequence[StepCosts], memory: MemoryPlan
) -> FastRun | str:
    """The run of a scenario that :func:`needs_events` lets pass, or why it needs events after all.

    ``costs`` has an entry for each replica.
    """
    shared = _shared_by_replicas(costs)
    if shared is not None:
        return f"replicas share {shared}"
    num_requests = len(shapes_of(resolved.scenario.workload, resolved.scenario.seed).arrival_ns)
    used_units: dict[str, float] = {}
    parts = []
    for replica in range(min(len(costs), num_requests)):
        pricer = StepPricer(resolved, bound, compute, costs[replica].lookups, replica=replica)
        planned = _plan(resolved, memory, pricer, compute)
        if isinstance(planned, str):
            return planned
        schedule, end_ns = planned
        pricer.follow(schedule)
        found = add_up(schedule, pricer, compute.ledger)
        if found is None:
            return "its numbers outgrow exact columns"
        assert end_ns in (None, found.end_ns), "one by one and in columns the steps are equally long"
        parts.append(found)
        used_units |= pricer.used_units()
    steps = parts[0].run if len(parts) == 1 else SideBySide(tuple(part.run for part in parts))
    return FastRun(steps, summary_of_replicas(parts), used_units)


def _plan(
    resolved: ResolvedScenario, memory: MemoryPlan, pricer: StepPricer, compute: ComputeModel
) -> tuple[Schedule, int | None] | str:
    """The plan of a replica, and when it ends where it was made by the clock; or why it needs events."""
    scenario = resolved.scenario
    workload, engine = scenario.workload, scenario.engine
    num_blocks = memory.kv_capacity_tokens // engine.kv_block_tokens
    end_ns: int | None = None
    if workload.kind == "closed_loop":
        schedule = schedule_of(workload, scenario.seed, engine, num_blocks)
    elif needs_longest(compute):
        return "a measured table follows the longest context of each batch"
    elif compute.settles:
        return "how long a batch takes depends on the prompts before it"
    else:
        own = slice(pricer.replica, None, scenario.parallel.num_replicas)
        shapes = shapes_of(workload, scenario.seed)
        dealt = RequestShapes(shapes.arrival_ns[own], shapes.prompt_tokens[own], shapes.output_tokens[own])
        room = None if engine.kv_reservation == "on_demand" else num_blocks
        schedule, end_ns = timed_schedule(dealt, engine, room, pricer.window, pricer.clock())
    if engine.kv_reservation == "on_demand" and schedule.peak_blocks > num_blocks:
        return "sequences may be preempted"  # with room for whole requests nobody ever is, and the plans are equal
    return schedule, end_ns


def _shared_by_replicas(costs: Sequence[StepCosts]) -> str | None:
    """A resource that lookups of two replicas take from."""
    seen: set[str] = set()
    for cost in costs:
        own = set() if cost.lookups is None else set(cost.lookups.capacities())
        if own & seen:
            return min(own & seen)
        seen |= own
    return None
