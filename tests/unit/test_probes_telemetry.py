"""NVML from a stand-in that replays devices, healthy and pathological: every way a value can be missing or false."""

import importlib.util
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from tiercast_profiles.hardware import ProbeResult, Reading
from tiercast_runtime.probes.envelope import watched
from tiercast_runtime.probes.host_counters import energy_range_j, read_host_counters
from tiercast_runtime.probes.judgement import judge
from tiercast_runtime.probes.nvml_calls import CALLS, FIELDS
from tiercast_runtime.probes.pci import read_slot
from tiercast_runtime.probes.telemetry import Telemetry


class NVMLError_NotSupported(Exception):  # noqa: N801  # named as NVML names it: the class name is what counts
    pass


class NVMLError_NoPermission(Exception):  # noqa: N801
    pass


class NVMLError_LibraryNotFound(Exception):  # noqa: N801
    pass


class NVMLError_Unknown(Exception):  # noqa: N801
    pass


class NVMLError_GpuIsLost(Exception):  # noqa: N801
    pass


NOT_SUPPORTED, NO_PERMISSION = NVMLError_NotSupported("no"), NVMLError_NoPermission("no")
LOST = NVMLError_GpuIsLost("GPU is lost")
COUNTERS = {constant: 0 for _, _, constant in FIELDS}
HEALTHY = {
    "nvmlDeviceGetCurrPcieLinkGeneration": 5,
    "nvmlDeviceGetMaxPcieLinkGeneration": 5,
    "nvmlDeviceGetCurrPcieLinkWidth": 16,
    "nvmlDeviceGetMaxPcieLinkWidth": 16,
    "nvmlDeviceGetPcieReplayCounter": 3,
    "nvmlDeviceGetPowerUsage": 123_400,
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetTotalEnergyConsumption": 5_000,
    "nvmlDeviceGetTemperature": 41,
    "nvmlDeviceGetClockInfo": 1980,
    "nvmlDeviceGetMaxClockInfo": 1980,
    "nvmlDeviceGetCurrentClocksEventReasons": 0,
    "nvmlDeviceGetNumaNodeId": NOT_SUPPORTED,
    "nvmlDeviceGetAddressingMode": SimpleNamespace(value=1),
    "nvmlDeviceGetVirtualizationMode": 0,
    "nvmlDeviceGetMigMode": [[0, 0]],
    "nvmlDeviceGetPciInfo": SimpleNamespace(busId=b"00000000:1A:00.0"),
    "nvmlSystemGetDriverVersion": b"570.1",
    **COUNTERS,
    "NVML_FI_DEV_MEMORY_TEMP": 55,
}
DEVICES = {
    "healthy": {},
    "idle link at Gen1": {"nvmlDeviceGetCurrPcieLinkGeneration": [1, 5, 5, 5, 5, 1]},
    "never trains up": {"nvmlDeviceGetCurrPcieLinkGeneration": 1},
    "half the lanes": {"nvmlDeviceGetCurrPcieLinkWidth": 8},
    "replays": {"nvmlDeviceGetPcieReplayCounter": [3, 5]},
    "wrapped replays": {"nvmlDeviceGetPcieReplayCounter": [4_294_967_290, 2]},
    "bad packets": {"NVML_FI_DEV_PCIE_COUNT_BAD_TLP": [7, 9]},
    "recovery alone": {"NVML_FI_DEV_PCIE_L0_TO_RECOVERY_COUNTER": [1, 4]},
    "hot": {"nvmlDeviceGetCurrentClocksEventReasons": 0x40 | 0x1},
    "idle and chosen clocks": {"nvmlDeviceGetCurrentClocksEventReasons": 0x3},
    "a reason of the future": {"nvmlDeviceGetCurrentClocksEventReasons": 0x8000},
    "wrapped energy": {"nvmlDeviceGetTotalEnergyConsumption": [9_000_000, 1_000]},
    "GB10": {
        "nvmlDeviceGetCurrPcieLinkGeneration": 1,
        "nvmlDeviceGetCurrPcieLinkWidth": 1,
        "nvmlDeviceGetAddressingMode": SimpleNamespace(value=2),
        "nvmlDeviceGetNumaNodeId": 1,
    },
    "GB200 by its C2C links": {"nvmlDeviceGetCurrPcieLinkGeneration": 1, "NVML_FI_DEV_C2C_LINK_COUNT": 10},
    "no permission": dict.fromkeys(
        [call.function for call in CALLS] + [*COUNTERS, "nvmlDeviceGetAddressingMode"], NO_PERMISSION
    ),
    "vGPU": {
        "nvmlDeviceGetVirtualizationMode": 2,
        **dict.fromkeys([c.function for c in CALLS if "Pcie" in c.function or "Power" in c.function], NOT_SUPPORTED),
        **dict.fromkeys(COUNTERS, NOT_SUPPORTED),
    },
}
DEVICES["MIG"] = {
    "nvmlDeviceGetMigMode": [[1, 1]],
    **dict.fromkeys(["nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption"], NOT_SUPPORTED),
    **dict.fromkeys(COUNTERS, NOT_SUPPORTED),
}
DEVICES["lost midway"] = {
    name: [answer, LOST] for name, answer in HEALTHY.items() if name.startswith("nvmlDeviceGet") and "Mig" not in name
}
VERDICTS = {
    "lost midway": "the GPU stopped answering during the measurement (addressing_mode, bus_id, energy)",
    "never trains up": "link generation 1 under load is below its maximum 5",
    "half the lanes": "link width 8 under load is below its maximum 16",
    "replays": "2 link replays during the measurement",
    "wrapped replays": "the counter of link replays went from 4.29497e+09 back to 2: it wrapped or was reset",
    "bad packets": "2 bad transaction packets during the measurement",
    "hot": "clocks held down by hardware thermal",
    "a reason of the future": "clocks held down by 0x8000",
}


