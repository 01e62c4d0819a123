"""The whole prediction: the record, its intervals, its warnings, and that every knob moves something."""

import ast
from importlib import resources

import pytest

from tiercast_profiles.errors import BadInput, InfeasibleScenario, MissingCapability
from tiercast_profiles.record import RunRecord
from tiercast_profiles.scenario import Scenario, combine
from tiercast_profiles.store import load_hardware, load_model, load_prices
from tiercast_sim.baselines import as_experts
from tiercast_sim.run import run
from tiercast_sim.run_summary import median_decode_step
from tiercast_sim.simulate import simulate

CLOSED = {
    "kind": "closed_loop",
    "concurrency": 4,
    "num_requests": 12,
    "prompt_tokens": {"uniform": [3, 40]},
    "output_tokens": {"uniform": [2, 12]},
    "text": "random",
}


def quick(resolved):
    return simulate(resolved, with_baselines=False, with_bounds=False)


@pytest.fixture(scope="module")
def record(sim_scenario):
    hardware = {"host": {"random_access_ratio": {"value": 0.5, "low": 0.02, "high": 0.9}}}
    hardware["device"] = {"memory_efficiency_ratio": {"value": 0.8, "low": 0.4, "high": 0.9}}
    return simulate(sim_scenario({"tier": "dram"}, hardware=hardware, parallel={"tensor": 2, "data": 2}))


def test_record_is_whole_and_reads_back(record):
    assert record.kind == "simulated"
    assert RunRecord.model_validate_json(record.to_json()) == record
    requests = record.samples.requests
    assert len(requests.finish_ns) == 10
    for arrival, first, finish in zip(requests.arrival_ns, requests.first_token_ns, requests.finish_ns, strict=True):
        assert 0 <= arrival < first <= finish
    assert record.metrics.rows_per_token == 12
    assert record.provenance.hardware_calibration == "datasheet"
    assert record.provenance.facts["compute"] == "roofline"


def test_every_predicted_number_has_an_interval_that_holds_it(record):
    metrics = record.metrics
    ttft, tpot, step = metrics.ttft_ms, metrics.tpot_ms, metrics.step_ms
    singles = [metrics.output_tokens_per_s, metrics.total_tokens_per_s, metrics.stall_ms_per_step]
    singles += [metrics.lookup_ms_per_step, metrics.hidden_ratio, metrics.kv_capacity_tokens]
    singles += [quantile for group in (ttft, tpot, step) for quantile in (group.p50, group.p90, group.p99)]
    singles += list(metrics.penalty_ratio.values())
    singles += [window.stall_us for window in metrics.layers]
    for metric in singles:
        assert metric.basis == "band"
        assert metric.low <= metric.value <= metric.high
    assert metrics.output_tokens_per_s.low < metrics.output_tokens_per_s.high


def test_penalties_are_against_every_baseline(record, sim_scenario):
    assert sorted(record.metrics.penalty_ratio) == ["hbm", "moe_offload", "no_engram"]
    assert record.metrics.penalty_ratio["no_engram"].value >= record.metrics.penalty_ratio["hbm"].value
    assert sorted(simulate(sim_scenario({"tier": "hbm"})).metrics.penalty_ratio) == ["no_engram"]
    assert simulate(sim_scenario({"tier": "none"})).metrics.penalty_ratio == {}


def test_a_penalty_is_one_less_the_ratio_of_throughputs(sim_scenario):
    with_tables, without = (
        simulate(sim_scenario({"tier": tier}), with_bounds=False).metrics for tier in ("nvme", "none")
    )
    ratio = with_tables.output_tokens_per_s.value / without.output_tokens_per_s.value
    assert with_tables.penalty_ratio["no_engram"].value == pytest.approx(1 - ratio)
    assert with_tables.penalty_ratio["no_engram"].basis == "point"


