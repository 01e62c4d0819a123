"""One simulation at one bound: replicas, their shared resources and the request stream in one SimPy environment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tiercast_profiles.columns import RequestColumns
from tiercast_profiles.document import Bound
from tiercast_profiles.errors import BadInput
from tiercast_profiles.record import RequestSamples, Samples, StepSamples
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.text import load_text
from tiercast_sim.baselines import at_row_width
from tiercast_sim.clock import Clock
from tiercast_sim.compute import ComputeModel
from tiercast_sim.costs import StepCosts, needs_ngrams
from tiercast_sim.fast_serving import FastRun, fast_run, needs_events
from tiercast_sim.handover import Handover, KvLink, into, out_of
from tiercast_sim.interference import interference_speeds
from tiercast_sim.links import Network
from tiercast_sim.memory import MemoryPlan, memory_plan, require_fit
from tiercast_sim.priced_run import PricedRun
from tiercast_sim.reuse import RequestNgrams
from tiercast_sim.run_summary import RunSummary, summary_of
from tiercast_sim.serving import Role, Scheduler, check_requests_fit
from tiercast_sim.serving_counts import ServingCounts, summed
from tiercast_sim.side_by_side import SideBySide
from tiercast_sim.source import RequestSource, requests_of, shapes_of
from tiercast_sim.step import Replica, StepLog, World
from tiercast_sim.table_choice import find_table
from tiercast_sim.tiers import LookupCosts, ResourceKind
from tiercast_sim.work import SPEED_ONE

Engine = Literal["auto", "events", "arithmetic"]


@dataclass(frozen=True, slots=True)
class SharedUse:
    """Units a shared resource delivered over a run, and how many it can deliver per second."""

    units: float
    capacity_per_s: float
    kind: ResourceKind


@dataclass(frozen=True, slots=True)
class RunResult:
    """What one simulation gives: its samples, its steps with their layers, its memory, its cost model.

    ``engine`` says what ran: SimPy's ``events``, or ``arithmetic`` on columns where that gives the same; ``steps`` of
    the latter are priced when they are looked at. ``shared`` says what each shared resource delivered. ``counts`` are
    zero where arithmetic ran: it serves nothing that they count. ``kv_transfer_ns`` is what moving each prompt's KV
    between replicas took.
    """

    kept: Samples | PricedRun | SideBySide
    steps: Sequence[StepLog]
    summary: RunSummary
    memory: MemoryPlan
    compute: ComputeModel
    lookups: LookupCosts | None
    shared: dict[str, SharedUse]
    is_device_path: bool
    engine: Literal["events", "arithmetic"]
    counts: ServingCounts
    kv_transfer_ns: tuple[int, ...] = ()

    @property
    def samples(self) -> Samples:
        """The samples as a record keeps them; priced anew at each call where arithmetic ran."""
        return self.kept if isinstance(self.kept, Samples) else self.kept.to_samples()

    @property
    def requests(self) -> RequestSamples | RequestColumns:
        """The requests of the samples."""
        return self.kept.requests if isinstance(self.kept, Samples) else self.kept.requests()


def request_ngrams(resolved: ResolvedScenario) -> RequestNgrams | None:
    """The token stream of a run as n-grams, where the scenario's rows depend on it; the same at every bound."""
    if not needs_ngrams(resolved):
        return None
    scenario = resolved.scenario
    requests = requests_of(scenario.workload, scenario.seed)
    text = load_text(scenario.workload.text, resolved.model)
    has_warm_up = resolved.placement.cache_gib > 0 and resolved.placement.cache_policy == "static_hot"
    return RequestNgrams(text, resolved.model, requests, scenario.seed, has_warm_up=has_warm_up)


def run(
    resolved: ResolvedScenario, bound: Bound, ngrams: RequestNgrams | None = None, engine: Engine = "auto"
) -> RunResult:
    """Simulate a scenario at one end of its bands.

    ``ngrams`` may be handed in to share them between runs of one workload. ``engine`` is for tests and benchmarks:
    ``auto`` takes arithmetic wherever it gives what events give.

    Raises:
        InfeasibleScenario: it does not fit, or one request cannot.
        MissingCapability: the profile lacks something the scenario needs.
        BadInput: a number in the profile is not usable, or ``engine="arithmetic"`` cannot serve the scenario.
    """
    scenario = resolved.scenario
    memory = memory_plan(resolved, bound)
    require_fit(resolved, memory)
    shapes, kv_bytes = shapes_of(scenario.workload, scenario.seed), memory.kv_bytes_per_token_per_rank
    prompts = shapes.prompt_tokens
    check_requests_fit(prompts, shapes.output_tokens, scenario.engine, memory.kv_capacity_tokens, kv_bytes)
    if memory.prefill is not None:
        prompt_room = memory.prefill.kv_capacity_tokens
        check_requests_fit(prompts, np.ones_like(prompts), scenario.engine, prompt_room, kv_bytes)
    if ngrams is None:
        ngrams = request_ngrams(resolved)
    banded = at_row_width(resolved, bound)
    # A measured table belongs to the width it was measured with; a roofline follows the band.
    compute = ComputeModel(banded if find_table(resolved)[0] is None else resolved, bound)
    num_replicas = scenario.parallel.num_replicas
    costs = [StepCosts(banded, bound, replica, compute, ngrams) for replica in range(num_replicas)]
    reason = needs_events(banded)
    if costs[0].lookups is not None and costs[0].lookups.has_draws:
        reason = "slow reads are drawn one by one"
    if engine != "events" and reason is None:
        fast = fast_run(banded, bound, compute, costs, memory)
        if isinstance(fast, FastRun):
            lookups = costs[0].lookups
            shared = _shared(fast.used_units, *_resources(costs))
            is_device_path = resolved.placement.path == "device"
            return RunResult(
                fast.steps,
                fast.steps,
                fast.summary,
                memory,
                compute,
                lookups,
                shared,
                is_device_path,
                "arithmetic",
                ServingCounts(),
            )
        reason = fast
    if engine == "arithmetic":
        raise BadInput(f"engine 'arithmetic' cannot serve this scenario: {reason}")
    return _by_events(resolved, bound, memory, costs)


