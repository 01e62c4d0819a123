"""Efficiencies fitted to layer times, and carried to a machine that only a datasheet describes."""

import itertools

import pytest

from tiercast_profiles import store
from tiercast_profiles.document import Quantity
from tiercast_profiles.efficiency import MIN_POINTS, fit_efficiency, layer_work
from tiercast_profiles.errors import BadInput
from tiercast_profiles.hardware import ComputePoint, ComputeTable, HardwareProfile
from tiercast_profiles.scenario import Placement, Scenario, combine
from tiercast_profiles.transfer import transfer
from tiercast_sim.roofline import Roofline

H200, H100, B200 = (store.load_hardware(name) for name in ("h200-sxm", "h100-sxm", "b200-sxm"))
MODEL = store.load_model("paper-4b-100b")
SOURCE = {"kind": "measured", "mark": "M", "source": "made up for the test", "date": "2026-11-25"}
PEAK, RATE = 800.0, 4300.0
DECODES = tuple(itertools.product((1, 4, 16, 64, 256, 512), (128, 1024)))
CHUNKS = tuple(itertools.product((1024, 2048, 8192), (0, 1024)))


def table(arithmetic, memory, overhead_us, *, mode="full", spread=0.0):
    """Layer times of a device that reaches exactly these shares."""

    def us(flops, size):
        return max(flops / (arithmetic * PEAK * 1e6), size / (memory * RATE * 1e3))

    def point(tokens, context, time):
        return ComputePoint(
            num_tokens=tokens,
            context_tokens=context,
            time_us=time,
            low_us=time * (1 - spread),
            high_us=time * (1 + spread),
        )

    backbone, linear, decode, prefill = MODEL.backbone, {}, [], []
    for count, context in DECODES:
        work = layer_work(backbone, "bf16", count, count * context, count * context)
        linear[count] = us(work.linear_flops, work.linear_bytes) + overhead_us
        decode.append(point(count, context, us(work.attention_flops, work.attention_bytes)))
    for count, start in CHUNKS:
        end = start + count
        work = layer_work(backbone, "bf16", count, (end * (end + 1) - start * (start + 1)) / 2, end)
        linear[count] = us(work.linear_flops, work.linear_bytes) + overhead_us
        prefill.append(point(count, start, us(work.attention_flops, work.attention_bytes)))
    return ComputeTable(
        model_name=MODEL.name,
        shape_sha256=backbone.shape_sha256,
        graph_mode=mode,
        context_statistic="mean",
        components={
            "linear": tuple(point(count, 0, time) for count, time in sorted(linear.items())),
            "attention_decode": tuple(decode),
            "attention_prefill": tuple(prefill),
            "step_overhead": (point(64, 0, 300.0),),
        },
    )


def measured(*tables):
    """An H200 host that was measured: rates, links, lookups, and layer times."""
    data = H200.model_dump(mode="json")
    data |= {"name": "mine", "calibration": "measured"}
    data["device"]["dense_tflops"]["bf16"], data["device"]["memory_bandwidth_gb_per_s"] = PEAK, RATE
    data["device"]["layer_overhead_us"], data["device"]["step_overhead_us"] = {"eager": 80}, {"eager": 700}
    data["host_to_device"]["bandwidth_gb_per_s"] = 50.0
    uva = next(i for i, c in enumerate(H200.lookups) if c.path == "uva")
    data["lookups"][uva] |= {"is_calibrated": True, "fixed_us": 12, "row_ns": 8, "bandwidth_gb_per_s": 40}
    fits = [fit_efficiency(one, MODEL.backbone, "bf16", PEAK, RATE) for one in tables]
    data["efficiencies"] = [fit.model_dump(mode="json") for fit in fits]
    data["sources"], data["evidence"] = {"probe": SOURCE}, {"": "probe"}
    return HardwareProfile.model_validate(data)


@pytest.mark.parametrize(("arithmetic", "memory", "overhead_us"), [(0.7, 0.85, 6.0), (0.35, 0.6, 90.0)])
def test_the_fit_finds_what_the_layer_times_were_made_of(arithmetic, memory, overhead_us):
    fit = fit_efficiency(table(arithmetic, memory, overhead_us), MODEL.backbone, "bf16", PEAK, RATE)
    assert fit.arithmetic_ratio.value == pytest.approx(arithmetic, rel=0.02)
    assert fit.memory_ratio.value == pytest.approx(memory, rel=0.03)
    assert fit.layer_overhead_us.value == pytest.approx(overhead_us, rel=0.05, abs=0.5)
    assert fit.residual_ratio < 0.01
    assert fit.num_points == len(DECODES) + len(CHUNKS)


def test_quartiles_become_a_band():
    fit = fit_efficiency(table(0.7, 0.8, 6.0, spread=0.1), MODEL.backbone, "bf16", PEAK, RATE)
    assert fit.memory_ratio.low < 0.8 < fit.memory_ratio.high
    assert fit.step_overhead_us == Quantity(value=300, low=270, high=330)


