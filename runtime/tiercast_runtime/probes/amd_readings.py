"""What amdsmi says of an AMD GPU, under the names and in the units of the NVML readings, each wrapped on its own.

Names follow amdsmi_interface.py of 7.0.2. It says "N/A" for what a GPU does not have.
"""

import contextlib
import importlib
import io
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tiercast_profiles.hardware import Reading

Smi = Any  # the amdsmi module, which has no types, or a stand-in of the same shape
Handle = Any  # an opaque handle of a GPU
Status = Literal["ok", "not_supported", "no_permission", "error"]

_GENERATIONS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}  # PCI Express Base: GT/s per generation
# amdsmi_status_t: 2 not supported, 3 not yet implemented, 10 no permission, 31 not found, 40 no data
_CODES: Mapping[int, Status] = {
    2: "not_supported",
    3: "not_supported",
    10: "no_permission",
    31: "not_supported",
    40: "not_supported",
}
_HIDING = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")


class _Absent(Exception):
    """The GPU does not have the value."""


def _pcie(part: str, name: str) -> Callable[[Smi, Handle], float]:
    return lambda smi, handle: _number(smi.amdsmi_get_pcie_info(handle)[part][name])


def _generation(part: str, name: str) -> Callable[[Smi, Handle], float]:
    def read(smi: Smi, handle: Handle) -> float:
        speed = _number(smi.amdsmi_get_pcie_info(handle)[part][name])
        gt_per_s = speed / 1000 if speed >= 1000 else speed  # MT/s or GT/s, as the version has it: 2.5 to 64 GT/s exist
        return float(_GENERATIONS[gt_per_s])

    return read


def _clock(kind: str, name: str) -> Callable[[Smi, Handle], float]:
    return lambda smi, handle: _number(smi.amdsmi_get_clock_info(handle, getattr(smi.AmdSmiClkType, kind))[name])


def _temperature(sensor: str) -> Callable[[Smi, Handle], float]:
    def read(smi: Smi, handle: Handle) -> float:
        kinds, metrics = smi.AmdSmiTemperatureType, smi.AmdSmiTemperatureMetric
        found = _number(smi.amdsmi_get_temp_metric(handle, getattr(kinds, sensor), metrics.CURRENT))
        return found / 1000 if found >= 1000 else found  # older versions say thousandths of a degree

    return read


def _power(smi: Smi, handle: Handle) -> float:
    """Current power where the GPU has it (MI300 and later), else the average."""
    said = smi.amdsmi_get_power_info(handle)
    current = said["current_socket_power"]
    return _number(said["average_socket_power"] if current == "N/A" else current)


def _energy(smi: Smi, handle: Handle) -> float:
    said = smi.amdsmi_get_energy_count(handle)
    return _number(said["energy_accumulator"]) * _number(said["counter_resolution"]) * 1e-6  # the resolution is in uJ


_READINGS: Mapping[str, tuple[str, Callable[[Smi, Handle], float | str]]] = {
    "link_generation": ("gen", _generation("pcie_metric", "pcie_speed")),
    "link_generation_max": ("gen", _generation("pcie_static", "max_pcie_speed")),
    "link_width": ("lanes", _pcie("pcie_metric", "pcie_width")),
    "link_width_max": ("lanes", _pcie("pcie_static", "max_pcie_width")),
    "replays": ("count", _pcie("pcie_metric", "pcie_replay_count")),
    "link_recoveries": ("count", _pcie("pcie_metric", "pcie_l0_to_recovery_count")),
    "link_naks_sent": ("count", _pcie("pcie_metric", "pcie_nak_sent_count")),
    "link_naks_received": ("count", _pcie("pcie_metric", "pcie_nak_received_count")),
    "power": ("W", _power),
    "energy": ("J", _energy),
    "temperature": ("C", _temperature("HOTSPOT")),
    "memory_temperature": ("C", _temperature("VRAM")),
    "sm_clock": ("MHz", _clock("GFX", "clk")),
    "sm_clock_max": ("MHz", _clock("GFX", "max_clk")),
    "memory_clock": ("MHz", _clock("MEM", "clk")),
    "memory_clock_max": ("MHz", _clock("MEM", "max_clk")),
    "driver": ("", lambda smi, handle: _text(smi.amdsmi_get_gpu_driver_info(handle)["driver_version"])),
    "bus_id": ("", lambda smi, handle: _text(smi.amdsmi_get_gpu_device_bdf(handle))),
}


