"""The search: every option is ranked or explained, closed forms stay near the simulation, flips are right."""

import datetime
import json
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise

import pytest

from tiercast_plan import search as search_module
from tiercast_plan.answer import answer
from tiercast_plan.estimate import Estimator
from tiercast_plan.flags import launch_flags
from tiercast_plan.fleet import size_fleet
from tiercast_plan.options import Load, placements, tensor_sizes, try_host_scenario
from tiercast_plan.search import Question, mean_tokens, search
from tiercast_plan.sensitivity import break_evens, contenders, label, tornado, winner
from tiercast_plan.steady import one_replica, steady_state
from tiercast_profiles import store
from tiercast_profiles.errors import BadInput
from tiercast_profiles.scenario import Engine, Placement
from tiercast_profiles.workload import Uniform
from tiercast_sim.memory import memory_plan

LOAD = Load(Uniform(uniform=(100, 400)), Uniform(uniform=(50, 150)), "random", Engine(max_num_seqs=64), 0)
QUESTION = Question(
    model=store.load_model("deepseek-v4.1-flash"),
    hardware=(store.load_hardware("h200-sxm"), store.load_hardware("h800-sxm")),
    prices=store.load_prices("default"),
    load=LOAD,
    slo_tpot_ms=40,
    today=datetime.date(2026, 6, 1),
)


@pytest.fixture(scope="module")
def found():
    return search(QUESTION)


def test_every_option_is_ranked_or_explained(found):
    h200 = QUESTION.hardware[0]
    num_options = len(tensor_sizes(h200)) * len(list(placements(h200)))
    explained = [rejection for rejection in found.rejections if rejection.hardware == "h200-sxm"]
    assert len(found.plans) + len(explained) == num_options
    assert all(rejection.reason for rejection in found.rejections)
    no_price = [rejection for rejection in found.rejections if rejection.kind == "no price"]
    assert [rejection.hardware for rejection in no_price] == ["h800-sxm"]


def test_what_does_not_fit_says_by_how_many_bytes(found):
    short = [r for r in found.rejections if r.kind == "memory" and r.tensor == 4 and r.placement.tier == "hbm"]
    assert len(short) == 1
    resolved = try_host_scenario(
        QUESTION.hardware[0], QUESTION.model, QUESTION.prices, LOAD, tensor=4, placement=Placement(tier="hbm")
    )
    assert short[0].shortfall_bytes == memory_plan(resolved).shortfall_bytes > 0


def test_plans_are_ranked_and_keep_the_limit(found):
    costs = [plan.usd_per_mtok for plan in found.plans]
    assert costs == sorted(costs)
    assert all(plan.steady.tpot_ms <= 40 for plan in found.plans)
    best = found.plans[0].cost.usd_per_mtok["total"]
    assert best.low <= best.value <= best.high


def test_closed_forms_are_near_the_simulation(found):
    for plan in found.plans:
        if plan.resolved.placement.tier in ("hbm", "dram"):
            assert plan.estimate.total_tokens_per_s == pytest.approx(plan.steady.total_tokens_per_s, rel=0.08)
            assert plan.estimate.tpot_ms == pytest.approx(plan.steady.tpot_ms, rel=0.15)


def test_a_tighter_limit_means_a_lower_load_or_another_plan(found):
    tight = search(replace(QUESTION, slo_tpot_ms=found.plans[0].steady.tpot_ms * 0.7))
    assert tight.plans[0].usd_per_mtok >= found.plans[0].usd_per_mtok
    assert all(plan.steady.tpot_ms <= found.plans[0].steady.tpot_ms * 0.7 for plan in tight.plans)


def test_more_demand_never_needs_fewer_devices_and_the_cheapest_fleet_is_first():
    fleets = []
    for demand in (10**9, 10**11, 10**13):
        plans = search(replace(QUESTION, demand_tokens_per_day=demand)).plans
        costs = [plan.fleet.usd_per_hour for plan in plans]
        assert costs == sorted(costs)
        assert all(plan.fleet.tokens_per_day >= demand for plan in plans)
        fleets.append({plan.resolved.placement.tier: plan.fleet.num_devices for plan in plans})
    for less, more in pairwise(fleets):
        assert all(less[tier] <= more[tier] for tier in less.keys() & more.keys())


def test_cheaper_memory_never_raises_the_cost_of_the_answer(found):
    prices = QUESTION.prices.model_copy(update={"dram_usd_per_gb": Decimal(4)})
    assert search(replace(QUESTION, prices=prices)).plans[0].usd_per_mtok <= found.plans[0].usd_per_mtok


def test_the_front_falls_in_cost_as_it_rises_in_time(found):
    times = [point.tpot_ms for point in found.pareto]
    costs = [point.usd_per_mtok for point in found.pareto]
    assert times == sorted(times)
    assert costs == sorted(costs, reverse=True)
    for family in found.families:
        for estimate in family.estimates:
            assert any(point.tpot_ms <= estimate.tpot_ms for point in found.pareto)


