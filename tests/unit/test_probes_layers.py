"""Component times of a small model: what is called, what the points mean, what the parts add up to."""

import itertools
from dataclasses import replace
from itertools import groupby

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import InfeasibleScenario, MissingCapability  # noqa: E402
from tiercast_profiles.hardware import VERIFY_TOKENS, StepSpread  # noqa: E402
from tiercast_runtime.batch import CONTEXT_ALIGNMENT_TOKENS  # noqa: E402
from tiercast_runtime.prefetch import LookupTiming  # noqa: E402
from tiercast_runtime.probes.interference import (  # noqa: E402
    has_room,
    overlap_ns,
    speed_quantity,
    speeds,
)
from tiercast_runtime.probes.layers import (  # noqa: E402
    COMPONENT_ORDER,
    PLAIN_COMPONENTS,
    LayerGrid,
    _compute_ns,
    grids_that_fit,
    joined,
    measure_layers,
    plain_law,
)
from tiercast_runtime.probes.rates import measure_rates  # noqa: E402
from tiercast_runtime.probes.settling import (  # noqa: E402
    DECAY_RATIO,
    NUM_SETTLING_STEPS,
    fit_settling,
    settling_of,
    settling_probes,
)
from tiercast_runtime.probes.step_bench import Geometry, StepBench  # noqa: E402
from tiercast_runtime.probes.timing import Effort, Spread  # noqa: E402

ONCE = Effort(0, num_warm_ups=1, min_rounds=3, max_rounds=3)
CPU = torch.device("cpu")
MEASURED = tuple(name for name in COMPONENT_ORDER if name != "engram_chunk")  # which is for GPUs
ATTENTION = ("attention_decode", "attention_verify", "attention_prefill")
GRID = LayerGrid(sequences=(1, 3), contexts=(16, 48), chunks=(4, 20), starts=(0, 16))
pytestmark = pytest.mark.usefixtures("one_compute_thread")


@pytest.fixture(params=["v41", "demo"])
def bench(request, mini_model):
    with StepBench(mini_model(request.param), CPU, GRID.geometry) as made:
        yield made


def steady(step_ns):
    ticks = itertools.count(0, step_ns)
    return lambda: next(ticks)


def test_the_grid_says_how_much_room_it_needs():
    assert GRID.geometry == Geometry(num_slots=4, max_context_tokens=48, max_step_tokens=23)
    assert LayerGrid((1, 6), (16,), (4,), (0,)).geometry.max_step_tokens == 6 * VERIFY_TOKENS
    large = LayerGrid((1, 6), (16,), (4, 100, 900), (0,))
    assert large.disturbing_tokens == 100, "the largest chunk of a grid may be too large to wait for"
    assert LayerGrid((1, 6), (16,), (), ()).geometry.num_slots == 6


def test_every_component_is_timed_at_every_point(bench):
    times = measure_layers(bench, GRID, 1, ONCE)
    table = times.table
    assert tuple(table.components) == MEASURED
    points = {name: [(p.num_tokens, p.context_tokens) for p in table.components[name]] for name in table.components}
    assert points["linear"] == [(1, 0), (3, 0), (4, 0), (20, 0)]
    assert points["hash"] == points["embed"] == points["engram_module"] == points["lookup_issue"] == points["linear"]
    middle = CONTEXT_ALIGNMENT_TOKENS // 2
    assert points["attention_decode"] == [(n, c - middle) for n in (1, 3) for c in (16, 48)]
    assert points["attention_verify"] == points["attention_decode"]  # the last fed token sees the context
    assert points["attention_prefill"] == [(n, c) for n in (4, 20) for c in (0, 16)]
    assert points["head"] == points["step_overhead"] == [(1, 0), (3, 0)]
    assert all(p.low_us <= p.time_us <= p.high_us for part in table.components.values() for p in part)
    assert table.context_statistic == "max"
    assert table.graph_mode == "eager"
    assert table.shape_sha256 == bench.model.backbone.shape_sha256
    assert table.engram_sha256 == bench.model.engram.shape_sha256
    plain = {name: [(p.num_tokens, p.context_tokens) for p in found] for name, found in times.plain.components.items()}
    assert plain == {name: points[name] for name in ("linear", "embed", "head", "step_overhead", *ATTENTION)}
    assert times.plain.engram_sha256 is None
    names = {f"layers.{c}" for c in MEASURED} | {f"layers.plain.{c}" for c in PLAIN_COMPONENTS}
    names |= {f"layers.plain_ratio.{c}" for c in PLAIN_COMPONENTS}
    names |= {"layers.settling", "layers.sum_of_parts", "layers.mlp", "layers.plain.mlp", "layers.step"}
    assert {probe.name for probe in times.probes} == names
    for table in (times.table, times.plain):
        assert table.settling.chunk_tokens == 20
        assert [point.num_sequences for point in table.settling.points] == [1, 3]
    behind = [probe for probe in times.probes if probe.name == "layers.settling"]
    assert [(probe.parameters["tokens"], len(probe.samples)) for probe in behind] == [(1, 10), (3, 10)]