def test_a_baseline_that_does_not_fit_is_named_not_faked(sim_scenario):
    resolved = sim_scenario(
        {"tier": "dram"}, hardware={"device": {"memory_capacity_gb": 0.2}}, engram={"rows_per_head": [900_001] * 3}
    )
    record = simulate(resolved, with_bounds=False)
    assert sorted(record.metrics.penalty_ratio) == ["moe_offload", "no_engram"]
    assert any(warning.startswith("no penalty against hbm:") for warning in record.provenance.warnings)


def test_offloading_that_buys_batch_can_beat_hbm(sim_scenario):
    """Tables in HBM leave room for few sequences; offloaded ones leave room for many."""
    resolved = sim_scenario(
        {"tier": "dram"},
        hardware={"device": {"memory_capacity_gb": 0.2, "memory_reserve_gb": 0.01}},
        engram={"rows_per_head": [200_001] * 3},
        backbone={"kv_bytes_per_token": 76_800},
        workload={**CLOSED, "concurrency": 12, "num_requests": 24},
        engine={"max_num_batched_tokens": 64, "max_num_seqs": 12, "kv_block_tokens": 4},
    )
    metrics = simulate(resolved, with_bounds=False).metrics
    assert metrics.penalty_ratio["hbm"].value < -0.05


def test_device_path_reports_its_gather_as_compute(sim_scenario):
    metrics = quick(sim_scenario({"tier": "hbm"})).metrics
    assert metrics.stall_ms_per_step.value == 0
    assert metrics.lookup_ms_per_step.value > 0
    assert metrics.hidden_ratio is None
    assert [window.stall_us.value for window in metrics.layers] == [0, 0]


def test_no_engram_has_no_rows(sim_scenario):
    metrics = quick(sim_scenario({"tier": "none"})).metrics
    assert (metrics.rows_per_token, metrics.unique_row_ratio, metrics.layers) == (0, None, ())
    assert metrics.lookup_ms_per_step.value == 0


def test_layer_windows_say_what_a_median_decode_step_needs(sim_scenario):
    resolved = sim_scenario({"tier": "dram", "path": "uva"})
    step = median_decode_step(run(resolved, "nominal").steps)
    assert step.prefill_tokens == 0
    first, second = quick(resolved).metrics.layers
    assert (first.layer_id, second.layer_id) == (1, 3)
    assert 0 < first.window_us.value < second.window_us.value
    rows = step.decode_sequences * 6
    assert first.required_gb_per_s.value == pytest.approx(rows * 66 / first.window_us.value / 1000)
    assert second.lookup_us.value == pytest.approx(2 * first.lookup_us.value)  # it queues behind the first


def test_spans_fill_the_lanes_the_runtime_writes(record, sim_scenario):
    spans = quick(sim_scenario({"tier": "nvme"})).spans
    lanes = {span.lane for span in spans}
    assert {"step", "compute", "lookup layer 1", "lookup layer 3", "stall layer 1"} <= lanes
    assert spans[0].name.startswith("step 0: ")
    assert {span.lane.split(" ")[0] for span in record.spans} == {"replica"}


def test_samples_can_be_left_out(sim_scenario):
    record = simulate(sim_scenario({"tier": "dram"}), with_baselines=False, with_bounds=False, keep_samples=False)
    assert record.samples is None
    assert record.spans == ()


def test_warnings_tell_what_a_number_rests_on(sim_scenario):
    resolved = sim_scenario({"tier": "dram", "path": "uva"}, speculative={"draft_tokens": 2})
    warnings = quick(resolved).provenance.warnings
    assert "path uva of test-gpu is uncalibrated: its lookup times are a band, not a measurement" in warnings
    assert "interference not measured for dram/uva: taken as none" in warnings
    assert any("drafts take no time" in warning for warning in warnings)
    measured = {"num_rows": 4, "row_bytes": 66, "footprint_bytes": 1000, "time_us": 11, "low_us": 10, "high_us": 12}
    lookups = [curve.model_dump() for curve in resolved.hardware.lookups]
    lookups[1] |= {"is_calibrated": True, "points": [measured]}
    narrow = quick(sim_scenario({"tier": "dram", "path": "uva"}, hardware={"lookups": lookups})).provenance.warnings
    assert any("measured up to 4: extended by its parameters" in warning for warning in narrow)
    assert any("address translation may cost more" in warning for warning in narrow)