def _resources(costs: list[StepCosts]) -> tuple[dict[str, float], dict[str, ResourceKind]]:
    """Capacity and kind of every shared resource that lookups of any replica touch."""
    capacities: dict[str, float] = {}
    kinds: dict[str, ResourceKind] = {}
    for cost in costs:
        if cost.lookups is not None:
            capacities.update(cost.lookups.capacities())
            kinds.update(cost.lookups.kinds())
    return capacities, kinds


def _by_events(
    resolved: ResolvedScenario,
    bound: Bound,
    memory: MemoryPlan,
    costs: list[StepCosts],
) -> RunResult:
    parallel, workload = resolved.scenario.parallel, resolved.scenario.workload
    requests = requests_of(workload, resolved.scenario.seed)
    capacities, kinds = _resources(costs)
    link = KvLink(resolved, bound) if parallel.prefill else None
    if link is not None:
        for index in range(parallel.num_replicas):
            name = into(index) if index < parallel.data else out_of(index)
            capacities[name], kinds[name] = link.bytes_per_s, "bytes"
    clock = Clock()
    network = Network(clock, capacities)
    first_replica = parallel.data if parallel.prefill else 0
    source = RequestSource(workload, requests, parallel.num_replicas - first_replica, first_replica)
    handover = None
    if link is not None:
        handover = Handover(clock, network, link, source, parallel)
    speeds = (SPEED_ONE, SPEED_ONE)
    if resolved.placement.tier != "none" and resolved.placement.path != "device":
        compute_speed, lookup_speed, _ = interference_speeds(resolved, bound)
        speeds = (compute_speed, lookup_speed)
    replicas: list[Replica] = []
    schedulers: list[Scheduler] = []
    for index, cost in enumerate(costs):
        scheduler = _scheduler(resolved, memory, index)
        own = source if handover is None else handover.source_of(index, scheduler)
        world = World(clock, network, own, resolved.placement.prefetch, *speeds)
        replica = Replica(world, index, scheduler, cost)
        clock.process(replica.run())
        replicas.append(replica)
        schedulers.append(scheduler)
    clock.run()
    steps = sorted(
        (step for replica in replicas for step in replica.steps), key=lambda step: (step.start_ns, step.replica)
    )
    samples = _samples(source, steps, has_cache=resolved.placement.cache_gib > 0)
    compute, tokens_per_decode = costs[0].compute, 1 + resolved.scenario.speculative.draft_tokens
    return RunResult(
        samples,
        tuple(steps),
        summary_of(samples, steps, len(compute.layers_by_segment) - 1, compute.cases, tokens_per_decode),
        memory,
        compute,
        costs[0].lookups,
        _shared(network.used_units, capacities, kinds),
        resolved.placement.path == "device",
        "events",
        summed(scheduler.counts for scheduler in schedulers),
        () if handover is None else tuple(handover.transfer_ns),
    )


def _scheduler(resolved: ResolvedScenario, memory: MemoryPlan, replica: int) -> Scheduler:
    scenario = resolved.scenario
    role: Role = "both"
    room = memory.kv_capacity_tokens
    if memory.prefill is not None:
        role = "decode" if replica < scenario.parallel.data else "prefill"
        room = room if role == "decode" else memory.prefill.kv_capacity_tokens
    return Scheduler(scenario.engine, room, scenario.speculative, scenario.seed, role)


def _shared(
    units: Mapping[str, float], capacities: Mapping[str, float], kinds: Mapping[str, ResourceKind]
) -> dict[str, SharedUse]:
    return {name: SharedUse(units.get(name, 0.0), capacities[name], kinds[name]) for name in capacities}


def _samples(source: RequestSource, steps: list[StepLog], *, has_cache: bool) -> Samples:
    requests = RequestSamples(
        arrival_ns=tuple(source.arrival_ns),
        first_token_ns=tuple(source.first_token_ns),
        finish_ns=tuple(source.finish_ns),
        prompt_tokens=tuple(request.prompt_tokens for request in source.requests),
        output_tokens=tuple(request.output_tokens for request in source.requests),
    )
    columns = StepSamples(
        start_ns=tuple(step.start_ns for step in steps),
        duration_ns=tuple(step.duration_ns for step in steps),
        prefill_tokens=tuple(step.prefill_tokens for step in steps),
        decode_sequences=tuple(step.decode_sequences for step in steps),
        stall_ns=tuple(step.stall_ns for step in steps),
        lookup_ns=tuple(step.lookup_ns for step in steps),
        rows=tuple(step.rows for step in steps),
        rows_read=tuple(step.rows_read for step in steps),
        rows_hit=tuple(step.rows_hit for step in steps) if has_cache else (),
    )
    return Samples(requests=requests, steps=columns)