def test_a_flip_is_where_the_winner_really_changes(found):
    at = {(row.knob, row.direction): row for row in break_evens(QUESTION, found.families)}
    flip = at["TPOT limit", "below"]
    own = label(contenders(QUESTION, found.families)[0])
    for value, is_own in ((flip.value * 1.05, True), (flip.value * 0.95, False)):
        first = winner(replace(QUESTION, slo_tpot_ms=value), found.families)
        assert (first == own) is is_own


def test_the_tornado_is_sorted_and_utilisation_halves_the_cost(found):
    rows = tornado(QUESTION, found.families)
    assert [row.width for row in rows] == sorted((row.width for row in rows), reverse=True)
    use = next(row for row in rows if row.name == "utilisation")
    assert float(use.usd_per_mtok_at_low / use.usd_per_mtok_at_high) == pytest.approx(0.7 / 0.3)


def test_the_tornado_holds_the_overheads_of_the_graph_mode_and_collectives(found):
    names = {row.name for row in tornado(QUESTION, found.families)}
    assert {"overhead of a step, us", "overhead of a layer, us"} <= names
    many = replace(QUESTION, hardware=(store.load_hardware("h200-sxm"),))
    ranks = [family for family in search(many).families if family.resolved.scenario.parallel.tensor > 1]
    assert "latency of a collective, us" in {row.name for row in tornado(many, ranks)}


def test_no_machine_is_no_question():
    with pytest.raises(BadInput, match="no hardware"):
        search(replace(QUESTION, hardware=()))


def test_a_replica_has_its_part_of_what_the_host_shares():
    resolved = try_host_scenario(
        store.load_hardware("mi355x"), QUESTION.model, QUESTION.prices, LOAD, tensor=2, placement=Placement(tier="dram")
    )
    part = one_replica(resolved, 16)
    whole = resolved.hardware
    assert part.scenario.parallel.data == 1
    assert part.hardware.host.memory_bandwidth_gb_per_s.value == whole.host.memory_bandwidth_gb_per_s.value / 4
    assert part.hardware.nvme.read_bandwidth_gb_per_s.value == whole.nvme.read_bandwidth_gb_per_s.value / 4
    assert part.hardware.host_to_device == whole.host_to_device
    alone = steady_state(resolved, 50, 16)
    assert alone.output_tokens_per_s / 4 == pytest.approx(16 / alone.tpot_ms * 1e3, rel=0.1)


def test_more_at_once_is_more_per_second_and_slower_each():
    resolved = try_host_scenario(
        QUESTION.hardware[0], QUESTION.model, QUESTION.prices, LOAD, tensor=8, placement=Placement(tier="dram")
    )
    estimator = Estimator(resolved, *mean_tokens(LOAD))
    found = [estimator.at(size) for size in (1, 4, 16, 64, 256)]
    assert [one.tpot_ms for one in found] == sorted(one.tpot_ms for one in found)
    assert [one.output_tokens_per_s for one in found] == sorted(one.output_tokens_per_s for one in found)


def test_a_fleet_is_whole_hosts():
    def fleet(**asked):
        return size_fleet(
            total_tokens_per_s=1000.0,
            usd_per_host_hour=Decimal("12.80"),
            devices_per_host=8,
            utilization_ratio=0.5,
            **asked,
        )

    assert fleet() == fleet(demand_tokens_per_day=43_200_000)
    assert fleet(demand_tokens_per_day=43_200_001).num_hosts == 2
    ten_trillion = fleet(demand_tokens_per_day=10**13)
    assert ten_trillion.num_hosts == 231_482
    assert ten_trillion.usd_per_hour == 231_482 * Decimal("12.80")
    assert fleet(budget_usd_per_hour=Decimal("26")).num_hosts == 2


def _flags(placement: Placement, tensor: int = 4):
    resolved = try_host_scenario(
        QUESTION.hardware[0], QUESTION.model, QUESTION.prices, LOAD, tensor=tensor, placement=placement
    )
    return {flags.engine: flags for flags in launch_flags(resolved, memory_plan(resolved), 64)}


def _config(flags) -> dict:
    text = next(setting.text for setting in flags.settings if setting.text.startswith("--engram-config"))
    return json.loads(text.removeprefix("--engram-config ").strip("'"))


def test_flags_for_tables_in_host_memory():
    flags = _flags(Placement(tier="dram"))
    assert _config(flags["vllm"]) == {"cpu_offload": True, "dp_shared_memory": True, "use_thp": True}
    assert _config(flags["sglang"]) == {"placement": "cpu", "replication": "per_node", "lookup": "collective"}
    host = "\n".join(setting.text for setting in flags["vllm"].host)
    assert "--shm-size=197g" in host
    assert "memlock=-1" in host
    assert "numactl --interleave=all" in host
    assert any("--data-parallel-size 2" in setting.text for setting in flags["vllm"].settings)


