"""Many scenarios from one, each priced: what a change of any setting does.

A sweep runs on this machine or on a cluster, can be killed and go on, and gives the same rows either way.
"""

import datetime
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tiercast_plan.cost import CostReport, cost_per_mtok
from tiercast_plan.documents import Documents
from tiercast_plan.settings import Point, Value, points
from tiercast_plan.sweep_state import SweepState, sweep_state
from tiercast_plan.workers import in_processes, on_cluster
from tiercast_profiles import __version__
from tiercast_profiles.document import Strict, canonical_sha256
from tiercast_profiles.errors import BadInput, InfeasibleScenario, MissingCapability, NoDevicePrice, TiercastError
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.prices import PriceBook
from tiercast_profiles.record import Metrics, RunRecord
from tiercast_profiles.scenario import ResolvedScenario, Scenario, combine

Predict = Callable[[ResolvedScenario], RunRecord]


class Outcome(Strict):
    """What came of one point.

    ``problem`` says why there is no result (it does not fit, the machine lacks the tier); ``cost_problem`` why there is
    a result without a price.
    """

    scenario_sha256: str | None
    metrics: Metrics | None
    cost: CostReport | None
    warnings: tuple[str, ...] = ()
    problem: str | None = None
    shortfall_bytes: int = 0
    cost_problem: str | None = None


class SweepRow(Outcome):
    """One point of a sweep: what was set, and what came of it."""

    settings: dict[str, Value]


@dataclass(frozen=True, slots=True)
class SoFar:
    """How far a sweep is: points done of all, those without a result, and the settings of the best one, as text.

    The best is the cheapest per million tokens, or the fastest where nothing has a price.
    """

    done: int
    total: int
    failed: int
    best: str | None


@dataclass(frozen=True, slots=True)
class _Task:
    """One scenario to evaluate; points that ask for the same share one.

    ``run_key`` tells the run apart; tasks that differ in prices alone have the same, and share a prediction.
    """

    key: str
    run_key: str
    scenario: Scenario
    hardware: HardwareProfile
    model: ModelSpec
    prices: PriceBook


def sweep(
    scenario: Scenario,
    sets: Sequence[str] = (),
    varies: Sequence[str] = (),
    *,
    today: datetime.date | None = None,
    predict: Predict | None = None,
    progress: Callable[[SoFar], None] | None = None,
    num_jobs: int = 1,
    cluster: str | None = None,
    state: str | Path | None = None,
    is_nominal: bool = False,
) -> tuple[SweepRow, ...]:
    """Run every combination of the variations over the scenario with the settings applied.

    ``predict`` makes the record of a point (the simulator, unless given). With ``num_jobs`` above 1 that many processes
    predict, with ``cluster`` the workers of the Dask scheduler at that address. ``state`` keeps finished points in a
    file, and takes over what is there. ``is_nominal`` predicts at nominal inputs alone: no intervals, no baselines.
    The rows and their order are the same however they were computed; points that ask for the same run once.

    Raises:
        BadInput: a setting is malformed, names an unknown key or document, or gives a value the schema refuses; then
            nothing was run.
        MissingCapability: the cluster is not there.
        FileProblem: the state file is of another sweep, or cannot be written.
    """
    todo = points(scenario, sets, varies)
    documents = Documents(today)
    keys = _keys(todo, documents)
    tasks = _tasks(todo, keys, documents)
    with _state(state, tuple(tasks), is_nominal, today) as kept:
        since = today if kept is None else kept.today
        if since != today:  # the evidence of values set by hand carries the day the sweep began
            tasks = _tasks(todo, keys, Documents(since))
        found = {} if kept is None else {key: Outcome.model_validate(done) for key, done in kept.done.items()}
        evaluate = partial(_evaluate, today=since, predict=predict or (_nominal if is_nominal else _simulate))
        missing = _grouped([task for key, task in tasks.items() if key not in found])
        tally = _Tally(todo, keys, progress)
        tally.add(found.items())
        ended: Iterator[list[tuple[str, Outcome]]]
        if cluster is not None:
            ended = map(_unpacked, on_cluster(partial(_packed, evaluate), missing, cluster))
        elif num_jobs > 1:
            ended = map(_unpacked, in_processes(partial(_packed, evaluate), missing, num_jobs))
        else:
            ended = in_processes(evaluate, missing, num_jobs)
        for batch in ended:
            found |= batch
            if kept is not None:
                kept.add((key, outcome.model_dump(mode="json")) for key, outcome in batch)
            tally.add(batch)
    return tuple(_row(point, found[key]) for point, key in zip(todo, keys, strict=True))


def _keys(todo: Sequence[Point], documents: Documents) -> list[str]:
    """The key of each point: what it asks for, whatever its documents are called and whatever day it is."""
    hashes: dict[int, str] = {}
    keys: list[str] = []
    for point in todo:
        asked = point.scenario.model_dump(mode="json", exclude={"hardware", "model", "prices"})
        asked["workload"] = point.scenario.workload.identity()
        named = documents.of(point.scenario)
        for document in named:
            if id(document) not in hashes:
                hashes[id(document)] = document.sha256
        changed = sorted((setting.kind, setting.path, repr(setting.value)) for setting in point.documents)
        keys.append(canonical_sha256([asked, *(hashes[id(document)] for document in named), changed]))
    return keys


