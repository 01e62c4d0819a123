"""Copies over the link of a GPU, one way and both ways at once, and within its memory, as nvbandwidth times them.

A sample is enqueued as a whole behind a gate, so that no time of the host is in it: copies that warm the stream up,
then those that count, between two events (facts: NVIDIA/nvbandwidth v0.8). With both ways at once, one is timed while
the other runs on a stream of its own, from the gate on and for longer; a rate is that of one direction, never the sum.
Copies of pageable memory make the host wait, so nothing can be enqueued ahead of them: they have no gate, and the
host's part is in their time.

A rate counts the bytes copied once. The source changes before every sample, a word in each page of it, and those words
are compared after it; all bytes are compared after the last.
"""

import time
from dataclasses import dataclass, field

import torch

from tiercast_profiles.errors import InfeasibleScenario
from tiercast_profiles.hardware import ProbeResult, Reading
from tiercast_profiles.units import GB, KIB, MIB, NS_PER_MS, NS_PER_S
from tiercast_runtime.memory import require_bytes
from tiercast_runtime.probes.copies import SMALL_COPY_BYTES, STAMP_WORDS, CopyRates, verify
from tiercast_runtime.probes.hold import Gate
from tiercast_runtime.probes.judgement import judge
from tiercast_runtime.probes.telemetry import Telemetry
from tiercast_runtime.probes.timing import (
    Case,
    Clock,
    Effort,
    Spread,
    collect,
    cuda_event,
    not_measured,
    probe_result,
    to_us,
)

NUM_WARM_UPS = 4
NUM_COPIES = 16
NUM_OPPOSITE_COPIES = 2 * (NUM_WARM_UPS + NUM_COPIES)  # so that they still run when the last timed copy ends
MIN_OVERLAP_RATIO = 0.95  # with less, the rate is in part that of one direction alone
LINK_SIZES = (64 * KIB, MIB, 16 * MIB)  # beside the large one; events tell 16 copies of the least to 3 % or better


@dataclass(frozen=True, slots=True)
class Way:
    """Copies from ``source`` to ``target``, both ``[num_bytes] uint8``; ``num_bytes`` is a multiple of 8."""

    source: torch.Tensor
    target: torch.Tensor

    def part(self, num_bytes: int) -> "Way":
        """The same way for the first ``num_bytes``."""
        return Way(self.source[:num_bytes], self.target[:num_bytes])

    def fill(self, pattern: torch.Tensor) -> None:
        """``pattern [num_bytes / 8] int64`` into the source, and zeros into the target."""
        self.source.copy_(pattern.view(torch.uint8))
        self.target.zero_()

    def enqueue(self, num_copies: int) -> None:
        """Copies in the current stream."""
        for _ in range(num_copies):
            self.target.copy_(self.source, non_blocking=True)

    def change(self) -> None:
        """Another word in each page of the source, so that the bytes of the sample before cannot pass."""
        _stamps(self.source).add_(1)

    def verify_changes(self, device: torch.device) -> None:
        """Raise ``CopyMismatch`` where a changed word has not arrived."""
        verify(torch.equal(_stamps(self.source).to(device), _stamps(self.target).to(device)))

    def verify_all(self, device: torch.device) -> None:
        """Raise ``CopyMismatch`` where any byte differs."""
        verify(torch.equal(self.source.to(device), self.target.to(device)))


