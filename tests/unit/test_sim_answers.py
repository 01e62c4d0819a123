"""Answers beside the metrics: time by part, required to hide, busy shared things, the KV chain, load warnings."""

import pytest

from tiercast_profiles.errors import BadInput
from tiercast_profiles.record import Metric, RequestSamples, RunRecord
from tiercast_sim.answers import resources, time_spent
from tiercast_sim.breakdown import apportion
from tiercast_sim.replicates import over_seeds, simulate_replicates, t_quantile
from tiercast_sim.run import run
from tiercast_sim.saturation import open_loop_warnings
from tiercast_sim.simulate import simulate

PLACEMENTS = [
    {"tier": "none"},
    {"tier": "hbm"},
    {"tier": "dram", "path": "uva"},
    {"tier": "nvme", "prefetch": "off"},
    {"tier": "pool", "prefetch": "prev_step"},
]
INTERFERENCE = [{"tier": "dram", "path": "uva", "compute_speed_ratio": 0.5, "lookup_speed_ratio": 0.7}]


def quick(resolved, **keywords):
    return simulate(resolved, **{"with_bounds": False, "with_baselines": False, **keywords}).metrics


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
@pytest.mark.parametrize("parallel", [{"tensor": 1}, {"tensor": 2, "data": 2}], ids=str)
def test_parts_sum_to_the_steps_to_the_nanosecond(sim_scenario, placement, parallel):
    resolved = sim_scenario(placement, parallel=parallel)
    spent, steps = quick(resolved).time_spent, run(resolved, "nominal").samples.steps
    assert spent.total_ns == sum(steps.duration_ns) == sum(part.total_ns for part in spent.parts)
    names = [part.name for part in spent.parts]
    stalls = sum(part.total_ns for part in spent.parts if part.name.startswith("stall layer"))
    assert stalls == sum(steps.stall_ns)
    assert ("gather on device" in names) == (placement["tier"] == "hbm")
    assert ("all-reduce" in names) == (parallel["tensor"] > 1)
    assert ("Engram module" in names) == (placement["tier"] != "none")
    assert "slowed by lookups" not in names


def test_what_lookups_take_from_compute_is_a_part(sim_scenario):
    spent = quick(sim_scenario({"tier": "dram", "path": "uva"}, hardware={"interference": INTERFERENCE})).time_spent
    slowed = next(part for part in spent.parts if part.name == "slowed by lookups")
    assert slowed.total_ns > 0


def test_parts_of_a_step_are_what_the_model_says(sim_scenario):
    """Host overhead of 100 us and a head are paid once a step, whatever else there is."""
    spent = quick(sim_scenario({"tier": "none"})).time_spent
    overhead = next(part for part in spent.parts if part.name == "host overhead")
    assert overhead.mean_ms_per_step.value == pytest.approx(0.1, rel=1e-6)


def test_apportioned_parts_are_whole_and_near():
    assert apportion(10, [1.0, 1.0, 1.0]) == [4, 3, 3]
    assert apportion(0, [0.0, 0.0]) == [0, 0]
    assert sum(apportion(2**62 + 1, [0.1, 0.7, 3e9])) == 2**62 + 1
    with pytest.raises(ValueError, match="cannot divide 3"):
        apportion(3, [0.0])


def test_a_layer_stalls_where_its_lookup_takes_longer_than_it_may(sim_scenario):
    for tier, path in (("dram", "uva"), ("nvme", "disk"), ("pool", "pool")):
        for layer in quick(sim_scenario({"tier": tier, "path": path})).layers:
            excess = layer.service_us.value - layer.required_latency_us.value
            assert layer.stall_us.value == pytest.approx(max(0.0, excess), abs=1e-9)
            assert layer.given_gb_per_s.value > 0


def test_nothing_is_asked_of_a_lookup_where_the_device_gathers_its_own_rows(sim_scenario):
    for layer in quick(sim_scenario({"tier": "hbm"})).layers:
        assert layer.required_latency_us is None
        assert layer.stall_us.value == 0
        assert layer.service_us.value > 0


def test_offers_name_what_every_tier_gives(sim_scenario):
    metrics = quick(sim_scenario({"tier": "dram", "path": "uva"}))
    offers = {(offer.tier, offer.path): offer for offer in metrics.offers}
    assert ("nvme", "disk") in offers
    assert ("hbm", "device") not in offers
    own = offers["dram", "uva"]
    assert own.lookup_us.value == pytest.approx(metrics.layers[0].service_us.value)
    slow = {"device": {"memory_bandwidth_gb_per_s": 0.01}}
    assert quick(sim_scenario({"tier": "dram"}, hardware=slow)).offers[0].hidden_layer_ids == (1, 3)


def test_shared_things_deliver_the_bytes_of_the_lookups(sim_scenario):
    resolved = sim_scenario({"tier": "dram", "path": "uva"}, parallel={"data": 2})
    result = run(resolved, "nominal")
    rows = sum(result.samples.steps.rows_read)
    moved = sum(use.units for name, use in result.shared.items() if name.startswith("dram"))
    assert moved == pytest.approx(rows * 96)  # a row of 66 bytes moves three units of 32
    for use in quick(resolved).resources:
        assert 0 <= use.busy_ratio.value <= 1


def test_a_full_drive_is_said(sim_scenario):
    """Four replicas ask one drive for more reads than it gives."""
    workload = {"kind": "closed_loop", "concurrency": 8, "num_requests": 64}
    workload |= {"prompt_tokens": {"fixed": 32}, "output_tokens": {"fixed": 1}}
    hardware = {"nvme": {"max_reads_per_s": 20_000}}
    resolved = sim_scenario({"tier": "nvme"}, hardware=hardware, parallel={"data": 4}, workload=workload)
    warnings = simulate(resolved, with_baselines=False, with_bounds=False).provenance.warnings
    assert any("nvme reads of host 0 is" in warning and "it limits the run" in warning for warning in warnings)


