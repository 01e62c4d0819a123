"""What NVML, or amdsmi, says of the GPU, each value wrapped on its own: a value, or the reason there is none.

Call names follow nvml.h. A report never shows 0 for an unknown: a missing library, a missing driver, a call the GPU
does not have and a call this user may not make are told apart.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch

from tiercast_profiles.hardware import Reading
from tiercast_runtime.probes.amd_readings import AmdGpu, open_amd
from tiercast_runtime.probes.nvml_calls import (
    ADDRESSING_MODES,
    CALLS,
    FIELDS,
    MIG_MODES,
    SAMPLED,
    VIRTUALIZATION_MODES,
    Call,
    field_number,
    field_status,
)
from tiercast_runtime.probes.pci import read_slot, slot_node

Status = Literal["ok", "not_supported", "no_permission", "error"]
ProbeStatus = Literal["ok", "unstable", "invalid", "not_supported", "failed"]
Nvml = Any  # the pynvml module, which has no types, or a stand-in of the same shape

_LINK_READINGS = ("link_generation", "link_generation_max", "link_width", "link_width_max")


class Telemetry:
    """A session for one GPU, of NVML or else of amdsmi; without library, driver or GPU every reading says so.

    Args:
        device_index: the GPU as torch counts them.
        uuid: its UUID, which also finds it when some GPUs are hidden from this process.
        nvml: stands in for the pynvml module in tests.
        amdsmi: stands in for the amdsmi module.
        root: where ``sys`` lies, which a test may replace.
    """

    def __init__(
        self,
        device_index: int = 0,
        uuid: str | None = None,
        nvml: Nvml | None = None,
        root: Path = Path("/"),
        amdsmi: Any = None,  # a module of the same shape
    ) -> None:
        self._index, self._uuid, self._root = device_index, uuid, root
        self._nvml: Any = _find_nvml() if nvml is None else nvml  # a module, or None without one
        self._handle: Any = None  # an opaque NVML handle
        self._amdsmi: Any = amdsmi
        self._amd: AmdGpu | None = None
        self._status: Status = "not_supported"
        self.reason = "nvidia-ml-py is not installed" if self._nvml is None else ""

    def __enter__(self) -> Self:
        self._open_nvml()
        if self._handle is None:
            self._amd, reason = open_amd(self._index, self._uuid, self._amdsmi)
            if self._amd is None:
                self.reason = f"{self.reason}; {reason}"
            else:
                self._status, self.reason = "not_supported", ""
        return self

    def _open_nvml(self) -> None:
        if self._nvml is None:
            return
        try:
            self._nvml.nvmlInit()
        except Exception as error:  # whatever NVML raises is an answer here
            self._status, self.reason = _status_of(error), f"NVML does not start: {error}"
            return
        try:
            self._handle = self._find_handle()
            self._status = "ok"
        except Exception as error:
            self._status, self.reason = _status_of(error), f"NVML finds no such GPU: {error}"
            self._nvml.nvmlShutdown()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._nvml is not None and self._handle is not None:
            self._handle = None
            self._nvml.nvmlShutdown()
        if self._amd is not None:
            self._amd.close()
            self._amd = None

    @property
    def is_available(self) -> bool:
        """True when a GPU answers."""
        return self._handle is not None or self._amd is not None

    def read(self) -> dict[str, Reading]:
        """All readings now."""
        readings = {call.name: self._number(call) for call in CALLS}
        readings |= self._fields()
        readings["addressing_mode"] = self._choice("nvmlDeviceGetAddressingMode", ADDRESSING_MODES)
        readings["virtualization_mode"] = self._choice("nvmlDeviceGetVirtualizationMode", VIRTUALIZATION_MODES)
        readings["mig_mode"] = self._choice("nvmlDeviceGetMigMode", MIG_MODES)
        readings["driver"] = self._text(lambda nvml: nvml.nvmlSystemGetDriverVersion())
        readings["bus_id"] = self._text(lambda nvml: nvml.nvmlDeviceGetPciInfo(self._handle).busId)
        readings |= {} if self._amd is None else self._amd.read()
        return _without_false_link(readings | self._slot(readings["bus_id"]))

    def sample(self) -> dict[str, Reading]:
        """The few readings that change while a probe runs, cheap enough to be taken beside it."""
        readings = {call.name: self._number(call) for call in CALLS if call.name in SAMPLED}
        return readings | ({} if self._amd is None else self._amd.read(SAMPLED))

    def _slot(self, bus_id: Reading) -> dict[str, Reading]:
        return read_slot(bus_id.value if isinstance(bus_id.value, str) else None, self._root)

    def _find_handle(self) -> Any:  # an opaque NVML handle
        if self._uuid is not None:
            name = self._uuid if self._uuid.startswith(("GPU-", "MIG-")) else f"GPU-{self._uuid}"
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

    def _number(self, call: Call) -> Reading:
        def make() -> Any:  # an int of NVML
            arguments = [getattr(self._nvml, constant) for constant in call.constants]
            return getattr(self._nvml, call.function)(self._handle, *arguments)

        return self._call(call.unit, lambda value: float(value) * call.factor, make)

    def _fields(self) -> dict[str, Reading]:
        """Counters that only GetFieldValues gives, asked one by one: an old driver refuses the whole list for one."""
        return {name: self._field(unit, constant) for name, unit, constant in FIELDS}

    def _field(self, unit: str, constant: str) -> Reading:
        def make() -> Any:  # a c_nvmlFieldValue_t
            return self._nvml.nvmlDeviceGetFieldValues(self._handle, [getattr(self._nvml, constant)])[0]

        def convert(field: Any) -> float:  # as above
            status = field_status(field.nvmlReturn)
            if status != "ok":
                raise _FieldRefused(status)
            return field_number(field)

        return self._call(unit, convert, make)

    def _choice(self, function: str, names: Mapping[int, str]) -> Reading:
        def convert(answer: Any) -> str:  # a number, a structure that holds it, or one for now and one after a reset
            number = int(answer[0] if isinstance(answer, (list, tuple)) else getattr(answer, "value", answer))
            return names.get(number, str(number))

        return self._call("", convert, lambda: getattr(self._nvml, function)(self._handle))

    def _text(self, make: Callable[[Nvml], Any]) -> Reading:
        def convert(answer: Any) -> str:  # str, or bytes in old versions
            return answer.decode() if isinstance(answer, bytes) else str(answer)

        return self._call("", convert, lambda: make(self._nvml))


class _FieldRefused(Exception):
    """A field that NVML does not give, with the status of its return code."""

    def __init__(self, status: Status) -> None:
        self.status: Status = status
        super().__init__(status)


def _without_false_link(readings: dict[str, Reading]) -> dict[str, Reading]:
    """What a GPU behind a chip-to-chip link says of PCIe is not its link: GB10 reports Gen1 x1 as a success."""
    links = readings["c2c_links"].value
    is_chip_link = (isinstance(links, float) and links > 0) or readings["addressing_mode"].value == "ATS"
    kind = "C2C, not PCIe" if is_chip_link else "PCIe" if readings["link_generation"].status == "ok" else None
    readings["link_kind"] = Reading(value=kind, unit="", status="not_supported" if kind is None else "ok")
    if is_chip_link:
        for name in _LINK_READINGS:
            readings[name] = Reading(value=None, unit=readings[name].unit, status="not_supported")
    return readings


def _find_nvml() -> Nvml:
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


def _status_of(error: Exception) -> Status:
    """The status an exception of NVML stands for, by its class name: the classes are made at import time."""
    name = type(error).__name__
    if isinstance(error, _FieldRefused):
        return error.status
    if name in ("NVMLError_NoPermission", "NVMLError_InsufficientPermissions"):
        return "no_permission"
    absent = ("NotSupported", "FunctionNotFound", "LibraryNotFound", "DriverNotLoaded", "GpuNotFound", "NotFound")
    if isinstance(error, AttributeError) or name in {f"NVMLError_{end}" for end in (*absent, "VgpuEccNotSupported")}:
        return "not_supported"
    return "error"


def telemetry_of(device: torch.device) -> Telemetry:
    """A session for the device, found by its UUID where it has one; on a CPU one whose readings say there is no GPU."""
    if device.type != "cuda":
        return Telemetry()
    uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", "")) or None
    return Telemetry(device.index or 0, uuid)


def node_of(device: torch.device) -> int | None:
    """The NUMA node of the slot a device sits in; None where it is not known."""
    with telemetry_of(device) as telemetry:
        return slot_node(telemetry.read())