def raises(error):
    def call(*_, **__):
        raise error

    return call


def fake_nvml(device="healthy", **changes):
    """A module of NVML's shape; a list is played back answer by answer, its last one again and again."""
    answers = HEALTHY | DEVICES[device]
    state = SimpleNamespace(open=0)
    position: dict[str, int] = {}

    def answer(name):
        value = answers[name]
        if isinstance(value, list):
            position[name] = position.get(name, -1) + 1
            value = value[min(position[name], len(value) - 1)]
        return value

    def play(name):
        def call(*_):
            value = answer(name)
            if isinstance(value, Exception):
                raise value
            return value

        return call

    def fields(_, constants):
        value = answer(constants[0])
        if isinstance(value, Exception):
            return [SimpleNamespace(nvmlReturn=3 if value is NOT_SUPPORTED else 4)]
        return [SimpleNamespace(nvmlReturn=0, valueType=3, value=SimpleNamespace(ullVal=value))]

    def count(step):
        def call():
            state.open += step

        return call

    calls = {name: play(name) for name in answers if name.startswith("nvml")}
    constants = {name: name for name in answers if name.startswith("NVML")}
    constants |= {"NVML_TEMPERATURE_GPU": 0, "NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2}
    session = {
        "state": state,
        "nvmlInit": count(1),
        "nvmlShutdown": count(-1),
        "nvmlDeviceGetHandleByUUID": lambda uuid: f"handle of {uuid}",
        "nvmlDeviceGetHandleByIndex": lambda index: f"handle {index}",
        "nvmlDeviceGetFieldValues": fields,
    }
    return SimpleNamespace(**calls | constants | session | changes)


def result(status="ok", samples=(1.0, 2.0)):
    return ProbeResult(name="copy", unit="GB/s", samples=samples, status=status)


def around(device, tmp_path, *, num_samples=3, **loads):
    """One stage on a replayed device: its results, and the telemetry result behind them."""
    probes = [result()]
    with (
        Telemetry(nvml=fake_nvml(device), root=tmp_path) as telemetry,
        watched(telemetry, "stage", probes, interval_s=60, root=tmp_path, **loads) as envelope,
    ):
        for _ in range(num_samples):
            envelope.sample()
        probes.append(result())
    return probes[:-1], probes[-1]


LOADED = {"is_link_loaded": True, "is_device_loaded": True}


def test_values_come_in_plain_units(tmp_path):
    nvml = fake_nvml()
    with Telemetry(0, "abc", nvml, root=tmp_path) as telemetry:
        assert telemetry.is_available
        found = telemetry.read()
    assert found["power"] == Reading(value=123.4, unit="W", status="ok")
    assert found["energy"] == Reading(value=5.0, unit="J", status="ok")
    assert found["memory_temperature"] == Reading(value=55.0, unit="C", status="ok")
    assert found["addressing_mode"].value == "HMM"
    assert found["virtualization_mode"].value == "none"
    assert found["driver"].value == "570.1"
    assert found["link_kind"].value == "PCIe"
    assert nvml.state.open == 0


@pytest.mark.skipif(importlib.util.find_spec("pynvml") is None, reason="nvidia-ml-py is not installed")
def test_every_name_is_one_of_the_real_module():
    pynvml = importlib.import_module("pynvml")
    wanted = {call.function for call in CALLS} | {name for call in CALLS for name in call.constants}
    wanted |= {constant for _, _, constant in FIELDS}
    assert [name for name in sorted(wanted) if not hasattr(pynvml, name)] == []


def test_a_missing_library_is_not_supported(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Telemetry() as telemetry:
        assert {reading.status for reading in telemetry.read().values()} == {"not_supported"}
        assert "not installed" in telemetry.reason


def test_a_missing_driver_is_not_supported(tmp_path):
    nvml = fake_nvml(nvmlInit=raises(NVMLError_LibraryNotFound("no libnvidia-ml")))
    with Telemetry(nvml=nvml, root=tmp_path) as telemetry:
        assert not telemetry.is_available
        assert all(r.status == "not_supported" and r.value is None for r in telemetry.read().values())
        assert "libnvidia-ml" in telemetry.reason


def test_a_missing_gpu_closes_the_session_again(tmp_path):
    nvml = fake_nvml(nvmlDeviceGetHandleByIndex=raises(NVMLError_Unknown("lost")))
    with Telemetry(nvml=nvml, root=tmp_path) as telemetry:
        found = telemetry.read()
    assert {found[name].status for name in ("power", "link_generation", "driver", "link_bad_tlps")} == {"error"}
    assert nvml.state.open == 0


def test_an_unknown_uuid_falls_back_to_the_index(tmp_path):
    nvml = fake_nvml(nvmlDeviceGetHandleByUUID=raises(NOT_SUPPORTED))
    with Telemetry(2, "abc", nvml, root=tmp_path) as telemetry:
        assert telemetry.is_available


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NOT_SUPPORTED, "not_supported"),
        (NO_PERMISSION, "no_permission"),
        (NVMLError_Unknown(), "error"),
        (AttributeError("old version"), "not_supported"),
    ],
)
def test_one_failing_call_hides_no_other(tmp_path, error, status):
    with Telemetry(nvml=fake_nvml(nvmlDeviceGetPowerUsage=raises(error)), root=tmp_path) as telemetry:
        found = telemetry.read()
    assert found["power"] == Reading(value=None, unit="W", status=status)
    assert found["temperature"].value == 41