def test_whole_steps_say_how_far_they_lie_apart(bench):
    times = measure_layers(bench, GRID, 1, ONCE)
    steps = [probe for probe in times.probes if probe.name == "layers.step"]
    of_batches = [(count, context - 1, 9 if context == 16 else 3) for count in (1, 3) for context in (16, 48)]
    of_chunks = [(count, start, 3) for count in (4, 20) for start in (0, 16)]
    found = [(probe.parameters["tokens"], probe.parameters["context"], len(probe.samples)) for probe in steps]
    assert found == of_batches + of_chunks, "a batch takes turns at the typical context"
    spreads = {spread.num_tokens: spread.time_ratios for spread in times.table.spreads}
    assert {1, 3} <= set(spreads) <= {1, 3, 4, 20}, "a batch has twelve samples of its own"
    assert all(sum(ratios) == pytest.approx(10, rel=1e-3) for ratios in spreads.values())
    assert times.plain.spreads == ()
    parts = {probe.name: min(probe.samples) for probe in times.probes if probe.parameters.get("tokens") == 1}
    least_us = min(min(probe.samples) for probe in steps[:2])
    assert least_us > bench.times_a_step("linear") * parts["layers.linear"] + parts["layers.head"]


def test_steps_with_and_without_engram_take_turns(bench, monkeypatch):
    seen = []
    walk = StepBench.walk_lanes

    def noted(self, step, *, has_engram=True):
        if not step.plan.num_draft_tokens and not (step.plan.decodes and step.plan.chunks):
            seen.append((step.plan.num_tokens, has_engram))
        return walk(self, step, has_engram=has_engram)

    monkeypatch.setattr(StepBench, "walk_lanes", noted)
    measure_layers(bench, GRID, 1, Effort(0, num_warm_ups=0, min_rounds=1, max_rounds=1))
    counted = [(*kind, len(list(steps))) for kind, steps in groupby(seen)]
    rows, contexts, settles = 10, 2 * 2, 2  # behind the chunk; two contexts, twice each; once for itself, once timed
    turns = [(False, settles), (True, settles), (False, 2 * settles), (True, settles), (False, settles)]
    for sequences in (1, 3):
        first = counted.index((sequences, True, rows + contexts))
        assert counted[first + 1 : first + 6] == [(sequences, *turn) for turn in turns]
    large = counted.index((20, False, 1))
    assert counted[large : large + 4] == [(20, False, 1), (20, True, 1), (20, False, 1), (20, True, 1)]


def test_the_table_without_engram_is_the_other_times_the_ratio_of_turns(bench, monkeypatch):
    walk = StepBench.walk_lanes

    def faster_without(self, step, *, has_engram=True):
        walked, _ = walk(self, step, has_engram=has_engram)
        return [(key, 1_000.0 if has_engram else 800.0) for key, _ in walked], []

    monkeypatch.setattr(StepBench, "walk_lanes", faster_without)
    times = measure_layers(bench, GRID, 1, ONCE)
    for component in PLAIN_COMPONENTS:
        found, without = times.table.components[component], times.plain.components[component]
        assert {point.time_us for point in found} == {1.0}
        assert [point.time_us for point in without] == pytest.approx([0.8] * len(found))
    assert times.plain.components["attention_decode"] == times.table.components["attention_decode"]
    ratios = [probe for probe in times.probes if probe.name == "layers.plain_ratio.linear"]
    assert {probe.parameters["tokens"]: len(probe.samples) for probe in ratios} == {1: 6, 3: 6, 4: 3, 20: 3}
    assert all(sample == 0.8 for probe in ratios for sample in probe.samples)