def test_a_few_layers_are_no_fit():
    few = table(0.7, 0.8, 6.0)
    parts = {name: points[: MIN_POINTS - 1] for name, points in few.components.items()}
    parts["attention_prefill"] = ()
    assert fit_efficiency(few.model_copy(update={"components": parts}), MODEL.backbone, "bf16", PEAK, RATE) is None


def test_the_work_of_a_layer_is_that_of_the_roofline():
    """One formula stands in two packages that may not see each other; here they meet."""
    scenario = Scenario(
        schema_version=1,
        hardware="h200-sxm",
        model=MODEL.name,
        placement=Placement(tier="none", graph_mode="full"),
        workload={"kind": "closed_loop", "concurrency": 1, "num_requests": 1, "text": "random"}
        | {"prompt_tokens": {"fixed": 8}, "output_tokens": {"fixed": 8}},
    )
    roofline = Roofline(combine(scenario, H200, MODEL, store.load_prices("default")), "nominal")
    device = H200.device
    flop_per_ns = device.dense_tflops["bf16"].value * device.matmul_efficiency_ratio.value * 1e3
    byte_per_ns = device.memory_bandwidth_gb_per_s.value * device.memory_efficiency_ratio.value
    overhead_ns = device.layer_overhead_us["full"].value * 1e3
    for count, context in (*DECODES, (8192, 1)):
        work = layer_work(MODEL.backbone, "bf16", count, count * context, count * context)
        expected = max(work.linear_flops / flop_per_ns, work.linear_bytes / byte_per_ns) + overhead_ns
        assert roofline.linear_ns(count, is_late=False) == pytest.approx(expected)
        attention = max(work.attention_flops / flop_per_ns, work.attention_bytes / byte_per_ns)
        assert roofline.attention_decode_ns([context - 1] * count, 1) == pytest.approx(attention)


def test_shares_of_the_datasheet_overheads_links_and_lookups_carry_over():
    mine = measured(table(0.7, 0.8, 6.0), table(0.6, 0.7, 90.0, mode="eager"))
    found = transfer(mine, B200, H200)
    device = found.device
    assert device.matmul_efficiency_ratio.value == pytest.approx(
        0.7 * PEAK / H200.device.dense_tflops["bf16"].value, rel=0.02
    )
    assert device.memory_efficiency_ratio.value == pytest.approx(
        0.8 * RATE / H200.device.memory_bandwidth_gb_per_s.value, rel=0.03
    )
    assert device.layer_overhead_us["full"].value == pytest.approx(6.0, abs=0.5)
    assert device.layer_overhead_us["eager"].value == pytest.approx(90.0, rel=0.05)
    assert device.layer_overhead_us["piecewise"] == B200.device.layer_overhead_us["piecewise"]  # not measured on A
    assert device.dense_tflops == B200.device.dense_tflops
    ratio = B200.host_to_device.bandwidth_gb_per_s.value / H200.host_to_device.bandwidth_gb_per_s.value
    assert found.host_to_device.bandwidth_gb_per_s.value == pytest.approx(50 * ratio)
    curve = found.curve("dram", "uva")
    assert (curve.fixed_us.value, curve.is_calibrated) == (12, False)
    assert curve.bandwidth_gb_per_s.value == pytest.approx(40 * ratio)
    assert found.curve("hbm", "device").fixed_us == B200.curve("hbm", "device").fixed_us  # A's is a prior itself
    assert found.calibration == "datasheet"
    assert found.source_of("device.matmul_efficiency_ratio").mark == "D"
    assert found.source_of("device.dense_tflops.bf16") == B200.source_of("device.dense_tflops.bf16")


def test_without_layer_times_the_matrix_products_speak():
    found = transfer(measured(), H100, H200)
    share = H200.device.matmul_efficiency_ratio.value * PEAK / H200.device.dense_tflops["bf16"].value
    assert found.device.matmul_efficiency_ratio.value == pytest.approx(share, rel=1e-4)
    assert found.device.layer_overhead_us["eager"] == Quantity(value=80)


def test_to_a_measured_machine_the_shares_are_of_measured_peaks_and_its_layer_times_go():
    mine, other = measured(table(0.7, 0.8, 6.0)), measured(table(0.2, 0.2, 50.0))
    found = transfer(mine, other)
    assert found.device.matmul_efficiency_ratio.value == pytest.approx(0.7, rel=0.02)
    assert (found.compute, found.efficiencies) == ((), ())


def test_what_says_nothing_is_refused():
    mine = measured()
    with pytest.raises(BadInput, match="h100-sxm: a datasheet; give a profile that was measured"):
        transfer(H100, H200, H200)
    with pytest.raises(BadInput, match="mine: give the datasheet preset of its own product"):
        transfer(mine, H100)
    with pytest.raises(BadInput, match="leave the anchor out"):
        transfer(mine, mine, H200)
    cpu = mine.model_copy(update={"name": "cpu", "device": mine.device.model_copy(update={"kind": "cpu"})})
    with pytest.raises(BadInput, match="cpu computes on a CPU, h100-sxm computes on a GPU"):
        transfer(cpu, H100, H200)
