"""NVML readings from a stand-in library: every way a value can be missing, and what speaks against a measurement."""

import sys
from types import SimpleNamespace

import pytest

from tiercast_profiles.hardware import Reading
from tiercast_runtime.probes.telemetry import Telemetry, judge


class NVMLError_NotSupported(Exception):  # noqa: N801  # named as NVML names it: the class name is what counts
    pass


class NVMLError_NoPermission(Exception):  # noqa: N801
    pass


class NVMLError_LibraryNotFound(Exception):  # noqa: N801
    pass


class NVMLError_Unknown(Exception):  # noqa: N801
    pass


def fails(error):
    def call(*_):
        raise error

    return call


def fake_nvml(**changes):
    state = SimpleNamespace(open=0)

    def start():
        state.open += 1

    def stop():
        state.open -= 1

    calls = {
        "state": state,
        "nvmlInit": start,
        "nvmlShutdown": stop,
        "nvmlDeviceGetHandleByUUID": lambda uuid: f"handle of {uuid}",
        "nvmlDeviceGetHandleByIndex": lambda index: f"handle {index}",
        "nvmlSystemGetDriverVersion": lambda: b"570.1",
        "nvmlDeviceGetCurrPcieLinkGeneration": lambda _: 5,
        "nvmlDeviceGetMaxPcieLinkGeneration": lambda _: 5,
        "nvmlDeviceGetCurrPcieLinkWidth": lambda _: 16,
        "nvmlDeviceGetMaxPcieLinkWidth": lambda _: 16,
        "nvmlDeviceGetPcieReplayCounter": lambda _: 3,
        "nvmlDeviceGetPowerUsage": lambda _: 123_400,
        "nvmlDeviceGetEnforcedPowerLimit": lambda _: 700_000,
        "nvmlDeviceGetTotalEnergyConsumption": lambda _: 5_000,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlDeviceGetTemperature": lambda _, sensor: 41 + sensor,
        "NVML_CLOCK_SM": 1,
        "NVML_CLOCK_MEM": 2,
        "nvmlDeviceGetClockInfo": lambda _, domain: 1000 * domain,
        "nvmlDeviceGetMaxClockInfo": lambda _, domain: 2000 * domain,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda _: 0,
        "nvmlDeviceGetAddressingMode": lambda _: SimpleNamespace(value=1),
    }
    return SimpleNamespace(**calls | changes)


def readings(**changes):
    values = {"link_generation": 5.0, "link_generation_max": 5.0, "link_width": 16.0, "link_width_max": 16.0}
    values |= {"replays": 0.0, "event_reasons": 0.0, "addressing_mode": "HMM"} | changes
    units = {"addressing_mode": ""}
    return {
        name: Reading(value=value, unit=units.get(name, "n"), status="ok" if value is not None else "not_supported")
        for name, value in values.items()
    }


def test_values_come_in_plain_units():
    nvml = fake_nvml()
    with Telemetry(0, "abc", nvml) as telemetry:
        assert telemetry.is_available
        found = telemetry.read()
    assert found["power"] == Reading(value=123.4, unit="W", status="ok")
    assert found["energy"] == Reading(value=5.0, unit="J", status="ok")
    assert found["memory_clock_max"].value == 4000
    assert found["addressing_mode"].value == "HMM"
    assert found["driver"].value == "570.1"
    assert nvml.state.open == 0


def test_a_missing_library_is_not_supported(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Telemetry() as telemetry:
        assert {reading.status for reading in telemetry.read().values()} == {"not_supported"}
        assert "not installed" in telemetry.reason


def test_a_missing_driver_is_not_supported():
    nvml = fake_nvml(nvmlInit=fails(NVMLError_LibraryNotFound("no libnvidia-ml")))
    with Telemetry(nvml=nvml) as telemetry:
        assert not telemetry.is_available
        assert all(r.status == "not_supported" and r.value is None for r in telemetry.read().values())
        assert "libnvidia-ml" in telemetry.reason


def test_a_missing_gpu_closes_the_session_again():
    nvml = fake_nvml(nvmlDeviceGetHandleByIndex=fails(NVMLError_Unknown("lost")))
    with Telemetry(nvml=nvml) as telemetry:
        assert {reading.status for reading in telemetry.read().values()} == {"error"}
    assert nvml.state.open == 0


def test_an_unknown_uuid_falls_back_to_the_index():
    nvml = fake_nvml(nvmlDeviceGetHandleByUUID=fails(NVMLError_NotSupported()))
    with Telemetry(2, "abc", nvml) as telemetry:
        assert telemetry.is_available


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NVMLError_NotSupported(), "not_supported"),
        (NVMLError_NoPermission(), "no_permission"),
        (NVMLError_Unknown(), "error"),
        (AttributeError("old version"), "not_supported"),
    ],
)
def test_one_failing_call_hides_no_other(error, status):
    with Telemetry(nvml=fake_nvml(nvmlDeviceGetPowerUsage=fails(error))) as telemetry:
        found = telemetry.read()
    assert found["power"] == Reading(value=None, unit="W", status=status)
    assert found["temperature"].value == 41


def test_a_call_that_the_module_lacks_is_not_supported():
    nvml = fake_nvml()
    del nvml.nvmlDeviceGetAddressingMode, nvml.nvmlSystemGetDriverVersion
    with Telemetry(nvml=nvml) as telemetry:
        found = telemetry.read()
    assert found["addressing_mode"].status == found["driver"].status == "not_supported"


def test_a_healthy_link_is_ok():
    assert judge(readings(), readings(), readings()) == ("ok", "")


@pytest.mark.parametrize(
    ("under_load", "reason"),
    [
        ({"link_generation": 1.0}, "link generation 1 under load is below its maximum 5"),
        ({"link_width": 8.0}, "link width 8"),
        ({"event_reasons": float(0x40 | 0x1)}, "hardware thermal"),
    ],
)
def test_what_speaks_against_a_link_measurement(under_load, reason):
    status, text = judge(readings(), readings(**under_load), readings())
    assert status == "invalid"
    assert reason in text


def test_replays_during_the_measurement_make_it_invalid():
    assert judge(readings(replays=3.0), readings(), readings(replays=3.0))[0] == "ok"
    assert "2 link replays" in judge(readings(replays=3.0), readings(), readings(replays=5.0))[1]


def test_idle_and_chosen_clocks_are_harmless():
    assert judge(readings(), readings(event_reasons=3.0), readings())[0] == "ok"


def test_a_gpu_in_the_hosts_address_space_has_no_link_to_judge():
    assert judge(readings(), readings(link_generation=1.0, addressing_mode="ATS"), readings())[0] == "ok"


def test_what_nvml_does_not_say_speaks_against_nothing():
    assert judge({}, readings(link_generation=None, event_reasons=None), {})[0] == "ok"
