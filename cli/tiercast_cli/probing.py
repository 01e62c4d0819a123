"""Running the probes for a command: where their files go and how their progress is shown."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from tiercast_cli.output import progress
from tiercast_profiles.errors import TiercastError
from tiercast_profiles.store import load_model

if TYPE_CHECKING:
    from tiercast_profiles.hardware import HardwareProfile
    from tiercast_profiles.model import ModelSpec
    from tiercast_profiles.scenario import ResolvedScenario
    from tiercast_runtime.probes.pace import Pace

Report = Callable[[str, float], None]
BEHIND_A_STRETCH_S = 1.0  # behind a time in which it stood still a process was slower for up to so long
WARM_UP_SIDE = 256  # of a square matrix: a product takes a fraction of a millisecond


def warm_up(seconds: float) -> None:
    """Compute for so long, untimed."""
    import torch

    square = torch.ones(WARM_UP_SIDE, WARM_UP_SIDE)
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        torch.mm(square, square)


def probe(
    models: Sequence[str],
    *,
    quick: bool,
    folder: Path | None = None,
    memory_bytes: int | None = None,
    output: str | None = None,
    is_resumed: bool = False,
    is_in_turns: bool = False,
    report: Report | None = None,
) -> "HardwareProfile":
    """Probe this machine; the files that the storage probe reads live in ``folder`` or a temporary one.

    ``output`` is where the profile will go; sweeps of a full run that end before it are kept beside it. With
    ``is_in_turns`` a quick run times layers more often, for nobody waits for it. ``report`` takes the progress of a
    longer job that this is a part of; without it the probes show their own.

    Raises:
        UnknownModel: a model is neither shipped nor a file.
        FileProblem: the folder cannot be written.
    """
    specs = [load_model(name) for name in models]
    from tiercast_runtime.probes import profile_machine
    from tiercast_runtime.scratch import scratch_folder

    target = None if output is None else Path(output)

    with progress("profile") if report is None else nullcontext(report) as shown:

        def run(place: Path) -> "HardwareProfile":
            return profile_machine(
                quick=quick,
                models=specs,
                folder=place,
                progress=shown,
                memory_bytes=memory_bytes,
                output=target,
                is_resumed=is_resumed,
                is_in_turns=is_in_turns,
            )

        if folder is not None:
            return run(folder)
        # beside the work, not in /tmp, which is memory on many machines and would be probed as a drive
        with scratch_folder(Path.cwd()) as temporary:
            return run(temporary)


def forget_partial(output: str) -> None:
    """Remove what was kept of unfinished runs, now that the profile is written."""
    from tiercast_runtime.probes.partial import side_file

    side_file(Path(output)).unlink(missing_ok=True)


@contextmanager
def pace_of(
    profile: "HardwareProfile", model: "ModelSpec", *, folder: Path | None = None, with_drive: bool = True
) -> "Iterator[Pace]":
    """Reference steps that say, whenever asked, how fast this machine is beside its profile.

    ``folder`` is where the table file for reads from a drive is, or is made: the one of all table files by default.

    Raises:
        BadInput: the profile holds no single-call times of this model.
        FileProblem: the table file cannot be written.
        MissingCapability: the runtime cannot compute the model.
        InfeasibleScenario: it does not fit in memory.
    """
    from tiercast_runtime.device import set_compute_threads
    from tiercast_runtime.probes.pace import Pace
    from tiercast_runtime.table_folders import table_folder

    set_compute_threads()
    with Pace(model, profile, table_folder(folder) if with_drive else None) as pace:
        yield pace


def look_of(
    pace: "Pace | PaceBetweenRuns", between: Callable[[], None] | None = None
) -> "Callable[[], Mapping[str, float]]":
    """What runs call between turns: the pace; then ``between``, in which this process stands still, and a warm-up."""

    def look() -> "Mapping[str, float]":
        found = pace.measure()
        if between is not None:
            between()
            pace.warm_up()
        return found

    return look


def standing_still(between: Callable[[], None]) -> "Callable[[], Mapping[str, float]]":
    """What runs call between turns where no pace is timed: ``between``, and a warm-up."""

    def look() -> "Mapping[str, float]":
        between()
        warm_up(BEHIND_A_STRETCH_S)
        return {}

    return look


class PaceBetweenRuns:
    """The pace of the machine between the runs of some scenarios, where it can be timed.

    It is got ready when first asked for, after the engines took the memory they need, from the first model that can be
    timed. Reads from a drive are timed where a scenario of that model makes them.

    Args:
        scenarios: whose runs it is timed between.
        folder: of the table files.
    """

    def __init__(self, scenarios: "Sequence[ResolvedScenario]", folder: Path | None) -> None:
        self._scenarios, self._folder = scenarios, folder
        self._stack = ExitStack()
        self._pace: Pace | None = None
        self.model: ModelSpec | None = None  # whose steps they are, once they were timed
        self.untimed = self._reason()

    def measure(self) -> "Mapping[str, float]":
        """Ratios as :meth:`tiercast_runtime.probes.pace.Pace.measure` gives them; none once timing has failed."""
        import torch

        if self.untimed:
            return {}
        try:
            if self._pace is None:
                self._pace = self._open()
            found = self._pace.measure()
        except (TiercastError, torch.OutOfMemoryError) as error:  # the runs matter, and go on
            self.untimed = str(error)
            self.close()
            return {}
        if not found:
            self.untimed = "the profile holds none of the reference steps"
        return found

    def warm_up(self) -> None:
        """Compute for a second, untimed, behind a time in which this process stood still, where a pace is timed."""
        if self._pace is not None:
            self._pace.warm_up()

    def close(self) -> None:
        """Give back memory and files; another call to measure gets ready again."""
        self._pace = None
        self._stack.close()

    def _reason(self) -> str:
        """Why nothing can be timed, known before anything is tried; empty where it may be."""
        if len({case.hardware.sha256 for case in self._scenarios}) != 1:
            return "the scenarios name several profiles"
        if not any(case.placement.graph_mode == "eager" for case in self._scenarios):
            return "steps run as captured graphs, reference steps are single calls"
        return ""

    def _open(self) -> "Pace":
        """Reference steps of the first model that can be timed.

        Raises:
            TiercastError: why the first model cannot, where none can.
        """
        eager = [case for case in self._scenarios if case.placement.graph_mode == "eager"]
        errors: list[TiercastError] = []
        for model in {case.model.sha256: case.model for case in eager}.values():
            reads = any(case.placement.tier == "nvme" and case.model == model for case in eager)
            try:
                pace = self._stack.enter_context(
                    pace_of(eager[0].hardware, model, folder=self._folder, with_drive=reads)
                )
                self.model = model
                return pace
            except TiercastError as error:
                errors.append(error)
        raise errors[0]
