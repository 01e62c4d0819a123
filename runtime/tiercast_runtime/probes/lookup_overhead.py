"""What lookups take from the thread that computes, beside the time it waits for them.

On a CPU a hidden lookup is not free. The thread hands it over, a worker thread wants the interpreter lock, a drive's
interrupts need a core, and a thread that made a lookup itself computes more slowly for a while. Each is the difference
of two passes over the same decoder layers right behind each other, of which one has the lookups of a step beside it, or
behind it those it made itself. A pass is little longer than the lookups: in the noise of a whole step what they take
would be lost. For the same reason only decode steps are timed.

What needs no difference is timed in a whole step: the hand-over itself, and by the worker's own clock how long it takes
to wake up for a step's first lookup, to turn to the next, and how much less that one takes, which finds worker, caches
and drive awake.

Curves are timed by the worker of a path (``lookup_timer``). How much longer a thread takes that makes a lookup between
layers, which took its code and buffers out of the caches, shows beside the worker's own.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

from tiercast_profiles.document import Quantity
from tiercast_profiles.hardware import Interference, LookupOverhead, OverheadPoint, ProbeResult
from tiercast_profiles.rng import stream
from tiercast_profiles.stats import median
from tiercast_profiles.units import NS_PER_US
from tiercast_runtime.cores import on_cores
from tiercast_runtime.interrupts import clear_cores
from tiercast_runtime.paths.disk import DiskPath
from tiercast_runtime.prefetch import LookupTiming, Prefetcher
from tiercast_runtime.probes.gather import random_ids
from tiercast_runtime.probes.interference import Contender, Mix, has_room, speed_quantity
from tiercast_runtime.probes.step_bench import BenchStep, StepBench
from tiercast_runtime.probes.timing import Clock, Effort, Spread, collect, probe_result, rounded

MIXES: tuple[Mix, ...] = (([128], []), ([128] * 8, []))
COVER_RATIO = 1.3  # a pass is so much longer than the lookups of a step
NUM_CALIBRATIONS = 3
OF_MEANS = frozenset({"issue", "wake", "turn"})  # steps add up, and no difference makes these noisy

Part = Literal["beside", "after", "inline", "issue", "wake", "turn", "behind", "lookup_speed"]
Key = tuple[Part, int]  # rows of a lookup


def measure_overhead(
    bench: StepBench, contender: Contender, effort: Effort, clock: Clock = time.perf_counter_ns
) -> tuple[Interference, tuple[ProbeResult, ...]]:
    """What a path of the host takes from compute on a CPU, and how fast its lookups are beside compute.

    Args:
        bench: whose layers compute.
        contender: the path, driven by the host.
        effort: for all sizes together, and as much again for the hand-over.
        clock: ns.

    Returns:
        The entry, whose speed of compute is 1 because ``overhead`` has all that lookups take; and the probes.
    """
    spreads: dict[Key, Spread[Key]] = {}
    lanes = _Lanes(Prefetcher(contender.path, "step_entry", clock), Prefetcher(contender.path, "off", clock))
    cores = None
    if isinstance(contender.path, DiskPath):  # as in an engine
        cores = clear_cores(contender.path.readers[0].path, torch.get_num_threads())
    try:
        with torch.inference_mode(), on_cores(cores):
            mixes = [mix for mix in MIXES if has_room(bench, *mix)] or [([1], [])]
            for mix in mixes:
                trial = _Trial(bench, bench.step(*mix), contender, lanes, clock)
                share = effort.shared(len(mixes))
                for case in (trial.run, trial.handing_over):  # one behind the other: a whole step cools what a pass has
                    spreads |= {spread.key: spread for spread in collect([case], share, clock)}
    finally:
        lanes.ahead.close()
    name = f"interference.{contender.tier}.{contender.name}"
    parameters: dict[str, str | int | float] = {"model": bench.model.name, "threads": torch.get_num_threads()}
    if cores is not None:
        parameters["compute_cores"] = ", ".join(map(str, sorted(cores)))
    probes = [
        probe_result(
            f"{name}.{part}",
            spread if part == "lookup_speed" else spread.scaled(1 / NS_PER_US),
            "ratio" if part == "lookup_speed" else "us",
            parameters | {"rows": num_rows},
        )
        for (part, num_rows), spread in spreads.items()
    ]
    sizes = sorted({num_rows for _, num_rows in spreads})
    speeds = tuple(x for (part, _), spread in spreads.items() if part == "lookup_speed" for x in spread.samples)
    points = tuple(OverheadPoint(num_rows=num_rows, **_times(spreads, num_rows)) for num_rows in sizes)
    entry = Interference(
        tier=contender.tier,
        path=contender.name,
        compute_speed_ratio=Quantity(value=1.0),
        lookup_speed_ratio=speed_quantity(Spread("lookup", speeds)),
        overhead=LookupOverhead(**_times(spreads), points=points),
    )
    return entry, tuple(probes)


def _times(spreads: Mapping[Key, Spread[Key]], num_rows: int | None = None) -> dict[str, Quantity]:
    """Every time by its field's name: of lookups of one size, or over all; without what one lookup alone cannot say."""
    by_part: dict[Part, list[Spread[Key]]] = {}
    for (part, count), spread in spreads.items():
        if part != "lookup_speed" and num_rows in (None, count):
            by_part.setdefault(part, []).append(spread)
    return {f"{part}_us": mean_us(found, of_means=part in OF_MEANS) for part, found in by_part.items()}


