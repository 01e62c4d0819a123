"""amdsmi from a stand-in: values in the units of the other readings, and every way one can be missing."""

import sys
from types import SimpleNamespace

import pytest

from tiercast_profiles.hardware import Reading
from tiercast_runtime.probes.amd_readings import open_amd
from tiercast_runtime.probes.telemetry import Telemetry

HIP_UUID = "dae1f2ab3c4d5e6f"
TORCH_UUID = HIP_UUID.encode().hex()


class AmdSmiLibraryException(Exception):
    def __init__(self, code):
        self.code = code
        super().__init__(code)

    def get_error_code(self):
        return self.code


def raises(error):
    def call(*_):
        raise error

    return call


def fake(num_gpus=1, **changes):
    state = SimpleNamespace(open=0)

    def count(step):
        state.open += step

    module = {
        "state": state,
        "AmdSmiClkType": SimpleNamespace(GFX="gfx", MEM="mem"),
        "AmdSmiTemperatureType": SimpleNamespace(HOTSPOT="hotspot", VRAM="vram"),
        "AmdSmiTemperatureMetric": SimpleNamespace(CURRENT="current"),
        "amdsmi_init": lambda: count(1),
        "amdsmi_shut_down": lambda: count(-1),
        "amdsmi_get_processor_handles": lambda: list(range(num_gpus)),
        "amdsmi_get_gpu_enumeration_info": lambda handle: {"hip_uuid": f"GPU-{HIP_UUID[:-1]}{'f0'[handle]}"},
        "amdsmi_get_pcie_info": lambda _: {
            "pcie_static": {"max_pcie_width": 16, "max_pcie_speed": 32000},
            "pcie_metric": {
                "pcie_width": 8,
                "pcie_speed": 16000,
                "pcie_replay_count": 3,
                "pcie_l0_to_recovery_count": "N/A",
                "pcie_nak_sent_count": 1,
                "pcie_nak_received_count": 2,
            },
        },
        "amdsmi_get_power_info": lambda _: {"current_socket_power": 412, "average_socket_power": "N/A"},
        "amdsmi_get_energy_count": lambda _: {"energy_accumulator": 2_000_000, "counter_resolution": 15.3},
        "amdsmi_get_temp_metric": lambda _, sensor, metric: {"hotspot": 61, "vram": 48000}[sensor],
        "amdsmi_get_clock_info": lambda _, kind: {"gfx": {"clk": 2100, "max_clk": 2400}, "mem": {"clk": 2600}}[kind],
        "amdsmi_get_gpu_driver_info": lambda _: {"driver_version": "6.12.12"},
        "amdsmi_get_gpu_device_bdf": lambda _: "0000:c1:00.0",
    }
    return SimpleNamespace(**module | changes)


@pytest.fixture
def no_nvml(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)


@pytest.mark.usefixtures("no_nvml")
def test_values_come_in_the_units_of_the_other_readings(tmp_path):
    smi = fake()
    with Telemetry(root=tmp_path, amdsmi=smi) as telemetry:
        assert telemetry.is_available
        found, sampled = telemetry.read(), telemetry.sample()
    values = {name: (reading.value, reading.unit) for name, reading in found.items() if reading.status == "ok"}
    assert values == {
        "link_generation": (4.0, "gen"),
        "link_generation_max": (5.0, "gen"),
        "link_width": (8.0, "lanes"),
        "link_width_max": (16.0, "lanes"),
        "link_kind": ("PCIe", ""),
        "replays": (3.0, "count"),
        "link_naks_sent": (1.0, "count"),
        "link_naks_received": (2.0, "count"),
        "power": (412.0, "W"),
        "energy": (pytest.approx(30.6), "J"),
        "temperature": (61.0, "C"),
        "memory_temperature": (48.0, "C"),
        "sm_clock": (2100.0, "MHz"),
        "sm_clock_max": (2400.0, "MHz"),
        "memory_clock": (2600.0, "MHz"),
        "driver": ("6.12.12", ""),
        "bus_id": ("0000:c1:00.0", ""),
    }
    for name in ("memory_clock_max", "link_recoveries", "mig_mode", "c2c_links"):
        assert found[name].status == "not_supported", name
        assert found[name].value is None
    assert {name for name, reading in sampled.items() if reading.status == "ok"} == {
        "link_generation",
        "link_width",
        "power",
        "temperature",
        "sm_clock",
        "memory_clock",
    }
    assert smi.state.open == 0
    assert not telemetry.is_available


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (AmdSmiLibraryException(2), "not_supported"),
        (AmdSmiLibraryException(10), "no_permission"),
        (AmdSmiLibraryException(34), "error"),
        (AttributeError("old version"), "not_supported"),
        (OSError("gone"), "error"),
    ],
)
def test_one_failing_call_hides_no_other(error, status):
    gpu, _ = open_amd(0, None, fake(amdsmi_get_power_info=raises(error)))
    found = gpu.read()
    assert found["power"] == Reading(value=None, unit="W", status=status)
    assert found["temperature"].value == 61