def test_what_engram_takes_of_a_layer_is_a_time_and_a_share():
    times_us = {1: 400.0, 8: 800.0, 64: 2_000.0, 256: 6_000.0}
    ratios = {size: [0.98 - 40 / time_us + noise for noise in (-0.1, 0.0, 0.4)] for size, time_us in times_us.items()}
    assert plain_law(ratios, times_us) == pytest.approx((0.98, 40.0))
    assert plain_law({1: [0.7, 0.9, 0.8], 8: [0.6, 1.0, 0.8]}) == (0.8, 0.0), "a share alone"
    assert plain_law({1: [0.7], 8: [0.9]}, times_us) == (pytest.approx(0.8), 0.0), "two sizes tell no law"
    growing = {size: [0.9 + 40 / time_us] for size, time_us in times_us.items()}
    share, taken_us = plain_law(growing, times_us)
    assert (taken_us, 0.9 < share < 1.0) == (0.0, True), "no batch gains from what pushes its weights out"


def test_without_engram_nothing_is_looked_up_and_its_layers_do_not_run(bench):
    step = bench.step([16], [])
    found = {key[0] for key, _ in bench.walk(step, has_engram=False)}
    assert found == {"embed", "linear", "mlp", "attention_decode", "head", "step_overhead"}


def test_a_chunk_no_larger_than_a_batch_gives_its_attention_only(bench):
    grid = LayerGrid(sequences=(1, 5), contexts=(16,), chunks=(4, 20), starts=(0,))
    with StepBench(bench.model, CPU, grid.geometry) as made:
        times = measure_layers(made, grid, 1, ONCE)
    found = times.table.components
    assert [point.num_tokens for point in found["linear"]] == [1, 5, 20]
    assert [point.num_tokens for point in found["attention_prefill"]] == [4, 20]
    assert [point.num_tokens for point in found["head"]] == [1, 5]  # the head of a chunk is as cold as the chunk


def test_a_layers_time_is_the_mean_over_the_layers(bench):
    bench.clock = steady(1_000)
    bench.walk(bench.step([16], []))  # the engine's own clocks are read in between: only laps count
    found = dict(bench.walk(bench.step([16, 16], [])))
    laps = {key[0]: value for key, value in found.items()}
    assert laps["mlp"] == laps["attention_decode"] == laps["engram_module"] == laps["embed"] == 1_000
    assert laps["linear"] == 2_000, "the projections, and the MLP behind them"


def test_the_mlp_is_timed_apart_within_its_layer(bench):
    times = measure_layers(bench, GRID, 1, ONCE)
    for prefix, table in (("layers", times.table), ("layers.plain", times.plain)):
        mlp, linear = (
            {probe.parameters["tokens"]: probe for probe in times.probes if probe.name == f"{prefix}.{part}"}
            for part in ("mlp", "linear")
        )
        assert set(mlp) == set(linear) == {1, 3, 4, 20}
        assert "mlp" not in table.components
        for count, probe in mlp.items():
            assert (probe.unit, probe.parameters["model"]) == ("us", bench.model.name)
            pairs = list(zip(probe.samples, linear[count].samples, strict=True))
            assert all(0 < part < whole for part, whole in pairs)


def test_a_step_counts_the_mlp_once(bench):
    bench.clock = steady(1_000)
    walked = bench.walk(bench.step([16], []))
    # embed, head, two Engram modules, and of each layer its projections, its MLP and its attention
    assert _compute_ns(bench, walked) == 1_000 * (1 + 1 + 2 + 6 * 3)


def test_a_step_leaves_the_worker_idle_for_the_next(bench):
    step = bench.step([], [(0, 4)])
    for _ in range(3):
        others = {"attention_decode", "attention_verify", "step_overhead"}
        assert {key[0] for key, _ in bench.walk(step)} == {*MEASURED, "mlp"} - others
        assert bench.whole(step) > 0


def test_large_grids_verify_at_every_other_batch_and_at_the_ends_of_the_context():
    grid = LayerGrid((1, 2, 4, 6), (16, 128, 256), (), ())
    assert grid.verifying == ((1, 16), (1, 256), (4, 16), (4, 256), (6, 16), (6, 256))
    assert LayerGrid((), (), (4,), (0,)).verifying == ()


def test_row_ids_stay_inside_the_staging_table(bench):
    ids = bench.row_ids(bench.batch(bench.step([], [(0, 20)])))
    assert ids.shape == (2, 20, bench.model.engram.num_rows_per_token)
    assert 0 <= int(ids.min()) <= int(ids.max()) < bench.table.num_rows