def requests(waits):
    count = len(waits)
    arrival = tuple(range(0, count * 1000, 1000))
    first = tuple(a + w for a, w in zip(arrival, waits, strict=True))
    return RequestSamples(
        arrival_ns=arrival,
        first_token_ns=first,
        finish_ns=first,
        prompt_tokens=(1,) * count,
        output_tokens=(1,) * count,
    )


def test_load_warnings():
    assert open_loop_warnings(requests([100] * 16)) == []
    assert open_loop_warnings(requests([100, 10_000])) == []
    growing = open_loop_warnings(requests([100 * 3**index for index in range(16)]))
    assert growing[0].startswith("the queue grows")
    assert growing[1].startswith("offered load exceeds capacity")


def test_an_overloaded_engine_warns_and_an_idle_one_does_not(sim_scenario):
    def warnings(rate):
        workload = {
            "kind": "poisson",
            "requests_per_s": rate,
            "num_requests": 64,
            "prompt_tokens": {"fixed": 20},
            "output_tokens": {"fixed": 10},
        }
        resolved = sim_scenario({"tier": "dram"}, workload=workload)
        return simulate(resolved, with_bounds=False, with_baselines=False).provenance.warnings

    assert any("offered load exceeds capacity" in warning for warning in warnings(1e5))
    assert not any("offered load" in warning or "queue" in warning for warning in warnings(1))


def test_the_chain_from_placement_to_throughput(sim_scenario):
    chain = quick(sim_scenario({"tier": "dram", "path": "uva"}), with_baselines=True).kv_chain
    assert chain.hbm_freed_bytes > 0
    assert chain.here.kv_capacity_tokens > chain.in_hbm.kv_capacity_tokens
    assert chain.here.num_requests_in_kv > chain.in_hbm.num_requests_in_kv
    assert 0 < chain.in_hbm.num_decoding_mean <= 4
    assert chain.in_hbm.output_tokens_per_s > 0
    assert quick(sim_scenario({"tier": "none"})).kv_chain is None
    small = {"device": {"memory_capacity_gb": 0.2}}
    big = {"rows_per_head": [900_001] * 3}
    short = quick(sim_scenario({"tier": "dram"}, hardware=small, engram=big), with_baselines=True).kv_chain
    assert short.in_hbm is None


def test_student_t_quantiles():
    """Two-sided 95 % values from the printed tables."""
    known = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 9: 2.26216, 30: 2.04227, 999: 1.96234}
    for degrees, value in known.items():
        assert t_quantile(0.95, degrees) == pytest.approx(value, rel=1e-5)


def test_over_seeds_keeps_chance_and_uncertain_inputs_apart():
    found = over_seeds([9.0, 11.0], Metric(value=9.0, low=8.0, high=12.0, basis="band"))
    half = 12.7062
    assert found.mean == 10
    assert (found.low, found.high) == pytest.approx((10 - half, 10 + half), rel=1e-5)
    assert (found.combined_low, found.combined_high) == pytest.approx((8 - half, 12 + half), rel=1e-5)
    alone = over_seeds([5.0, 5.0, 5.0], Metric(value=5.0))
    assert (alone.low, alone.high, alone.combined_low, alone.combined_high) == (5, 5, 5, 5)


def test_replicates_are_in_the_record(sim_scenario):
    record = simulate_replicates(sim_scenario({"tier": "dram"}), 3)
    found = record.metrics.replicates
    assert found.num_seeds == 3
    throughput = found.metrics["output_tokens_per_s"]
    assert throughput.combined_low <= throughput.low <= throughput.mean <= throughput.high <= throughput.combined_high
    assert throughput.low < throughput.high
    assert "kv_capacity_tokens" not in found.metrics
    assert RunRecord.model_validate_json(record.to_json()) == record
    with pytest.raises(BadInput, match="at least 2"):
        simulate_replicates(sim_scenario({"tier": "dram"}), 1)
    with pytest.raises(BadInput, match="leaves no room"):
        simulate_replicates(sim_scenario({"tier": "dram"}, seed=2**63 - 1), 2)


@pytest.mark.parametrize("placement", PLACEMENTS[:3], ids=str)
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("num_prefill_layers", [6, 4])
def test_arithmetic_and_events_give_the_same_answers(sim_scenario, placement, tensor, num_prefill_layers):
    """The run on columns books the same parts; sums of fractions may differ in their last digit."""
    backbone = {"num_prefill_layers": num_prefill_layers}
    resolved = sim_scenario(placement, parallel={"tensor": tensor}, backbone=backbone)
    events, columns = ({"nominal": run(resolved, "nominal", engine=engine)} for engine in ("events", "arithmetic"))
    ours, theirs = time_spent(resolved, columns), time_spent(resolved, events)
    assert (ours.num_steps, ours.total_ns) == (theirs.num_steps, theirs.total_ns)
    assert [part.name for part in ours.parts] == [part.name for part in theirs.parts]
    for one, other in zip(ours.parts, theirs.parts, strict=True):
        assert abs(one.total_ns - other.total_ns) <= 1
    for one, other in zip(resources(columns), resources(events), strict=True):
        assert (one.name, one.kind) == (other.name, other.kind)
        assert one.busy_ratio.value == pytest.approx(other.busy_ratio.value)
