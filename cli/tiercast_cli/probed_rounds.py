"""Scenarios of a person's own, run in rounds with the machine probed before each: predicted from all those profiles.

The profile of a machine that others share knows one minute of it. Pooled over the time that the runs took, it knows
the machine that ran them; probes and runs still see nothing of each other.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from tiercast_cli import inputs, probing
from tiercast_cli.measuring import Measured, measure
from tiercast_cli.output import make_folder, part_of
from tiercast_cli.suite_rounds import restated
from tiercast_cli.validation import Validation, predicted_cases
from tiercast_profiles import store
from tiercast_profiles.errors import BadInput, TiercastError
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.pooling import pool
from tiercast_profiles.record import RunRecord
from tiercast_profiles.repeats import together

if TYPE_CHECKING:
    from tiercast_profiles.model import ModelSpec
    from tiercast_profiles.scenario import ResolvedScenario

Report = Callable[[str, float], None]
POOLED = "profile.yaml"


def run(wanted: Sequence[str], *, rounds: int, folder: Path, report: Report) -> Validation:
    """Probe the machine and run every scenario once, ``rounds`` times over; then predict each from the pooled profile.

    Every other round goes backwards. The profiles of the rounds (``profile-1.yaml`` …) and the pooled one
    (``profile.yaml``) are left in the folder. A scenario that cannot be run or predicted fails by itself.

    Raises:
        BadInput: fewer than two rounds, or the folder holds a profile already.
        FileProblem: the folder cannot be written, or a scenario file cannot be read.
        TiercastError: why the first scenario failed, where all did.
    """
    if rounds < 2:
        raise BadInput(f"--repeats {rounds}; probing in every round takes two or more, whose profiles are pooled")
    taken = next((file for file in (folder / POOLED, _file(folder, 1)) if file.exists()), None)
    if taken is not None:
        raise BadInput(f"{taken} is there already; give --probe a --folder without profiles")
    names = list(dict.fromkeys(wanted))
    models = list(dict.fromkeys(inputs.load_scenario(name).model for name in names))
    make_folder(folder)
    ready: Mapping[str, ResolvedScenario] = {}
    profiles: list[HardwareProfile] = []
    found = _Rounds()
    for number in range(1, rounds + 1):
        share = part_of(report, number - 1, rounds)
        profiles.append(_probed(models, _file(folder, number), share))
        if number == 1:
            ready = {name: inputs.resolve(name, str(_file(folder, 1))) for name in names}
        found.add(ready, number, share)
        if not found.records:
            raise found.errors[names[0]]
    store.write_text(folder / POOLED, store.to_yaml(pool(profiles)))
    whole = store.load_hardware(str(folder / POOLED))
    again = {name: inputs.resolve(name, str(folder / POOLED)) for name in found.records}
    together_by_name = {name: together(records) for name, records in found.records.items()}
    records = restated(together_by_name, again, found.pace_model, profiles[0], whole)
    return predicted_cases(names, again, Measured(records, found.errors, found.apart), found.pace_untimed, report)


class _Rounds:
    """What the rounds have given so far: records of those that ran in all of them, and why others did not."""

    def __init__(self) -> None:
        self.records: dict[str, list[RunRecord]] = {}
        self.errors: dict[str, TiercastError] = {}
        self.apart = self.pace_untimed = ""
        self.pace_model: ModelSpec | None = None

    def add(self, ready: "Mapping[str, ResolvedScenario]", number: int, report: Report) -> None:
        """Run one round of those that have not failed yet."""
        from tiercast_runtime.bench import bench_in_rounds

        names = [name for name in (ready if number % 2 else reversed(list(ready))) if name not in self.errors]
        pace = probing.PaceBetweenRuns([ready[name] for name in names], None)

        def bench(chosen: "Sequence[ResolvedScenario]") -> Sequence[RunRecord]:
            with closing(pace):
                return bench_in_rounds(
                    chosen, repeats=1, progress=lambda ratio: report(f"round {number}", ratio), between=pace.measure
                )

        found = measure({name: ready[name] for name in names}, bench, failing=(TiercastError,))
        for name, record in found.records.items():
            self.records.setdefault(name, []).append(record)
        for name, error in found.errors.items():
            self.errors[name] = error
            self.records.pop(name, None)
        self.apart, self.pace_untimed = self.apart or found.apart, self.pace_untimed or pace.untimed
        self.pace_model = self.pace_model or pace.model


def _probed(models: Sequence[str], file: Path, report: Report) -> HardwareProfile:
    profile = probing.probe(models, quick=True, report=lambda what, _ratio: report(f"probes, {what}", 0.0))
    store.write_text(file, store.to_yaml(profile))
    return store.load_hardware(str(file))


def _file(folder: Path, number: int) -> Path:
    return folder / f"profile-{number}.yaml"