def test_a_grid_that_does_not_fit_at_once_is_timed_in_parts(mini_model, monkeypatch):
    per_token = 768
    monkeypatch.setattr("tiercast_runtime.probes.layers.available_host_bytes", lambda: 4 * 4 * 48 * per_token - 4)
    parts = grids_that_fit(GRID, mini_model("v41"), CPU)
    assert parts == (LayerGrid((1, 3), (16, 48), (), ()), LayerGrid((), (), (4, 20), (0, 16)))
    assert parts[0].geometry == Geometry(num_slots=3, max_context_tokens=48, max_step_tokens=3 * VERIFY_TOKENS)
    assert parts[1].geometry == Geometry(num_slots=4, max_context_tokens=36, max_step_tokens=20)
    room = 2 * 48 * per_token / 0.6  # for two sequences of 48 tokens, or six of 16
    monkeypatch.setattr("tiercast_runtime.probes.layers.available_host_bytes", lambda: int(room))
    few = grids_that_fit(GRID, mini_model("v41"), CPU)
    assert few[:2] == (LayerGrid((1, 3), (16,), (), ()), LayerGrid((1,), (48,), (), ()))
    more = LayerGrid((1, 3), (16, 48), (4, 20), (0, 16), captured=(2,))
    captured = [part.captured for part in grids_that_fit(more, mini_model("v41"), CPU)]
    assert captured == [(2,), (), ()], "below the largest batch of a part alone"
    monkeypatch.setattr("tiercast_runtime.probes.layers.available_host_bytes", lambda: 1 << 40)
    assert grids_that_fit(GRID, mini_model("v41"), CPU) == (GRID,)


def test_parts_of_a_grid_make_one_table(mini_model):
    grids = LayerGrid((1, 3), (16,), (), ()), LayerGrid((1,), (48,), (), ()), LayerGrid((), (), (4, 20), (0, 16))
    parts = []
    for grid in grids:
        with StepBench(mini_model("v41"), CPU, grid.geometry) as made:
            parts.append(measure_layers(made, grid, 1, ONCE))
    table = joined(parts).table
    assert table.settling is None, "no part has both a batch and a chunk"
    assert tuple(table.components) == MEASURED
    assert [point.num_tokens for point in table.components["linear"]] == [1, 3, 4, 20]
    assert table.components["linear"][0] == parts[0].table.components["linear"][0]
    assert len(table.components["attention_decode"]) == 3
    known = [
        part.table.model_copy(update={"spreads": (StepSpread(num_tokens=size, time_ratios=(ratio,) * 10),)})
        for part, size, ratio in zip(parts, (3, 1, 3), (1.0, 2.0, 3.0), strict=True)
    ]
    table = joined([replace(part, table=found) for part, found in zip(parts, known, strict=True)]).table
    assert [(spread.num_tokens, spread.time_ratios[0]) for spread in table.spreads] == [(1, 2.0), (3, 1.0)]


def test_models_that_cannot_run_or_fit_are_refused(mini_model):
    with pytest.raises(MissingCapability):
        StepBench(mini_model("v41", backbone={"is_runnable": False}), CPU, GRID.geometry)
    with pytest.raises(InfeasibleScenario, match="layer probe"):
        StepBench(mini_model("v41"), CPU, Geometry(1 << 30, 1 << 20, 1))


def timing(start, ready):
    return LookupTiming(0, 0, start, ready, 0, 1, 1)


def test_overlap_counts_only_what_lies_inside():
    assert overlap_ns(100, 200, [timing(0, 50), timing(90, 110), timing(120, 150), timing(190, 400)]) == 10 + 30 + 10


def test_speeds_by_hand():
    # 100 alone, 120 beside lookups that ran for 80 of it: 20 lost in 80, so compute ran at 0.75 meanwhile
    compute, lookups = speeds(100, 120, 80, 10, [20, 10])
    assert compute == pytest.approx(0.75)
    assert lookups == [0.5, 1.0]
    assert speeds(100, 120, 20, 10, []) == (None, [])  # too little of it overlapped


def test_ratios_lie_in_zero_to_one_and_samples_stay_raw():
    ratio = speed_quantity(Spread("compute", (0.8, 1.2, 1.3, -0.1)))
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((0.575, 1.0, 1.0))


