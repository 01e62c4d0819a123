"""One simulation at one bound: replicas, their shared resources and the request stream in one SimPy environment."""

from dataclasses import dataclass

from tiercast_profiles.document import Bound
from tiercast_profiles.record import RequestSamples, Samples, StepSamples
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.text import load_text
from tiercast_profiles.workload import Request, draw_requests
from tiercast_sim.baselines import at_row_width
from tiercast_sim.clock import Clock
from tiercast_sim.compute import ComputeModel, find_table
from tiercast_sim.costs import StepCosts, needs_ngrams
from tiercast_sim.links import Network
from tiercast_sim.memory import MemoryPlan, memory_plan, require_fit
from tiercast_sim.reuse import RequestNgrams
from tiercast_sim.serving import Scheduler, check_requests_fit
from tiercast_sim.source import RequestSource
from tiercast_sim.step import Replica, StepLog, World
from tiercast_sim.tiers import LookupCosts, ResourceKind, interference_speeds
from tiercast_sim.work import SPEED_ONE


@dataclass(frozen=True, slots=True)
class SharedUse:
    """Units a shared resource delivered over a run, and how many it can deliver per second."""

    units: float
    capacity_per_s: float
    kind: ResourceKind


@dataclass(frozen=True, slots=True)
class RunResult:
    """What one simulation gives: its samples, its steps with their layers, its memory, its cost model.

    ``shared`` says what each shared resource delivered.
    """

    samples: Samples
    steps: tuple[StepLog, ...]
    memory: MemoryPlan
    compute: ComputeModel
    lookups: LookupCosts | None
    shared: dict[str, SharedUse]
    is_device_path: bool


def request_ngrams(resolved: ResolvedScenario, requests: tuple[Request, ...]) -> RequestNgrams | None:
    """The token stream of a run as n-grams, where the scenario's rows depend on it; the same at every bound."""
    if not needs_ngrams(resolved):
        return None
    scenario = resolved.scenario
    return RequestNgrams(load_text(scenario.workload.text, resolved.model), resolved.model, requests, scenario.seed)


def run(resolved: ResolvedScenario, bound: Bound, ngrams: RequestNgrams | None = None) -> RunResult:
    """Simulate a scenario at one end of its bands.

    ``ngrams`` may be handed in to share them between runs of one workload.

    Raises:
        InfeasibleScenario: it does not fit, or one request cannot.
        MissingCapability: the profile lacks something the scenario needs.
        BadInput: a number in the profile is not usable.
    """
    scenario = resolved.scenario
    memory = memory_plan(resolved, bound)
    require_fit(resolved, memory)
    requests = draw_requests(scenario.workload, scenario.seed)
    check_requests_fit(requests, scenario.engine, memory.kv_capacity_tokens, memory.kv_bytes_per_token_per_rank)
    if ngrams is None:
        ngrams = request_ngrams(resolved, requests)
    banded = at_row_width(resolved, bound)
    # A measured table belongs to the width it was measured with; a roofline follows the band.
    compute = ComputeModel(banded if find_table(resolved)[0] is None else resolved, bound)
    num_replicas = scenario.parallel.data
    costs = [StepCosts(banded, bound, replica, compute, ngrams) for replica in range(num_replicas)]
    capacities: dict[str, float] = {}
    kinds: dict[str, ResourceKind] = {}
    for cost in costs:
        if cost.lookups is not None:
            capacities.update(cost.lookups.capacities())
            kinds.update(cost.lookups.kinds())
    clock = Clock()
    network = Network(clock, capacities)
    source = RequestSource(scenario.workload, requests, num_replicas)
    speeds = (SPEED_ONE, SPEED_ONE)
    if resolved.placement.tier != "none" and resolved.placement.path != "device":
        compute_speed, lookup_speed, _ = interference_speeds(resolved, bound)
        speeds = (compute_speed, lookup_speed)
    world = World(clock, network, source, resolved.placement.prefetch, *speeds)
    replicas = []
    for index, cost in enumerate(costs):
        scheduler = Scheduler(scenario.engine, memory.kv_capacity_tokens, scenario.speculative, scenario.seed)
        replica = Replica(world, index, scheduler, cost)
        clock.process(replica.run())
        replicas.append(replica)
    clock.run()
    steps = sorted(
        (step for replica in replicas for step in replica.steps), key=lambda step: (step.start_ns, step.replica)
    )
    return RunResult(
        _samples(source, steps, has_cache=resolved.placement.cache_gib > 0),
        tuple(steps),
        memory,
        compute,
        costs[0].lookups,
        {name: SharedUse(units, capacities[name], kinds[name]) for name, units in network.used_units.items()},
        resolved.placement.path == "device",
    )


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
