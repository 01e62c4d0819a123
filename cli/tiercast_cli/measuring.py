"""Scenarios measured together, and those that cannot be named instead of stopping the others."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tiercast_profiles.errors import InfeasibleScenario, MissingCapability, TiercastError

if TYPE_CHECKING:
    from tiercast_profiles.record import RunRecord
    from tiercast_profiles.scenario import ResolvedScenario

Bench = Callable[["Sequence[ResolvedScenario]"], "Sequence[RunRecord]"]
CANNOT_RUN = (InfeasibleScenario, MissingCapability)


def measure(
    todo: "Mapping[str, ResolvedScenario]",
    bench: Bench,
    *,
    failing: tuple[type[TiercastError], ...] = CANNOT_RUN,
) -> "tuple[dict[str, RunRecord], dict[str, TiercastError]]":
    """Measure scenarios in rounds; where they do not run together, each by itself.

    Args:
        todo: by name.
        bench: runs some of them in rounds.
        failing: errors that make one scenario fail; others end everything.

    Returns:
        The records, and why the others could not be run, by name.
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
        return {}, failed
    try:
        return dict(zip(able, bench(list(able.values())), strict=True)), failed
    except failing as error:
        if len(able) == 1:
            return {}, {**failed, next(iter(able)): error}
    found: dict[str, RunRecord] = {}
    for name, resolved in able.items():
        records, reasons = measure({name: resolved}, bench, failing=failing)
        found |= records
        failed |= reasons
    return found, failed
