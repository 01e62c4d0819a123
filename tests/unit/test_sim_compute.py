"""Compute times: the machine's own table where it fits, a roofline elsewhere."""

import pytest

from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.hardware import ComputeTable
from tiercast_profiles.workload import Request
from tiercast_sim.compute import ComputeModel, find_table, is_of_shape
from tiercast_sim.compute_table import TableTimes, interpolate
from tiercast_sim.roofline import Roofline, layer_params, matmul_precision
from tiercast_sim.work import Chunk, StepPlan

COMPONENTS = (
    "embed",
    "linear",
    "attention_decode",
    "attention_prefill",
    "engram_module",
    "hash",
    "lookup_issue",
    "head",
    "step_overhead",
)


def table(resolved, component_us, *, with_engram=True, graph_mode="full", statistic="max"):
    """A table whose components take ``component_us[name]`` × tokens, whatever the context."""
    components = {
        name: [
            {"num_tokens": n, "context_tokens": c, "time_us": us * n, "low_us": us * n / 2, "high_us": us * n * 2}
            for n in (1, 100)
            for c in (1, 1000)
        ]
        for name, us in component_us.items()
    }
    return ComputeTable.model_validate(
        {
            "model_name": "mini",
            "shape_sha256": resolved.model.backbone.shape_sha256,
            "engram_sha256": resolved.model.engram.shape_sha256 if with_engram else "0" * 64,
            "graph_mode": graph_mode,
            "context_statistic": statistic,
            "components": components,
        }
    )


def with_tables(resolved, *tables):
    hardware = resolved.hardware.model_copy(update={"compute": tables})
    return resolved.model_copy(update={"hardware": hardware})


def plan(positions=(), chunks=(), drafts=0):
    requests = [Request(i, 0, 1, 1) for i in range(len(positions))]
    return StepPlan(requests, list(positions), tuple(chunks), drafts)


def test_a_table_serves_models_whose_layers_compute_the_same(sim_scenario):
    resolved = sim_scenario({"tier": "nvme"})
    engram = resolved.model.engram
    more_rows = engram.model_copy(update={"rows_per_head": tuple(3 * n for n in engram.rows_per_head), "hash_seed": 9})
    wider_rows = engram.model_copy(update={"row_values": 2 * engram.row_values})
    of_shape = table(resolved, {})
    assert is_of_shape(of_shape, more_rows)
    assert not is_of_shape(of_shape, wider_rows)
    whole = of_shape.model_copy(update={"engram_sha256": engram.sha256})  # as written before shapes were told apart
    assert is_of_shape(whole, engram)
    assert not is_of_shape(whole, more_rows)


def test_interpolation_extends_by_the_nearest_line_and_stays_positive():
    line = ((10.0, 20.0, 40.0), (5.0, 10.0, 14.0))
    assert [interpolate(line, x) for x in (10, 15, 30, 80, 0)] == [5, 7.5, 12, 22, 0]


def test_table_is_linear_in_tokens_and_context(sim_scenario):
    resolved = sim_scenario({"tier": "none"})
    points = [(1, 0, 1.0), (1, 100, 3.0), (11, 0, 11.0), (11, 100, 33.0)]
    data = table(resolved, {}).model_dump() | {
        "components": {
            "attention_decode": [
                {"num_tokens": n, "context_tokens": c, "time_us": us, "low_us": us, "high_us": us}
                for n, c, us in points
            ]
        }
    }
    times = TableTimes(ComputeTable.model_validate(data), "nominal")
    assert times.time_ns("attention_decode", 6, 50) == pytest.approx(12_000)
    assert times.time_ns("attention_decode", 21, 0) == pytest.approx(21_000)
    assert times.time_ns("attention_decode", 0, 50) == 0


def test_a_matching_table_gives_every_part_of_the_step(sim_scenario):
    base = sim_scenario({"tier": "dram"})
    per_token = dict(zip(COMPONENTS, (1, 2, 3, 4, 5, 6, 7, 8, 9), strict=True))
    model = ComputeModel(with_tables(base, table(base, per_token)), "nominal")
    assert model.is_measured
    assert model.warnings == ()
    # Two decodes and a last chunk of four tokens: 6 tokens, 3 samples, 3 sequences; six layers, Engram at 1 and 3.
    step = model.step(plan([10, 30], [Chunk(Request(9, 0, 4, 1), 0, 4)]))
    layer = 6 * 2 + 2 * 3 + 4 * 4
    assert step.pre_ns == pytest.approx(1000 * (3 * 9 + 6 * 6 + 6 * 7))
    assert step.segments_ns == pytest.approx(
        [1000 * (6 * 1 + layer), 1000 * (2 * layer + 6 * 5), 1000 * (3 * layer + 6 * 5 + 3 * 8)]
    )


@pytest.mark.parametrize(("bound", "factor"), [("optimistic", 0.5), ("nominal", 1), ("pessimistic", 2)])
def test_bounds_take_the_spread_of_the_table(sim_scenario, bound, factor):
    base = sim_scenario({"tier": "none"})
    measured = with_tables(base, table(base, dict.fromkeys(COMPONENTS, 1)))
    assert ComputeModel(measured, bound).step(plan([5])).pre_ns == pytest.approx(1000 * factor)


