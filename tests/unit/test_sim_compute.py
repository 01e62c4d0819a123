"""Compute times: the machine's own table where it fits, a roofline elsewhere."""

import pytest

from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.hardware import ComputeTable
from tiercast_profiles.workload import Request
from tiercast_sim.compute import ComputeModel
from tiercast_sim.compute_table import TableTimes, interpolate
from tiercast_sim.roofline import Roofline, layer_params, matmul_precision
from tiercast_sim.run import run
from tiercast_sim.table_choice import find_table, is_of_shape
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


def table_of_calls(resolved, component_us, *, graph_mode="full", largest=100):
    """A table whose components take ``component_us[name]``: the device's µs, and the host's where it is a pair."""
    data = table(resolved, {}, graph_mode=graph_mode, statistic="mean").model_dump(exclude_none=True)
    data["components"] = {}
    for name, given in component_us.items():
        device_us, *host_us = given if isinstance(given, tuple) else (given,)
        data["components"][name] = [
            {
                "num_tokens": n,
                "context_tokens": 1,
                "time_us": device_us,
                "low_us": device_us / 2,
                "high_us": device_us * 2,
            }
            | ({"host_us": host_us[0]} if host_us else {})
            for n in (1, largest)
        ]
    return ComputeTable.model_validate(data)


CALLS = {
    "embed": (3, 6),
    "linear": (10, 40),
    "attention_decode": (5, 20),
    "attention_prefill": (30, 70),
    "engram_module": (2, 9),
    "head": (7, 8),
    "hash": (4, 11),
    "lookup_issue": (6, 5),
    "step_overhead": 100,
}
"""Device and host: a layer that decodes takes 15 and 60. Engram at 1 and 3 of six layers: segments of 1, 2 and 3."""


def priced(resolved, calls, *given, bound="nominal", **options):
    """Time in front of the layers and of each segment in µs, and where the ledger says it went."""
    model = ComputeModel(with_tables(resolved, table_of_calls(resolved, calls)), bound)
    step = model.step(plan(*given, **options))
    total_ns = round(step.pre_ns + sum(step.segments_ns))
    model.ledger.close(total_ns, 0)
    parts = {name: ns / 1000 for name, ns in model.ledger.breakdown(total_ns, {}).items()}
    return step.pre_ns / 1000, [ns / 1000 for ns in step.segments_ns], parts


def test_a_step_is_as_long_as_its_launches_where_the_host_is_slower(sim_scenario):
    pre, segments, parts = priced(sim_scenario({"tier": "dram"}), CALLS, [10, 30])
    assert pre == pytest.approx(100 + 11 + 6)
    # Host: 6 + 60, then 9 + 120, then 9 + 180 + 8, behind which the device has the head to run, 7.
    # It has 18, 32 and 54 to do meanwhile.
    assert segments == pytest.approx([66, 129, 204])
    assert parts["waiting for launches"] == pytest.approx(66 + 129 + 204 - 18 - 32 - 54 + 11 - 4)
    assert (parts["host overhead"], parts["hash"], parts["lookup issue"]) == pytest.approx((100, 4, 6))
    assert (parts["layers"], parts["attention decode"], parts["Engram module"]) == pytest.approx((60, 30, 4))


def test_a_step_is_as_long_as_its_work_where_the_device_is_slower(sim_scenario):
    base = sim_scenario({"tier": "dram"})
    slow = CALLS | {"linear": (70, 40), "hash": (12, 11)}
    pre, segments, parts = priced(base, slow, [10, 30])
    assert (pre, segments) == (118.0, [78.0, 152.0, 234.0])
    assert "waiting for launches" not in parts
    alone = {name: given[0] if isinstance(given, tuple) else given for name, given in slow.items()}
    assert priced(base, alone, [10, 30]) == (pre, segments, parts)


def test_a_lead_of_the_host_lasts_until_it_is_used_up(sim_scenario):
    """The device is behind by the embedding; the host is, by a long head, in the last segment alone."""
    _, segments, parts = priced(sim_scenario({"tier": "dram"}), CALLS | {"embed": (500, 6), "head": (7, 600)}, [10])
    # The device ends its segments at 515 and 547; the host has issued them at 66 and 195, and the last one at 984.
    assert segments == pytest.approx([515, 32, 984 + 7 - 547])
    assert parts["waiting for launches"] == pytest.approx(984 + 7 - 547 - 54 + 7)


