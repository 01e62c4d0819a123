"""Prefill and decode on separate replicas: who does what, what the KV transfer costs, who holds memory meanwhile."""

import pytest

from tiercast_profiles.errors import BadInput, InfeasibleScenario, MissingCapability
from tiercast_sim.memory import memory_plan
from tiercast_sim.run import run
from tiercast_sim.simulate import simulate

ONE = {
    "kind": "closed_loop",
    "concurrency": 1,
    "num_requests": 1,
    "prompt_tokens": {"fixed": 20},
    "output_tokens": {"fixed": 6},
}
MANY = {
    **ONE,
    "concurrency": 6,
    "num_requests": 40,
    "prompt_tokens": {"uniform": [3, 40]},
    "output_tokens": {"uniform": [1, 12]},
}


def split(sim_scenario, workload=ONE, prefill=1, data=1, placement=None, **sections):
    return sim_scenario(
        placement or {"tier": "dram"},
        workload=workload,
        parallel={"tensor": 1, "data": data, "prefill": prefill},
        **sections,
    )


def test_one_request_by_hand(sim_scenario):
    """Alone it computes as on one replica, and waits once for its KV: latency and 20 tokens × 768 B at 50 GB/s."""
    apart, together = run(split(sim_scenario), "nominal"), run(sim_scenario({"tier": "dram"}, workload=ONE), "nominal")
    transfer_ns = round(3000 + 20 * 768 / 50)
    assert apart.kv_transfer_ns == (transfer_ns,)
    assert apart.samples.requests.first_token_ns == together.samples.requests.first_token_ns
    assert apart.samples.requests.finish_ns[0] == together.samples.requests.finish_ns[0] + transfer_ns
    assert [step.replica for step in apart.steps] == [1] + [0] * 5
    assert [step.duration_ns for step in apart.steps] == [step.duration_ns for step in together.steps]


@pytest.mark.parametrize("reservation", ["full", "on_demand"])
@pytest.mark.parametrize("prefetch", ["off", "step_entry", "prev_step"])
@pytest.mark.parametrize(("prefill", "data"), [(1, 1), (1, 3), (2, 1)])
def test_every_role_does_its_own(sim_scenario, prefill, data, prefetch, reservation):
    engine = {
        "max_num_batched_tokens": 32,
        "max_num_seqs": 8,
        "kv_block_tokens": 4,
        "kv_reservation": reservation,
        "prefix_caching": reservation == "on_demand",
    }
    placement = {"tier": "dram", "prefetch": prefetch}
    result = run(split(sim_scenario, MANY, prefill, data, placement, engine=engine), "nominal")
    requests = result.samples.requests
    assert len(result.kv_transfer_ns) == sum(tokens > 1 for tokens in requests.output_tokens)
    for step in result.steps:
        if step.replica < data:
            assert step.prefill_tokens == 0
        else:
            assert step.decode_sequences == 0
    assert sum(step.prefill_tokens for step in result.steps) == sum(requests.prompt_tokens)
    assert sum(step.decode_sequences for step in result.steps) == sum(tokens - 1 for tokens in requests.output_tokens)
    assert sum(step.rows for step in result.steps) == sum(step.rows_read for step in result.steps)
    assert all(finish >= first for finish, first in zip(requests.finish_ns, requests.first_token_ns, strict=True))


def test_scarce_kv_holds_prompts_back_and_nothing_is_lost(sim_scenario):
    """Room for three requests on each side: the prefill side waits until its KV is fetched."""
    for reservation in ("full", "on_demand"):
        resolved = split(
            sim_scenario,
            {**MANY, "concurrency": 20, "prompt_tokens": {"fixed": 40}, "output_tokens": {"fixed": 60}},
            backbone={"kv_bytes_per_token": 2_300_000},
            engine={
                "max_num_batched_tokens": 64,
                "max_num_seqs": 8,
                "kv_block_tokens": 4,
                "kv_reservation": reservation,
            },
        )
        result = run(resolved, "nominal")
        assert len(result.kv_transfer_ns) == 40
        assert min(result.samples.requests.finish_ns) > 0
        if reservation == "on_demand":  # preempted requests are computed again where they decode
            assert result.counts.preemptions > 0
            assert any(step.prefill_tokens for step in result.steps if step.replica == 0)


def test_transfers_share_a_link(sim_scenario):
    """Two prompts that end in one step leave together, for two replicas: each takes twice its bytes' time."""
    workload = {**ONE, "concurrency": 2, "num_requests": 2, "prompt_tokens": {"fixed": 10}}
    slow = {"device": {"collective": {"bandwidth_gb_per_s": 0.001, "latency_us": 0}}}
    result = run(split(sim_scenario, workload, 1, 2, hardware=slow), "nominal")
    alone_ns = 10 * 768 * 1000
    assert result.kv_transfer_ns == pytest.approx((2 * alone_ns, 2 * alone_ns), rel=1e-6)
    assert result.shared["KV out of replica 2"].units == pytest.approx(2 * 10 * 768)


def test_memory_by_role(sim_scenario):
    """Decoding needs no activations for chunks of prompts, so that more KV fits; bytes of both roles add up."""
    plan = memory_plan(split(sim_scenario, data=2))
    assert plan.prefill is not None
    assert plan.hbm_per_rank["activations"] < plan.prefill.hbm_per_rank["activations"]
    assert plan.kv_capacity_tokens > plan.prefill.kv_capacity_tokens
    assert plan.num_ranks == 3
    hbm = 2 * sum(plan.hbm_per_rank.values()) + sum(plan.prefill.hbm_per_rank.values())
    assert plan.total_bytes()["hbm"] == hbm
    assert plan.total_kv_capacity_tokens == 2 * plan.kv_capacity_tokens + plan.prefill.kv_capacity_tokens


def test_what_a_record_says(sim_scenario):
    record = simulate(split(sim_scenario, MANY))
    assert record.metrics.kv_transfer_ms.value > 0
    assert {"KV into replica 0", "KV out of replica 1"} <= {use.name for use in record.metrics.resources}
    assert simulate(sim_scenario({"tier": "dram"})).metrics.kv_transfer_ms is None


def test_what_cannot_be_split_is_refused(sim_scenario):
    with pytest.raises(BadInput, match=r"parallel\.prefill=2 and data=3 with tensor=1 exceed the 4 devices"):
        split(sim_scenario, prefill=2, data=3)
    with pytest.raises(MissingCapability, match="does not have; set prefill to 0"):
        split(sim_scenario, hardware={"device": {"collective": None}})
    with pytest.raises(InfeasibleScenario):
        run(split(sim_scenario, {**ONE, "prompt_tokens": {"fixed": 9_000_000}}), "nominal")
