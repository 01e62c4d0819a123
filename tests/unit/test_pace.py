"""The pace of a machine: its own table timed again by the probe's code, nothing corrected that was not measured."""

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import BadInput  # noqa: E402
from tiercast_profiles.hardware import LookupPoint  # noqa: E402
from tiercast_runtime.probes import pace  # noqa: E402
from tiercast_runtime.probes.layers import LayerGrid, measure_layers  # noqa: E402
from tiercast_runtime.probes.step_bench import StepBench  # noqa: E402
from tiercast_runtime.probes.timing import Effort  # noqa: E402

ONCE = Effort(0, num_warm_ups=1, min_rounds=2, max_rounds=2)
GRID = LayerGrid(sequences=(1, 8), contexts=(128,), chunks=(151,), starts=(0,))
pytestmark = pytest.mark.usefixtures("one_compute_thread")


@pytest.fixture
def probed(mini_model, mini_scenario):
    """A model, and a profile whose layer times are a hundred times those of this machine: it is ever so fast now."""
    model = mini_model("v41")
    with StepBench(model, torch.device("cpu"), GRID.geometry) as bench:
        found = measure_layers(bench, GRID, 1, ONCE)
    slow = {
        name: tuple(point.model_copy(update={"time_us": 100 * point.time_us + 1}) for point in points)
        for name, points in found.table.components.items()
    }
    table = found.table.model_copy(update={"components": slow})
    hardware = mini_scenario({"tier": "nvme"}).hardware.model_copy(
        update={"compute": (found.plain, table), "lookups": ()}
    )
    return model, hardware


def test_every_reference_step_is_set_against_the_profile(probed, tmp_path):
    model, hardware = probed
    with pace.Pace(model, hardware, tmp_path) as found:
        ratios = found.measure()
    assert set(ratios) == {"pace_decode_1", "pace_decode_8", "pace_chunk_151"}, "no curve of a drive: no drive is timed"
    assert all(0 < ratio < 0.1 for ratio in ratios.values())
    assert not list(tmp_path.iterdir())


def test_what_the_profile_says_turns_a_pace_beside_it_into_one_beside_another(probed, tmp_path):
    model, hardware = probed
    twice = {
        name: tuple(point.model_copy(update={"time_us": 2 * point.time_us}) for point in points)
        for name, points in hardware.compute[1].components.items()
    }
    tables = (hardware.compute[0], hardware.compute[1].model_copy(update={"components": twice}))
    slower = hardware.model_copy(update={"compute": tables})
    with pace.Pace(model, hardware, tmp_path) as one, pace.Pace(model, slower, tmp_path) as other:
        found, doubled = one.profile_us(), other.profile_us()
    assert set(found) == {"pace_decode_1", "pace_decode_8", "pace_chunk_151"}
    assert all(us > 0 for us in found.values())
    assert doubled == pytest.approx({name: 2 * us for name, us in found.items()})


def test_a_drive_is_timed_where_the_profile_has_its_curve(probed, mini_scenario, tmp_path):
    model, hardware = probed
    curve = next(c for c in mini_scenario({"tier": "nvme"}).hardware.lookups if c.path == "disk")
    points = tuple(
        LookupPoint(
            num_rows=count,
            row_bytes=model.engram.row_bytes,
            footprint_bytes=1 << 20,
            time_us=1e9,
            low_us=1e9,
            high_us=1e9,
        )
        for count in pace.DISK_ROWS
    )
    small = tuple(
        point.model_copy(update={"footprint_bytes": 1 << 10, "time_us": 1e-3, "low_us": 1e-3}) for point in points
    )
    drive = hardware.model_copy(update={"lookups": (curve.model_copy(update={"points": points + small}),)})
    with pace.Pace(model, drive, tmp_path) as found:
        assert 0 < found.measure()["pace_disk"] < 0.1, "beside the points of the largest table"
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]
    with pace.Pace(model, drive, None) as found:
        assert "pace_disk" not in found.measure(), "no folder: no drive is timed"


def test_a_warm_up_computes_for_a_second_and_no_longer(probed, monkeypatch):
    model, hardware = probed
    now = [0]
    with pace.Pace(model, hardware, None, lambda: now[0]) as found:
        walks = []

        def walk(step):
            walks.append(len(step.plan.decodes))
            now[0] += pace.WARM_UP_NS // 4

        monkeypatch.setattr(found._bench, "walk", walk)
        found.warm_up()
    assert walks == [max(pace.SEQUENCES)] * 4


def test_a_profile_of_other_models_is_refused(probed, tmp_path):
    model, hardware = probed
    with pytest.raises(BadInput, match="tiercast profile --model"):
        pace.Pace(model, hardware.model_copy(update={"compute": ()}), tmp_path)


def test_times_beside_another_engram_are_not_those_of_this_one(probed, mini_model, tmp_path):
    _, hardware = probed
    wider = mini_model("v41", engram={"row_values": 64})
    with pytest.raises(BadInput, match="no layer times of mini-v41 by single calls"):
        pace.Pace(wider, hardware, tmp_path)
    assert not list(tmp_path.iterdir())
