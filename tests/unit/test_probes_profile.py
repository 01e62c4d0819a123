"""A whole profile of this machine on sizes that take a second: valid, explained, and nothing left behind."""

import dataclasses
import datetime
import threading

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.document import Quantity  # noqa: E402
from tiercast_profiles.errors import FileProblem, InfeasibleScenario, MissingCapability  # noqa: E402
from tiercast_profiles.scenario import Scenario, combine  # noqa: E402
from tiercast_profiles.store import load_hardware, load_model, load_prices, to_yaml, write_text  # noqa: E402
from tiercast_profiles.units import MIB  # noqa: E402
from tiercast_runtime.memory import HostBlock, allowed_host_bytes, host_bytes_allowed, require_bytes  # noqa: E402
from tiercast_runtime.probes import gather, profile, profile_machine, survey  # noqa: E402
from tiercast_runtime.probes.host import read_host  # noqa: E402
from tiercast_runtime.probes.layers import LayerGrid  # noqa: E402
from tiercast_runtime.probes.plan import QUICK  # noqa: E402
from tiercast_runtime.probes.sweep_grid import Arm, SweepPlan  # noqa: E402
from tiercast_runtime.probes.sweep_stage import SweepStage  # noqa: E402
from tiercast_runtime.probes.timing import Effort, Spread  # noqa: E402

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the sizes are small for a CPU as the device only")
BRIEF = Effort(0, num_warm_ups=0, min_rounds=3, max_rounds=3)
EFFORTS = ("copies", "rates", "gather", "reads", "disk", "host_cache", "layers", "overhead", "interference", "numa")
DATE = datetime.date(2026, 11, 23)
SMALL = dataclasses.replace(
    QUICK,
    copy_bytes=MIB,
    footprint_bytes=2 * MIB,
    file_bytes=2 * MIB,
    row_bytes=(64,),
    tokens=(1, 8),
    sweep=SweepStage(SweepPlan(((64,), (256, 8)), ((64,),), (16, 64), MIB, 2 * MIB), BRIEF, is_quick=True),
    grid=LayerGrid((1, 2), (16, 32), (4, 8), (0,)),
    **dict.fromkeys(EFFORTS, BRIEF),
)


def make_small(patch):
    """Small sizes wherever the quick plan or the last cache would ask for large ones."""
    host = dataclasses.replace(read_host(), last_level_cache_bytes=None)
    patch.setattr(survey, "read_host", lambda: host)
    patch.setattr(profile, "QUICK", SMALL)
    patch.setattr(SweepStage, "arms", lambda _: [Arm("thp"), Arm("4k")])
    for name in ("CPU_SIDE", "CPU_STREAM_SIDE"):
        patch.setattr(f"tiercast_runtime.probes.rates.{name}", 32)
    patch.setattr("tiercast_runtime.probes.storage.SPARE_BYTES", 0)


@pytest.fixture
def small(monkeypatch):
    make_small(monkeypatch)


@pytest.fixture(scope="module")
def made(mini_model, tmp_path_factory):
    """One profile for all tests that only read it, the progress that was reported, and what the probes had found."""
    folder, before, seen, findings = tmp_path_factory.mktemp("probe"), threading.active_count(), [], []
    assemble = profile.assemble
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        patch.setattr(profile, "assemble", lambda found: findings.append(found) or assemble(found))
        found = run([mini_model("v41")], folder, lambda what, ratio: seen.append((what, ratio)))
    assert list(folder.iterdir()) == []
    assert threading.active_count() == before
    return found, seen, findings[0]


def run(models, folder, progress=None):
    return profile_machine(quick=True, models=models, folder=folder, progress=progress, date=DATE)


