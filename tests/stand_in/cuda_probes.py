"""The probes of a GPU on the stand-in: each runs to a result, and what a GPU refuses costs its own stage."""

import dataclasses
import datetime

import pytest
import torch
from cuda_stand_in import CUDA, GPU

from tiercast_profiles.errors import TiercastError
from tiercast_profiles.store import to_yaml
from tiercast_profiles.units import KIB, MIB
from tiercast_runtime import batch, decode_attention
from tiercast_runtime.graph_backend import CudaGraphs
from tiercast_runtime.memory import HostBlock
from tiercast_runtime.paths import uva_kernel
from tiercast_runtime.probes import copies, gather, interference, rates, sweep_device
from tiercast_runtime.probes import survey as survey_module
from tiercast_runtime.probes.block_content import fill_random
from tiercast_runtime.probes.chase_kernel import launch_chase
from tiercast_runtime.probes.graph_layers import measure_graphs
from tiercast_runtime.probes.graph_steps import RowsOnDevice, RowsOnHost
from tiercast_runtime.probes.layers import LayerGrid, measure_layers
from tiercast_runtime.probes.plan import QUICK
from tiercast_runtime.probes.profile import assemble
from tiercast_runtime.probes.step_bench import StepBench
from tiercast_runtime.probes.survey import survey
from tiercast_runtime.probes.sweep_grid import SweepPlan
from tiercast_runtime.probes.sweep_ids import RowSource
from tiercast_runtime.probes.timing import Effort

BRIEF = Effort(0, num_warm_ups=0, min_rounds=1, max_rounds=1)
SWEEP = SweepPlan(
    payloads=((64,), (256, 8)),
    few_payloads=((64,),),
    num_rows=(4, 16),
    min_footprint_bytes=MIB,
    max_footprint_bytes=2 * MIB,
    num_refined_ratio=0,
    num_workers=(8, 16),
)
EFFORTS = [field.name for field in dataclasses.fields(QUICK) if isinstance(getattr(QUICK, field.name), Effort)]
PLAN = dataclasses.replace(
    QUICK,
    copy_bytes=64 * KIB,
    footprint_bytes=MIB,
    gpu_footprints_bytes=(MIB,),
    file_bytes=MIB,
    row_bytes=(64,),
    tokens=(1, 2),
    grid=LayerGrid(sequences=(1, 2), contexts=(8,), chunks=(4,), starts=(0,)),
    mixes=(([8, 8], []),),
    **dict.fromkeys(EFFORTS, BRIEF),
)


@pytest.fixture
def small(monkeypatch):
    """Sizes for an interpreter, which leaves the kernels of the backbone to the engine's tests."""
    monkeypatch.setattr(batch, "has_kernels", lambda device: False)
    monkeypatch.setattr(decode_attention, "has_kernels", lambda device: False)
    for module in (interference, survey_module):
        monkeypatch.setattr(module, "MAX_LOOKUPS", 2)
    monkeypatch.setattr(survey_module, "GRID_RATIOS", (0.5,))
    monkeypatch.setattr(rates, "GPU_SIDE", 64)
    monkeypatch.setattr(rates, "GPU_STREAM_SIDE", 64)
    monkeypatch.setattr(gather, "SWEEP_ROWS", (1, 16))
    monkeypatch.setattr(copies, "copy_bytes", lambda least, cache: least)
    monkeypatch.setattr(gather, "footprint_bytes", lambda least, cache, num_caches: least)


@pytest.fixture
def model(mini_model):
    heads = {"num_attention_heads": 2, "num_kv_heads": 1, "head_dim": 16}
    return mini_model("v41", backbone={"num_layers": 2, "num_prefill_layers": 2, **heads}, engram={"layer_ids": [0, 1]})


def surveyed(model, folder):
    return survey(
        plan=PLAN,
        models=[model],
        folder=folder,
        device=CUDA,
        date=datetime.date(2026, 11, 23),
        progress=lambda what, share: None,
        memory_bytes=4 * MIB,
    )


