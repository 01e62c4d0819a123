"""Rows of a drive in the page cache: hand-worked times, what they take of shared things, memory, and warming up."""

import math

import pytest
from pydantic import ValidationError

from tiercast_profiles.errors import InfeasibleScenario, MissingCapability
from tiercast_sim.memory import memory_plan, table_bytes
from tiercast_sim.page_cache import PartlyResident
from tiercast_sim.simulate import simulate
from tiercast_sim.tiers import LookupCosts


def nvme(sim_scenario, ratio, **changes):
    return sim_scenario({"tier": "nvme", "page_cache_residency_ratio": ratio}, **changes)


def times(sim_scenario, ratio):
    costs = LookupCosts(nvme(sim_scenario, ratio), "nominal", 0)
    return PartlyResident(nvme(sim_scenario, ratio), "nominal", costs.curve, costs.footprint_bytes)


def test_none_resident_is_the_drive_and_all_resident_the_memory(sim_scenario):
    assert times(sim_scenario, 0).time_ns(10, (66,)) == 90_000 + 10 * 2500
    assert times(sim_scenario, 1).time_ns(10, (66,)) == 25_000 + 10 * 16  # two lines of 64 B at 8 B/ns
    assert times(sim_scenario, 0.5).time_ns(0, (66,)) == 0


def test_half_resident_by_hand(sim_scenario):
    """Ten rows miss altogether with chance 1 − 2^-10, five of them on average; the other five are gathered."""
    some = 1 - 0.5**10
    by_hand = some * 90_000 + 5 * 2500 + (1 - some) * 25_000 + 5 * 16
    assert times(sim_scenario, 0.5).time_ns(10, (66,)) == pytest.approx(by_hand)


def test_more_resident_is_never_slower(sim_scenario):
    for num_rows in (1, 7, 400):
        found = [times(sim_scenario, ratio / 20).time_ns(num_rows, (66,)) for ratio in range(21)]
        assert found == sorted(found, reverse=True)


def test_only_what_is_missing_takes_of_the_drive(sim_scenario):
    def usage(ratio):
        work = LookupCosts(nvme(sim_scenario, ratio), "nominal", 0).lookup(600, 0, 0)
        return {name: units * work.duration_ns / 1e9 for name, units in work.usage}

    cold, warm = usage(0), usage(0.75)
    assert cold["nvme of host 0"] == pytest.approx(600 * 512)
    assert warm["nvme of host 0"] == pytest.approx(150 * 512)
    assert warm["nvme reads of host 0"] == pytest.approx(150)
    assert warm["dram of host 0"] == pytest.approx(450 * 128)
    assert "dram of host 0" not in cold
    assert usage(1)["nvme of host 0"] == 0


def test_resident_pages_take_host_memory(sim_scenario):
    resolved = nvme(sim_scenario, 0.25)
    plan = memory_plan(resolved)
    assert plan.per_host["dram"][0]["page_cache"] == math.ceil(table_bytes(resolved) / 4)
    small = {"host": {"memory_capacity_gb": 0.001}}
    with pytest.raises(InfeasibleScenario, match="dram"):
        simulate(nvme(sim_scenario, 1.0, hardware=small))


def test_the_record_shows_cold_beside_warm_and_the_way_between(sim_scenario):
    metrics = simulate(nvme(sim_scenario, 0.5), with_baselines=False).metrics
    cold = simulate(nvme(sim_scenario, 0), with_baselines=False)
    found = metrics.page_cache
    assert found.cold_output_tokens_per_s == cold.metrics.output_tokens_per_s
    assert found.warm_output_tokens_per_s == metrics.output_tokens_per_s
    assert found.warm_output_tokens_per_s.value > found.cold_output_tokens_per_s.value
    size = math.ceil(table_bytes(nvme(sim_scenario, 0.5)) / 2)
    assert found.host_resident_bytes == size
    assert found.read_ahead_s.value == pytest.approx(size / 5e9)
    seconds = max(cold.samples.requests.finish_ns) / 1e9
    reads_per_s = sum(cold.samples.steps.rows_read) / seconds
    assert found.by_traffic_s.value == pytest.approx(math.log(2) * 2 * size / 4096 / reads_per_s)
    assert cold.metrics.page_cache is None
    assert simulate(nvme(sim_scenario, 1), with_baselines=False).metrics.page_cache.by_traffic_s is None


def test_residency_is_about_a_drive(sim_scenario):
    with pytest.raises(ValidationError, match="rows of a drive"):
        sim_scenario({"tier": "dram", "page_cache_residency_ratio": 0.1})
    for ratio in (-0.1, 1.1, math.nan):
        with pytest.raises(ValidationError):
            nvme(sim_scenario, ratio)


def test_memory_without_a_curve_is_not_guessed(sim_scenario):
    resolved = nvme(sim_scenario, 0.5)
    curves = tuple(curve for curve in resolved.hardware.lookups if curve.path != "cpu_gather")
    lacking = resolved.model_copy(update={"hardware": resolved.hardware.model_copy(update={"lookups": curves})})
    with pytest.raises(MissingCapability, match="cpu_gather"):
        simulate(lacking)


def test_slow_reads_are_those_of_the_drive(sim_scenario):
    tail = {"nvme": {"latency_tail": [{"read_ratio": 0.9, "latency_us": 5000}]}}
    cold, warm = (simulate(nvme(sim_scenario, ratio, hardware=tail), with_baselines=False) for ratio in (0, 1))
    assert cold.metrics.lookup_ms_per_step.value > 5
    assert warm.metrics.lookup_ms_per_step.value < 1