def test_an_end_of_the_bands_that_does_not_fit_is_said(sim_scenario):
    hardware = {"host": {"memory_capacity_gb": {"value": 4, "low": 0.0001, "high": 5}}}
    record = simulate(sim_scenario({"tier": "dram"}, hardware=hardware), with_baselines=False)
    assert any("at the pessimistic end of the bands it does not fit" in w for w in record.provenance.warnings)


def test_a_row_width_band_is_run_at_both_ends(sim_scenario):
    resolved = sim_scenario({"tier": "dram", "path": "uva"})
    model = resolved.model.model_copy(update={"row_values_band": (32, 512)})
    metrics = simulate(resolved.model_copy(update={"model": model}), with_baselines=False).metrics
    lookup = metrics.lookup_ms_per_step
    assert lookup.low < lookup.value < lookup.high


def test_experts_cannot_be_prefetched(sim_scenario):
    resolved = sim_scenario({"tier": "dram"})
    assert quick(as_experts(resolved)).metrics.stall_ms_per_step.value > quick(resolved).metrics.stall_ms_per_step.value


def test_the_penalty_against_experts_is_what_prefetch_is_worth(sim_scenario):
    ahead, late = (
        simulate(sim_scenario({"tier": "nvme", "prefetch": prefetch}), with_bounds=False).metrics
        for prefetch in ("step_entry", "off")
    )
    ratio = ahead.output_tokens_per_s.value / late.output_tokens_per_s.value
    assert ahead.penalty_ratio["moe_offload"].value == pytest.approx(1 - ratio)
    assert ahead.penalty_ratio["moe_offload"].value < 0
    assert "moe_offload" not in late.penalty_ratio, "without prefetch it would be compared with itself"


def test_infeasible_scenarios_say_by_how_much(sim_scenario):
    with pytest.raises(InfeasibleScenario, match="tier 'nvme' is short") as error:
        simulate(sim_scenario({"tier": "nvme"}, hardware={"nvme": {"capacity_gb": 0.0001}}))
    assert error.value.shortfall_bytes > 0
    long = {**CLOSED, "prompt_tokens": {"fixed": 5_000_000}}
    with pytest.raises(InfeasibleScenario, match="KV tokens") as error:
        simulate(sim_scenario({"tier": "dram"}, workload=long))
    assert error.value.shortfall_bytes > 0


@pytest.mark.parametrize(
    ("hardware", "message"),
    [
        ({"host": {"memory_bandwidth_gb_per_s": 0}}, "host.memory_bandwidth_gb_per_s=0"),
        ({"host": {"random_access_ratio": 1.5}}, "host.random_access_ratio=1.5"),
        ({"host": {"remote_numa_speed_ratio": 0}}, "host.remote_numa_speed_ratio=0"),
        ({"host_to_device": {"bandwidth_gb_per_s": -3}}, "host_to_device.bandwidth_gb_per_s=-3"),
        ({"device": {"matmul_efficiency_ratio": 0}}, "device.matmul_efficiency_ratio=0"),
        ({"device": {"memory_reserve_gb": -1}}, "device.memory_reserve_gb=-1"),
    ],
)
def test_numbers_a_machine_cannot_have(sim_scenario, hardware, message):
    with pytest.raises(BadInput, match=message):
        quick(sim_scenario({"tier": "dram"}, hardware=hardware))


def test_a_bad_interference_ratio_is_refused(sim_scenario):
    entry = {"tier": "dram", "path": "uva", "compute_speed_ratio": 0, "lookup_speed_ratio": 1}
    with pytest.raises(BadInput, match="interference dram/uva compute_speed_ratio=0"):
        quick(sim_scenario({"tier": "dram"}, hardware={"interference": [entry]}))


