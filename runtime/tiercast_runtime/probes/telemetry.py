"""What NVML says of the GPU, each value wrapped on its own: a value, or the reason there is none.

Call names follow nvml.h. A report never shows 0 for an unknown: a missing library, a missing driver, a call the GPU
does not have and a call this user may not make are told apart.
"""

import importlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal, Self

from tiercast_profiles.hardware import Reading

Status = Literal["ok", "not_supported", "no_permission", "error"]
ProbeStatus = Literal["ok", "unstable", "invalid", "not_supported", "failed"]
Nvml = Any  # the pynvml module, which has no types, or a stand-in of the same shape

# Reasons a clock may be low that say nothing against a measurement: idle, and clocks the operator chose.
HARMLESS_REASONS = 0x1 | 0x2
EVENT_REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
    0x100: "display",
}
ADDRESSING_MODES = {0: "none", 1: "HMM", 2: "ATS"}

# name, unit, call, further arguments (names of constants), factor to the unit, names of the values
_CALLS: tuple[tuple[str, str, str, tuple[str, ...], float], ...] = (
    ("link_generation", "gen", "nvmlDeviceGetCurrPcieLinkGeneration", (), 1),
    ("link_generation_max", "gen", "nvmlDeviceGetMaxPcieLinkGeneration", (), 1),
    ("link_width", "lanes", "nvmlDeviceGetCurrPcieLinkWidth", (), 1),
    ("link_width_max", "lanes", "nvmlDeviceGetMaxPcieLinkWidth", (), 1),
    ("replays", "count", "nvmlDeviceGetPcieReplayCounter", (), 1),
    ("power", "W", "nvmlDeviceGetPowerUsage", (), 1e-3),
    ("power_limit", "W", "nvmlDeviceGetEnforcedPowerLimit", (), 1e-3),
    ("energy", "J", "nvmlDeviceGetTotalEnergyConsumption", (), 1e-3),
    ("temperature", "C", "nvmlDeviceGetTemperature", ("NVML_TEMPERATURE_GPU",), 1),
    ("sm_clock", "MHz", "nvmlDeviceGetClockInfo", ("NVML_CLOCK_SM",), 1),
    ("memory_clock", "MHz", "nvmlDeviceGetClockInfo", ("NVML_CLOCK_MEM",), 1),
    ("sm_clock_max", "MHz", "nvmlDeviceGetMaxClockInfo", ("NVML_CLOCK_SM",), 1),
    ("memory_clock_max", "MHz", "nvmlDeviceGetMaxClockInfo", ("NVML_CLOCK_MEM",), 1),
    ("event_reasons", "bitmask", "nvmlDeviceGetCurrentClocksEventReasons", (), 1),
)