def test_what_the_module_lacks_is_not_supported(tmp_path):
    nvml = fake_nvml()
    del nvml.nvmlDeviceGetAddressingMode, nvml.nvmlSystemGetDriverVersion, nvml.NVML_FI_DEV_C2C_LINK_COUNT
    with Telemetry(nvml=nvml, root=tmp_path) as telemetry:
        found = telemetry.read()
    assert {found[name].status for name in ("addressing_mode", "driver", "c2c_links")} == {"not_supported"}


def test_a_field_of_an_unknown_type_is_an_error_not_a_number(tmp_path):
    odd = SimpleNamespace(nvmlReturn=0, valueType=99, value=SimpleNamespace())
    with Telemetry(nvml=fake_nvml(nvmlDeviceGetFieldValues=lambda *_: [odd]), root=tmp_path) as telemetry:
        assert telemetry.read()["link_bad_tlps"] == Reading(value=None, unit="count", status="error")


@pytest.mark.parametrize("device", DEVICES)
def test_every_device_is_judged_and_none_is_a_crash(tmp_path, device):
    probes, telemetry = around(device, tmp_path, **LOADED)
    wanted = VERDICTS.get(device, "")
    assert telemetry.status == ("invalid" if wanted else "ok")
    assert wanted in telemetry.reason
    assert probes[0] == result()  # measured before the stage, and not its business
    assert probes[1].status == telemetry.status
    assert probes[1].samples == (1.0, 2.0)  # kept, flagged
    for reading in telemetry.telemetry.values():
        assert (reading.value is None) == (reading.status != "ok")  # an unknown is never a zero


@pytest.mark.parametrize("device", ["GB10", "GB200 by its C2C links"])
def test_a_chip_to_chip_link_is_not_pcie(tmp_path, device):
    _, telemetry = around(device, tmp_path, **LOADED)
    assert telemetry.telemetry["link_kind"].value == "C2C, not PCIe"
    assert telemetry.telemetry["link_generation"] == Reading(value=None, unit="gen", status="not_supported")


