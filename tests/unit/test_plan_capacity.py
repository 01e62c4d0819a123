"""Does it fit, and by how much not: a result, never an exception."""

import pytest

from tiercast_plan.capacity import Fits, Infeasible, check_capacity
from tiercast_profiles import store
from tiercast_profiles.scenario import ResolvedScenario, Scenario


def _resolved(tier: str, *, tensor=8, hardware="h200-sxm", model="deepseek-v4.1-flash", **changes) -> ResolvedScenario:
    scenario = {
        "schema_version": 1,
        "hardware": hardware,
        "model": model,
        "parallel": {"tensor": tensor},
        "placement": {"tier": tier, **changes.pop("placement", {})},
        "workload": {
            "kind": "closed_loop",
            "concurrency": 4,
            "num_requests": 8,
            "prompt_tokens": {"fixed": 128},
            "output_tokens": {"fixed": 64},
        },
        **changes,
    }
    return store.resolve(Scenario.model_validate(scenario))


def test_eight_h200_hold_v41_either_way_and_offloading_buys_kv():
    in_hbm, in_dram = check_capacity(_resolved("hbm")), check_capacity(_resolved("dram"))
    assert isinstance(in_hbm, Fits)
    assert isinstance(in_dram, Fits)
    freed_bytes = in_hbm.plan.hbm_per_rank["tables"]
    assert freed_bytes == pytest.approx(23.6 * 2**30, rel=1e-3)  # facts: TP8 per rank
    gained = (in_dram.kv_capacity_tokens - in_hbm.kv_capacity_tokens) * in_dram.plan.kv_bytes_per_token_per_rank
    assert gained == pytest.approx(freed_bytes, rel=1e-3)


def test_two_ranks_do_not_hold_it_and_the_shortfall_is_exact():
    verdict = check_capacity(_resolved("hbm", tensor=2))
    assert isinstance(verdict, Infeasible)
    assert verdict.tier == "hbm"
    assert verdict.plan is not None
    block_bytes = int(16 * verdict.plan.kv_bytes_per_token_per_rank)
    needed = sum(verdict.plan.hbm_per_rank.values()) + block_bytes
    assert verdict.shortfall_bytes == needed - verdict.plan.hbm_usable_bytes_per_rank
    assert "weights" in verdict.reason
    assert "per device" in verdict.reason


def test_too_many_copies_for_the_host():
    verdict = check_capacity(_resolved("dram", hardware="gb200", tensor=4, placement={"replication": "per_rank"}))
    assert isinstance(verdict, Fits)  # 4 x 203 GB in 960 GB
    small = _resolved("dram", placement={"replication": "per_rank"})  # 8 x 203 GB in 2,000 GB fits as well
    assert isinstance(check_capacity(small), Fits)
    verdict = check_capacity(small, "pessimistic")  # a host at the low end of its band has 1,000 GB
    assert isinstance(verdict, Infeasible)
    assert verdict.tier == "dram"
    assert verdict.shortfall_bytes == 8 * 202_758_032_400 - 1_000_000_000_000


def test_one_request_larger_than_the_kv_room():
    workload = {
        "kind": "closed_loop",
        "concurrency": 1,
        "num_requests": 1,
        "prompt_tokens": {"fixed": 5_000_000},
        "output_tokens": {"fixed": 10},
    }
    verdict = check_capacity(_resolved("hbm", workload=workload))
    assert isinstance(verdict, Infeasible)
    assert verdict.tier == "hbm"
    assert "one request needs KV for 5000016 tokens" in verdict.reason
    assert verdict.shortfall_bytes > 0