def statuses(found):
    return {probe.name: probe.status for probe in found.probes}


@pytest.mark.parametrize("path", ["device", "uva"])
def test_gathers_by_the_gpu_run_to_a_result(path):
    plan = gather.GatherPlan(((64, (1, 5)), (264, (3,))), (256 * KIB,))
    before = set(GPU.pinned)
    spreads = gather.measure_device_gather(plan, path, CUDA, BRIEF)
    assert [spread.key for spread in spreads] == [
        (path, row_bytes, count, 256 * KIB) for row_bytes, count in ((64, 1), (64, 5), (264, 3))
    ]
    assert all(spread.value > 0 for spread in spreads)
    assert not [one for key, one in GPU.pinned.items() if key not in before and one.num_bytes >= 256 * KIB]


def test_the_sweep_and_the_round_trip_of_a_gpu_run_to_a_result(monkeypatch):
    block = HostBlock(2 * MIB)
    fill_random(block.array)
    block.pin()
    by = sweep_device.gatherer(CUDA)
    content = torch.from_numpy(block.array)
    source = RowSource("random")
    arm = sweep_device.DeviceArm("uva", "thp")
    swept = sweep_device.sweep_device(content, arm, SWEEP, BRIEF, source, by=by)
    assert {point.piece_bytes for point in swept.points} == {(64,), (256, 8)}
    resident = sweep_device.DeviceArm("device", "device", is_full=False)
    swept = sweep_device.sweep_device(content.to(CUDA), resident, SWEEP, BRIEF, source, by=by)
    assert {point.piece_bytes for point in swept.points} == {(64,)}

    followed = []

    def chase(words, place, num_hops):
        launch_chase(words, place, num_hops)
        followed.append(int(place[0]))

    monkeypatch.setattr(sweep_device, "NUM_HOPS", 20)
    assert sweep_device.device_round_trip_ns(block.array, CUDA, by.timed, chase) > 0
    assert len(set(followed)) == len(followed) > sweep_device.NUM_CHASES
    torch.cuda.synchronize()
    block.close()


def test_a_survey_finds_everything_a_gpu_has(model, tmp_path, small, monkeypatch):
    monkeypatch.setattr(survey_module._Survey, "_sweeps", lambda *_: None)  # the host's, as on any machine
    found = surveyed(model, tmp_path)
    curves = {(curve.tier, curve.path) for curve in found.curves}
    assert curves == {("hbm", "device"), ("dram", "uva"), ("dram", "cpu_gather"), ("nvme", "disk")}
    for tables in (found.tables, found.plain_tables):  # with Engram layers and without, of each mode one
        assert [table.graph_mode for table in tables] == ["eager", "full", "piecewise"]
    assert all(table.engram_sha256 == model.engram.shape_sha256 for table in found.tables)
    for table in found.plain_tables:
        assert table.engram_sha256 is None
        assert not {"engram_module", "hash", "lookup_issue"} & set(table.components)
    assert {"layers.mlp", "layers.plain.mlp", "layers.graph.mlp"} <= set(statuses(found))
    wholes = {"step_overhead", "engram_step_overhead", "pieces_step_overhead", "pieces_unstalled_overhead"}
    assert {f"layers.graph.{name}" for name in wholes} <= set(statuses(found))
    ways = [probe.samples for probe in found.probes if probe.name == "layers.graph.pieces_way"]
    assert len(ways) == len(PLAN.grid.sequences)
    assert all(min(samples) > 0 for samples in ways)
    assert not {name for name, status in statuses(found).items() if status in ("failed", "invalid")}
    assert {probe.name.rsplit(".", 1)[0] for probe in found.probes if probe.name.startswith("interference.dram.uva")}
    profile = assemble(found)
    assert profile.device.kind == "cuda"
    tables = [(table.engram_sha256 is None, table.graph_mode) for table in profile.compute]
    assert len(set(tables)) == len(tables) == 6
    assert to_yaml(profile)
    assert list(tmp_path.iterdir()) == []