def test_what_a_vgpu_or_a_user_without_rights_cannot_see_says_so(tmp_path):
    _, virtual = around("vGPU", tmp_path, **LOADED)
    assert virtual.telemetry["virtualization_mode"].value == "vGPU"
    assert virtual.telemetry["link_generation"].status == "not_supported"
    assert virtual.telemetry["replays_rise"] == Reading(value=None, unit="count", status="not_supported")
    _, shut = around("no permission", tmp_path, **LOADED)
    assert shut.telemetry["power"] == Reading(value=None, unit="W", status="no_permission")
    assert shut.telemetry["energy_rise"].status == "no_permission"


def test_an_instance_of_a_gpu_is_found_by_its_own_name_and_says_so(tmp_path):
    asked = []

    def by_uuid(uuid):
        asked.append(uuid)
        return "handle"

    for uuid in ("MIG-abc", "GPU-abc", "abc"):
        with Telemetry(0, uuid, fake_nvml("MIG", nvmlDeviceGetHandleByUUID=by_uuid), root=tmp_path) as telemetry:
            assert telemetry.read()["mig_mode"].value == "on"
    assert asked == ["MIG-abc", "GPU-abc", "GPU-abc"]
    _, telemetry = around("MIG", tmp_path, **LOADED)
    assert telemetry.telemetry["energy_rise"].status == "not_supported"


def test_a_gpu_lost_in_a_stage_that_does_not_use_it_spoils_nothing(tmp_path):
    _, telemetry = around("lost midway", tmp_path)
    assert telemetry.status == "ok"
    assert telemetry.telemetry["power"] == Reading(value=None, unit="W", status="error")


def test_a_counter_that_went_back_is_no_negative_number(tmp_path):
    _, telemetry = around("wrapped energy", tmp_path, **LOADED)
    assert telemetry.telemetry["energy_rise"] == Reading(value=None, unit="J", status="error")


@pytest.mark.parametrize("device", ["never trains up", "replays", "hot"])
def test_a_stage_that_uses_no_gpu_is_not_judged_by_it(tmp_path, device):
    assert around(device, tmp_path)[1].status == "ok"


def test_a_link_nobody_saw_under_load_is_not_judged_by_its_idle_speed(tmp_path):
    _, telemetry = around("never trains up", tmp_path, num_samples=0, **LOADED)
    assert telemetry.status == "ok"
    assert "link_generation" not in telemetry.telemetry


def test_one_slow_sample_of_the_probe_itself_is_enough(tmp_path):
    probes = []
    nvml = fake_nvml()
    generations = iter([5, 5, 4, 5, 5, 5])
    nvml.nvmlDeviceGetCurrPcieLinkGeneration = lambda _: next(generations)
    with (
        Telemetry(nvml=nvml, root=tmp_path) as telemetry,
        watched(telemetry, "stage", probes, interval_s=60, root=tmp_path, **LOADED) as envelope,
    ):
        for _ in range(3):
            envelope.sample()
    assert "link generation 4" in probes[-1].reason


def test_the_thread_beside_a_stage_samples_and_ends(tmp_path):
    probes, seen = [], threading.Event()
    nvml = fake_nvml("idle link at Gen1")
    reasons = iter([0, 0, 0x4])

    def watch(_):
        answer = next(reasons, None)
        if answer is None:
            seen.set()
        return answer or 0

    nvml.nvmlDeviceGetCurrentClocksEventReasons = watch
    with (
        Telemetry(nvml=nvml, root=tmp_path) as telemetry,
        watched(telemetry, "stage", probes, interval_s=0.001, root=tmp_path, **LOADED),
    ):
        assert seen.wait(5)
    assert probes[-1].parameters["num_samples_beside"] >= 2
    assert probes[-1].reason == "clocks held down by power cap"  # the link saved power only before and after
    assert not any(thread.name == "telemetry" for thread in threading.enumerate())


def test_an_exception_of_the_stage_passes_and_the_thread_ends(tmp_path):
    probes = []
    with Telemetry(nvml=fake_nvml(), root=tmp_path) as telemetry:
        with (
            pytest.raises(RuntimeError, match="the stage broke"),
            watched(telemetry, "stage", probes, root=tmp_path),
        ):
            raise RuntimeError("the stage broke")
        assert not any(thread.name == "telemetry" for thread in threading.enumerate())
    assert probes == []


def test_probes_without_samples_keep_their_own_reason(tmp_path):
    probes = []
    with (
        Telemetry(nvml=fake_nvml("hot"), root=tmp_path) as telemetry,
        watched(telemetry, "stage", probes, root=tmp_path, **LOADED) as envelope,
    ):
        envelope.sample()
        probes += [result("not_supported", ()), result("unstable")]
    assert [probe.status for probe in probes] == ["not_supported", "invalid", "invalid"]


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="ascii")


