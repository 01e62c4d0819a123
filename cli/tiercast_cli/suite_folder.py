"""The folder of a suite: small records of every case, and enough to go on after an interruption.

``rounds/N`` holds what was run in round N: a record of each case as soon as its work is done, and the profile of that
round where the machine is probed in every round; ``rounds/before.yaml`` is a profile made before any run then. When all
rounds are done, ``measured`` holds one record per case over all of them. A later run into the same folder takes over
what is there, provided it was asked for the same; predictions are always made anew, because they cost next to nothing.
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
PROFILE_FILE = "profile.yaml"


class SuiteState(Strict):
    """What a folder holds measurements of, and what could not run.

    ``profile_sha256`` is the profile that the cases are predicted from. Where the machine is probed in every round
    (``is_probed``) it is known when the last one is done, and empty before.
    """

    schema_version: int = 1
    hardware_name: str
    profile_sha256: str
    repeats: int
    is_probed: bool = False
    failures: tuple[Failure, ...] = ()

    @property
    def words(self) -> str:
        """What was run, for an error."""
        profile = "probed in every round" if self.is_probed else f"profile {self.profile_sha256[:12]}"
        return f"{self.hardware_name} ({profile}, {self.repeats} repeats)"

    def is_of_the_run(self, wanted: "SuiteState") -> bool:
        """Whether a run that wants the other state can go on from this one."""
        if (self.repeats, self.is_probed) != (wanted.repeats, wanted.is_probed):
            return False
        return self.is_probed or self.profile_sha256 == wanted.profile_sha256


class SuiteFolder:
    """Reads and writes one folder.

    Raises:
        FileProblem: the folder cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        for side in ("measured", "simulated"):
            make_folder(path / side)

    @property
    def profile_file(self) -> Path:
        """The profile that the cases are predicted from, where the machine was probed in every round."""
        return self.path / PROFILE_FILE

    def round_profile_file(self, number: int) -> Path:
        """The profile of one round; its folder is made."""
        return self._round(number) / PROFILE_FILE

    @property
    def first_profile_file(self) -> Path:
        """The profile made before any run, where the machine is probed in every round; its folder is made."""
        make_folder(self.path / "rounds")
        return self.path / "rounds" / "before.yaml"

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
        if found is not None and not found.is_of_the_run(wanted):
            raise BadInput(
                f"{self.path} holds cases of {found.words}, not of {wanted.words}; "
                "give another folder, or the same profile and repeats to go on"
            )
        return found

    def save(self, state: SuiteState) -> None:
        """Write the state."""
        store.write_text(self.path / STATE_FILE, state.model_dump_json(indent=2) + "\n")

    def measured(self, names: Mapping[str, object]) -> dict[str, RunRecord]:
        """The records over all rounds of these cases that are there."""
        return _records(self.path / "measured", names)

    def measured_in(self, number: int, names: Mapping[str, object]) -> dict[str, RunRecord]:
        """The records of one round of these cases that are there."""
        return _records(self._round(number), names)

    def write(self, side: str, name: str, record: RunRecord) -> None:
        """One record, raw samples and spans left out: the folder is meant to be committed."""
        _write(self.path / side, name, record)

    def write_in(self, number: int, name: str, record: RunRecord) -> None:
        """The same of one round."""
        _write(self._round(number), name, record)

    def _round(self, number: int) -> Path:
        place = self.path / "rounds" / str(number)
        make_folder(place)
        return place


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


def _records(place: Path, names: Mapping[str, object]) -> dict[str, RunRecord]:
    files = {name: _file(place, name) for name in names}
    return {name: store.load_record(file) for name, file in files.items() if file.exists()}


def _write(place: Path, name: str, record: RunRecord) -> None:
    small = record.model_copy(update={"samples": None, "spans": ()})
    store.write_text(_file(place, name), small.to_json())


def _file(place: Path, name: str) -> Path:
    return place / f"{name.replace('/', '-')}.json"