def test_a_late_device_keeps_what_the_host_made_it_wait_for(sim_scenario):
    """The host is behind in the first segment, the device from there on: what was lost is not made up for."""
    _, segments, _ = priced(sim_scenario({"tier": "dram"}), CALLS | {"embed": (3, 900), "linear": (200, 40)}, [10])
    # Issued at 960, 1089 and 1286; the device has 208, 412 and 624 to do.
    assert segments == pytest.approx([960, 412, 624])


def test_each_chunk_of_a_prompt_is_issued(sim_scenario):
    chunks = [Chunk(Request(8, 0, 9, 1), 0, 4), Chunk(Request(9, 0, 9, 1), 2, 3)]
    _, segments, _ = priced(sim_scenario({"tier": "dram"}), CALLS, [10], chunks)
    # A layer: 10 + 5 + 2 × 30 on the device, 40 + 20 + 2 × 70 on the host.
    assert segments == pytest.approx([206, 409, 617 + 7])
    _, segments, _ = priced(sim_scenario({"tier": "dram"}), CALLS | {"attention_prefill": (200, 70)}, [10], chunks)
    assert segments == pytest.approx([418, 832, 1254])


def test_a_chunk_behind_the_first_adds_to_every_engram_layer(sim_scenario):
    chunks = [Chunk(Request(n, 0, 9, 1), 0, 4) for n in (7, 8, 9)]
    base, more = sim_scenario({"tier": "dram"}), CALLS | {"engram_chunk": (5, 13)}
    for decodes, num_more in (([10], 3), ([], 2)):  # beside decodes the first comes on top too
        _, without, _ = priced(base, CALLS, decodes, chunks)
        _, segments, _ = priced(base, more, decodes, chunks)
        added = [took - less for took, less in zip(segments, without, strict=True)]
        assert added == pytest.approx([0, num_more * 13, num_more * 13])
    fast = {name: given[0] if isinstance(given, tuple) else given for name, given in more.items()}
    _, segments, parts = priced(base, fast, [10], chunks)
    assert parts["Engram module"] == pytest.approx(2 * (2 + 3 * 5))
    for given in (([10],), ([], chunks[:1])):
        assert priced(base, more, *given) == priced(base, CALLS, *given)
    none = sim_scenario({"tier": "none"})
    assert priced(none, more, [10], chunks) == priced(none, CALLS, [10], chunks), "no Engram, no convolution"


@pytest.mark.parametrize("engine", ["arithmetic", "events"])
def test_a_run_says_how_long_it_waited_for_launches(sim_scenario, engine):
    """One prompt of three tokens, then three tokens one by one; the run is that of the hand-computed steps."""
    workload = {"num_requests": 1, "prompt_tokens": {"fixed": 3}, "output_tokens": {"fixed": 4}}
    base = sim_scenario({"tier": "none"}, workload={"kind": "closed_loop", "concurrency": 1, **workload})
    found = run(with_tables(base, table_of_calls(base, CALLS)), "nominal", engine=engine)
    assert [step.duration_ns for step in found.steps] == [781_000, 481_000, 481_000, 481_000]
    spent_ns = found.compute.ledger.breakdown(sum(step.duration_ns for step in found.steps), {})
    # On the device: 3 + 6 × (10 + 30) + 7 with the prompt, 3 + 6 × 15 + 7 without.
    assert spent_ns["waiting for launches"] == 1000 * (681 - 250 + 3 * (381 - 100))
    assert spent_ns["host overhead"] == 400_000


@pytest.mark.parametrize(("bound", "head_us"), [("optimistic", 3.5), ("pessimistic", 14)])
def test_launches_have_no_bounds(sim_scenario, bound, head_us):
    _, segments, _ = priced(sim_scenario({"tier": "dram"}), CALLS, [10, 30], bound=bound)
    assert segments == pytest.approx([66, 129, 197 + head_us]), "the device's head has"