@pytest.mark.parametrize(("statistic", "context"), [("max", 31), ("mean", 21)])
def test_decode_attention_follows_the_context_statistic(sim_scenario, statistic, context):
    base = sim_scenario({"tier": "none"})
    data = table(base, dict.fromkeys(COMPONENTS, 0), statistic=statistic).model_dump()
    data["components"]["attention_decode"] = [
        {"num_tokens": n, "context_tokens": c, "time_us": c, "low_us": c, "high_us": c} for n in (1, 9) for c in (1, 99)
    ]
    model = ComputeModel(with_tables(base, ComputeTable.model_validate(data)), "nominal")
    assert sum(model.step(plan([10, 30])).segments_ns) == pytest.approx(6 * 1000 * context)


@pytest.mark.parametrize(("statistic", "longest"), [("max", 30), ("mean", 20)])
@pytest.mark.parametrize("drafts", [1, 3, 6])
def test_attention_that_verifies_drafts_lies_on_the_line_of_what_was_measured(sim_scenario, statistic, longest, drafts):
    """One token and four: 100 us a sequence and 1 us a context token, against three times that."""
    base = sim_scenario({"tier": "none"}, speculative={"draft_tokens": drafts})
    data = table(base, dict.fromkeys(COMPONENTS, 0), statistic=statistic).model_dump()
    for name, factor in (("attention_decode", 1), ("attention_verify", 3)):
        data["components"][name] = [
            {"num_tokens": n, "context_tokens": c, "time_us": us, "low_us": us, "high_us": us}
            for n in (1, 9)
            for c in (1, 99)
            for us in [factor * (100 * n + c)]
        ]
    model = ComputeModel(with_tables(base, ComputeTable.model_validate(data)), "nominal")
    one_us = 100 * 2 + longest + 1 + drafts  # two sequences; the last draft sees so many tokens
    expected_us = one_us * (1 + 2 * drafts / 3)
    assert sum(model.step(plan([10, 30], drafts=drafts)).segments_ns) == pytest.approx(6 * 1000 * expected_us)
    assert model.warnings == ()


def test_verifying_that_was_not_measured_reads_the_cache_once(sim_scenario):
    """The table's time of one token, times what the roofline makes of several: nothing while memory bounds it."""
    base = sim_scenario({"tier": "none"}, speculative={"draft_tokens": 2})
    measured = with_tables(base, table(base, dict.fromkeys(COMPONENTS, 0) | {"attention_decode": 5}))
    model = ComputeModel(measured, "nominal")
    assert any("verify drafts is not measured" in warning for warning in model.warnings)
    free = Roofline(base, "nominal")
    ratio = free.attention_decode_ns([10, 30], 3) / free.attention_decode_ns([10, 30], 1)
    assert ratio < 3
    found = sum(model.step(plan([10, 30], drafts=2)).segments_ns)
    assert found == pytest.approx(6 * ratio * 1000 * 5 * 2)


def test_another_engram_keeps_the_backbone_of_the_table(sim_scenario):
    base = sim_scenario({"tier": "dram"})
    model = ComputeModel(with_tables(base, table(base, dict.fromkeys(COMPONENTS, 1), with_engram=False)), "nominal")
    assert model.is_measured
    assert model.warnings == (
        "compute of engram_module, hash, lookup_issue is not measured for this model; the roofline serves",
    )


def test_tables_that_do_not_fit_leave_the_roofline(sim_scenario):
    eager = table(sim_scenario({"tier": "dram"}), dict.fromkeys(COMPONENTS, 1), graph_mode="eager")
    resolved = with_tables(sim_scenario({"tier": "dram"}), eager)
    assert find_table(resolved)[0] is None
    assert "graph mode eager only" in find_table(resolved)[1][0]
    full = table(resolved, dict.fromkeys(COMPONENTS, 1))
    wide = with_tables(sim_scenario({"tier": "dram"}, parallel={"tensor": 2}), full)
    assert "one rank" in find_table(wide)[1][0]
    other = with_tables(sim_scenario({"tier": "dram"}, backbone={"num_layers": 7}), full)
    assert find_table(other) == (None, ())


def test_roofline_of_a_dense_layer_is_the_longer_of_flops_and_bytes(sim_scenario):
    roofline = Roofline(sim_scenario({"tier": "none"}), "nominal")
    # 1 M parameters a layer in fp32 (no better peak): 4 MB at 80 B/ns, 2 MFLOP a token at 5,000 FLOP/ns.
    stream = 4 * 32 * 4 * 2  # bytes a token
    assert roofline.linear_ns(1, is_late=False) == pytest.approx((4e6 + stream) / 80 + 5_000)
    assert roofline.linear_ns(1000, is_late=False) == pytest.approx(2e9 / 5_000 + 5_000)