@pytest.mark.usefixtures("small")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the figures checked are those of a CPU as the device")
class TestProfile:
    def test_it_is_a_whole_measured_profile(self, made, mini_model):
        found, seen, _ = made
        assert found.calibration == "measured"
        assert found.name.startswith("this-")
        assert found.device.kind == "cpu"
        assert {(c.tier, c.path) for c in found.lookups} >= {("hbm", "device"), ("dram", "cpu_gather")}
        assert all(curve.is_calibrated and curve.points for curve in found.lookups)
        assert [table.model_name for table in found.compute] == ["mini-v41", "mini-v41"]
        assert [table.engram_sha256 is None for table in found.compute] == [False, True], (
            "with Engram layers, and alone"
        )
        copied = [probe for probe in found.probes if probe.name == "copy.host"]
        assert all(probe.parameters["times"] == 2 and len(probe.samples) == 6 for probe in copied)
        assert any(probe.name == "storage.single_read" for probe in found.probes)
        assert {sweep.pages for sweep in found.gather_sweeps} == {"thp", "4k"}
        row_bytes = mini_model("v41").engram.row_bytes
        assert {point.row_bytes for point in found.host_cache} == {row_bytes}
        assert found.host_cache[-1].num_rows == 3072
        assert sum(probe.name.startswith("cache.host.") for probe in found.probes) == 3 * len(found.host_cache)
        assert found.host.memory_capacity_gb.value > 0
        assert found.device.dense_tflops["fp32"].value > 0
        ratios = [
            found.device.matmul_efficiency_ratio,
            found.device.memory_efficiency_ratio,
            found.host.random_access_ratio,
        ]
        assert all(0 < ratio.value <= 1 for ratio in ratios)
        assert [ratio for _, ratio in seen] == sorted(ratio for _, ratio in seen)
        assert seen[-1][1] == 1.0

    def test_every_stage_keeps_its_telemetry(self, made):
        found, _, _ = made
        envelopes = {probe.name: probe for probe in found.probes if probe.name.startswith("telemetry.")}
        assert {"telemetry.copy.host", "telemetry.rates", "telemetry.lookup.host", "telemetry.layers.mini-v41"} <= set(
            envelopes
        )
        for probe in envelopes.values():
            assert probe.parameters["duration_s"] >= 0
            assert {"cpu_clock", "cpu_throttles_rise", "cpu_energy_rise"} <= set(probe.telemetry)
            assert all((r.value is None) == (r.status != "ok") for r in probe.telemetry.values())

    def test_what_is_not_measured_is_said_with_a_reason(self, made):
        found, _, _ = made
        missing = {probe.name: probe.reason for probe in found.probes if probe.status == "not_supported"}
        assert {"copy.host_to_device", "lookup.dram.uva", "gpu", "lookup.cxl", "lookup.pool", "collective"} <= set(
            missing
        )
        assert all(missing.values())

    def test_every_number_has_evidence_and_the_file_reads_back(self, made, tmp_path):
        found, _, _ = made
        assert found.source_of("device.memory_bandwidth_gb_per_s").kind == "measured"
        assert found.source_of("lookups.0.fixed_us.value").kind == "derived"
        assert found.source_of("lookups.0.points.0.time_us").mark == "M"
        assert found.source_of("device.dense_tflops.fp32.value").date == DATE
        assert "tiercast profile on" in found.sources["probe"].source
        path = tmp_path / "profile.yaml"
        write_text(path, to_yaml(found))
        assert load_hardware(str(path)) == found

    def test_a_scenario_resolves_on_it(self, made, mini_model):
        found, _, _ = made
        scenario = Scenario.model_validate(
            {
                "schema_version": 1,
                "hardware": "x",
                "model": "y",
                "placement": {"tier": "dram"},
                "workload": {
                    "kind": "closed_loop",
                    "concurrency": 2,
                    "num_requests": 4,
                    "prompt_tokens": {"fixed": 8},
                    "output_tokens": {"fixed": 4},
                },
            }
        )
        resolved = combine(scenario, found, mini_model("v41"), load_prices("default"))
        assert resolved.placement.path == "cpu_gather"

    def test_models_that_cannot_run_are_named_and_the_reference_stands_in(self, tmp_path, mini_model, monkeypatch):
        monkeypatch.setattr(survey, "load_model", lambda _: mini_model("demo"))
        found = run([load_model("deepseek-v4.1-flash")], tmp_path)
        refused = next(probe for probe in found.probes if probe.name == "layers.deepseek-v4.1-flash")
        assert refused.status == "not_supported"
        assert {table.model_name for table in found.compute} == {"mini-demo"}
        assert any(point.row_bytes == 264 for point in found.lookups[0].points)

    def test_a_disk_without_room_leaves_the_tier_out(self, tmp_path, mini_model, monkeypatch):
        monkeypatch.setattr("tiercast_runtime.probes.storage.SPARE_BYTES", 1 << 62)
        found = run([mini_model("v41")], tmp_path)
        assert found.nvme is None
        assert found.curve("nvme", "disk") is None
        reason = next(probe.reason for probe in found.probes if probe.name == "lookup.nvme.disk")
        assert "larger disk" in reason

    @pytest.mark.parametrize("stage", ["row gathers", "gather sweep", "storage", "layers of mini-v41", "interference"])
    def test_ctrl_c_leaves_no_file_and_no_thread(self, tmp_path, mini_model, stage):
        before, threads = threading.active_count(), torch.get_num_threads()

        def progress(what, _):
            if what == stage:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run([mini_model("v41")], tmp_path, progress)
        assert list(tmp_path.iterdir()) == []
        assert threading.active_count() == before
        assert torch.get_num_threads() == threads

    def test_ctrl_c_inside_a_file_probe_leaves_no_file(self, tmp_path, mini_model, monkeypatch):
        def interrupt(*_, **__):
            assert len(list(tmp_path.iterdir())) == 1
            raise KeyboardInterrupt

        monkeypatch.setattr("tiercast_runtime.probes.storage.measure_disk_lookups", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run([mini_model("v41")], tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_is_not_there_is_one_clear_line(self, tmp_path, mini_model):
        with pytest.raises(FileProblem, match="give another folder"):
            run([mini_model("v41")], tmp_path / "missing")

    def test_remote_memory_that_cannot_be_measured_is_assumed_and_marked(self, made):
        *_, findings = made
        host = dataclasses.replace(findings.host, num_numa_nodes=2)
        found = profile.assemble(dataclasses.replace(findings, host=host))
        assert found.host.remote_numa_speed_ratio == profile.ASSUMED_REMOTE_RATIO
        assert found.source_of("host.remote_numa_speed_ratio.value").kind == "assumed"

    def test_remote_memory_that_was_measured_is_used(self, made):
        *_, findings = made
        host, remote = dataclasses.replace(findings.host, num_numa_nodes=2), Spread("remote", (0.5, 0.6, 0.7))
        found = profile.assemble(dataclasses.replace(findings, host=host, remote_reads=remote))
        assert found.host.remote_numa_speed_ratio == Quantity(value=0.6, low=0.55, high=0.65)
        assert found.source_of("host.remote_numa_speed_ratio.value").kind == "measured"


def test_a_machine_that_hides_its_memory_is_refused(tmp_path, mini_model, monkeypatch):
    host = dataclasses.replace(read_host(), memory_total_bytes=None)
    monkeypatch.setattr(profile, "read_host", lambda: host)
    with pytest.raises(MissingCapability, match="how much memory"):
        run([mini_model("v41")], tmp_path)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "intel-xeon-platinum-8481c"),
        ("AMD EPYC", "amd-epyc"),
        ("NVIDIA H200", "nvidia-h200"),
        ("AMD EPYC 7763 64-Core Processor", "amd-epyc-7763-64-core"),
        ("???", "machine"),
    ],
)
def test_names_are_slugs(text, name):
    assert profile.slug(text) == name


