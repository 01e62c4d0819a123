"""The folder of a suite: small records of every case, and enough to go on after an interruption.

A measured record is written as soon as its work is done. A later run into the same folder takes it over, provided
profile and repeats are the same; predictions are always made anew, because they cost next to nothing.
"""

from collections.abc import Mapping
from pathlib import Path

from tiercast_cli.case_scores import Failure
from tiercast_cli.output import make_folder
from tiercast_profiles import store
from tiercast_profiles.document import Strict
from tiercast_profiles.errors import BadInput, FileProblem
from tiercast_profiles.record import RunRecord

STATE_FILE = "state.json"


class SuiteState(Strict):
    """What a folder holds measurements of, and what could not run."""

    schema_version: int = 1
    hardware_name: str
    profile_sha256: str
    repeats: int
    failures: tuple[Failure, ...] = ()

    @property
    def words(self) -> str:
        """What was run, for an error."""
        return f"{self.hardware_name} (profile {self.profile_sha256[:12]}, {self.repeats} repeats)"


class SuiteFolder:
    """Reads and writes one folder.

    Raises:
        FileProblem: the folder cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        for side in ("measured", "simulated"):
            make_folder(path / side)

    def state(self) -> SuiteState | None:
        """What the folder holds, or None where nothing was measured yet."""
        file = self.path / STATE_FILE
        return store.parse(SuiteState, store.read_mapping(file), str(file)) if file.exists() else None

    def begin(self, wanted: SuiteState) -> SuiteState | None:
        """The state to go on from, or None for a folder without one.

        Raises:
            BadInput: the folder holds cases of another profile, or with another number of repeats.
        """
        found = self.state()
        if found is None:
            return None
        if (found.profile_sha256, found.repeats) != (wanted.profile_sha256, wanted.repeats):
            raise BadInput(
                f"{self.path} holds cases of {found.words}, not of {wanted.words}; "
                "give another folder, or the same profile and repeats to go on"
            )
        return found

    def save(self, state: SuiteState) -> None:
        """Write the state."""
        store.write_text(self.path / STATE_FILE, state.model_dump_json(indent=2) + "\n")

    def measured(self, names: Mapping[str, object]) -> dict[str, RunRecord]:
        """The measured records of these cases that are there."""
        files = {name: self._file("measured", name) for name in names}
        return {name: store.load_record(file) for name, file in files.items() if file.exists()}

    def write(self, side: str, name: str, record: RunRecord) -> None:
        """One record, raw samples and spans left out: the folder is meant to be committed."""
        small = record.model_copy(update={"samples": None, "spans": ()})
        store.write_text(self._file(side, name), small.to_json())

    def _file(self, side: str, name: str) -> Path:
        return self.path / side / f"{name.replace('/', '-')}.json"


def open_measured(path: Path) -> tuple[SuiteFolder, SuiteState]:
    """A folder that holds measurements.

    Raises:
        FileProblem: there is no such folder, or no suite was run into it.
    """
    if not (path / STATE_FILE).is_file():
        raise FileProblem(
            f"{path}: no suite was run into this folder; run one with: tiercast validate --suite --folder"
        )
    folder = SuiteFolder(path)
    state = folder.state()
    assert state is not None, "the file was there a moment ago"
    return folder, state