def test_experts_touched_grow_to_all_of_them(sim_scenario):
    moe = {
        "num_routed_experts": 8,
        "num_active_experts": 2,
        "num_shared_experts": 1,
        "expert_bytes": 400_000,
        "expert_params": 100_000,
    }
    roofline = Roofline(sim_scenario({"tier": "none"}, backbone={"moe": moe}), "nominal")

    def weight_bytes(tokens):
        return (roofline.linear_ns(tokens, is_late=False) - 5_000) * 80 - tokens * 1024

    rest = (1_000_000 - 3 * 100_000) * 4
    assert weight_bytes(1) == pytest.approx(rest + 3 * 400_000)
    assert weight_bytes(2) == pytest.approx(rest + (8 * (1 - 0.75**2) + 1) * 400_000)


def test_prefill_attention_counts_pairs_inside_the_window(sim_scenario):
    def brute(start, tokens, window):
        return sum(min(start + i + 1, window or 10**9) for i in range(tokens))

    for window in (None, 7, 20):
        scenario = sim_scenario({"tier": "none"}, backbone={"attention_window_tokens": window, "kv_bytes_per_token": 1})
        roofline = Roofline(scenario, "nominal")
        flops_per_pair = 4 * 4 * 8
        for start, tokens in ((0, 5), (0, 30), (5, 1), (6, 9), (19, 2), (40, 30)):
            expected = brute(start, tokens, window) * flops_per_pair / 5_000
            assert roofline.attention_prefill_ns(tokens, start) == pytest.approx(expected), (window, start, tokens)


def test_decode_attention_reads_the_window_of_each_sequence(sim_scenario):
    free = Roofline(sim_scenario({"tier": "none"}, backbone={"kv_bytes_per_token": 600_000}), "nominal")
    bound = Roofline(
        sim_scenario({"tier": "none"}, backbone={"kv_bytes_per_token": 600_000, "attention_window_tokens": 10}),
        "nominal",
    )
    assert free.attention_decode_ns([4, 29], 1) == pytest.approx(35 * 100_000 / 80)
    assert bound.attention_decode_ns([4, 29], 1) == pytest.approx(15 * 100_000 / 80)


def test_prompt_tokens_run_only_the_prefill_layers(sim_scenario):
    backbone = {"num_prefill_layers": 4, "active_params_prefill": 4_000_000, "active_params_decode": 6_003_104}
    resolved = sim_scenario({"tier": "none"}, backbone=backbone)
    assert layer_params(resolved.model) == (1_000_000, 1_000_000)
    model = ComputeModel(resolved, "nominal")
    open_chunk = model.step(plan(chunks=[Chunk(Request(0, 0, 100, 1), 0, 8)])).segments_ns
    last_chunk = model.step(plan(chunks=[Chunk(Request(0, 0, 8, 1), 0, 8)])).segments_ns
    decode = model.step(plan([20])).segments_ns
    assert sum(last_chunk) > sum(open_chunk)  # its last token runs all six layers and is sampled
    assert sum(decode) > sum(open_chunk) * 5 / 4  # six layers against four, all bound by weights


def test_tensor_ranks_divide_work_and_add_all_reduces(sim_scenario):
    one = Roofline(sim_scenario({"tier": "none"}), "nominal")
    four = Roofline(sim_scenario({"tier": "none"}, parallel={"tensor": 4}), "nominal")
    assert four.linear_ns(1, is_late=False) < one.linear_ns(1, is_late=False)
    flops_ns = 2e9 / 5_000
    all_reduce_ns = 3_000 + 2 * 1000 * 128 * 3 / 4 / 50
    assert four.linear_ns(1000, is_late=False) == pytest.approx(flops_ns / 4 + 5_000 + 2 * all_reduce_ns)


def test_a_missing_precision_falls_back_to_a_wider_one(sim_scenario):
    device = sim_scenario({"tier": "none"}).hardware.device
    assert [matmul_precision(device, p) for p in ("fp4", "fp8", "bf16", "fp32")] == ["bf16", "bf16", "bf16", "fp32"]
    narrow = device.model_copy(update={"dense_tflops": {"fp8": device.dense_tflops["bf16"]}})
    with pytest.raises(MissingCapability, match="no peak rate for bf16 or wider; it has: fp8"):
        matmul_precision(narrow, "bf16")


def test_missing_numbers_are_errors_not_defaults(sim_scenario):
    with pytest.raises(MissingCapability, match=r"needs device\.collective"):
        Roofline(
            sim_scenario({"tier": "none"}, hardware={"device": {"collective": None}}, parallel={"tensor": 2}), "nominal"
        )
    resolved = sim_scenario({"tier": "none", "graph_mode": "eager"})
    device = resolved.hardware.device.model_copy(update={"layer_overhead_us": {}})
    hardware = resolved.hardware.model_copy(update={"device": device})
    with pytest.raises(MissingCapability, match=r"no device\.layer_overhead_us for graph mode 'eager'"):
        Roofline(resolved.model_copy(update={"hardware": hardware}), "nominal")
    with pytest.raises(BadInput, match="memory_bandwidth_gb_per_s=0"):
        Roofline(sim_scenario({"tier": "none"}, hardware={"device": {"memory_bandwidth_gb_per_s": 0}}), "nominal")