def test_launches_of_verifying_steps_are_those_of_one_token_where_no_others_were_timed(sim_scenario):
    base = sim_scenario({"tier": "none"}, speculative={"draft_tokens": 2})
    _, segments, _ = priced(base, CALLS, [10], drafts=2)
    assert segments == pytest.approx([6 + 6 * 60 + 8 + 7])
    _, segments, _ = priced(base, CALLS | {"attention_verify": (5, 50)}, [10], drafts=2)
    assert segments == pytest.approx([6 + 6 * (40 + 20 + 30 * 2 / 3) + 8 + 7])


def test_launch_times_are_linear_between_points_and_none_counts_as_zero(sim_scenario):
    point = {"context_tokens": 0, "time_us": 1, "low_us": 1, "high_us": 1}
    data = table(sim_scenario({"tier": "none"}), {}).model_dump() | {
        "components": {
            "linear": [{**point, "num_tokens": 1, "host_us": 4}, {**point, "num_tokens": 11, "host_us": 24}],
            "head": [{**point, "num_tokens": 1}, {**point, "num_tokens": 11, "host_us": 20}],
            "embed": [{**point, "num_tokens": 1}],
        }
    }
    times = TableTimes(ComputeTable.model_validate(data), "host")
    assert times.time_ns("linear", 6) == pytest.approx(14_000)
    assert times.time_ns("head", 6) == pytest.approx(10_000)
    assert times.time_ns("embed", 6) == 0


def two_tables(resolved, *, largest=4):
    """Every component takes 1 µs in graphs of up to ``largest`` sequences, and 10 µs as a single call."""
    graphs = table_of_calls(resolved, dict.fromkeys(COMPONENTS, 1), largest=largest)
    single = table_of_calls(resolved, dict.fromkeys((*COMPONENTS, "attention_verify"), 10), graph_mode="eager")
    return with_tables(resolved, single, graphs)


@pytest.mark.parametrize(
    ("given", "per_layer_us"),
    [
        (([10, 30],), 2),
        (([10] * 4,), 2),
        (([10] * 5,), 20),
        (([10, 30], [Chunk(Request(9, 0, 9, 1), 0, 4)]), 30),
        (([], [Chunk(Request(9, 0, 9, 1), 0, 4)]), 20),
    ],
    ids=["decodes", "largest graph", "beyond the graphs", "prompt beside", "prompt alone"],
)
def test_what_runs_without_a_graph_takes_what_single_calls_take(sim_scenario, given, per_layer_us):
    model = ComputeModel(two_tables(sim_scenario({"tier": "none"})), "nominal")
    assert model.warnings == ()
    step = model.step(plan(*given))
    unit = 1 if per_layer_us == 2 else 10
    assert step.pre_ns == pytest.approx(1000 * unit)
    num_ends = 2 if given[0] else 1  # embedding and head; an open prompt alone has no sample
    assert sum(step.segments_ns) == pytest.approx(1000 * (6 * per_layer_us + num_ends * unit))


def test_steps_that_verify_drafts_are_single_calls(sim_scenario):
    model = ComputeModel(two_tables(sim_scenario({"tier": "none"}, speculative={"draft_tokens": 2})), "nominal")
    assert model.warnings == ()
    assert sum(model.step(plan([10], drafts=2)).segments_ns) == pytest.approx(1000 * (6 * 20 + 20))


def test_single_calls_are_those_between_the_engram_layers_that_run(sim_scenario):
    chunk = [Chunk(Request(9, 0, 9, 1), 0, 4)]
    for tier, unit_us in (("none", 30), ("dram", 10)):
        base = two_tables(sim_scenario({"tier": tier}))
        bare = table_of_calls(base, dict.fromkeys(COMPONENTS, 30), graph_mode="eager")
        bare = bare.model_copy(update={"engram_sha256": None})
        model = ComputeModel(with_tables(base, bare, *base.hardware.compute), "nominal")
        assert model.step(plan([10], chunk)).segments_ns[0] >= 3 * 1000 * unit_us
        assert model.step(plan([10], chunk)).segments_ns[0] < 30 * 1000 * unit_us
        assert model.step(plan([10], chunk)).pre_ns == pytest.approx(1000 * unit_us * (3 if tier == "dram" else 1))


