"""How fast this machine is right now beside what its profile says: steps of the profile's own table, timed again.

A machine that others share is a tenth faster or slower a minute later. A prediction made from the profile cannot know;
whoever scores it should. The pieces timed here are those the layer probe times, by the same functions, and nothing of
an engine's run goes into them: a run cannot make its own prediction look better.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import torch

from tiercast_profiles.errors import BadInput
from tiercast_profiles.hardware import ComputeTable, HardwareProfile
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.rng import stream
from tiercast_profiles.units import NS_PER_S, NS_PER_US
from tiercast_runtime.device import pick_device
from tiercast_runtime.paths.disk import DiskPath
from tiercast_runtime.probes.gather import random_ids
from tiercast_runtime.probes.layers import settling_steps
from tiercast_runtime.probes.lookup_timer import NUM_DISTURBING_A_DRIVE, LookupTimer
from tiercast_runtime.probes.step_bench import BenchStep, Geometry, PartKey, StepBench
from tiercast_runtime.probes.timing import Clock, Spread
from tiercast_runtime.table import FileTable

SEQUENCES, CONTEXT_TOKENS, CHUNK_TOKENS = (1, 8), 128, 151  # points of both probe plans
NUM_DECODE_SAMPLES, NUM_CHUNK_SAMPLES = 6, 3
NUM_TURNS = 2  # of all reference steps: a shared machine changes speed within a second, and one stretch of it says less
DISK_ROWS, NUM_DISK_WARM_UPS, NUM_DISK_SAMPLES = (32, 256), 2, 7
DISK = "pace_disk"
WARM_UP_NS = NS_PER_S  # behind a sleep of a second steps were longer for up to a second


class Pace:
    """Reference steps of one model, and what they took when the profile was made.

    Args:
        model: whose layer times the profile holds.
        hardware: the profile.
        folder: where the table file is, or is made, that reads from a drive are timed on; None: they are not timed.
        clock: ns.

    Raises:
        BadInput: the profile holds no single-call times of this model.
        FileProblem: the table file cannot be written.
        MissingCapability: the runtime cannot compute the model.
        InfeasibleScenario: it does not fit in memory.
    """

    def __init__(
        self, model: ModelSpec, hardware: HardwareProfile, folder: Path | None, clock: Clock = time.perf_counter_ns
    ) -> None:
        self._known_us, self._clock = _known_us(_table(model, hardware)), clock
        geometry = Geometry(max(SEQUENCES), 2 * CONTEXT_TOKENS, CHUNK_TOKENS)
        with ExitStack() as stack:
            self._bench = stack.enter_context(StepBench(model, pick_device(), geometry, clock))
            self._steps = {f"decode_{count}": self._bench.step([CONTEXT_TOKENS] * count, []) for count in SEQUENCES}
            self._steps[f"chunk_{CHUNK_TOKENS}"] = self._bench.step([], [(0, CHUNK_TOKENS)])
            self._disk: DiskPace | None = None
            points = _disk_points(model, hardware)
            if points and folder is not None:
                self._disk = DiskPace(FileTable(model.engram, 0, "packed", folder), points, clock)
                stack.callback(self._disk.close)
            self._opened = stack.pop_all()  # from here on they are this object's to close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def measure(self) -> dict[str, float]:
        """Per reference step its time now over its time in the profile, and so of reads from a drive (``pace_disk``).

        Above 1 the machine is slower now.
        """
        now_us, known_us = dict.fromkeys(self._steps, 0.0), dict.fromkeys(self._steps, 0.0)
        with torch.inference_mode():
            for _ in range(NUM_TURNS):
                for name, step in self._steps.items():
                    now, known = self._times_us(step)
                    now_us[name] += now
                    known_us[name] += known
        found = {f"pace_{name}": now_us[name] / known_us[name] for name in self._steps if known_us[name]}
        if self._disk is not None:
            found[DISK] = self._disk.ratio()
        return found

    def warm_up(self) -> None:
        """Compute for a second, untimed, behind a time in which this process stood still.

        A core that waits may lose its speed, and take that long to find it again.
        """
        step, until_ns = self._steps[f"decode_{max(SEQUENCES)}"], self._clock() + WARM_UP_NS
        with torch.inference_mode():
            while self._clock() < until_ns:
                self._bench.walk(step)

    def profile_us(self) -> dict[str, float]:
        """What the profile says each of them takes, µs, by the names of :meth:`measure`; those it does not know are 0.

        Over the same of another profile it is what turns a pace beside one into a pace beside the other.
        """
        with torch.inference_mode():
            found = {f"pace_{name}": self._known(self._bench.walk(step)) for name, step in self._steps.items()}
        if self._disk is not None:
            found[DISK] = self._disk.known_us
        return found

    def _known(self, walked: Sequence[tuple[PartKey, float]]) -> float:
        """Time in the profile of the components of a step."""
        return sum(self._bench.times_a_step(key[0]) * self._known_us.get(key, 0.0) for key, _ in walked)

    def _times_us(self, step: BenchStep) -> tuple[float, float]:
        """Time of the step's components now and in the profile, over some steps in a row."""
        is_decode = bool(step.plan.decodes)
        for _ in range(settling_steps(step) or 1):
            self._bench.walk(step)
        now_us = known_us = 0.0
        for _ in range(NUM_DECODE_SAMPLES if is_decode else NUM_CHUNK_SAMPLES):
            walked = self._bench.walk(step)
            known_us += self._known(walked)
            for key, value in walked:
                if key in self._known_us:
                    now_us += self._bench.times_a_step(key[0]) * value / NS_PER_US
        return now_us, known_us