def test_without_a_gpu_the_host_is_watched_and_there_is_no_thread(tmp_path):
    for core, khz in ((0, "2000000"), (1, "3000000")):
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", khz)
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/thermal_throttle/package_throttle_count", "4")
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/topology/physical_package_id", "0")
    write(tmp_path, "sys/class/powercap/intel-rapl:0/energy_uj", "9000000")
    write(tmp_path, "sys/class/powercap/intel-rapl:0/max_energy_range_uj", "10000000")
    probes, before = [], threading.active_count()
    with watched(Telemetry(nvml=SimpleNamespace()), "stage", probes, root=tmp_path) as envelope:
        assert threading.active_count() == before
        envelope.sample()
        probes.append(result())
        write(tmp_path, "sys/class/powercap/intel-rapl:0/energy_uj", "1000000")
        for core in (0, 1):
            write(tmp_path, f"sys/devices/system/cpu/cpu{core}/thermal_throttle/package_throttle_count", "6")
    readings = probes[-1].telemetry
    assert readings["cpu_clock"] == Reading(value=2500, unit="MHz", status="ok")
    assert readings["cpu_energy_rise"] == Reading(value=2, unit="J", status="ok")  # it wraps at 10 J
    assert readings["cpu_throttles_rise"].value == 2  # two cores of one package tell the same two
    assert "power" not in readings
    assert probes[0].status == "invalid"
    assert "2 times the CPU was slowed down for heat" in probes[0].reason


def test_a_host_that_tells_nothing_is_not_zero(tmp_path):
    write(tmp_path, "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count", "not a number")
    write(tmp_path, "sys/devices/system/cpu/cpu0/topology/physical_package_id", "0")
    probes = []
    with watched(Telemetry(nvml=SimpleNamespace()), "stage", probes, root=tmp_path):
        pass
    readings = probes[-1].telemetry
    assert readings["cpu_clock"] == Reading(value=None, unit="MHz", status="not_supported")
    assert readings["cpu_throttles"] == Reading(value=None, unit="count", status="error")
    assert readings["cpu_throttles_rise"].status == "error"


@pytest.mark.parametrize(("error", "status"), [(PermissionError(), "no_permission"), (OSError(5, "I/O"), "error")])
def test_files_that_may_not_or_cannot_be_read_are_told_apart(tmp_path, monkeypatch, error, status):
    package = tmp_path / "sys/devices/system/cpu/cpu0"
    for path in ("thermal_throttle/package_throttle_count", "topology/physical_package_id", "cpufreq/scaling_cur_freq"):
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_text("1")
    monkeypatch.setattr(Path, "read_text", raises(error))
    counters = read_host_counters(tmp_path)
    assert {counters[name].status for name in ("cpu_clock", "cpu_throttles")} == {status}
    assert energy_range_j(tmp_path) is None
    assert {reading.status for reading in read_slot("0000:1a:00.0", tmp_path).values()} == {status}


def test_the_slot_of_a_gpu_tells_numa_iommu_and_power_saving(tmp_path):
    slot = "sys/bus/pci/devices/0000:1a:00.0"
    for name, text in {
        "numa_node": "1",
        "local_cpulist": "56-111",
        "current_link_speed": "32.0 GT/s PCIe",
        "max_link_speed": "something new",
        "current_link_width": "16",
        "iommu_group/type": "DMA-FQ",
        "link/l1_aspm": "0",
    }.items():
        write(tmp_path, f"{slot}/{name}", text)
    with Telemetry(nvml=fake_nvml(), root=tmp_path) as telemetry:
        found = telemetry.read()
    assert found["slot_numa_node"].value == 1
    assert found["slot_local_cpus"].value == "56-111"
    assert found["slot_link_generation"] == Reading(value=5, unit="gen", status="ok")
    assert found["slot_link_generation_max"] == Reading(value=None, unit="gen", status="not_supported")
    assert found["slot_iommu"].value == "DMA-FQ"
    assert found["slot_aspm_l1"].value == "0"
    assert found["slot_link_width_max"].status == "not_supported"
    write(tmp_path, f"{slot}/numa_node", "-1")  # the firmware does not say
    with Telemetry(nvml=fake_nvml(), root=tmp_path) as telemetry:
        assert telemetry.read()["slot_numa_node"] == Reading(value=None, unit="node", status="not_supported")


def test_what_nvml_does_not_say_speaks_against_nothing():
    unknown = {"link_generation": Reading(value=None, unit="gen", status="not_supported")}
    assert judge({}, unknown, {}) == ("ok", "")