ATTENTION = {"attention_decode", "attention_verify", "attention_prefill"}
HELD = {"embed", "linear", "engram_module", "engram_chunk", "head", *ATTENTION}


def test_single_calls_have_a_time_of_the_host_and_one_of_the_device(model, small):
    launched = GPU.launched = []
    try:
        grid = dataclasses.replace(PLAN.grid, chunks=(4, 16))
        with StepBench(model, CUDA, grid.geometry) as bench:
            times = measure_layers(bench, grid, 1, BRIEF)
            shown = len(launched)
            bench.walk(bench.step([8], []))
            walked = [launch.what for launch in launched[shown:]]
            counts = []
            for chunks in ([(0, 16)], [(0, 4)] * 4):
                shown = len(launched)
                bench.walk(bench.step([], chunks))
                counts.append(len(launched) - shown)
    finally:
        GPU.launched = None
    for table in (times.table, times.plain):
        for component, points in table.components.items():
            assert all((point.host_us is not None) == (component in HELD) for point in points), component
            assert component not in HELD - {"engram_chunk"} or all(point.host_us > 0 for point in points)
    chunk = times.table.components["engram_chunk"]
    assert [point.num_tokens for point in chunk] == [4], "four chunks of four tokens"
    assert counts[1] > counts[0], "what several chunks take more are launches"
    assert "engram_chunk" not in times.plain.components
    names = {probe.name for probe in times.probes}
    assert {f"layers.host.{component}" for component in HELD} <= names
    assert walked.count("sleep") == 1, "one walk is held once"
    place = walked.index("sleep")
    assert any(what.startswith("_gather_rows") for what in walked[:place]), "rows are staged before"
    assert not any(what.startswith("_gather_rows") for what in walked[place:])
    assert len(walked[place:]) > len(walked[:place]), "and the layers run behind"


def test_lookups_that_gather_nothing_deliver_the_rows_there_are():
    rows = torch.arange(24, dtype=torch.uint8).view(6, 4).to(CUDA)
    ids = torch.zeros((2, 2), dtype=torch.int64, device=CUDA)
    on_host = RowsOnHost([rows], CUDA)
    for path in (RowsOnDevice([rows], CUDA), on_host, on_host):  # both slots of staging
        staged = path.fetch(0, ids)
        assert staged.rows.is_cuda
        assert staged.rows.tolist() == rows[:4].tolist()
        assert (staged.inverse, staged.num_rows) == (None, 4)
        path.check()
    on_host.close()


def refuse(*_args, **_kwargs):
    raise RuntimeError("CUDA error: operation not supported\nmore")


def test_what_a_gpu_refuses_costs_its_own_stage(model, tmp_path, small, monkeypatch):
    monkeypatch.setattr(uva_kernel, "launch_gather", refuse)
    monkeypatch.setattr(survey_module._Survey, "_layers", lambda *_: None)
    monkeypatch.setattr(survey_module._Survey, "_sweeps", lambda *_: None)
    found = surveyed(model, tmp_path)
    failed = {probe.name: probe.reason for probe in found.probes if probe.status == "failed"}
    assert failed == {"lookup.dram.uva": "CUDA error: operation not supported"}
    curves = {(curve.tier, curve.path) for curve in found.curves}
    assert curves == {("hbm", "device"), ("dram", "cpu_gather"), ("nvme", "disk")}
    assert found.device_copies is not None


def test_layers_are_timed_where_the_gpu_refuses_to_gather(model, small, monkeypatch):
    monkeypatch.setattr(uva_kernel, "launch_gather", refuse)
    with StepBench(model, CUDA, PLAN.grid.geometry) as bench:
        times = measure_layers(bench, PLAN.grid, 1, BRIEF)
        assert "linear" in times.table.components
        monkeypatch.setattr(torch.cuda, "graph", refuse)
        with pytest.raises(TiercastError, match=r"no graph .* not supported"), torch.inference_mode():
            measure_graphs(bench, PLAN.grid, BRIEF, CudaGraphs(CUDA, lambda: 0))