def test_a_bench_has_room_for_what_fits_slots_contexts_and_steps(bench):
    mixes = [([16], []), ([16, 16], []), ([16] * 10, []), ([], [(0, 20)]), ([], [(0, 25)])]
    assert [has_room(bench, *mix) for mix in mixes] == [True, True, False, True, False]


def test_rates_are_shares_of_what_was_measured(monkeypatch):
    monkeypatch.setattr("tiercast_runtime.probes.rates.CPU_SIDE", 16)
    monkeypatch.setattr("tiercast_runtime.probes.rates.CPU_STREAM_SIDE", 32)
    rates = measure_rates(CPU, 1.0, Effort(0, 0, 3, 3), steady(12_000))
    assert rates.tflops["fp32"].value == pytest.approx(2 * 16**3 / 12_000e-9 / 1e12, rel=1e-4)
    # twelve matrices in 12 µs: 1 µs each, of 4 KiB
    assert rates.memory_efficiency_ratio.value == 1.0
    assert rates.matmul_efficiency_ratio.value == 1.0
    assert [probe.name for probe in rates.probes] == ["matmul.square", "matmul.step", "matmul.weights"]


def test_no_product_that_gives_a_rate_is_of_equal_numbers(monkeypatch):
    monkeypatch.setattr("tiercast_runtime.probes.rates.CPU_SIDE", 16)
    monkeypatch.setattr("tiercast_runtime.probes.rates.CPU_STREAM_SIDE", 32)
    multiply, spreads = torch.mm, []

    def mm(left, right, out):
        spreads.extend((float(left.std()), float(right.std())))
        return multiply(left, right, out=out)

    monkeypatch.setattr(torch, "mm", mm)
    measure_rates(CPU, 1.0, Effort(0, 0, 1, 1))
    assert len(spreads) > 20
    assert min(spreads) > 0.1 * 32**-0.5  # a GPU multiplies equal numbers faster than any model's


def row(level_us, first_us, noise=()):
    steps = [level_us + first_us * DECAY_RATIO**turn for turn in range(NUM_SETTLING_STEPS)]
    return [step + (noise[turn] if turn < len(noise) else 0.0) for turn, step in enumerate(steps)]


@pytest.mark.parametrize("first_us", [900.0, 150.0])
def test_the_law_of_settling_is_found_whatever_the_level_of_a_row(first_us):
    """Rows of one batch were timed at other moments of a machine that changes speed."""
    fit = fit_settling({2: [row(level, first_us) for level in (9_000, 12_000, 10_000)]})
    assert fit.first_us == pytest.approx(first_us)
    assert fit.error_us == pytest.approx(0, abs=1e-6)


def test_all_rows_say_one_time_and_those_of_long_steps_less():
    rows = {1: [row(5_000, 1_200)], 8: [row(10_000, 200)]}
    weights = [fit_settling(rows).first_us - 200, 1_200 - fit_settling(rows).first_us]
    assert weights == pytest.approx([800, 200], rel=0.1), "four to one, as levels squared; the median is not the level"


def test_how_far_rows_lie_apart_is_the_error_of_the_time():
    fit = fit_settling({1: [row(5_000, 500 + more) for more in (-300, 300)]})
    assert (fit.first_us, fit.error_us) == (pytest.approx(500, rel=0.05), pytest.approx(300, rel=0.05))
    assert fit_settling({1: [row(5_000, 500)]}).error_us is None


def test_a_step_that_another_process_held_up_counts_for_three_at_most():
    held_up = row(5_000, 0, noise=(90_000,))
    assert fit_settling({1: [held_up]}).first_us == fit_settling({1: [row(5_000, 0, noise=(10_000,))]}).first_us


def test_a_batch_that_a_chunk_does_not_slow_settles_at_once():
    assert fit_settling({1: [row(5_000, -200)]}).first_us == 0.0


def test_a_table_and_its_shares_give_the_measured_steps_behind_a_chunk():
    rows = {2: [row(10_000, 800)]}
    fit = fit_settling(rows)
    (point,) = settling_of(fit, {2: 10_000.0}, 257).points
    found = [10_000 * (1 + point.first_ratio * point.decay_ratio**turn) for turn in range(NUM_SETTLING_STEPS)]
    assert found == pytest.approx(rows[2][0])
    (probe,) = settling_probes(rows, fit, 257, "mini")
    assert probe.samples == pytest.approx(rows[2][0], rel=1e-4)
    assert probe.parameters["first_us"] == pytest.approx(800)
