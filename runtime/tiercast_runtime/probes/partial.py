"""Sweeps finished so far, in a file beside the profile that is being made: what an interrupted run need not repeat."""

import json
from pathlib import Path

from pydantic import ValidationError

from tiercast_profiles.document import canonical_json
from tiercast_profiles.errors import BadInput, FileProblem
from tiercast_profiles.gather import GatherSweep
from tiercast_profiles.store import write_text

SUFFIX = ".partial"


def side_file(output: Path) -> Path:
    """Where the partial results of a profile live."""
    return output.with_name(output.name + SUFFIX)


class PartialSweeps:
    """Finished sweeps by label, written whole after each one.

    Args:
        path: the side file.
        machine: what must be the same for old sweeps to be worth keeping: host, plan, memory.
        is_resumed: read what the file holds; without it an old file is replaced.

    Raises:
        FileProblem: nothing to resume, or the file is damaged.
        BadInput: the file was made by another machine or with other options.
    """

    def __init__(self, path: Path, machine: dict[str, str | int], *, is_resumed: bool) -> None:
        self._path, self._machine = path, machine
        self._sweeps: dict[str, GatherSweep] = {}
        if is_resumed:
            self._sweeps = {sweep.label: sweep for sweep in self._read()}

    def get(self, label: str) -> GatherSweep | None:
        """The finished sweep of this label, or None."""
        return self._sweeps.get(label)

    def add(self, sweep: GatherSweep) -> None:
        """Keep a finished sweep.

        Raises:
            FileProblem: the folder is missing or the disk is full.
        """
        self._sweeps[sweep.label] = sweep
        sweeps = [one.model_dump(mode="json") for one in self._sweeps.values()]
        write_text(self._path, canonical_json({"machine": self._machine, "sweeps": sweeps}))

    def _read(self) -> list[GatherSweep]:
        try:
            held = json.loads(self._path.read_text(encoding="utf-8"))
            machine, sweeps = held["machine"], [GatherSweep.model_validate(one) for one in held["sweeps"]]
        except FileNotFoundError:
            raise FileProblem(f"{self._path}: no partial results to resume; leave out --resume") from None
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            raise FileProblem(f"{self._path}: damaged; remove it and leave out --resume") from None
        other = sorted(key for key in self._machine if machine.get(key) != self._machine[key])
        if other:
            said = ", ".join(f"{key} {machine.get(key)} (now {self._machine[key]})" for key in other)
            raise BadInput(f"{self._path}: made with {said}; remove it and leave out --resume")
        return sweeps