def test_tiers_the_machine_lacks_are_missing_capabilities(sim_scenario):
    with pytest.raises(MissingCapability, match="no tier 'nvme'"):
        quick(sim_scenario({"tier": "nvme"}, hardware={"nvme": None}))
    without = [curve for curve in sim_scenario({"tier": "none"}).hardware.lookups if curve.tier != "hbm"]
    lookups = [curve.model_dump() for curve in without]
    with pytest.raises(MissingCapability, match="needs a curve for hbm/device"):
        quick(sim_scenario({"tier": "dram", "cache_gib": 0.01}, hardware={"lookups": lookups}))
    record = simulate(sim_scenario({"tier": "dram"}, hardware={"lookups": lookups}), with_bounds=False)
    assert sorted(record.metrics.penalty_ratio) == ["moe_offload", "no_engram"]


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_extreme_machines_still_give_whole_nanoseconds(sim_scenario, scale):
    hardware = {"device": {"memory_bandwidth_gb_per_s": 100 * scale}, "host": {"memory_bandwidth_gb_per_s": 40 * scale}}
    steps = quick(sim_scenario({"tier": "dram"}, hardware=hardware, parallel={"data": 2})).samples.steps
    assert all(duration > 0 for duration in steps.duration_ns)


BASE = {
    "placement": {"tier": "nvme", "prefetch": "step_entry"},
    "workload": {**CLOSED, "text": "random"},
    "engine": {
        "max_num_batched_tokens": 32,
        "max_num_seqs": 8,
        "kv_block_tokens": 4,
        "memory_utilization_ratio": 0.9,
    },
    "speculative": {"draft_tokens": 1, "acceptance_ratio": 0.7},
    "parallel": {"tensor": 1, "data": 1},
    "seed": 0,
}


def knob(path, value, base=None):
    """``BASE`` with one dotted field changed."""
    sections = {key: dict(part) if isinstance(part, dict) else part for key, part in {**BASE, **(base or {})}.items()}
    section, _, field = path.partition(".")
    if field:
        sections[section][field] = value
    else:
        sections[section] = value
    return sections


DRAM = {"placement": {"tier": "dram", "path": "uva", "prefetch": "step_entry", "replication": "per_node"}}
POISSON = {
    "workload": {**{k: v for k, v in CLOSED.items() if k != "concurrency"}, "kind": "poisson", "requests_per_s": 100.0}
}
KNOBS = [
    ("placement.tier", "pool", {}),
    ("placement.path", "cpu_gather", DRAM),
    ("placement.prefetch", "off", {}),
    ("placement.prefetch", "prev_step", {}),
    ("placement.replication", "per_numa", DRAM),
    ("placement.replication", "per_rank", {**DRAM, "parallel": {"tensor": 2, "data": 1}}),
    ("placement.replication", "none", {**DRAM, "parallel": {"tensor": 1, "data": 2}}),
    ("placement.row_layout", "padded", {}),
    ("placement.row_layout", "split", {}),
    ("placement.cache_gib", 0.01, {}),
    ("placement.graph_mode", "eager", {}),
    ("workload.concurrency", 2, {}),
    ("workload.num_requests", 20, {}),
    ("workload.prompt_tokens", {"fixed": 30}, {}),
    ("workload.output_tokens", {"fixed": 9}, {}),
    ("workload.requests_per_s", 900.0, POISSON),
    ("engine.max_num_seqs", 2, {}),
    ("engine.max_num_batched_tokens", 12, {}),
    ("engine.kv_block_tokens", 64, {}),
    ("engine.memory_utilization_ratio", 0.5, {}),
    ("speculative.draft_tokens", 3, {}),
    ("speculative.acceptance_ratio", 0.1, {}),
    ("parallel.tensor", 2, {}),
    ("parallel.data", 2, {}),
    ("seed", 7, {}),
]


@pytest.mark.parametrize(("path", "value", "base"), KNOBS, ids=[f"{path}={value}" for path, value, _ in KNOBS])
def test_every_knob_moves_a_metric(sim_scenario, path, value, base):
    section, _, field = path.partition(".")
    before = {**BASE, **base}
    assert (before[section].get(field) if field else before[section]) != value, "the knob must turn"

    def metrics(sections):
        sections = dict(sections)
        return quick(sim_scenario(sections.pop("placement"), **sections)).metrics

    assert metrics(before) != metrics(knob(path, value, base))


