"""Probes that take turns with runs: the profile of a machine through all the time that the runs took.

A machine that others share is a tenth faster or slower a minute later. Probes before the runs know the machine before
them. These run in a process of their own, a second or two at a time between turns of the runs, and stand still the rest
of the time; neither sees anything of the other but the machine.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from tiercast_cli import probing
from tiercast_profiles import errors, store
from tiercast_profiles.errors import MissingCapability, TiercastError
from tiercast_profiles.hardware import HardwareProfile

COMMAND = (sys.executable, "-m", "tiercast_cli.probe_process")
_END_TIMEOUT_S = 20.0

Report = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class TurnPlan:
    """How probes take turns with runs.

    ``stretch_s`` is how long each stretch is; where the end ``is_awaited``, layers are timed no more often than in any
    quick run.
    """

    stretch_s: float
    is_awaited: bool


# a round of the suite is looked at some ninety times, and its probes take some hundred seconds
IN_A_ROUND = TurnPlan(stretch_s=1.2, is_awaited=False)


class ProbesInTurns:
    """The probes of one quick profile, in stretches.

    Args:
        models: whose layers are timed.
        file: where the profile is written.
        plan: of the turns.

    Raises:
        MissingCapability: the process could not be started.
        TiercastError: it ended before it was ready.
    """

    def __init__(self, models: Sequence[str], file: Path, plan: TurnPlan = IN_A_ROUND) -> None:
        self._file, self._stage, self._plan = file, "", plan
        self._is_done = False
        self._errors_said = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        try:
            self._process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,  # its end tells the probes that this process is gone
                stdout=subprocess.PIPE,
                stderr=self._errors_said,
                start_new_session=True,  # Ctrl-C is this side's to handle
            )
        except OSError as error:
            self._errors_said.close()
            raise MissingCapability(f"the process of the probes could not be started ({error})") from None
        try:
            is_in_turns = not plan.is_awaited
            self._tell({"models": list(models), "file": str(file.absolute()), "is_in_turns": is_in_turns})
            self._listen(None)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def turn(self) -> None:
        """Let the probes have the machine for a stretch; nothing once they are done.

        Raises:
            TiercastError: what ended them.
        """
        if not self._is_done:
            self._tell({"seconds": self._plan.stretch_s})
            self._listen(None)

    def finish(self, report: Report) -> HardwareProfile:
        """What is left of the probes in one go; the profile, which is in its file then.

        Raises:
            TiercastError: what ended them.
        """
        if not self._is_done:
            self._tell({"seconds": None})
            self._listen(report)
        self._process.wait()
        return store.load_hardware(str(self._file))

    def close(self) -> None:
        """End the process, which takes its files with it; a second call does nothing."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # what a process that is gone was still to be told
                    stream.close()
        try:
            self._process.wait(timeout=_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors_said.close()

    def _tell(self, message: dict[str, object]) -> None:
        assert self._process.stdin is not None, "a pipe was asked for"
        with contextlib.suppress(BrokenPipeError):  # its end is heard of next
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def _listen(self, report: Report | None) -> None:
        """Until the probes pause or are done."""
        assert self._process.stdout is not None, "a pipe was asked for"
        for line in self._process.stdout:
            message: dict[str, Any] = json.loads(line)  # Any: what ``probe_process`` wrote
            if "problem" in message:
                raise getattr(errors, message["problem"], TiercastError)(message["text"])
            if "stage" in message:
                self._stage = message["stage"]
                if report is not None:
                    report(f"probes, {self._stage}", 1.0)
            else:
                return
        code = self._process.wait(timeout=_END_TIMEOUT_S)
        self._is_done = True
        if code or not self._file.exists():
            self._errors_said.seek(0)
            last = (self._errors_said.read().decode("utf-8", errors="replace").strip().splitlines() or [""])[-1]
            during = f" during {self._stage}" if self._stage else ""
            raise TiercastError(f"the process of the probes ended with code {code}{during}{last and f' ({last})'}")


class RoundProbes(Protocol):
    """The probes of a round of runs."""

    def turn(self) -> None:
        """Probe for a stretch, between turns of the runs."""
        ...

    def finish(self, report: Report) -> HardwareProfile:
        """The profile, behind the runs."""
        ...


@dataclass(frozen=True, slots=True)
class Made:
    """Probes whose profile is in its file already."""

    file: Path

    def turn(self) -> None:
        """Nothing is left to probe."""

    def finish(self, report: Report) -> HardwareProfile:
        """The profile in the file."""
        report("probes", 1.0)
        return store.load_hardware(str(self.file))


@contextmanager
def probing_round(
    models: Sequence[str], file: Path, report: Report, plan: TurnPlan = IN_A_ROUND
) -> Iterator[RoundProbes]:
    """The probes of one round: in turns with its runs, or before them.

    On a GPU they come before: engines leave no memory there for layers to be timed beside. Nothing is probed where the
    file is there.

    Args:
        models: whose layers are timed.
        file: where the profile goes, whole.
        report: takes the progress.
        plan: of the turns.

    Raises:
        MissingCapability: the runtime extra is not installed, or the process of the probes could not be started.
        FileProblem: the file cannot be written.
        TiercastError: what ended the probes.
    """
    from tiercast_runtime.device import pick_device

    if not file.exists() and pick_device().type == "cuda":
        probe_into(file, models, report)
    if file.exists():
        yield Made(file)
        return
    with ProbesInTurns(models, file, plan) as probes:
        yield probes


def probe_into(file: Path, models: Sequence[str], report: Report) -> HardwareProfile:
    """Probe at once, all of the quick plan and the layers of every model, and write the profile."""
    profile = probing.probe(models, quick=True, report=lambda what, _ratio: report(f"probes, {what}", 0.0))
    store.write_text(file, store.to_yaml(profile))
    return store.load_hardware(str(file))
