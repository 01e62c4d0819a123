"""Whether the readings around a measurement speak against it. What nobody says cannot speak against anything."""

from collections.abc import Mapping

from tiercast_profiles.hardware import Reading
from tiercast_runtime.probes.nvml_calls import EVENT_REASONS, HARMLESS_REASONS
from tiercast_runtime.probes.telemetry import ProbeStatus

# Counters that must not rise while a link is measured, with what one of them is called. The count of recoveries is not
# among them: a link that trains up to full speed when a transfer starts goes through recovery.
LINK_COUNTERS = {
    "replays": "link replays",
    "link_correctable_errors": "correctable link errors",
    "link_naks_received": "NAKs received",
    "link_naks_sent": "NAKs sent",
    "link_receiver_errors": "link receiver errors",
    "link_bad_tlps": "bad transaction packets",
    "link_bad_dllps": "bad data link packets",
    "link_nonfatal_errors": "non-fatal link errors",
    "link_fatal_errors": "fatal link errors",
    "link_lcrc_errors": "link checksum errors",
    "link_lane_errors": "lane errors",
}
HOST_COUNTERS = {"cpu_throttles": "times the CPU was slowed down for heat"}

Readings = Mapping[str, Reading]


def judge(
    before: Readings,
    under_load: Readings,
    after: Readings,
    *,
    is_link_loaded: bool = True,
    is_device_loaded: bool = True,
) -> tuple[ProbeStatus, str]:
    """Whether a measurement between these readings may be trusted: ``ok``, or ``invalid`` with every reason.

    A GPU that shares the host's address space (ATS) is not behind PCIe, whatever link it reports. An idle link and idle
    clocks are low on purpose, so they count only where the measurement used them.
    """
    reasons = []
    if is_link_loaded or is_device_loaded:
        reasons += _lost(before, after)
    if is_link_loaded:
        reasons += _slow_link(under_load)
        reasons += _rises(before, after, LINK_COUNTERS)
    if is_device_loaded:
        reasons += _held_clocks(under_load)
    reasons += _rises(before, after, HOST_COUNTERS)
    return ("invalid", "; ".join(reasons)) if reasons else ("ok", "")


def number(readings: Readings, name: str) -> float | None:
    """The number of a reading, or None where there is none."""
    reading = readings.get(name)
    if reading is None or reading.status != "ok" or isinstance(reading.value, str):
        return None
    return reading.value


def _lost(before: Readings, after: Readings) -> list[str]:
    """A GPU that answered before and fails now: it fell off the bus, or its driver died."""
    lost = [name for name, reading in before.items() if reading.status == "ok" and _failed(after.get(name))]
    return [f"the GPU stopped answering during the measurement ({', '.join(sorted(lost)[:3])})"] if lost else []


def _failed(reading: Reading | None) -> bool:
    return reading is not None and reading.status == "error"


def _slow_link(under_load: Readings) -> list[str]:
    mode = under_load.get("addressing_mode")
    if mode is not None and mode.value == "ATS":
        return []
    reasons = []
    for name, noun in (("link_generation", "generation"), ("link_width", "width")):
        now, most = number(under_load, name), number(under_load, f"{name}_max")
        if now is not None and most is not None and now < most:
            reasons.append(f"link {noun} {now:g} under load is below its maximum {most:g}")
    return reasons


def _held_clocks(under_load: Readings) -> list[str]:
    mask = number(under_load, "event_reasons")
    held = 0 if mask is None else int(mask) & ~HARMLESS_REASONS
    if not held:
        return []
    names = [text for bit, text in EVENT_REASONS.items() if held & bit]
    return [f"clocks held down by {', '.join(names) or hex(held)}"]


def _rises(before: Readings, after: Readings, counters: Mapping[str, str]) -> list[str]:
    reasons = []
    for name, noun in counters.items():
        first, last = number(before, name), number(after, name)
        if first is None or last is None:
            continue
        if last > first:
            reasons.append(f"{last - first:g} {noun} during the measurement")
        elif last < first:
            reasons.append(
                f"the counter of {noun} went from {first:g} back to {last:g}: it wrapped or was reset, so nobody knows"
            )
    return reasons