def test_a_value_that_is_no_number_or_no_known_speed_is_never_a_zero():
    said = {"current_socket_power": "N/A", "average_socket_power": "N/A"}
    pcie = {"pcie_static": {}, "pcie_metric": {"pcie_speed": 123, "pcie_width": None}}
    smi = fake(amdsmi_get_power_info=lambda _: said, amdsmi_get_pcie_info=lambda _: pcie)
    found = open_amd(0, None, smi)[0].read()
    assert found["power"] == Reading(value=None, unit="W", status="not_supported")
    assert found["link_width"] == Reading(value=None, unit="lanes", status="error")
    assert {found[name].value for name in ("link_generation", "link_generation_max", "replays")} == {None}


def test_power_is_the_average_where_there_is_no_current_one_and_speeds_may_be_gigatransfers():
    said = {"current_socket_power": "N/A", "average_socket_power": 95}
    pcie = {"pcie_metric": {"pcie_speed": 2.5}, "pcie_static": {"max_pcie_speed": 64}}
    smi = fake(amdsmi_get_power_info=lambda _: said, amdsmi_get_pcie_info=lambda _: pcie)
    found = open_amd(0, None, smi)[0].read()
    assert [found[name].value for name in ("power", "link_generation", "link_generation_max")] == [95, 1, 6]


@pytest.mark.usefixtures("no_nvml")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"amdsmi_init": raises(AmdSmiLibraryException(33))}, "amdsmi does not start: 33"),
        ({"amdsmi_get_processor_handles": list}, "amdsmi finds no such GPU"),
        ({"amdsmi_get_processor_handles": raises(AmdSmiLibraryException(1))}, "amdsmi finds no such GPU: 1"),
    ],
)
def test_without_a_driver_or_a_gpu_every_reading_says_so(tmp_path, changes, reason):
    smi = fake(**changes)
    with Telemetry(root=tmp_path, amdsmi=smi) as telemetry:
        assert not telemetry.is_available
        assert all(reading.status == "not_supported" for reading in telemetry.read().values())
        assert "nvidia-ml-py is not installed" in telemetry.reason
        assert reason in telemetry.reason
    assert smi.state.open == 0


def test_a_gpu_is_found_by_its_uuid_and_never_guessed_where_some_are_hidden(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert open_amd(1, None, fake(2))[0].handle == 1
    assert open_amd(1, TORCH_UUID, fake(2))[0].handle == 0
    assert open_amd(1, "not a uuid", fake(2))[0].handle == 1
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    assert open_amd(1, TORCH_UUID, fake(2))[0].handle == 0
    gpu, reason = open_amd(0, None, fake(2))
    assert gpu is None
    assert "which one is number 0 is not known" in reason


def test_a_module_without_its_library_prints_nothing_and_is_not_installed(tmp_path, monkeypatch, capsys):
    (tmp_path / "amdsmi.py").write_text("print('Unable to find libamd_smi.so')\nraise OSError('no library')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    assert open_amd(0, None) == (None, "amdsmi is not installed")
    assert capsys.readouterr().out == ""


def test_nvml_comes_first(tmp_path):
    nvml = SimpleNamespace(
        nvmlInit=lambda: None, nvmlShutdown=lambda: None, nvmlDeviceGetHandleByIndex=lambda _: "handle"
    )
    with Telemetry(nvml=nvml, root=tmp_path, amdsmi=fake(amdsmi_init=raises(AssertionError))) as telemetry:
        assert telemetry.is_available
        assert telemetry.read()["power"].status == "not_supported"