@dataclass(frozen=True, slots=True)
class AmdGpu:
    """A GPU in an open session of amdsmi."""

    smi: Smi
    handle: Handle

    def read(self, names: Collection[str] = _READINGS.keys()) -> dict[str, Reading]:
        """Readings now: all, or those of these names."""
        return {name: self._reading(*_READINGS[name]) for name in _READINGS if name in names}

    def _reading(self, unit: str, read: Callable[[Smi, Handle], float | str]) -> Reading:
        try:
            return Reading(value=read(self.smi, self.handle), unit=unit, status="ok")
        except Exception as error:  # each call stands alone; one failure hides nothing else
            return Reading(value=None, unit=unit, status=status_of(error))

    def close(self) -> None:
        """End the session."""
        with contextlib.suppress(Exception):  # a GPU that is gone is closed
            self.smi.amdsmi_shut_down()


def open_amd(index: int, uuid: str | None, smi: Smi = None) -> tuple[AmdGpu | None, str]:
    """A session for one GPU, or None and the reason.

    Args:
        index: the GPU as torch counts them.
        uuid: its UUID as torch writes it, which tells it apart where some GPUs are hidden from this process.
        smi: stands in for the module in tests.
    """
    smi = _module() if smi is None else smi
    if smi is None:
        return None, "amdsmi is not installed"
    try:
        smi.amdsmi_init()
    except Exception as error:
        return None, f"amdsmi does not start: {error}"
    try:
        return AmdGpu(smi, _handle(smi, index, uuid)), ""
    except Exception as error:
        with contextlib.suppress(Exception):
            smi.amdsmi_shut_down()
        return None, f"amdsmi finds no such GPU: {error}"


def status_of(error: Exception) -> Status:
    """The status an exception stands for: what a version or a GPU lacks is not an error."""
    if isinstance(error, (_Absent, AttributeError, KeyError)):
        return "not_supported"
    code = getattr(error, "get_error_code", None)
    found = code() if callable(code) else None
    return _CODES.get(found, "error") if isinstance(found, int) else "error"


def _module() -> Smi:
    # Without its library the module says so on standard output, which is a command's result, and fails somehow.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return importlib.import_module("amdsmi")
        except Exception:
            return None


def _handle(smi: Smi, index: int, uuid: str | None) -> Handle:
    handles = smi.amdsmi_get_processor_handles()
    wanted = None if uuid is None else _hip_uuid(uuid)
    for handle in handles if wanted else ():
        with contextlib.suppress(Exception):
            if smi.amdsmi_get_gpu_enumeration_info(handle)["hip_uuid"].removeprefix("GPU-").lower() == wanted:
                return handle
    if len(handles) > 1 and any(name in os.environ for name in _HIDING):
        raise LookupError(f"some of {len(handles)} GPUs are hidden, and which one is number {index} is not known")
    return handles[index]


def _hip_uuid(uuid: str) -> str | None:
    """HIP's UUID is sixteen letters, of which torch writes each as its code."""
    with contextlib.suppress(ValueError):
        return bytes.fromhex(uuid.removeprefix("GPU-").replace("-", "")).decode("ascii").lower()
    return None


def _number(value: object) -> float:
    if value == "N/A":
        raise _Absent
    if not isinstance(value, (int, float)):
        raise TypeError(f"not a number: {value!r}")
    return float(value)


def _text(value: object) -> str:
    if value == "N/A":
        raise _Absent
    return str(value)
