"""Scenarios of a person's own, run in rounds with the machine probed in each: predicted from all those profiles.

The profile of a machine that others share knows one minute of it. Made in turns with the runs and pooled over all
rounds, it knows the machine that ran them; probes and runs still see nothing of each other.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tiercast_cli import inputs
from tiercast_cli.measuring import Measured
from tiercast_cli.other_profile import predicted_from_pool
from tiercast_cli.output import make_folder, part_of
from tiercast_cli.probe_turns import probe_into, probing_round
from tiercast_cli.validation import MeasuredCases, Validation, measured_cases
from tiercast_profiles import store
from tiercast_profiles.errors import BadInput, TiercastError
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.record import RunRecord
from tiercast_profiles.repeats import together

if TYPE_CHECKING:
    from tiercast_profiles.model import ModelSpec
    from tiercast_profiles.scenario import ResolvedScenario

Report = Callable[[str, float], None]
POOLED, BEFORE = "profile.yaml", "profile-before.yaml"


def run(wanted: Sequence[str], *, rounds: int, folder: Path, report: Report) -> Validation:
    """Probe the machine and run every scenario once, ``rounds`` times over; then predict each from the pooled profile.

    Every other round goes backwards. The profiles made before any run (``profile-before.yaml``) and in the rounds
    (``profile-1.yaml`` …), and the latter pooled (``profile.yaml``), are left in the folder. A scenario that cannot be
    run or predicted fails by itself.

    Raises:
        BadInput: fewer than two rounds, or the folder holds a profile already.
        FileProblem: the folder cannot be written, or a scenario file cannot be read.
        MissingCapability: the runtime cannot compute a model that is named; nothing is probed for it.
        TiercastError: why the first scenario failed, where all did.
    """
    from tiercast_runtime.backbone import check_runnable

    if rounds < 2:
        raise BadInput(f"--repeats {rounds}; probing in every round takes two or more, whose profiles are pooled")
    before = folder / BEFORE
    taken = next((file for file in (folder / POOLED, before) if file.exists()), None)
    if taken is not None:
        raise BadInput(f"{taken} is there already; give --probe a --folder without profiles")
    names = list(dict.fromkeys(wanted))
    models = list(dict.fromkeys(inputs.load_scenario(name).model for name in names))
    for model in models:
        check_runnable(store.load_model(model))
    make_folder(folder)
    first = probe_into(before, models, report)
    ready = _resolved(names, before)
    profiles: list[HardwareProfile] = []
    found = _Rounds()
    for number in range(1, rounds + 1):
        share = part_of(report, number - 1, rounds)
        with probing_round(models, folder / f"profile-{number}.yaml", share) as probes:
            found.add(ready, number, share, probes.turn)
            if not found.records:
                raise found.errors[names[0]]
            profiles.append(probes.finish(share))
    return predicted_from_pool(
        names, found.whole(), first=first, profiles=profiles, file=folder / POOLED, report=report
    )


class _Rounds:
    """What the rounds have given so far: records of those that ran in all of them, and why others did not."""

    def __init__(self) -> None:
        self.records: dict[str, list[RunRecord]] = {}
        self.errors: dict[str, TiercastError] = {}
        self.apart = self.pace_untimed = ""
        self.pace_model: ModelSpec | None = None

    def add(
        self, ready: "Mapping[str, ResolvedScenario]", number: int, report: Report, between: Callable[[], None]
    ) -> None:
        """Run one round of those that have not failed yet; ``between`` is called where the pace is timed."""
        order = list(ready) if number % 2 else list(reversed(list(ready)))
        todo = {name: ready[name] for name in order if name not in self.errors}
        measured = measured_cases(
            todo,
            repeats=1,
            folder=None,
            report=lambda _what, ratio: report(f"round {number}", ratio),
            between=between,
        )
        for name, record in measured.found.records.items():
            self.records.setdefault(name, []).append(record)
        for name, error in measured.found.errors.items():
            self.errors[name] = error
            self.records.pop(name, None)
        self.apart = self.apart or measured.found.apart
        self.pace_untimed = self.pace_untimed or measured.pace_untimed
        self.pace_model = self.pace_model or measured.pace_model

    def whole(self) -> MeasuredCases:
        """All rounds as one, a record for each scenario that ran in all of them."""
        records = {name: together(found) for name, found in self.records.items()}
        return MeasuredCases(Measured(records, self.errors, self.apart), self.pace_untimed, self.pace_model)


def _resolved(names: Sequence[str], file: Path) -> "Mapping[str, ResolvedScenario]":
    """The scenarios on the machine of the first profile, which is not left behind where one does not fit it."""
    try:
        return {name: inputs.resolve(name, str(file)) for name in names}
    except TiercastError:
        file.unlink()
        raise
