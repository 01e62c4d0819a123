"""Which NVML calls answer which question: names, units, and what their numbers mean (nvml.h, July 2026)."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Call:
    """One reading: ``constants`` are names of further arguments, ``factor`` turns the answer into ``unit``."""

    name: str
    unit: str
    function: str
    constants: tuple[str, ...] = ()
    factor: float = 1.0


CALLS = (
    Call("link_generation", "gen", "nvmlDeviceGetCurrPcieLinkGeneration"),
    Call("link_generation_max", "gen", "nvmlDeviceGetMaxPcieLinkGeneration"),
    Call("link_width", "lanes", "nvmlDeviceGetCurrPcieLinkWidth"),
    Call("link_width_max", "lanes", "nvmlDeviceGetMaxPcieLinkWidth"),
    Call("replays", "count", "nvmlDeviceGetPcieReplayCounter"),
    Call("power", "W", "nvmlDeviceGetPowerUsage", factor=1e-3),
    Call("power_limit", "W", "nvmlDeviceGetEnforcedPowerLimit", factor=1e-3),
    Call("energy", "J", "nvmlDeviceGetTotalEnergyConsumption", factor=1e-3),
    Call("temperature", "C", "nvmlDeviceGetTemperature", ("NVML_TEMPERATURE_GPU",)),
    Call("sm_clock", "MHz", "nvmlDeviceGetClockInfo", ("NVML_CLOCK_SM",)),
    Call("memory_clock", "MHz", "nvmlDeviceGetClockInfo", ("NVML_CLOCK_MEM",)),
    Call("sm_clock_max", "MHz", "nvmlDeviceGetMaxClockInfo", ("NVML_CLOCK_SM",)),
    Call("memory_clock_max", "MHz", "nvmlDeviceGetMaxClockInfo", ("NVML_CLOCK_MEM",)),
    Call("event_reasons", "bitmask", "nvmlDeviceGetCurrentClocksEventReasons"),
    Call("numa_node_id", "node", "nvmlDeviceGetNumaNodeId"),
)
# What changes while a probe runs and is cheap to ask: GetPcieThroughput, which blocks 20 ms, is not here.
SAMPLED = frozenset(
    {"link_generation", "link_width", "power", "temperature", "sm_clock", "memory_clock", "event_reasons"}
)

# Field identifiers of nvmlDeviceGetFieldValues: (reading, unit, constant)
FIELDS = (
    ("memory_temperature", "C", "NVML_FI_DEV_MEMORY_TEMP"),
    ("c2c_links", "links", "NVML_FI_DEV_C2C_LINK_COUNT"),
    ("link_recoveries", "count", "NVML_FI_DEV_PCIE_L0_TO_RECOVERY_COUNTER"),
    ("link_correctable_errors", "count", "NVML_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS"),
    ("link_naks_received", "count", "NVML_FI_DEV_PCIE_COUNT_NAKS_RECEIVED"),
    ("link_receiver_errors", "count", "NVML_FI_DEV_PCIE_COUNT_RECEIVER_ERROR"),
    ("link_bad_tlps", "count", "NVML_FI_DEV_PCIE_COUNT_BAD_TLP"),
    ("link_naks_sent", "count", "NVML_FI_DEV_PCIE_COUNT_NAKS_SENT"),
    ("link_bad_dllps", "count", "NVML_FI_DEV_PCIE_COUNT_BAD_DLLP"),
    ("link_nonfatal_errors", "count", "NVML_FI_DEV_PCIE_COUNT_NON_FATAL_ERROR"),
    ("link_fatal_errors", "count", "NVML_FI_DEV_PCIE_COUNT_FATAL_ERROR"),
    ("link_lcrc_errors", "count", "NVML_FI_DEV_PCIE_COUNT_LCRC_ERROR"),
    ("link_lane_errors", "count", "NVML_FI_DEV_PCIE_COUNT_LANE_ERROR"),
)
_VALUE_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t
# nvmlReturn_t: 3 not supported, 4 no permission, 13 function not found
_RETURN_STATUS: dict[int, Literal["not_supported", "no_permission"]] = {
    3: "not_supported",
    4: "no_permission",
    13: "not_supported",
}

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
MIG_MODES = {0: "off", 1: "on"}
VIRTUALIZATION_MODES = {0: "none", 1: "passthrough", 2: "vGPU", 3: "host of vGPUs", 4: "host of vSGA"}


def field_status(code: int) -> Literal["ok", "not_supported", "no_permission", "error"]:
    """The status that the return code of one field stands for: every field fails on its own."""
    return "ok" if code == 0 else _RETURN_STATUS.get(code, "error")


def field_number(field: Any) -> float:  # a c_nvmlFieldValue_t, or a stand-in of the same shape
    """The number in a field, read from the member of the union its type names.

    Raises:
        IndexError: a value type this version of nvml.h does not have.
    """
    return float(getattr(field.value, _VALUE_MEMBERS[field.valueType]))
