"""The discipline of every timed probe: warm up, repeat in rounds, keep every sample, say when it stays unstable.

Cases are measured in rounds, each case once per round: a disturbance of the machine then touches every case a little
instead of one case a lot, and a slow drift does not favour the cases that came first. Tables of other cases stand still
meanwhile; that none of them loses its memory is seen to (:mod:`tiercast_runtime.idle_memory`).
"""

import gc
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Generic, TypeVar

from tiercast_profiles.hardware import ProbeResult
from tiercast_profiles.quantiles import PROBE_UNSTABLE_RATIO, capped_mean, is_unstable, median, quantile
from tiercast_profiles.units import NS_PER_MS, NS_PER_S, NS_PER_US
from tiercast_runtime.idle_memory import touch_blocks

if TYPE_CHECKING:
    import torch

Clock = Callable[[], int]
Pause = Callable[[], int]
"""Lets others have the machine for a while; returns for how many ns, 0 where it did not."""
KeyT = TypeVar("KeyT", bound=Hashable)
Case = Callable[[], Iterable[tuple[KeyT, float]]]
"""One pass of something: prepares itself untimed, does the work once, and returns what it timed as (key, value)."""

SIGNIFICANT_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a probe may try.

    Rounds go on until every key is stable (but at least ``min_rounds``), the budget would be exceeded by one more,
    or ``max_rounds`` is reached. ``min_rounds`` is kept even past the budget: fewer samples would not be a measurement.
    """

    budget_ns: int
    num_warm_ups: int = 2
    min_rounds: int = 7
    max_rounds: int = 60

    def shared(self, num_parts: int) -> "Effort":
        """The effort of one of several parts."""
        return replace(self, budget_ns=self.budget_ns // num_parts)


@dataclass(frozen=True, slots=True)
class Spread(Generic[KeyT]):
    """All samples of one key, and what is said of them: median and quartiles."""

    key: KeyT
    samples: tuple[float, ...]

    @property
    def value(self) -> float:
        """Median."""
        return median(self.samples)

    @property
    def mean(self) -> float:
        """Mean, in which no sample counts for more than three medians.

        What is added up must be means: a step is a sum of some thirty parts, the mean of a sum is the sum of the means,
        and a sum of medians leaves out whatever disturbs one part in ten.
        """
        return capped_mean(self.samples)

    @property
    def low(self) -> float:
        """Lower quartile."""
        return quantile(self.samples, 0.25)

    @property
    def high(self) -> float:
        """Upper quartile."""
        return quantile(self.samples, 0.75)

    @property
    def is_unstable(self) -> bool:
        """True when the interquartile range exceeds a twentieth of the median."""
        return is_unstable(self.samples, PROBE_UNSTABLE_RATIO)

    def scaled(self, factor: float) -> "Spread[KeyT]":
        """The same samples in another unit."""
        return Spread(self.key, tuple(sample * factor for sample in self.samples))


def _go_on() -> int:
    return 0


_pause: list[Pause] = [_go_on]  # the last one counts


@contextmanager
def pausing(pause: Pause) -> Iterator[None]:
    """Inside, probes call ``pause`` before every case; what it takes counts against no budget."""
    _pause.append(pause)
    try:
        yield
    finally:
        _pause.pop()


def _between(clock: Clock, others: Callable[[], None] | None) -> int:
    """What stands between two cases; for how many ns."""
    paused_ns, begun_ns = _pause[-1](), clock()
    touch_blocks()
    if others is not None:
        others()
    return paused_ns + clock() - begun_ns


def collect(
    cases: Sequence[Case[KeyT]],
    effort: Effort,
    clock: Clock = time.perf_counter_ns,
    *,
    between: Callable[[], None] | None = None,
) -> list[Spread[KeyT]]:
    """Run the cases in rounds and gather what they report, by key, in the order keys were first seen.

    Args:
        cases: what to measure; several may report the same key, whose samples are then pooled.
        effort: when to stop. Warm-up rounds count against the budget and leave no samples.
        clock: decides only when the budget is used; each case times itself.
        between: called before every case; what it takes counts against no budget.
    """
    samples: dict[KeyT, list[float]] = {}
    start_ns = clock()
    with without_garbage_collection():
        for _ in range(effort.num_warm_ups):
            for case in cases:
                start_ns += _between(clock, between)
                case()
        for number in range(max(effort.min_rounds, effort.max_rounds)):
            first = number % len(cases) if cases else 0
            for case in (*cases[first:], *cases[:first]):
                start_ns += _between(clock, between)
                for key, value in case():
                    samples.setdefault(key, []).append(value)
            if number + 1 < effort.min_rounds:
                continue
            elapsed_ns = clock() - start_ns
            if elapsed_ns * (1 + 1 / (effort.num_warm_ups + number + 1)) > effort.budget_ns:
                break  # one more round like these would end past it
            if not any(is_unstable(values, PROBE_UNSTABLE_RATIO) for values in samples.values()):
                break
    return [Spread(key, tuple(values)) for key, values in samples.items()]


def timed(
    key: KeyT,
    action: Callable[[], object],
    prepare: Callable[[], object] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> Case[KeyT]:
    """The case of one action on the host clock, in ns; ``prepare`` runs before it, untimed."""

    def case() -> list[tuple[KeyT, float]]:
        if prepare is not None:
            prepare()
        start_ns = clock()
        action()
        return [(key, float(clock() - start_ns))]

    return case


def probe_result(
    name: str, spread: Spread[KeyT], unit: str, parameters: dict[str, str | int | float], reason: str = ""
) -> ProbeResult:
    """The samples as the profile keeps them, rounded to what a clock can tell."""
    return ProbeResult(
        name=name,
        parameters=parameters,
        unit=unit,
        samples=tuple(rounded(sample) for sample in spread.samples),
        status="unstable" if spread.is_unstable else "ok",
        reason=reason or ("interquartile range above 5 % of the median" if spread.is_unstable else ""),
    )


def not_measured(name: str, reason: str, *, is_failure: bool = False) -> ProbeResult:
    """What could not be measured, and why; never a number."""
    return ProbeResult(name=name, unit="", status="failed" if is_failure else "not_supported", reason=reason)


def rounded(value: float) -> float:
    """``value`` to five significant digits."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def seconds(count: float) -> int:
    """Seconds of budget as ns."""
    return round(count * NS_PER_S)


