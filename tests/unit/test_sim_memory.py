"""What lives where, and what is left for KV."""

import pytest

from tiercast_profiles.errors import BadInput, InfeasibleScenario
from tiercast_profiles.head_sizes import table_rows
from tiercast_sim.memory import memory_plan, require_fit


def test_tables_move_from_hbm_to_dram_and_kv_takes_their_room(sim_scenario):
    resident, offloaded = (memory_plan(sim_scenario({"tier": tier})) for tier in ("hbm", "dram"))
    one_copy = sum(table_rows(sim_scenario({"tier": "hbm"}).model.engram)) * 66
    assert resident.table_bytes == offloaded.table_bytes == one_copy
    assert resident.hbm_per_rank["tables"] == one_copy
    assert offloaded.hbm_per_rank["tables"] == 0
    assert offloaded.per_host == {"dram": ({"tables": one_copy},)}
    gained = offloaded.kv_capacity_tokens - resident.kv_capacity_tokens
    assert gained == pytest.approx(one_copy / 768, abs=4)


def test_kv_room_is_usable_memory_less_every_piece_in_whole_blocks(sim_scenario):
    plan = memory_plan(sim_scenario({"tier": "none"}))
    room = int(1e9 * 0.9) - sum(plan.hbm_per_rank.values())
    assert plan.hbm_per_rank["reserve"] == 100_000_000
    assert plan.hbm_per_rank["weights"] == 200_000
    assert plan.kv_room_bytes_per_rank == room
    assert plan.kv_capacity_tokens == room // 768 // 4 * 4
    assert plan.per_host == {}


def test_ranks_share_weights_tables_and_kv_heads(sim_scenario):
    plan = memory_plan(sim_scenario({"tier": "hbm"}, parallel={"tensor": 4}))
    assert plan.hbm_per_rank["weights"] == 50_000
    assert plan.hbm_per_rank["tables"] == -(-plan.table_bytes // 4)
    assert plan.kv_bytes_per_token_per_rank == 768 / 2  # two KV heads cannot be split four ways
    assert plan.total_bytes()["hbm"] == 4 * sum(plan.hbm_per_rank.values())


@pytest.mark.parametrize(("replication", "copies"), [("none", 2), ("per_rank", 4), ("per_numa", 2), ("per_node", 1)])
def test_replication_counts_copies_per_host(sim_scenario, replication, copies):
    resolved = sim_scenario({"tier": "dram", "replication": replication}, parallel={"tensor": 2, "data": 2})
    plan = memory_plan(resolved)
    assert plan.total_bytes()["dram"] == copies * plan.table_bytes


def test_more_replicas_than_a_host_carries_take_more_hosts(sim_scenario):
    plan = memory_plan(sim_scenario({"tier": "dram"}, parallel={"tensor": 2, "data": 5}))
    assert plan.num_hosts == 3
    assert [pieces["tables"] for pieces in plan.per_host["dram"]] == [plan.table_bytes] * 3
    pool = memory_plan(sim_scenario({"tier": "pool"}, parallel={"tensor": 2, "data": 5}))
    assert [pieces["tables"] for pieces in pool.per_host["pool"]] == [pool.table_bytes, 0, 0]
    assert plan.total_kv_capacity_tokens == 5 * plan.kv_capacity_tokens


def test_host_driven_paths_stage_in_dram(sim_scenario):
    plan = memory_plan(sim_scenario({"tier": "nvme"}))
    staged = 32 * 6 * 66 * 2  # tokens of the largest step × rows × bytes × layers
    assert plan.hbm_per_rank["staging"] == staged
    assert plan.per_host["dram"] == ({"staging": staged},)
    early = memory_plan(sim_scenario({"tier": "nvme", "prefetch": "prev_step"}))
    assert early.hbm_per_rank["staging"] == 2 * staged


def test_a_cache_takes_hbm(sim_scenario):
    plan = memory_plan(sim_scenario({"tier": "dram", "cache_gib": 0.25}))
    assert plan.hbm_per_rank["cache"] == 2**28


def test_the_cache_of_a_host_driven_path_takes_dram(sim_scenario):
    resolved = sim_scenario({"tier": "nvme", "cache_gib": 0.25}, parallel={"tensor": 2})
    plan, without = memory_plan(resolved), memory_plan(sim_scenario({"tier": "nvme"}, parallel={"tensor": 2}))
    assert plan.hbm_per_rank == without.hbm_per_rank
    assert plan.per_host["dram"] == ({**without.per_host["dram"][0], "cache": 2 * 2**28},)


def test_padded_rows_take_more(sim_scenario):
    packed, padded = (
        memory_plan(sim_scenario({"tier": "dram", "row_layout": layout})) for layout in ("packed", "padded")
    )
    assert padded.table_bytes * 66 == packed.table_bytes * 128


def test_too_little_hbm_names_the_tier_and_the_bytes(sim_scenario):
    resolved = sim_scenario(
        {"tier": "hbm"}, hardware={"device": {"memory_capacity_gb": 0.2}}, engram={"rows_per_head": [900_001] * 3}
    )
    plan = memory_plan(resolved)
    assert not plan.fits
    assert plan.short_tier == "hbm"
    assert plan.kv_capacity_tokens == 0
    missing = sum(plan.hbm_per_rank.values()) - int(0.2e9 * 0.9) + 4 * 768
    assert plan.shortfall_bytes == missing
    with pytest.raises(InfeasibleScenario, match="tier 'hbm' is short of") as error:
        require_fit(resolved, plan)
    assert error.value.shortfall_bytes == missing


def test_too_little_dram_names_the_tier_and_the_bytes(sim_scenario):
    hardware = {"host": {"memory_capacity_gb": 0.001}}
    plan = memory_plan(sim_scenario({"tier": "dram"}, hardware=hardware))
    assert (plan.short_tier, plan.shortfall_bytes) == ("dram", plan.table_bytes - 1_000_000)


def test_one_memory_is_counted_once_where_host_and_device_share_it(sim_scenario):
    separate = memory_plan(sim_scenario({"tier": "dram"}))
    unified = memory_plan(sim_scenario({"tier": "dram"}, hardware={"device": {"has_unified_memory": True}}))
    lost = separate.kv_capacity_tokens - unified.kv_capacity_tokens
    assert lost == pytest.approx(separate.table_bytes / 768, abs=4)


def test_a_band_of_kv_bytes_is_a_band_of_capacity(sim_scenario):
    resolved = sim_scenario({"tier": "none"}, backbone={"kv_bytes_per_token": {"value": 768, "low": 384, "high": 1536}})
    low, middle, high = (memory_plan(resolved, b).kv_capacity_tokens for b in ("pessimistic", "nominal", "optimistic"))
    assert low == pytest.approx(middle / 2, abs=4)
    assert high == pytest.approx(middle * 2, abs=8)


def test_a_capacity_of_zero_is_refused(sim_scenario):
    with pytest.raises(BadInput, match="memory_capacity_gb=0"):
        memory_plan(sim_scenario({"tier": "none"}, hardware={"device": {"memory_capacity_gb": 0}}))