class Opposite:
    """Copies the other way, on a stream of their own, while copies in the current stream are timed."""

    def __init__(self, way: Way, device: torch.device) -> None:
        self.way = way
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._begin, self._end = cuda_event(), cuda_event()

    def enqueue(self, passed: torch.cuda.Event) -> None:
        """All copies, from the opening of the gate on, whose event is ``passed``."""
        with torch.cuda.stream(self._side):
            self._side.wait_event(passed)
            self._begin.record()
            self.way.enqueue(NUM_OPPOSITE_COPIES)

    def finish(self) -> None:
        """Note where these copies end; called last, as they are to end last."""
        self._end.record(self._side)

    def load(self, num_copies: int) -> None:
        """Copies that nobody times."""
        with torch.cuda.stream(self._side):
            self.way.enqueue(num_copies)

    def overlap_ratio(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """The share of the time from ``begin`` to ``end`` in which these copies ran."""
        timed_ms = float(begin.elapsed_time(end))
        first_ms, last_ms = float(begin.elapsed_time(self._begin)), float(begin.elapsed_time(self._end))
        return max(0.0, min(last_ms, timed_ms) - max(first_ms, 0.0)) / timed_ms


class CopyTrial:
    """Samples of the copies along one way, alone or while copies run the opposite way.

    Args:
        name: of the rate; the share of the time in which the opposite way ran is called ``name.overlap``.
        way: what is timed.
        device: the GPU.
        opposite: what runs at the same time.
        is_gated: False where the copies make the host wait.
    """

    def __init__(
        self, name: str, way: Way, device: torch.device, opposite: Way | None = None, *, is_gated: bool = True
    ) -> None:
        assert is_gated or opposite is None, "what runs at the same time starts at the gate"
        self._name, self._way, self._device = name, way, device
        self._opposite = None if opposite is None else Opposite(opposite, device)
        self._gate = Gate(device) if is_gated else None
        self._begin, self._end = cuda_event(), cuda_event()

    def run(self) -> list[tuple[str, float]]:
        """One sample: GB/s of the timed way, and the overlap where there are two."""
        for way in self._ways():
            way.change()
        if self._gate is None:
            self._enqueue_timed()
            torch.cuda.synchronize(self._device)
        else:
            self._gate.run(self._enqueue)
        for way in self._ways():
            way.verify_changes(self._device)
        elapsed_s = self._begin.elapsed_time(self._end) * NS_PER_MS / NS_PER_S
        found = [(self._name, NUM_COPIES * self._way.source.nbytes / elapsed_s / GB)]
        if self._opposite is not None:
            found.append((f"{self._name}.overlap", self._opposite.overlap_ratio(self._begin, self._end)))
        return found

    def measure(self, effort: Effort, clock: Clock) -> tuple[Spread[str], list[ProbeResult]]:
        """Samples until they are stable: the rate, and the probes of it and of the overlap.

        Raises:
            CopyMismatch: a copy of either way went wrong.
        """
        rate, *overlaps = collect([self.run], effort, clock)
        for way in self._ways():
            way.verify_all(self._device)
        result = probe_result(f"copy.{self._name}", rate, "GB/s", self.parameters)
        probes = [probe_result(f"copy.{overlap.key}", overlap, "ratio", self.parameters) for overlap in overlaps]
        return rate, [overlapped(result, overlaps), *probes]

    def read_under_load(self, telemetry: Telemetry) -> dict[str, Reading]:
        """Telemetry while the same copies run: an idle link drops to a lower generation."""
        self._way.enqueue(NUM_COPIES)
        if self._opposite is not None:
            self._opposite.load(NUM_COPIES)
        readings = telemetry.read()
        torch.cuda.synchronize(self._device)
        return readings

    @property
    def parameters(self) -> dict[str, str | int | float]:
        """What the profile says of the samples, once they are taken."""
        places = (self._way.source, self._way.target)
        is_within = all(place.device.type == self._device.type for place in places)
        gate = "shut until all copies were enqueued"
        if self._gate is None:
            gate = "none: pageable copies make the host wait, and its time is in the samples"
        elif not self._gate.held_always:
            gate = "opened before all copies were enqueued: time of the host is in some samples"
        said: dict[str, str | int | float] = {
            "bytes": self._way.source.nbytes,
            "warm_ups": NUM_WARM_UPS,
            "copies": NUM_COPIES,
            "host_memory": "none" if is_within else "pageable" if self._gate is None else "pinned",
            "timer": "CUDA events",
            "gate": gate,
            "verified": "yes",
        }
        return said if self._opposite is None else said | {"opposite_copies": NUM_OPPOSITE_COPIES}

    def _ways(self) -> tuple[Way, ...]:
        return (self._way,) if self._opposite is None else (self._way, self._opposite.way)

    def _enqueue(self, passed: torch.cuda.Event) -> None:
        if self._opposite is not None:
            self._opposite.enqueue(passed)
        self._enqueue_timed()
        if self._opposite is not None:
            self._opposite.finish()

    def _enqueue_timed(self) -> None:
        self._way.enqueue(NUM_WARM_UPS)
        self._begin.record()
        self._way.enqueue(NUM_COPIES)
        self._end.record()


def measure_device_copies(
    device: torch.device, num_bytes: int, effort: Effort, telemetry: Telemetry, clock: Clock = time.perf_counter_ns
) -> CopyRates:
    """Copies over the link of a GPU and within its memory, by CUDA events.

    Rates, of ``num_bytes`` a copy: ``host_to_device`` and ``device_to_host`` (pinned), the same with ``_pageable``, the
    same with ``_bidirectional`` (pinned, while the other direction runs), and ``device`` (within the GPU). The probes
    have the rates over the link for smaller copies too. Latencies: one small pinned copy each way, launch included, as
    the host sees it.

    Args:
        device: the GPU.
        num_bytes: size of the large copy; a multiple of 8.
        effort: for each rate; for its smaller copies together as much again.
        telemetry: read before, during and after the large copies of each rate.
        clock: ns.

    Raises:
        CopyMismatch: a copy went wrong.
    """
    pinned = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    pageable = torch.empty(num_bytes, dtype=torch.uint8)
    first, second = (torch.empty(num_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    found = _Found(device, effort, telemetry, clock, torch.arange(num_bytes // 8, dtype=torch.int64, device=device))
    up, down = Way(pinned, first), Way(first, pinned)
    found.measure("host_to_device", up)
    found.measure("device_to_host", down)
    found.measure("host_to_device_pageable", Way(pageable, first), is_gated=False)
    found.measure("device_to_host_pageable", Way(first, pageable), is_gated=False)
    found.measure("device", Way(first, second))
    _measure_bidirectional(found, up, second)
    found.measure_small("host_to_device", up.part(SMALL_COPY_BYTES))
    found.measure_small("device_to_host", down.part(SMALL_COPY_BYTES))
    return CopyRates(found.rates, found.latencies, tuple(found.probes))


def device_copies_missing() -> tuple[ProbeResult, ...]:
    """What to say of the link where there is no GPU."""
    reason = "no CUDA GPU that torch can use; the CPU is the device and its memory the device memory"
    return tuple(not_measured(f"copy.{name}", reason) for name in ("host_to_device", "device_to_host"))


def overlapped(result: ProbeResult, overlaps: list[Spread[str]]) -> ProbeResult:
    """A rate, ``invalid`` where it was to be one of two directions and the other did not run for long enough."""
    short = [overlap.value for overlap in overlaps if overlap.value < MIN_OVERLAP_RATIO]
    if not short:
        return result
    return result.model_copy(
        update={"status": "invalid", "reason": f"the other direction ran in only {short[0]:.0%} of the time"}
    )


@dataclass(slots=True)
class _Found:
    """What the copies of one GPU gave so far; ``pattern [num_bytes / 8] int64`` is on it."""

    device: torch.device
    effort: Effort
    telemetry: Telemetry
    clock: Clock
    pattern: torch.Tensor
    rates: dict[str, Spread[str]] = field(default_factory=dict)
    latencies: dict[str, Spread[str]] = field(default_factory=dict)
    probes: list[ProbeResult] = field(default_factory=list)

    def measure(self, name: str, way: Way, opposite: Way | None = None, *, is_gated: bool = True) -> None:
        """The rate of one way at every size, the large one last and with what telemetry says of it."""
        for used in (way,) if opposite is None else (way, opposite):
            used.fill(self.pattern.add_(1))
        # Small copies within a GPU would be those of its cache.
        sizes = [size for size in LINK_SIZES if size < way.source.nbytes and name != "device"]
        for size in sizes:
            other = None if opposite is None else opposite.part(size)
            trial = CopyTrial(name, way.part(size), self.device, other, is_gated=is_gated)
            _, probes = trial.measure(self.effort.shared(len(sizes)), self.clock)
            self.probes.extend(probes)
        before = self.telemetry.read()
        trial = CopyTrial(name, way, self.device, opposite, is_gated=is_gated)
        self.rates[name], (result, *others) = trial.measure(self.effort, self.clock)
        under_load = trial.read_under_load(self.telemetry)
        result = result.model_copy(update={"telemetry": under_load})
        status, reason = judge(before, under_load, self.telemetry.read())
        if status != "ok" and name != "device":
            result = result.model_copy(update={"status": status, "reason": reason})
        self.probes.extend([result, *others])

    def measure_small(self, name: str, way: Way) -> None:
        """The latency of one copy."""
        (latency,) = collect([_small_case(name, way, self.device, self.clock)], self.effort, self.clock)
        self.latencies[name] = to_us(latency)
        parameters: dict[str, str | int | float] = {"bytes": way.source.nbytes}
        self.probes.append(probe_result(f"copy.{name}.small", self.latencies[name], "us", parameters))


def _measure_bidirectional(found: _Found, up: Way, second: torch.Tensor) -> None:
    """Both directions at once: ``up``, and from ``second`` on the GPU to one more buffer of the host."""
    names = ("host_to_device_bidirectional", "device_to_host_bidirectional")
    try:
        require_bytes(up.source.nbytes, torch.device("cpu"), "the copy probe of both directions")
        back = torch.empty(up.source.nbytes, dtype=torch.uint8, pin_memory=True)
    except (InfeasibleScenario, RuntimeError) as error:  # a host without room for it has a link all the same
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        is_failure = isinstance(error, RuntimeError)
        found.probes.extend(not_measured(f"copy.{name}", reason, is_failure=is_failure) for name in names)
        return
    down = Way(second, back)
    found.measure(names[0], up, down)
    found.measure(names[1], down, up)


def _stamps(octets: torch.Tensor) -> torch.Tensor:
    return octets.view(torch.int64)[::STAMP_WORDS]


def _small_case(name: str, way: Way, device: torch.device, clock: Clock) -> Case[str]:
    def case() -> list[tuple[str, float]]:
        torch.cuda.synchronize(device)
        start_ns = clock()
        way.enqueue(1)
        torch.cuda.synchronize(device)
        return [(name, float(clock() - start_ns))]

    return case
