"""The simulator equals plain arithmetic to the nanosecond where nothing contends (INV-7)."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tiercast_profiles.scenario import Engine, Speculative
from tiercast_profiles.workload import Fixed, Request, Workload, draw_requests
from tiercast_sim.clock import Clock
from tiercast_sim.closed_form import Speeds, WorkerState, run_step
from tiercast_sim.compute import ComputeModel
from tiercast_sim.costs import StepCosts
from tiercast_sim.interference import interference_speeds
from tiercast_sim.links import Network
from tiercast_sim.memory import memory_plan
from tiercast_sim.run import run
from tiercast_sim.serving import Scheduler
from tiercast_sim.source import RequestSource
from tiercast_sim.step import Replica, World
from tiercast_sim.work import SPEED_ONE, LookupWork, StepWork

DURATIONS = st.integers(0, 3_000_000)


@st.composite
def step_works(draw):
    """Up to six steps with the same number of Engram layers; early lookups and waits of the worker zero or drawn."""
    num_layers = draw(st.integers(1, 3))
    with_early, with_waits = draw(st.booleans()), draw(st.booleans())
    waits = DURATIONS if with_waits else st.just(0)

    def lookups():
        return tuple(LookupWork(draw(DURATIONS), (), 0.0, 1, 1, wait_ns=draw(waits)) for _ in range(num_layers))

    return [
        StepWork(
            draw(DURATIONS),
            tuple(draw(DURATIONS) for _ in range(num_layers + 1)),
            lookups(),
            lookups() if with_early else (),
        )
        for _ in range(draw(st.integers(1, 6)))
    ]


class GivenCosts:
    wants_upcoming = False

    def __init__(self, works):
        self._works = list(works)

    def price(self, _plan, _upcoming):
        return self._works.pop(0)


def simulated(works, prefetch, compute_speed, lookup_speed):
    clock = Clock()
    request = Request(0, 0, 1, len(works))
    one = Fixed(fixed=1)
    workload = Workload(kind="closed_loop", concurrency=1, num_requests=1, prompt_tokens=one, output_tokens=one)
    source = RequestSource(workload, (request,), 1)
    world = World(clock, Network(clock, {}), source, prefetch, compute_speed, lookup_speed)
    replica = Replica(world, 0, Scheduler(Engine(), 1000, Speculative(), 0), GivenCosts(works))
    clock.process(replica.run())
    clock.run()
    return [
        (
            step.duration_ns,
            tuple(layer.stall_ns for layer in step.layers),
            tuple(layer.service_ns for layer in step.layers),
        )
        for step in replica.steps
    ]


def arithmetic(works, prefetch, compute_speed, lookup_speed):
    state = WorkerState()
    outcomes = [run_step(work, prefetch, state, Speeds(compute_speed, lookup_speed)) for work in works]
    return [(outcome.duration_ns, outcome.stall_ns, outcome.lookup_ns) for outcome in outcomes]


@settings(max_examples=300, deadline=None)
@given(works=step_works(), prefetch=st.sampled_from(["off", "step_entry", "prev_step"]))
def test_steps_without_interference(works, prefetch):
    if prefetch != "prev_step":
        works = [StepWork(work.pre_ns, work.segments_ns, work.lookups) for work in works]
    assert simulated(works, prefetch, SPEED_ONE, SPEED_ONE) == arithmetic(works, prefetch, SPEED_ONE, SPEED_ONE)


@settings(max_examples=300, deadline=None)
@given(
    works=step_works(),
    prefetch=st.sampled_from(["off", "step_entry"]),
    compute_speed=st.integers(SPEED_ONE // 5, SPEED_ONE),
    lookup_speed=st.integers(SPEED_ONE // 5, SPEED_ONE),
)
def test_steps_with_interference(works, prefetch, compute_speed, lookup_speed):
    works = [StepWork(work.pre_ns, work.segments_ns, work.lookups) for work in works]
    expected = arithmetic(works, prefetch, compute_speed, lookup_speed)
    assert simulated(works, prefetch, compute_speed, lookup_speed) == expected


def whole_run_by_arithmetic(resolved):
    """A closed-loop run of one replica without SimPy: schedule, price, add up."""
    scenario = resolved.scenario
    requests = draw_requests(scenario.workload, scenario.seed)
    capacity = memory_plan(resolved).kv_capacity_tokens
    scheduler = Scheduler(scenario.engine, capacity, scenario.speculative, scenario.seed)
    costs = StepCosts(resolved, "nominal", 0, ComputeModel(resolved, "nominal"), None)
    compute_speed, lookup_speed, _ = interference_speeds(resolved, "nominal")
    waiting = list(requests)
    for request in waiting[: scenario.workload.concurrency]:
        scheduler.add(request)
    del waiting[: scenario.workload.concurrency]
    state, rows = WorkerState(), []
    while scheduler.has_work:
        plan = scheduler.plan()
        upcoming = scheduler.upcoming_chunks() if costs.wants_upcoming else ()
        work = costs.price(plan, upcoming)
        start_ns = state.now_ns
        outcome = run_step(work, resolved.placement.prefetch, state, Speeds(compute_speed, lookup_speed))
        rows.append((start_ns, outcome.duration_ns, sum(outcome.stall_ns), sum(outcome.lookup_ns)))
        for _ in scheduler.finish().done:
            if waiting:
                scheduler.add(waiting.pop(0))
    return rows


@settings(max_examples=40, deadline=None)
@given(
    placement=st.sampled_from(
        [
            {"tier": "dram", "path": "uva"},
            {"tier": "dram", "path": "cpu_gather"},
            {"tier": "cxl"},
            {"tier": "pool"},
            {"tier": "none"},
        ]
    ),
    prefetch=st.sampled_from(["off", "step_entry", "prev_step"]),
    concurrency=st.integers(1, 12),
    budget=st.integers(8, 64),
    drafts=st.integers(0, 3),
    interferes=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_whole_runs(sim_scenario, placement, prefetch, concurrency, budget, drafts, interferes, seed):
    entries = [
        {"tier": tier, "path": path, "compute_speed_ratio": 0.7, "lookup_speed_ratio": 0.6}
        for tier, path in (("dram", "uva"), ("dram", "cpu_gather"))
    ]
    resolved = sim_scenario(
        {**placement, "prefetch": prefetch},
        hardware={"interference": entries if interferes else []},
        workload={
            "kind": "closed_loop",
            "concurrency": concurrency,
            "num_requests": 12,
            "prompt_tokens": {"uniform": [1, 60]},
            "output_tokens": {"uniform": [1, 12]},
        },
        engine={"max_num_batched_tokens": budget, "max_num_seqs": 8, "kv_block_tokens": 4},
        speculative={"draft_tokens": drafts, "acceptance_ratio": 0.6},
        seed=seed,
    )
    steps = run(resolved, "nominal").steps
    assert [(s.start_ns, s.duration_ns, s.stall_ns, s.lookup_ns) for s in steps] == whole_run_by_arithmetic(resolved)