class DiskPace:
    """Lookups from a table file, timed as the storage probe times them; ``points`` are µs by number of rows."""

    def __init__(self, table: FileTable, points: Mapping[int, float], clock: Clock) -> None:
        self._points, self._num_rows = points, table.num_rows
        self._path = DiskPath([table], torch.device("cpu"))
        self._timer = LookupTimer(self._path, clock, num_disturbing=NUM_DISTURBING_A_DRIVE)
        self._ids = stream(0, "pace/disk")

    @property
    def known_us(self) -> float:
        """What the profile says one lookup of each size takes together."""
        return sum(self._points.values())

    def ratio(self) -> float:
        """Time now over that of the profile, over all sizes."""
        for _ in range(NUM_DISK_WARM_UPS):  # the worker has slept through a whole run
            self._time_us(min(self._points))
        now_us = 0.0
        for count in self._points:
            now_us += Spread(count, tuple(self._time_us(count) for _ in range(NUM_DISK_SAMPLES))).mean
        return now_us / self.known_us

    def _time_us(self, count: int) -> float:
        return self._timer.time_ns(random_ids(self._ids, self._num_rows, count, distinct=True)) / NS_PER_US

    def close(self) -> None:
        """Stop the worker and close the file."""
        self._timer.close()
        self._path.close()


def _disk_points(model: ModelSpec, hardware: HardwareProfile) -> dict[int, float]:
    points = [
        point
        for curve in hardware.lookups
        if curve.path == "disk"
        for point in curve.points
        if point.row_bytes == model.engram.row_bytes and point.num_rows in DISK_ROWS
    ]
    largest = max((point.footprint_bytes for point in points), default=0)  # smaller ones are of a part of the file
    return {point.num_rows: point.time_us for point in points if point.footprint_bytes == largest}


def _table(model: ModelSpec, hardware: HardwareProfile) -> ComputeTable:
    """The table of this backbone with this Engram: another Engram's layers take other times."""
    engrams = (model.engram.shape_sha256, model.engram.sha256)  # the latter in profiles of earlier versions
    for table in hardware.compute:
        is_of_model = table.shape_sha256 == model.backbone.shape_sha256 and table.engram_sha256 in engrams
        if is_of_model and table.graph_mode == "eager":
            return table
    raise BadInput(
        f"profile {hardware.name} holds no layer times of {model.name} by single calls; "
        f"make one that does: tiercast profile --model {model.name}"
    )


def _known_us(table: ComputeTable) -> Mapping[PartKey, float]:
    """Times of the components; of the MLP, which one of them holds, the profile's table says nothing."""
    return {
        (component, point.num_tokens, point.context_tokens): point.time_us
        for component, points in table.components.items()
        for point in points
    }
