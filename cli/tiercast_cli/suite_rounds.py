"""The cases of a suite run for real, all of them once per round, so that each meets the machine at several times.

A machine that others share changes speed from minute to minute. A case whose repeats follow one another meets one such
minute; one that is run in every round, a few seconds at a time, meets all of them. Every other round goes backwards.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

from tiercast_cli import probing
from tiercast_cli.case_scores import Failure
from tiercast_cli.measuring import Measured, measure
from tiercast_cli.suite_folder import SuiteFolder
from tiercast_profiles import store
from tiercast_profiles.errors import TiercastError
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.record import RunRecord
from tiercast_profiles.repeats import together
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.suite import Suite

if TYPE_CHECKING:
    from tiercast_runtime.probes.pace import Pace

Report = Callable[[str, float], None]


class SuiteRounds:
    """Runs rounds of a suite and keeps what they gave, in a folder where there is one.

    Args:
        suite: the works.
        ready: every case on the machine of a profile.
        hardware: that profile, beside which the pace of the machine is timed.
        kept: where records of rounds are written, and taken from after an interruption.
        failures: cases that could not be run before; those found are added to :attr:`failures`.
    """

    def __init__(
        self,
        suite: Suite,
        ready: Mapping[str, ResolvedScenario],
        hardware: HardwareProfile,
        kept: SuiteFolder | None,
        failures: Sequence[Failure],
    ) -> None:
        self._suite, self._ready, self._hardware, self._kept = suite, ready, hardware, kept
        self.failures = {failure.case: failure for failure in failures}
        self._found: dict[str, list[RunRecord]] = {name: [] for name in ready}

    def run(
        self,
        number: int,
        report: Report,
        keep_failures: Callable[[], None],
        between: Callable[[], None] | None = None,
    ) -> None:
        """Round ``number``, from 1: every case once, the arms of a work in turns, works a few seconds at a time.

        ``keep_failures`` is called when a work is done, before it counts as done; ``between`` where the pace is timed.

        Raises:
            MissingCapability: the runtime extra is not installed.
        """
        from tiercast_runtime.bench import bench_groups, bench_in_rounds

        records = {} if self._kept is None else self._kept.measured_in(number, self._ready)
        works = list(self._suite.works.items())
        todo: dict[str, dict[str, ResolvedScenario]] = {}
        for work_name, work in works if number % 2 else reversed(works):
            names = [f"{work_name}/{arm}" for arm in work.arms]
            names = [name for name in (names if number % 2 else reversed(names)) if self._may_run(name)]
            # of a work that is not whole every arm is measured again: they are compared in turns
            if not all(name in records for name in names):
                todo[work_name] = {name: self._ready[name] for name in names}
        if todo:
            with self._pace() as pace:
                look = probing.look_of(pace, between)
                groups = {work: list(cases.values()) for work, cases in todo.items()}
                ran = bench_groups(groups, progress=lambda ratio: report(f"round {number}", ratio), between=look)
                for work_name, cases in todo.items():
                    result = ran[work_name]
                    if isinstance(result, TiercastError):  # some of it may run apart
                        bench = partial(bench_in_rounds, repeats=1, between=look)
                        found = measure(cases, bench)
                    else:
                        found = Measured(dict(zip(cases, result, strict=True)))
                    records |= found.records
                    self.failures |= {name: Failure(case=name, reason=str(why)) for name, why in found.errors.items()}
                    keep_failures()
                    if self._kept is not None:
                        for name, record in found.records.items():
                            self._kept.write_in(number, name, record)
        for name, record in records.items():
            self._found[name].append(record)

    def records(self) -> dict[str, RunRecord]:
        """One record per case over all rounds; a case that failed in any of them has none."""
        return {name: together(found) for name, found in self._found.items() if found and self._may_run(name)}

    def _may_run(self, name: str) -> bool:
        return name not in self.failures

    def _pace(self) -> "AbstractContextManager[Pace]":
        return probing.pace_of(self._hardware, store.load_model(self._suite.base["model"]))
