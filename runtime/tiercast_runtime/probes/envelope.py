"""Telemetry around a probe: readings before, during and after, kept with its results and judged.

A stage of the survey runs inside ``with watched(...)``; nothing else is asked of it. A probe that knows exactly when
its transfer runs calls ``sample`` on what the block yields; without that a thread takes samples now and then, on
machines where a GPU answers. On others there is no thread and nothing beside the probe.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tiercast_profiles.hardware import ProbeResult, Reading
from tiercast_profiles.units import NS_PER_S
from tiercast_runtime.probes.host_counters import energy_range_j, read_host_counters
from tiercast_runtime.probes.judgement import LINK_COUNTERS, judge, number
from tiercast_runtime.probes.telemetry import ProbeStatus, Telemetry

INTERVAL_S = 0.1
_BEFORE_AND_AFTER = ("temperature", "sm_clock", "power")
_HIGHEST = ("link_generation", "link_width", "power", "temperature")
_LOWEST = ("sm_clock", "memory_clock")


@dataclass(slots=True)
class Envelope:
    """Readings around one stage. ``loaded`` were taken by the probe while its transfer ran, ``seen`` by the thread."""

    telemetry: Telemetry
    is_link_loaded: bool
    is_device_loaded: bool
    root: Path
    before: dict[str, Reading] = field(default_factory=dict)
    after: dict[str, Reading] = field(default_factory=dict)
    loaded: list[dict[str, Reading]] = field(default_factory=list)
    seen: list[dict[str, Reading]] = field(default_factory=list)
    duration_s: float = 0.0

    def sample(self) -> None:
        """Take readings now; called by a probe while its transfer runs, so that the link must be at full speed."""
        self.loaded.append(self.telemetry.sample())

    def read(self) -> dict[str, Reading]:
        """All readings of host and GPU now."""
        gpu = self.telemetry.read() if self.telemetry.is_available else {}
        return gpu | read_host_counters(self.root)

    def under_load(self) -> dict[str, Reading]:
        """What held during the stage, in one value per reading.

        Of samples by the thread the best link counts, because between transfers a link saves power; of samples by the
        probe the worst. Clocks are the lowest, power and temperature the highest, throttle reasons all that were seen.
        """
        readings = dict(self.after)
        samples = [*self.loaded, *self.seen]
        for name in (*_HIGHEST, *_LOWEST, "event_reasons"):
            chosen = self.loaded if self.loaded and name.startswith("link_") else samples
            values = [value for sample in chosen if (value := number(sample, name)) is not None]
            if name not in readings or readings[name].status != "ok":
                continue  # what a full reading says does not exist, or is no PCIe link, a sample does not bring back
            if values:
                readings[name] = Reading(
                    value=_joined(name, values, is_probe=chosen is self.loaded), unit=readings[name].unit, status="ok"
                )
            elif name.startswith("link_"):
                del readings[name]  # an idle link saves power and says nothing of the stage
        return readings

    def judgement(self) -> tuple[ProbeStatus, str]:
        """``ok``, or ``invalid`` with every reason."""
        return judge(
            self.before,
            self.under_load(),
            self.after,
            is_link_loaded=self.is_link_loaded,
            is_device_loaded=self.is_device_loaded,
        )

    def result(self, name: str) -> ProbeResult:
        """The readings as the profile keeps them, with the judgement on the stage."""
        readings = self.under_load()
        for key in _BEFORE_AND_AFTER:
            for label, source in (("before", self.before), ("after", self.after)):
                if key in source:
                    readings[f"{key}_{label}"] = source[key]
        for key in (*LINK_COUNTERS, "link_recoveries", "cpu_throttles"):
            if key in readings:
                readings[f"{key}_rise"] = self._rise(key, None)
        for key, wraps_at in (("energy", None), ("cpu_energy", energy_range_j(self.root))):
            if key in readings:
                readings[f"{key}_rise"] = self._rise(key, wraps_at)
        status, reason = self.judgement()
        return ProbeResult(
            name=f"telemetry.{name}",
            parameters={
                "duration_s": round(self.duration_s, 3),
                "num_samples_by_probe": len(self.loaded),
                "num_samples_beside": len(self.seen),
            },
            unit="",
            status=status,
            reason=reason,
            telemetry=readings,
        )

    def seal(self, probes: list[ProbeResult]) -> list[ProbeResult]:
        """The results of the stage: what was measured under wrong conditions is kept and marked ``invalid``."""
        status, reason = self.judgement()
        if status == "ok":
            return probes
        return [
            probe.model_copy(update={"status": status, "reason": "; ".join(filter(None, (probe.reason, reason)))})
            if probe.status in ("ok", "unstable") and probe.samples
            else probe
            for probe in probes
        ]

    def _rise(self, name: str, wraps_at: float | None) -> Reading:
        """How much a counter rose; one that went back wrapped where that is known, and is an error otherwise."""
        reading, first, last = self.after[name], number(self.before, name), number(self.after, name)
        if first is None or last is None:
            status = reading.status if reading.status != "ok" else self.before[name].status
            return Reading(value=None, unit=reading.unit, status=status)
        if last < first and wraps_at is None:
            return Reading(value=None, unit=reading.unit, status="error")
        return Reading(value=last - first + (wraps_at or 0) * (last < first), unit=reading.unit, status="ok")


@contextmanager
def watched(
    telemetry: Telemetry,
    name: str,
    probes: list[ProbeResult],
    *,
    is_link_loaded: bool = False,
    is_device_loaded: bool = False,
    interval_s: float = INTERVAL_S,
    clock: Callable[[], int] = time.perf_counter_ns,
    root: Path = Path("/"),
) -> Iterator[Envelope]:
    """Run a stage in an envelope; what it adds to ``probes`` is judged, and the readings are added behind it.

    Args:
        telemetry: an open session; without a GPU the host alone is watched.
        name: of the stage; its readings become the probe ``telemetry.<name>``.
        probes: the list the stage appends its results to.
        is_link_loaded: the stage moves bytes over the link, so that the link's speed and errors count.
        is_device_loaded: the GPU computes, so that throttled clocks count.
        interval_s: between two samples beside the stage.
        clock: ns.
        root: where ``sys`` lies, which a test may replace.

    An exception of the stage passes through; the thread ends in any case.
    """
    envelope = Envelope(telemetry, is_link_loaded, is_device_loaded, root)
    num_before = len(probes)
    envelope.before = envelope.read()
    start_ns = clock()
    with _sampling(telemetry, envelope.seen, interval_s):
        yield envelope
    envelope.duration_s = (clock() - start_ns) / NS_PER_S
    envelope.after = envelope.read()
    probes[num_before:] = [*envelope.seal(probes[num_before:]), envelope.result(name)]


@contextmanager
def _sampling(telemetry: Telemetry, seen: list[dict[str, Reading]], interval_s: float) -> Iterator[None]:
    """Samples from a thread beside the block, where a GPU answers."""
    if not telemetry.is_available:
        yield
        return
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(interval_s):
            seen.append(telemetry.sample())

    thread = threading.Thread(target=run, name="telemetry", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _joined(name: str, values: list[float], *, is_probe: bool) -> float:
    if name == "event_reasons":
        bits = 0
        for value in values:
            bits |= int(value)
        return float(bits)
    if name in _LOWEST or (is_probe and name.startswith("link_")):
        return min(values)
    return max(values)