class Telemetry:
    """An NVML session for one GPU; without library, driver or GPU every reading says so.

    Args:
        device_index: the GPU as torch counts them.
        uuid: its UUID, which also finds it when some GPUs are hidden from this process.
        nvml: stands in for the pynvml module in tests.
    """

    def __init__(self, device_index: int = 0, uuid: str | None = None, nvml: Nvml | None = None) -> None:
        self._index, self._uuid = device_index, uuid
        self._nvml: Any = _find_nvml() if nvml is None else nvml  # a module, or None without one
        self._handle: Any = None  # an opaque NVML handle
        self._status: Status = "not_supported"
        self.reason = "nvidia-ml-py is not installed" if self._nvml is None else ""

    def __enter__(self) -> Self:
        if self._nvml is None:
            return self
        try:
            self._nvml.nvmlInit()
        except Exception as error:  # whatever NVML raises is an answer here
            self._status, self.reason = _status_of(error), f"NVML does not start: {error}"
            return self
        try:
            self._handle = self._find_handle()
            self._status = "ok"
        except Exception as error:
            self._status, self.reason = _status_of(error), f"NVML finds no such GPU: {error}"
            self._nvml.nvmlShutdown()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._nvml is not None and self._handle is not None:
            self._handle = None
            self._nvml.nvmlShutdown()

    @property
    def is_available(self) -> bool:
        """True when a GPU answers."""
        return self._handle is not None

    def read(self) -> dict[str, Reading]:
        """All readings now."""
        readings = {}
        for name, unit, call, constants, factor in _CALLS:
            readings[name] = self._number(unit, call, constants, factor)
        readings["addressing_mode"] = self._addressing_mode()
        readings["driver"] = self._text("nvmlSystemGetDriverVersion")
        return readings

    def _find_handle(self) -> Any:  # an opaque NVML handle
        if self._uuid is not None:
            name = self._uuid if self._uuid.startswith("GPU-") else f"GPU-{self._uuid}"
            try:
                return self._nvml.nvmlDeviceGetHandleByUUID(name)
            except Exception:  # the index is the second way
                pass
        return self._nvml.nvmlDeviceGetHandleByIndex(self._index)

    def _call(self, unit: str, convert: Callable[[Any], float | str], make: Callable[[], Any]) -> Reading:
        if self._handle is None:
            return Reading(value=None, unit=unit, status=self._status)
        try:
            return Reading(value=convert(make()), unit=unit, status="ok")
        except Exception as error:  # each call stands alone; one failure hides nothing else
            return Reading(value=None, unit=unit, status=_status_of(error))

    def _number(self, unit: str, call: str, constants: tuple[str, ...], factor: float) -> Reading:
        def make() -> Any:  # an int of NVML
            arguments = [getattr(self._nvml, constant) for constant in constants]
            return getattr(self._nvml, call)(self._handle, *arguments)

        return self._call(unit, lambda value: float(value) * factor, make)

    def _addressing_mode(self) -> Reading:
        def convert(answer: Any) -> str:  # a number, or a structure that holds it
            number = int(getattr(answer, "value", answer))
            return ADDRESSING_MODES.get(number, str(number))

        return self._call("", convert, lambda: self._nvml.nvmlDeviceGetAddressingMode(self._handle))

    def _text(self, call: str) -> Reading:
        def convert(answer: Any) -> str:  # str, or bytes in old versions
            return answer.decode() if isinstance(answer, bytes) else str(answer)

        def make() -> Any:  # an attribute a version may lack is looked up inside the wrapped call
            return getattr(self._nvml, call)()

        return self._call("", convert, make)


def judge(
    before: Mapping[str, Reading], under_load: Mapping[str, Reading], after: Mapping[str, Reading]
) -> tuple[ProbeStatus, str]:
    """Whether a link measurement between these readings may be trusted: ``ok``, or ``invalid`` with every reason.

    What NVML does not say cannot speak against a measurement. A GPU that shares the host's address space (ATS) is not
    behind PCIe, whatever link it reports.
    """
    reasons = []
    if under_load.get("addressing_mode") != Reading(value="ATS", unit="", status="ok"):
        for name, noun in (("link_generation", "generation"), ("link_width", "width")):
            now, most = _value(under_load, name), _value(under_load, f"{name}_max")
            if now is not None and most is not None and now < most:
                reasons.append(f"link {noun} {now:g} under load is below its maximum {most:g}")
    first, last = _value(before, "replays"), _value(after, "replays")
    if first is not None and last is not None and last > first:
        reasons.append(f"{last - first:g} link replays during the measurement")
    mask = _value(under_load, "event_reasons")
    if mask is not None and int(mask) & ~HARMLESS_REASONS:
        held = [text for bit, text in EVENT_REASONS.items() if int(mask) & ~HARMLESS_REASONS & bit]
        reasons.append(f"clocks held down by {', '.join(held) or hex(int(mask))}")
    return ("invalid", "; ".join(reasons)) if reasons else ("ok", "")


def _value(readings: Mapping[str, Reading], name: str) -> float | None:
    reading = readings.get(name)
    if reading is None or reading.status != "ok" or not isinstance(reading.value, float):
        return None
    return reading.value


def _find_nvml() -> Nvml:
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


def _status_of(error: Exception) -> Status:
    """The status an exception of NVML stands for, by its class name: the classes are made at import time."""
    name = type(error).__name__
    if name in ("NVMLError_NoPermission", "NVMLError_InsufficientPermissions"):
        return "no_permission"
    absent = ("NotSupported", "FunctionNotFound", "LibraryNotFound", "DriverNotLoaded", "GpuNotFound", "NotFound")
    if isinstance(error, AttributeError) or name in {f"NVMLError_{end}" for end in (*absent, "VgpuEccNotSupported")}:
        return "not_supported"
    return "error"