def mean_us(spreads: Sequence[Spread[Key]], *, of_means: bool = False) -> Quantity:
    """One time out of those of several sizes, in ns: the mean of their medians, or means; below zero counts as zero.

    Sizes count alike, whatever their number of samples. The band is the standard error.
    """
    middle = sum(spread.mean if of_means else spread.value for spread in spreads) / len(spreads)
    error = math.sqrt(sum(standard_error(spread) ** 2 for spread in spreads)) / len(spreads)
    low, value, high = (rounded(max(0.0, ns) / NS_PER_US) for ns in (middle - error, middle, middle + error))
    return Quantity(value=value, low=low, high=high)


def standard_error(spread: Spread[Key]) -> float:
    """Of the median: √(π/2) times that of a mean whose spread the quartiles give; 1 ns at least."""
    sigma = (spread.high - spread.low) / 1.349
    return max(1.0, math.sqrt(math.pi / 2 / len(spread.samples)) * sigma)


@dataclass(frozen=True, slots=True)
class Taken:
    """Lookups of a step whose rows were taken: their time, that of taking rows which are there, and their timings."""

    lookups_ns: int
    take_ns: int
    timings: tuple[LookupTiming, ...]


@dataclass(frozen=True, slots=True)
class _Lanes:
    """The same path twice: served by a worker beside compute, and by the thread that computes."""

    ahead: Prefetcher
    inline: Prefetcher


def turns_ns(timings: Sequence[LookupTiming]) -> list[float]:
    """Mean time between the end of a lookup and the beginning of the next; nothing of a single one."""
    gaps = [after.started_ns - before.ready_ns for before, after in pairwise(timings)]
    return [sum(gaps) / len(gaps)] if gaps else []


def savings_ns(timings: Sequence[LookupTiming]) -> list[float]:
    """How much less a lookup behind another takes than the first, in the mean; nothing of a single one."""
    first, *others = (timing.ready_ns - timing.started_ns for timing in timings)
    return [first - sum(others) / len(others)] if others else []


