"""The GPU probes on small sizes: right bytes, positive figures, a whole profile. The CPU tests hold the logic."""

import dataclasses
import datetime

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.units import MIB  # noqa: E402
from tiercast_runtime.paths.uva import require_uva  # noqa: E402
from tiercast_runtime.probes import gather, link_copies, profile, profile_machine  # noqa: E402
from tiercast_runtime.probes.layers import LayerGrid  # noqa: E402
from tiercast_runtime.probes.plan import QUICK  # noqa: E402
from tiercast_runtime.probes.rates import measure_rates  # noqa: E402
from tiercast_runtime.probes.sweep_grid import SweepPlan  # noqa: E402
from tiercast_runtime.probes.sweep_stage import SweepStage  # noqa: E402
from tiercast_runtime.probes.telemetry import Telemetry  # noqa: E402
from tiercast_runtime.probes.timing import Effort  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU that torch can use"),
]
BRIEF = Effort(0, num_warm_ups=1, min_rounds=3, max_rounds=3)
EFFORTS = ("copies", "rates", "gather", "reads", "disk", "host_cache", "layers", "overhead", "interference", "numa")


def test_copies_over_the_link_are_verified_and_positive():
    device = torch.device("cuda", 0)
    with Telemetry(0) as telemetry:
        found = link_copies.measure_device_copies(device, 16 * MIB, BRIEF, telemetry)
    kinds = ("", "_pageable", "_bidirectional")
    names = {f"{way}{kind}" for way in ("host_to_device", "device_to_host") for kind in kinds}
    assert set(found.rates) == {*names, "device"}
    assert all(spread.value > 0 for spread in (*found.rates.values(), *found.latencies.values()))


@pytest.mark.parametrize("path", ["device", "uva"])
def test_gathers_by_the_gpu_deliver_the_right_rows(path):
    device = torch.device("cuda", 0)
    if path == "uva":
        require_uva(device)
    plan = gather.GatherPlan(((64, (1, 300)), (264, (1, 300))), (8 * MIB,))
    spreads = gather.measure_device_gather(plan, path, device, BRIEF)
    assert len(spreads) == 4
    assert all(spread.value > 0 for spread in spreads)


def test_rates_of_the_gpu(monkeypatch):
    monkeypatch.setattr("tiercast_runtime.probes.rates.GPU_SIDE", 1024)
    monkeypatch.setattr("tiercast_runtime.probes.rates.GPU_STREAM_SIDE", 1024)
    rates = measure_rates(torch.device("cuda", 0), 1000.0, BRIEF)
    assert {"fp32", "bf16"} <= set(rates.tflops)
    assert 0 < rates.matmul_efficiency_ratio.value <= 1


def test_a_whole_profile(tmp_path, mini_model, monkeypatch):
    small = dataclasses.replace(
        QUICK,
        copy_bytes=MIB,
        footprint_bytes=2 * MIB,
        gpu_footprints_bytes=(4 * MIB,),
        file_bytes=2 * MIB,
        row_bytes=(64,),
        tokens=(1, 8),
        sweep=SweepStage(SweepPlan(((64,), (256, 8)), ((64,),), (16, 64), MIB, 2 * MIB), BRIEF, is_quick=True),
        grid=LayerGrid((1, 2), (16, 32), (4, 8), (0,)),
        **dict.fromkeys(EFFORTS, BRIEF),
    )
    monkeypatch.setattr(profile, "QUICK", small)
    found = profile_machine(quick=True, models=[mini_model("v41")], folder=tmp_path, date=datetime.date(2026, 11, 23))
    assert found.device.kind in ("cuda", "rocm")
    assert {("hbm", "device"), ("dram", "cpu_gather")} <= {(curve.tier, curve.path) for curve in found.lookups}
    assert found.compute
    assert list(tmp_path.iterdir()) == []