@pytest.mark.parametrize(
    "hardware",
    [
        {"device": {"memory_bandwidth_gb_per_s": 200}},
        {"device": {"memory_efficiency_ratio": 0.7}},
        {"device": {"memory_capacity_gb": 2}},
        {"device": {"memory_reserve_gb": 0.2}},
        {"device": {"dense_tflops": {"fp32": 0.01}}},
        {"device": {"matmul_efficiency_ratio": 0.001}},
        {"device": {"layer_overhead_us": {"full": 9}}},
        {"device": {"step_overhead_us": {"full": 9}}},
        {"device": {"collective": {"latency_us": 30}}},
        {"device": {"collective": {"bandwidth_gb_per_s": 0.1}}},
        {"host": {"memory_bandwidth_gb_per_s": 0.1}},
        {"host": {"random_access_ratio": 0.001}},
        {"host": {"remote_numa_speed_ratio": 0.9}},
        {"host": {"num_numa_nodes": 1}},
        {"host_to_device": {"bandwidth_gb_per_s": 0.01, "num_sharing": 2}},
        {"interference": [{"tier": "dram", "path": "uva", "compute_speed_ratio": 0.8, "lookup_speed_ratio": 0.7}]},
    ],
    ids=str,
)
def test_every_machine_number_moves_a_metric(sim_scenario, hardware):
    parallel = {"tensor": 2, "data": 2}
    before = quick(sim_scenario({"tier": "dram", "path": "uva"}, parallel=parallel)).metrics
    after = quick(sim_scenario({"tier": "dram", "path": "uva"}, hardware=hardware, parallel=parallel)).metrics
    assert before != after


@pytest.mark.parametrize(
    "hardware",
    [
        {"nvme": {"read_bandwidth_gb_per_s": 0.01}},
        {"nvme": {"max_reads_per_s": 1000}},
        {"nvme": {"read_granularity_bytes": 65536}},
        {"device_to_host": {"latency_us": 500}},
        {"host_to_device": {"latency_us": 500}},
    ],
    ids=str,
)
def test_every_drive_number_moves_a_metric(sim_scenario, hardware):
    parallel = {"tensor": 2, "data": 2}
    before = quick(sim_scenario({"tier": "nvme"}, parallel=parallel)).metrics
    after = quick(sim_scenario({"tier": "nvme"}, hardware=hardware, parallel=parallel)).metrics
    assert before != after


def test_the_model_reads_no_clock_and_draws_from_no_hidden_stream():
    """INV-11: wall-clock time leaking into simulated time was a real bug elsewhere."""
    forbidden = {"time", "datetime", "random", "os", "secrets", "uuid"}
    for file in resources.files("tiercast_sim").iterdir():
        if not file.name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not forbidden & {name.split(".")[0] for name in names}, file.name


def test_shipped_machine_and_model_rank_the_tiers():
    """DeepSeek-V4.1-Flash on eight H200: DRAM close to HBM, one drive clearly behind, offloading buys KV room."""
    found = {}
    for tier in ("hbm", "dram", "nvme"):
        scenario = Scenario.model_validate(
            {
                "schema_version": 1,
                "hardware": "h200-sxm",
                "model": "deepseek-v4.1-flash",
                "parallel": {"tensor": 8},
                "placement": {"tier": tier},
                "workload": {**CLOSED, "concurrency": 32, "num_requests": 64, "prompt_tokens": {"fixed": 300}},
            }
        )
        documents = load_hardware(scenario.hardware), load_model(scenario.model), load_prices("default")
        found[tier] = quick(combine(scenario, *documents)).metrics
    throughput = {tier: metrics.output_tokens_per_s.value for tier, metrics in found.items()}
    assert throughput["dram"] == pytest.approx(throughput["hbm"], rel=0.05)
    assert throughput["nvme"] < throughput["dram"]
    freed = found["dram"].kv_capacity_tokens.value - found["hbm"].kv_capacity_tokens.value
    assert freed == pytest.approx(202_758_032_400 / 8 / 26_760, rel=0.001)