# what the probes may take

ALLOWED_BYTES = 8 * MIB


class Blocks:
    """Sizes of all host blocks in the order they were asked for, and the most that were open at once."""

    def __init__(self, monkeypatch):
        self.sizes, self.most_open, open_now = [], 0, {}
        make, close = HostBlock.__init__, HostBlock.close

        def made(block, size_bytes, *arguments, **named):
            self.sizes.append(size_bytes)
            make(block, size_bytes, *arguments, **named)
            open_now[id(block)] = size_bytes
            self.most_open = max(self.most_open, sum(open_now.values()))

        def closed(block):
            open_now.pop(id(block), None)
            close(block)

        monkeypatch.setattr(HostBlock, "__init__", made)
        monkeypatch.setattr(HostBlock, "close", closed)


@pytest.fixture
def blocks(monkeypatch):
    """Probes whose plan, and whose machine, ask for far more than is allowed."""
    make_small(monkeypatch)
    sweep = dataclasses.replace(SMALL.sweep.plan, max_footprint_bytes=64 * MIB)
    plan = dataclasses.replace(
        SMALL,
        footprint_bytes=3 * MIB,
        num_footprints=3,
        sweep=dataclasses.replace(SMALL.sweep, plan=sweep),
    )
    monkeypatch.setattr(profile, "QUICK", plan)
    return Blocks(monkeypatch)


