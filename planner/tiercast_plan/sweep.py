"""Many scenarios from one, each priced: what a change of any setting does."""

import datetime
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import starmap
from typing import cast

from tiercast_plan.cost import CostReport, cost_per_mtok
from tiercast_plan.settings import Point, Value, points
from tiercast_profiles.document import Strict
from tiercast_profiles.errors import BadInput, InfeasibleScenario, MissingCapability, NoDevicePrice, TiercastError
from tiercast_profiles.record import Metrics, RunRecord
from tiercast_profiles.scenario import ResolvedScenario, Scenario, combine
from tiercast_profiles.store import load_hardware, load_model, load_prices


class SweepRow(Strict):
    """One point of a sweep: what was set, and what came of it.

    ``problem`` says why there is no result (it does not fit, the machine lacks the tier); ``cost_problem`` why there is
    a result without a price.
    """

    settings: dict[str, Value]
    scenario_sha256: str | None
    metrics: Metrics | None
    cost: CostReport | None
    warnings: tuple[str, ...] = ()
    problem: str | None = None
    shortfall_bytes: int = 0
    cost_problem: str | None = None


def sweep(
    scenario: Scenario,
    sets: Sequence[str] = (),
    varies: Sequence[str] = (),
    *,
    today: datetime.date | None = None,
    predict: Callable[[ResolvedScenario], RunRecord] | None = None,
    progress: Callable[[int, int], None] | None = None,
    num_jobs: int = 1,
) -> tuple[SweepRow, ...]:
    """Run every combination of the variations over the scenario with the settings applied.

    ``predict`` makes the record of a point (the simulator, unless given); ``progress`` hears (points done, points).
    With ``num_jobs`` above 1 that many processes predict; the rows and their order are the same.

    Raises:
        BadInput: a setting is malformed, names an unknown key or document, or gives a value the schema refuses; then
            nothing was run.
    """
    todo = points(scenario, sets, varies)
    documents = _Documents()
    resolved = [documents.resolve(point.scenario) for point in todo]
    rows = []
    work = ((point, ready, predict or _simulate, today) for point, ready in zip(todo, resolved, strict=True))
    for done, row in enumerate(_rows(work, num_jobs)):
        rows.append(row)
        if progress is not None:
            progress(done + 1, len(todo))
    return tuple(rows)


_Work = tuple[Point, ResolvedScenario | TiercastError, Callable[[ResolvedScenario], RunRecord], datetime.date | None]


def _rows(work: Iterable[_Work], num_jobs: int) -> Iterator[SweepRow]:
    """Rows in the order of the work, however many processes make them."""
    if num_jobs == 1:
        yield from starmap(_row, work)
        return
    from joblib import Parallel, delayed  # only a parallel sweep pays for the import

    found: Iterable[SweepRow] = cast(
        "Iterable[SweepRow]", Parallel(n_jobs=num_jobs, return_as="generator")(delayed(_row)(*parts) for parts in work)
    )
    yield from found


class _Documents:
    """Loads what scenarios name, each document once per sweep."""

    def __init__(self) -> None:
        self._hardware, self._model, self._prices = cache(load_hardware), cache(load_model), cache(load_prices)

    def resolve(self, scenario: Scenario) -> ResolvedScenario | TiercastError:
        documents = (self._hardware(scenario.hardware), self._model(scenario.model), self._prices(scenario.prices))
        try:
            return combine(scenario, *documents)
        except (BadInput, MissingCapability) as error:  # this machine and this scenario do not go together
            return error


def _simulate(resolved: ResolvedScenario) -> RunRecord:
    from tiercast_sim.simulate import simulate

    return simulate(resolved, keep_samples=False)


def _row(
    point: Point,
    resolved: ResolvedScenario | TiercastError,
    predict: Callable[[ResolvedScenario], RunRecord],
    today: datetime.date | None,
) -> SweepRow:
    """A point that cannot be had is a row that says so: a sweep looks for exactly that edge."""
    if isinstance(resolved, TiercastError):
        return _failed(point, None, resolved)
    try:
        record = predict(resolved)
    except (InfeasibleScenario, MissingCapability) as error:
        return _failed(point, resolved.sha256, error)
    cost, cost_problem = None, None
    try:
        cost = cost_per_mtok(resolved, record, today=today)
    except NoDevicePrice as error:
        cost_problem = str(error)
    return SweepRow(
        settings=point.settings,
        scenario_sha256=resolved.sha256,
        metrics=record.metrics,
        cost=cost,
        warnings=record.provenance.warnings,
        cost_problem=cost_problem,
    )


def _failed(point: Point, sha256: str | None, error: TiercastError) -> SweepRow:
    shortfall_bytes = error.shortfall_bytes if isinstance(error, InfeasibleScenario) else 0
    return SweepRow(
        settings=point.settings,
        scenario_sha256=sha256,
        metrics=None,
        cost=None,
        problem=str(error),
        shortfall_bytes=shortfall_bytes,
    )