def test_a_profile_without_single_calls_has_them_in_its_table_of_graphs(sim_scenario):
    base = sim_scenario({"tier": "none"})
    graphs = table_of_calls(base, dict.fromkeys(COMPONENTS, 1), largest=4)
    model = ComputeModel(with_tables(base, graphs), "nominal")
    mixed = model.step(plan([10, 30], [Chunk(Request(9, 0, 9, 1), 0, 4)]))
    assert sum(mixed.segments_ns) == pytest.approx(1000 * (6 * 3 + 2))


def test_eager_steps_need_no_table_of_graphs(sim_scenario):
    eager = two_tables(sim_scenario({"tier": "none", "graph_mode": "eager"}))
    model = ComputeModel(eager, "nominal")
    assert model.captured is None
    assert sum(model.step(plan([10, 30])).segments_ns) == pytest.approx(1000 * (6 * 20 + 20))


def test_single_calls_that_were_not_measured_are_the_rooflines_and_said(sim_scenario):
    base = sim_scenario({"tier": "none"})
    names = [name for name in COMPONENTS if name != "linear"]
    single = table_of_calls(base, dict.fromkeys(names, 10), graph_mode="eager")
    graphs = table_of_calls(base, dict.fromkeys(COMPONENTS, 1))
    model = ComputeModel(with_tables(base, single, graphs), "nominal")
    assert model.warnings == ("compute of linear is not measured for this model in single calls; the roofline serves",)
    mixed = model.step(plan([10], [Chunk(Request(9, 0, 9, 1), 0, 4)]))
    linear_ns = Roofline(base, "nominal").linear_ns(5, is_late=False)
    assert sum(mixed.segments_ns) == pytest.approx(6 * (linear_ns + 20_000) + 20_000)


@pytest.mark.parametrize(
    ("count", "max_seqs", "at_once", "rows"),
    [
        (3, 8, 20, 4),
        (5, 8, 20, 8),
        (5, 6, 20, 6),
        (9, 64, 20, 16),
        (17, 64, 20, 20),
        (20, 64, 20, 20),
        (21, 64, 20, 24),
    ],
)
def test_a_captured_batch_is_padded_to_the_next_size(sim_scenario, count, max_seqs, at_once, rows):
    """Rows go through layers, modules, hash, embedding and head; attention, host and lookups see the sequences."""
    workload = {
        "kind": "closed_loop",
        "concurrency": at_once,
        "num_requests": 50,
        "prompt_tokens": {"fixed": 5},
        "output_tokens": {"fixed": 5},
    }
    engine = {"max_num_batched_tokens": 100, "max_num_seqs": max_seqs, "kv_block_tokens": 4}
    base = sim_scenario({"tier": "dram"}, workload=workload, engine=engine)
    per_token = dict(zip(COMPONENTS, (1, 2, 3, 4, 5, 6, 7, 8, 9), strict=True))
    for mode, ran in (("full", rows), ("eager", count)):
        resolved = base.model_copy(update={"placement": base.placement.model_copy(update={"graph_mode": mode})})
        model = ComputeModel(with_tables(resolved, table(resolved, per_token, graph_mode=mode)), "nominal")
        step = model.step(plan([10] * count))
        layer = 2 * ran + 3 * count
        assert step.pre_ns == pytest.approx(1000 * (9 * count + 6 * ran + 7 * count))
        assert step.segments_ns == pytest.approx(
            [1000 * (ran + layer), 1000 * (2 * layer + 5 * ran), 1000 * (3 * layer + 5 * ran + 8 * ran)]
        )


def test_a_prompt_beside_leaves_a_batch_as_it_is(sim_scenario):
    base = sim_scenario({"tier": "none"})
    model = ComputeModel(with_tables(base, table(base, {"linear": 1})), "nominal")
    free = Roofline(base, "nominal")
    mixed = model.step(plan([10] * 3, [Chunk(Request(9, 0, 9, 1), 0, 2)]))
    rest = free.embed_ns(5) + free.head_ns(3)
    attention = free.attention_decode_ns([10] * 3, 1) + free.attention_prefill_ns(2, 0)
    assert sum(mixed.segments_ns) == pytest.approx(6 * (5000 + attention) + rest)


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