def _tasks(todo: Sequence[Point], keys: Sequence[str], documents: Documents) -> dict[str, _Task]:
    """One task for each key, its documents loaded and changed as asked."""
    tasks: dict[str, _Task] = {}
    for point, key in zip(todo, keys, strict=True):
        if key not in tasks:
            named = documents.of(point.scenario, point.documents)
            run_key = canonical_sha256(
                [point.scenario.model_dump(mode="json", exclude={"prices"}), id(named[0]), id(named[1])]
            )
            tasks[key] = _Task(key, run_key, point.scenario, *named)
    return tasks


def _grouped(tasks: Sequence[_Task]) -> list[list[_Task]]:
    """Tasks of one run together, so that it is predicted once."""
    groups: dict[str, list[_Task]] = {}
    for task in tasks:
        groups.setdefault(task.run_key, []).append(task)
    return list(groups.values())


def _state(
    path: str | Path | None, keys: tuple[str, ...], is_nominal: bool, today: datetime.date | None
) -> AbstractContextManager[SweepState | None]:
    if path is None:
        return nullcontext()
    return sweep_state(path, canonical_sha256([__version__, is_nominal, keys]), today)


class _Tally:
    """Counts points as their tasks end and tells the listener how far the sweep is."""

    def __init__(self, todo: Sequence[Point], keys: Sequence[str], listener: Callable[[SoFar], None] | None) -> None:
        self._points: dict[str, list[Point]] = {}
        for point, key in zip(todo, keys, strict=True):
            self._points.setdefault(key, []).append(point)
        self._listener, self._total = listener, len(todo)
        self._done = self._failed = 0
        self._best: tuple[tuple[int, float], str] | None = None

    def add(self, ended: Iterable[tuple[str, Outcome]]) -> None:
        for key, outcome in ended:
            points_of = self._points.get(key, [])
            self._done += len(points_of)
            merit = _merit(outcome)
            if merit is None:
                self._failed += len(points_of)
            elif points_of and (self._best is None or merit < self._best[0]):
                self._best = merit, _words(points_of[0], outcome)
        if self._listener is not None:
            self._listener(SoFar(self._done, self._total, self._failed, None if self._best is None else self._best[1]))


def _merit(outcome: Outcome) -> tuple[int, float] | None:
    """Less is better; any price beats none."""
    if outcome.cost is not None:
        return 0, float(outcome.cost.usd_per_mtok["total"].value)
    return None if outcome.metrics is None else (1, -outcome.metrics.output_tokens_per_s.value)


def _words(point: Point, outcome: Outcome) -> str:
    words = ", ".join(str(value) for value in point.settings.values()) or "as given"
    if outcome.cost is not None:
        return f"{words}: {outcome.cost.usd_per_mtok['total'].value:.4g} USD/Mtok"
    return words if outcome.metrics is None else f"{words}: {outcome.metrics.output_tokens_per_s.value:,.0f} tokens/s"


def _simulate(resolved: ResolvedScenario) -> RunRecord:
    from tiercast_sim.simulate import simulate

    return simulate(resolved, keep_samples=False)


def _nominal(resolved: ResolvedScenario) -> RunRecord:
    from tiercast_sim.simulate import simulate

    return simulate(resolved, keep_samples=False, with_bounds=False, with_baselines=False)


def _evaluate(
    groups: Sequence[Sequence[_Task]], *, today: datetime.date | None, predict: Predict
) -> list[tuple[str, Outcome]]:
    found = []
    for group in groups:
        record: RunRecord | TiercastError | None = None
        for task in group:
            try:
                resolved = combine(task.scenario, task.hardware, task.model, task.prices)
            except (BadInput, MissingCapability) as error:  # this machine and this scenario do not go together
                found.append((task.key, _failed(None, error)))
                continue
            record = record or _predicted(resolved, predict)
            found.append((task.key, _outcome(resolved, record, today)))
    return found


def _packed(
    evaluate: Callable[[Sequence[Sequence[_Task]]], list[tuple[str, Outcome]]], groups: Sequence[Sequence[_Task]]
) -> list[tuple[str, str]]:
    """Outcomes as text, which goes to another process in a third of the time that hundreds of small objects take."""
    return [(key, outcome.model_dump_json()) for key, outcome in evaluate(groups)]


def _unpacked(batch: Sequence[tuple[str, str]]) -> list[tuple[str, Outcome]]:
    return [(key, Outcome.model_validate_json(text)) for key, text in batch]


def _predicted(resolved: ResolvedScenario, predict: Predict) -> RunRecord | TiercastError:
    """A point that cannot be had is an outcome that says so: a sweep looks for exactly that edge."""
    try:
        return predict(resolved)
    except (InfeasibleScenario, MissingCapability) as error:
        return error


def _outcome(resolved: ResolvedScenario, record: RunRecord | TiercastError, today: datetime.date | None) -> Outcome:
    if isinstance(record, TiercastError):
        return _failed(resolved.sha256, record)
    cost, cost_problem = None, None
    try:
        cost = cost_per_mtok(resolved, record, today=today)
    except NoDevicePrice as error:
        cost_problem = str(error)
    return Outcome(
        scenario_sha256=resolved.sha256,
        metrics=record.metrics,
        cost=cost,
        warnings=record.provenance.warnings,
        cost_problem=cost_problem,
    )


def _failed(sha256: str | None, error: TiercastError) -> Outcome:
    shortfall_bytes = error.shortfall_bytes if isinstance(error, InfeasibleScenario) else 0
    return Outcome(scenario_sha256=sha256, metrics=None, cost=None, problem=str(error), shortfall_bytes=shortfall_bytes)


def _row(point: Point, outcome: Outcome) -> SweepRow:
    parts = {name: getattr(outcome, name) for name in Outcome.model_fields}
    return SweepRow(settings=point.settings, **parts)