class _Trial:
    """One batch: passes over layers alone, beside the lookups of a step, and behind lookups the thread made itself."""

    def __init__(self, bench: StepBench, step: BenchStep, contender: Contender, lanes: "_Lanes", clock: Clock) -> None:
        self._bench, self._step, self._contender, self._clock = bench, step, contender, clock
        self._batch = batch = bench.batch(step)
        self._ahead, self._inline = lanes.ahead, lanes.inline
        self._hidden = bench.backbone.embed(batch)
        self._num_lookups = min(len(bench.model.engram.layer_ids), contender.num_tables)
        self._num_rows = batch.num_tokens * bench.model.engram.num_rows_per_token
        self._generator = stream(0, f"lookup overhead/{contender.name}/{batch.num_tokens}")
        most = bench.model.backbone.num_layers
        self._num_layers = self._most_layers = most
        self._next_layer = 0
        layer_ns = median([self._pass() / most for _ in range(NUM_CALIBRATIONS)])
        lookups_ns = median([self._lookups(self._ahead, self._fresh_ids()) for _ in range(NUM_CALIBRATIONS)])
        self._num_layers = min(most, max(1, math.ceil(COVER_RATIO * lookups_ns / layer_ns)))

    def run(self) -> list[tuple[Key, float]]:
        """One trial. A pass nobody times stands before each that is timed, so that a wait is over and forgotten."""
        first, second, third = (self._fresh_ids() for _ in range(3))
        self._pass()
        alone_ns = self._pass()
        self._bench.hasher.row_ids(self._batch.windows)  # as a step does right before it hands its lookups over
        self._ahead.begin_step(first)
        beside_ns = self._pass()
        taken = self._taken(self._ahead, layers_between=max(1, self._num_layers // 2))
        alone_again_ns = self._pass()
        alone_ns = (alone_ns + alone_again_ns) // 2  # before and behind: a machine that changes speed favours neither
        inline_ns = self._lookups(self._inline, second)
        after_ns = self._pass()
        lookups_alone_ns = self._lookups(self._ahead, third)
        rows, count = self._num_rows, self._num_lookups
        return [
            (("beside", rows), (beside_ns + taken.take_ns - alone_ns) / count),
            (("after", rows), (after_ns - alone_ns) / count),
            (("inline", rows), (inline_ns - lookups_alone_ns) / count),
            (("lookup_speed", rows), lookups_alone_ns / max(1, taken.lookups_ns)),
        ]

    def handing_over(self) -> list[tuple[Key, float]]:
        """The hand-over in a step: all layers of the model before it and behind it, its batch built in between.

        Behind a short pass the worker is hardly asleep and its code still in the caches. It may begin before the
        hand-over returns, where it takes the caller's core.
        """
        row_ids = self._fresh_ids()
        self._compute(self._most_layers)
        self._bench.hasher.row_ids(self._bench.batch(self._step).windows)
        begin_ns = self._clock()
        self._ahead.begin_step(row_ids)
        handed_ns = self._clock()
        self._compute(self._most_layers)
        timings = self._taken(self._ahead).timings
        rows = self._num_rows
        return [
            (("issue", rows), float(handed_ns - begin_ns)),
            (("wake", rows), max(0.0, float(timings[0].started_ns - handed_ns))),
            *((("turn", rows), value) for value in turns_ns(timings)),
            *((("behind", rows), value) for value in savings_ns(timings)),
        ]

    def _pass(self) -> int:
        """Time in ns of the layers of a pass."""
        begin_ns = self._clock()
        self._compute(self._num_layers)
        return self._clock() - begin_ns

    def _compute(self, num_layers: int) -> None:
        """Run the next layers, behind those of the pass before: their weights come from memory, as in a step.

        Layers whose weights a pass has just used lose nothing to lookups that make memory slower.
        """
        for place in range(num_layers):
            self._bench.backbone.layer((self._next_layer + place) % self._most_layers, self._hidden, self._batch)
        self._next_layer = (self._next_layer + num_layers) % self._most_layers

    def _lookups(self, prefetcher: Prefetcher, row_ids: torch.Tensor) -> int:
        """Time in ns of a step's lookups while the thread waits for them."""
        prefetcher.begin_step(row_ids)
        return self._taken(prefetcher).lookups_ns

    def _taken(self, prefetcher: Prefetcher, *, layers_between: int = 0) -> Taken:
        """Take the rows of all lookups.

        Layers between them take the code that does so out of the caches, as in a step; they are not in the time.
        """
        taken_ns = 0
        for index in range(self._num_lookups):
            if index and layers_between:
                self._compute(layers_between)
            begin_ns = self._clock()
            prefetcher.rows_for(index)
            taken_ns += self._clock() - begin_ns
        timings = prefetcher.take_timings()
        lookups_ns = sum(timing.ready_ns - timing.started_ns for timing in timings)
        return Taken(lookups_ns, taken_ns - sum(timing.stall_ns for timing in timings), tuple(timings))

    def _fresh_ids(self) -> torch.Tensor:
        """``[lookups, 1, rows]``: fresh random rows for every lookup."""
        ids = [random_ids(self._generator, self._contender.num_rows, self._num_rows) for _ in range(self._num_lookups)]
        return torch.stack(ids)
