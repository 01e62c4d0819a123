"""Scenarios measured together, and those that cannot be named instead of stopping the others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tiercast_profiles.errors import InfeasibleScenario, MissingCapability, TiercastError

if TYPE_CHECKING:
    from tiercast_profiles.record import RunRecord
    from tiercast_profiles.scenario import ResolvedScenario

Bench = Callable[["Sequence[ResolvedScenario]"], "Sequence[RunRecord]"]
CANNOT_RUN = (InfeasibleScenario, MissingCapability)


@dataclass(frozen=True, slots=True)
class Measured:
    """Records, and why the others could not be run, by name.

    ``apart`` says why the scenarios ran one by one instead of in turns, where they did: a machine that changes speed
    then favours some of them.
    """

    records: "dict[str, RunRecord]" = field(default_factory=dict)
    errors: dict[str, TiercastError] = field(default_factory=dict)
    apart: str = ""


def measure(
    todo: "Mapping[str, ResolvedScenario]",
    bench: Bench,
    *,
    failing: tuple[type[TiercastError], ...] = CANNOT_RUN,
) -> Measured:
    """Measure scenarios in rounds; where they do not run together, each by itself.

    Args:
        todo: by name.
        bench: runs some of them in rounds.
        failing: errors that make one scenario fail; others end everything.
    """
    from tiercast_runtime.support import check_supported

    failed: dict[str, TiercastError] = {}
    able = {}
    for name, resolved in todo.items():
        try:
            check_supported(resolved)
        except failing as error:
            failed[name] = error
        else:
            able[name] = resolved
    if not able:
        return Measured(errors=failed)
    try:
        return Measured(dict(zip(able, bench(list(able.values())), strict=True)), failed)
    except failing as error:
        if len(able) == 1:
            return Measured(errors={**failed, next(iter(able)): error})
        apart = str(error)
    found = Measured(errors=failed, apart=apart)
    for name, resolved in able.items():
        alone = measure({name: resolved}, bench, failing=failing)
        found.records.update(alone.records)
        found.errors.update(alone.errors)
    return found if len(found.records) > 1 else Measured(found.records, found.errors)