def to_us(spread: Spread[KeyT]) -> Spread[KeyT]:
    """Samples in ns as samples in µs."""
    return spread.scaled(1 / NS_PER_US)


def to_ms(spread: Spread[KeyT]) -> Spread[KeyT]:
    """Samples in ns as samples in ms."""
    return spread.scaled(1 / NS_PER_MS)


class Stopwatch:
    """Laps of one pass: on a CPU readings of a clock, on a GPU events in the current stream.

    Events are read when the pass is over, so taking a lap never waits for the GPU.
    """

    def __init__(self, device: "torch.device", clock: Clock = time.perf_counter_ns) -> None:
        self._device = device
        self._clock = clock
        self._times: list[int] = []
        self._events: list[torch.cuda.Event] = []

    def lap(self) -> None:
        """Now."""
        if self._device.type == "cuda":
            event = cuda_event()
            event.record()
            self._events.append(event)
        else:
            self._times.append(self._clock())

    def laps_ns(self) -> list[float]:
        """Time between each two laps that follow one another; starts anew afterwards."""
        events, times = self._events, self._times
        self._events, self._times = [], []
        if events:
            events[-1].synchronize()
            return [first.elapsed_time(second) * NS_PER_MS for first, second in pairwise(events)]
        return [float(second - first) for first, second in pairwise(times)]


def cuda_event() -> "torch.cuda.Event":
    """An event that keeps its time."""
    import torch

    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """No cyclic garbage collection inside: a full pass takes milliseconds and would land in some sample."""
    was_enabled = gc.isenabled()
    if was_enabled:  # else something around it has collected
        gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
