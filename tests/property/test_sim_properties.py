"""What must stay true of every prediction (docs/invariants.md)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercast_profiles.scenario import Engine, Speculative
from tiercast_profiles.workload import Request
from tiercast_sim.answers import time_spent
from tiercast_sim.links import Flow, fair_speeds
from tiercast_sim.run import run
from tiercast_sim.serving import Scheduler
from tiercast_sim.simulate import simulate
from tiercast_sim.work import SPEED_ONE

PATHS = [("hbm", "device"), ("dram", "uva"), ("dram", "cpu_gather"), ("cxl", "uva"), ("nvme", "disk"), ("pool", "pool")]
QUICK = settings(max_examples=25, deadline=None)

workloads = st.builds(
    lambda concurrency, count, prompt, output: {
        "kind": "closed_loop",
        "concurrency": concurrency,
        "num_requests": count,
        "prompt_tokens": {"uniform": [1, prompt]},
        "output_tokens": {"uniform": [1, output]},
    },
    st.integers(1, 9),
    st.integers(1, 14),
    st.integers(1, 80),
    st.integers(1, 15),
)
poissons = st.builds(
    lambda rate, count: {
        "kind": "poisson",
        "requests_per_s": rate,
        "num_requests": count,
        "prompt_tokens": {"lognormal": [12, 0.8]},
        "output_tokens": {"uniform": [1, 12]},
    },
    st.floats(1, 1e5),
    st.integers(1, 14),
)
any_workloads = st.one_of(workloads, poissons)
placements = st.builds(
    lambda pair, prefetch, layout: {"tier": pair[0], "path": pair[1], "prefetch": prefetch, "row_layout": layout},
    st.sampled_from(PATHS),
    st.sampled_from(["off", "step_entry", "prev_step"]),
    st.sampled_from(["packed", "split", "padded"]),
)
parallels = st.sampled_from([{"tensor": 1, "data": 1}, {"tensor": 2, "data": 2}, {"tensor": 4, "data": 3}])


def elapsed_ns(resolved):
    return max(run(resolved, "nominal").samples.requests.finish_ns)


@QUICK
@given(placement=placements, workload=any_workloads, parallel=parallels, seed=st.integers(0, 99))
def test_tokens_and_rows_are_conserved(sim_scenario, placement, workload, parallel, seed):
    """INV-1: every prompt token and every output token but the last is fed once; each asks for all its rows once."""
    resolved = sim_scenario(placement, workload=workload, parallel=parallel, seed=seed)
    samples = run(resolved, "nominal").samples
    prompt, output = sum(samples.requests.prompt_tokens), sum(samples.requests.output_tokens)
    count = len(samples.requests.prompt_tokens)
    assert sum(samples.steps.prefill_tokens) == prompt
    assert sum(samples.steps.decode_sequences) == output - count
    rows = (prompt + output - count) * 12
    assert sum(samples.steps.rows) == rows
    read = sum(samples.steps.rows_read)
    assert read <= rows
    if placement["tier"] != "nvme":  # no path but disk removes duplicates here
        assert read == rows


@QUICK
@given(placement=placements, workload=any_workloads, parallel=parallels)
def test_nothing_ends_before_it_starts(sim_scenario, placement, workload, parallel):
    """INV-2: lookups, steps and requests in causal order; steps of a replica never overlap."""
    result = run(sim_scenario(placement, workload=workload, parallel=parallel), "nominal")
    ends = {}
    for step in result.steps:
        assert step.start_ns >= ends.get(step.replica, 0)
        ends[step.replica] = step.start_ns + step.duration_ns
        assert 0 <= step.stall_ns < step.duration_ns
        for layer in step.layers:
            assert layer.known_ns <= layer.wanted_ns
            assert layer.issued_ns <= layer.ready_ns <= layer.wanted_ns + max(layer.stall_ns, layer.service_ns)
            assert layer.stall_ns == 0 or layer.ready_ns <= layer.wanted_ns + layer.stall_ns
    requests = result.samples.requests
    for arrival, first, finish in zip(requests.arrival_ns, requests.first_token_ns, requests.finish_ns, strict=True):
        assert arrival < first <= finish


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=20),
    capacity_blocks=st.integers(14, 40),
    max_num_seqs=st.integers(1, 6),
    budget=st.integers(4, 40),
    drafts=st.integers(0, 3),
)
def test_capacity_is_never_exceeded(lengths, capacity_blocks, max_num_seqs, budget, drafts):
    """INV-3: KV blocks, sequences and tokens stay inside their limits, and every request finishes."""
    engine = Engine(max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, kv_block_tokens=4)
    scheduler = Scheduler(engine, capacity_blocks * 4, Speculative(draft_tokens=drafts), 0)
    for index, (prompt, output) in enumerate(lengths):
        scheduler.add(Request(index, 0, prompt, output))
    finished = 0
    while scheduler.has_work:
        plan = scheduler.plan()
        assert 0 < plan.num_tokens <= budget
        assert 0 <= scheduler.used_blocks <= capacity_blocks
        assert scheduler.num_running <= max_num_seqs
        finished += len(scheduler.finish().done)
    assert finished == len(lengths)
    assert scheduler.used_blocks == 0


def faster(curve_index, factor):
    def change(lookups):
        lookups[curve_index]["bandwidth_gb_per_s"] *= factor
        lookups[curve_index]["row_ns"] /= factor
        lookups[curve_index]["fixed_us"] /= factor
        return lookups

    return change


@QUICK
@given(
    placement=placements,
    workload=workloads,
    factor=st.floats(1, 50),
    tensor=st.sampled_from([1, 2, 4]),
)
def test_a_faster_tier_is_never_slower(sim_scenario, placement, workload, factor, tensor):
    """INV-4: one replica, closed loop: more speed of the tier, its shared resource or its link never costs time."""
    parallel = {"tensor": tensor}
    base = sim_scenario(placement, workload=workload, parallel=parallel)
    lookups = [curve.model_dump() for curve in base.hardware.lookups]
    index = next(i for i, c in enumerate(lookups) if (c["tier"], c["path"]) == (placement["tier"], placement["path"]))
    hardware = {
        "lookups": faster(index, factor)(lookups),
        "host": {"memory_bandwidth_gb_per_s": 40 * factor},
        "host_to_device": {"bandwidth_gb_per_s": 10 * factor},
    }
    better = sim_scenario(placement, workload=workload, parallel=parallel, hardware=hardware)
    assert elapsed_ns(better) <= elapsed_ns(base)


@QUICK
@given(
    pair=st.sampled_from(PATHS[1:]),
    workload=workloads,
    layer=st.integers(0, 4),
    later=st.integers(1, 5),
)
def test_a_later_layer_is_never_slower(sim_scenario, pair, workload, layer, later):
    """INV-4: one Engram layer: the later it stands, the more time its lookup has."""
    placement = {"tier": pair[0], "path": pair[1]}

    def at(layer_id):
        return elapsed_ns(sim_scenario(placement, workload=workload, engram={"layer_ids": [layer_id]}))

    # Segments are rounded to nanoseconds where the layer cuts them: half a nanosecond a segment and step.
    num_steps = workload["num_requests"] * (80 + 15)
    assert at(min(5, layer + later)) <= at(layer) + 2 * num_steps


@QUICK
@given(pair=st.sampled_from(PATHS), workload=workloads, tensor=st.sampled_from([1, 4]))
def test_prefetch_is_never_worse_than_none(sim_scenario, pair, workload, tensor):
    """INV-5: where compute and lookups do not slow each other and one replica has the machine."""
    placement = {"tier": pair[0], "path": pair[1]}
    with_prefetch, without = (
        elapsed_ns(sim_scenario({**placement, "prefetch": mode}, workload=workload, parallel={"tensor": tensor}))
        for mode in ("step_entry", "off")
    )
    assert with_prefetch <= without


@QUICK
@given(workload=workloads, parallel=parallels, prefetch=st.sampled_from(["off", "step_entry", "prev_step"]))
def test_tables_in_hbm_stall_nothing(sim_scenario, workload, parallel, prefetch):
    """INV-6: the device gathers rows from its own memory as part of the module; nothing waits."""
    resolved = sim_scenario({"tier": "hbm", "prefetch": prefetch}, workload=workload, parallel=parallel)
    assert sum(run(resolved, "nominal").samples.steps.stall_ns) == 0


@QUICK
@given(placement=placements, workload=any_workloads, parallel=parallels, seed=st.integers(0, 2**40))
def test_the_same_scenario_gives_the_same_bytes(sim_scenario, placement, workload, parallel, seed):
    """INV-11."""
    first, second = (
        simulate(
            sim_scenario(placement, workload=workload, parallel=parallel, seed=seed),
            with_baselines=False,
            with_bounds=False,
        ).to_json()
        for _ in range(2)
    )
    assert first == second


flows = st.lists(
    st.tuples(st.floats(0.01, 100), st.sets(st.sampled_from("abc"), min_size=1), st.integers(1, SPEED_ONE)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(drawn=flows, capacity=st.floats(0.1, 200))
def test_fair_shares_fill_links_and_never_exceed_them(drawn, capacity):
    """INV-3: no resource is overdrawn; a flow below its cap is held by a full resource on which nobody is faster."""
    built = [Flow(None, 1000, tuple((r, rate) for r in sorted(on)), rate, cap) for rate, on, cap in drawn]
    speeds = fair_speeds(built, dict.fromkeys("abc", capacity))
    rates = [flow.rate_per_s * speed / SPEED_ONE for flow, speed in zip(built, speeds, strict=True)]
    used = {r: sum(rate for rate, flow in zip(rates, built, strict=True) if r in dict(flow.usage)) for r in "abc"}
    slack = 1e-6 * capacity + 100 * len(built) / SPEED_ONE
    assert all(total <= capacity + slack for total in used.values())
    for flow, speed, rate in zip(built, speeds, rates, strict=True):
        if speed < flow.cap:
            full = [r for r, _ in flow.usage if used[r] >= capacity - slack]
            assert full
            assert any(
                rate >= other - slack
                for r in full
                for other in [max(x for x, f in zip(rates, built, strict=True) if r in dict(f.usage))]
            )


storages = st.fixed_dictionaries(
    {},
    optional={
        "num_reads_in_flight": st.integers(1, 64),
        "max_reads_per_s": st.floats(1e4, 1e6),
        "latency_tail": st.just([{"read_ratio": 0.9, "latency_us": 300}, {"read_ratio": 0.999, "latency_us": 4000}]),
    },
)


@QUICK
@given(
    placement=placements,
    workload=any_workloads,
    parallel=parallels,
    storage=storages,
    pool=st.sampled_from([{}, {"shared_bandwidth_gb_per_s": 0.5}]),
    threads=st.sampled_from([None, 1, 6]),
)
def test_shared_things_give_no_more_than_they_have(sim_scenario, placement, workload, parallel, storage, pool, threads):
    """INV-3 and INV-12: whatever is shared, it is never overdrawn, and the parts of the steps sum to the steps."""
    lookups = [{**curve.model_dump(), "num_threads": threads} for curve in sim_scenario(placement).hardware.lookups]
    hardware = {"nvme": storage, "pool": {**storage, **pool}, "lookups": lookups}
    resolved = sim_scenario(placement, workload=workload, parallel=parallel, hardware=hardware)
    result = run(resolved, "nominal")
    elapsed_s = max(result.samples.requests.finish_ns) / 1e9
    num_flows = 1 + len(result.steps) * 4
    for use in result.shared.values():  # a flow ends on a whole nanosecond, at a whole speed
        assert use.units <= use.capacity_per_s * (elapsed_s * (1 + 1e-6) + num_flows * 2e-9)
    spent = time_spent(resolved, {"nominal": result})
    assert sum(part.total_ns for part in spent.parts) == sum(step.duration_ns for step in result.steps)


@pytest.mark.parametrize("bound", ["optimistic", "pessimistic"])
def test_ends_of_the_bands_bracket_the_nominal_run(sim_scenario, bound):
    """The optimistic end is never slower, the pessimistic end never faster, in a closed loop of one replica."""
    band = {"value": 0.5, "low": 0.3, "high": 0.8}
    hardware = {"host": {"random_access_ratio": band}, "device": {"memory_efficiency_ratio": band}}
    resolved = sim_scenario({"tier": "dram"}, hardware=hardware, parallel={"tensor": 4})
    other, nominal = max(run(resolved, bound).samples.requests.finish_ns), elapsed_ns(resolved)
    assert other < nominal if bound == "optimistic" else other > nominal