@on_cpu
def test_no_probe_takes_more_than_is_allowed(blocks, mini_model, tmp_path):
    found = profile_machine(
        quick=True, models=[mini_model("v41")], folder=tmp_path, date=DATE, memory_bytes=ALLOWED_BYTES
    )
    assert max(blocks.sizes) == ALLOWED_BYTES, "the sweep goes as far as it may"
    assert blocks.most_open <= ALLOWED_BYTES
    gathered = {point.footprint_bytes for curve in found.lookups if curve.tier != "nvme" for point in curve.points}
    assert max(gathered) == 3 * MIB, "of 3, 12 and 48 MiB the first fits"
    swept = {point.footprint_bytes for sweep in found.gather_sweeps for point in sweep.points}
    assert max(swept) == ALLOWED_BYTES
    assert allowed_host_bytes() is None, "nothing stays limited afterwards"


def test_half_of_what_is_free_is_allowed_by_default(tmp_path, monkeypatch):
    allowed = []
    monkeypatch.setattr(profile, "measure", lambda **_: allowed.append(allowed_host_bytes()))
    monkeypatch.setattr("tiercast_runtime.memory.available_host_bytes", lambda: 10 * MIB)
    run([], tmp_path)
    profile_machine(quick=True, models=[], folder=tmp_path, memory_bytes=MIB)
    assert allowed == [5 * MIB, MIB]


@on_cpu
def test_a_cap_too_small_to_measure_memory_with_is_one_line_before_anything_is_taken(blocks, mini_model, tmp_path):
    with pytest.raises(InfeasibleScenario) as caught:
        profile_machine(quick=True, models=[mini_model("v41")], folder=tmp_path, date=DATE, memory_bytes=MIB)
    said = str(caught.value)
    assert said == (
        "the copy probe needs 2.00 MiB of host memory, 1.00 MiB is allowed; allow 1.00 MiB more (--memory-gib)"
    )
    assert caught.value.shortfall_bytes == MIB
    assert blocks.sizes == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_allowed_holds_for_blocks_and_tables_and_for_the_footprint_of_the_gather_probe():
    with host_bytes_allowed(MIB):
        HostBlock(MIB).close()
        with pytest.raises(InfeasibleScenario, match="a block of rows needs"):
            HostBlock(MIB + 1)
        with pytest.raises(InfeasibleScenario, match=r"that table needs .* 1.00 MiB is allowed"):
            require_bytes(MIB + 1, torch.device("cpu"), "that table")
        assert gather.footprint_bytes(1 << 28, 1 << 30, 8) == MIB
    HostBlock(MIB + 1).close()