def test_flags_for_tables_in_device_memory():
    flags = _flags(Placement(tier="hbm"), tensor=8)
    assert _config(flags["vllm"]) == {"cpu_offload": False}
    assert _config(flags["sglang"])["placement"] == "gpu"
    assert flags["vllm"].host == ()


def test_a_copy_for_each_node_doubles_shared_memory_and_binds():
    flags = _flags(Placement(tier="dram", replication="per_numa"))
    host = "\n".join(setting.text for setting in flags["vllm"].host)
    assert "--shm-size=386g" in host
    assert "--membind=N" in host
    assert any("LAYOUT=numa_shared" in setting.text for setting in flags["sglang"].settings)


@pytest.mark.parametrize("tier", ["nvme", "pool", "cxl"])
def test_a_tier_without_a_flag_says_so(tier):
    placement = Placement(tier=tier, prefetch="prev_step")
    for flags in _flags(placement).values():
        is_uva = tier == "cxl"
        assert not flags.is_supported, is_uva
        texts = [setting.text for setting in flags.unsupported]
        assert any(f"no released flag for tables in {tier}" in text for text in texts)
        assert any("not a step early" in text for text in texts)


def test_the_report_has_one_row_for_each_machine_and_tier_without_a_plan():
    report = answer(QUESTION)
    keys = [(row.hardware, row.tier) for row in report.why_not]
    assert len(keys) == len(set(keys))
    assert ("h800-sxm", None) in keys
    assert report.plans[0].rank == 1
    assert not report.plans[0].is_calibrated
    assert report.plans[0].is_at_largest_load is (report.plans[0].num_requests_per_replica == 64)
    assert len(report.plans) + len(report.rejections) == report.num_options


def test_an_option_of_the_event_engine_wins_no_place_at_a_load_it_is_not_simulated_at(monkeypatch):
    monkeypatch.setattr(search_module, "MAX_BY_EVENTS", 256)
    large = replace(LOAD, engine=Engine(max_num_seqs=1024))
    report = answer(replace(QUESTION, hardware=QUESTION.hardware[:1], load=large, slo_tpot_ms=None))
    at = {row.placement.tier: row for row in report.plans}
    assert at["cxl"].placement.prefetch == "step_entry"
    assert at["cxl"].num_requests_per_replica > 256
    assert not at["cxl"].is_at_event_limit
    assert at["nvme"].num_requests_per_replica == 256
    assert at["nvme"].is_at_event_limit


def test_a_drive_is_simulated_at_large_loads_and_a_cache_in_front_of_it_at_256():
    large = replace(LOAD, engine=Engine(max_num_seqs=512))
    report = answer(replace(QUESTION, hardware=QUESTION.hardware[:1], load=large, slo_tpot_ms=None, cache_gib=(1.0,)))
    at = {row.placement.cache_gib: row for row in report.plans if row.placement.tier == "nvme"}
    assert (at[0.0].num_requests_per_replica, at[0.0].is_at_event_limit) == (512, False)
    assert (at[1.0].num_requests_per_replica, at[1.0].is_at_event_limit) == (256, True)


@pytest.mark.parametrize(("max_tokens", "is_early"), [(8192, False), (64, True)])
def test_closed_forms_know_a_prompt_early_only_where_its_chunks_or_a_queue_are_seen(max_tokens, is_early):
    load = replace(LOAD, engine=Engine(max_num_seqs=64, max_num_batched_tokens=max_tokens))
    at = {}
    for prefetch in ("step_entry", "prev_step"):
        resolved = try_host_scenario(
            QUESTION.hardware[0],
            QUESTION.model,
            QUESTION.prices,
            load,
            tensor=8,
            placement=Placement(tier="nvme", prefetch=prefetch),
        )
        at[prefetch] = Estimator(resolved, 250, 100).at(32).stall_ms_per_step
    assert (at["prev_step"] < at["step_entry"]) is is_early


@pytest.mark.parametrize("concurrency", [128, 140, 192])
def test_closed_forms_are_near_the_simulation_where_prompts_per_step_are_no_whole_number(concurrency):
    load = replace(LOAD, engine=Engine(max_num_seqs=1024))
    resolved = try_host_scenario(
        QUESTION.hardware[0], QUESTION.model, QUESTION.prices, load, tensor=8, placement=Placement(tier="dram")
    )
    closed = Estimator(resolved, 250, 100).at(concurrency)
    simulated = steady_state(resolved, 90, concurrency)
    assert closed.total_tokens_per_s == pytest.approx(simulated.total_tokens_per_s, rel=0.05)
