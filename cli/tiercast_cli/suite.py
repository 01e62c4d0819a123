"""The validation suite: every case measured and predicted from one profile, then scored, held-out cases apart."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiercast_cli import inputs, validation
from tiercast_cli.output import make_folder
from tiercast_plan.documents import Documents
from tiercast_plan.settings import apply, document_setting
from tiercast_profiles import store
from tiercast_profiles.document import Strict
from tiercast_profiles.errors import InfeasibleScenario, MissingCapability
from tiercast_profiles.record import Metric
from tiercast_profiles.scenario import ResolvedScenario, Scenario
from tiercast_profiles.scores import Pair, Score, score
from tiercast_profiles.suite import Suite

RELATIVE = ("output_tokens_per_s", "ttft_ms.p50", "tpot_ms.p50", "step_ms.p50")
DIFFERENCES = (("stall_ms_per_step", "ms"), ("hidden_ratio", "points"), ("penalty", "points"))
POINTS = 100.0

Report = Callable[[str, float], None]


class Failure(Strict):
    """A case that could not be measured or predicted; it counts in every score."""

    case: str
    reason: str


class MeasuredAndPredicted(Strict):
    """One metric of one case."""

    measured: Metric
    predicted: Metric


class SuiteCase(Strict):
    """One case: what it was and its metrics on both sides; penalties are against the baseline arm of its work."""

    name: str
    is_held_out: bool
    workload_sha256: str
    metrics: dict[str, MeasuredAndPredicted]
    differing_inputs: tuple[str, ...]


class ArmsOrder(Strict):
    """The arms of one work by throughput, and whether the prediction departs only where the measurement ties."""

    work: str
    measured: tuple[str, ...]
    predicted: tuple[str, ...]
    agrees_up_to_ties: bool


class SuiteResult(Strict):
    """Everything a page about the suite needs."""

    schema_version: int = 1
    hardware_name: str
    profile_sha256: str
    held_out_declared: str
    repeats: int
    cases: tuple[SuiteCase, ...]
    failures: tuple[Failure, ...]
    scores: dict[str, tuple[Score, ...]]
    orders: tuple[ArmsOrder, ...]
    decode_step_ms: dict[str, Metric]


@dataclass(slots=True)
class _Found:
    cases: list[validation.Case]
    failures: list[Failure]


def scenarios(suite: Suite, profile: str) -> dict[str, ResolvedScenario]:
    """Every case of the suite on the machine of a profile, by name.

    Raises:
        FileProblem: there is no such profile; the message says how to make one.
        BadInput: a setting names no field, or gives a value the schema refuses.
    """
    documents = Documents()
    resolved = {}
    for work_name, work in suite.works.items():
        for arm in work.arms:
            name = f"{work_name}/{arm}"
            data = store.parse(Scenario, {**suite.base, "hardware": profile}, name).model_dump(mode="json")
            inside = []
            for path, value in {**work.settings, **suite.arms[arm]}.items():
                setting = document_setting(path, value)
                if setting is None:
                    data = apply(data, path, value)
                else:
                    inside.append(setting)
            scenario = store.parse(Scenario, data, name)
            inputs.check_hardware(scenario, name)
            resolved[name] = documents.resolve(scenario, inside)
    return resolved


def run(profile: str, *, repeats: int, folder: Path | None, report: Report) -> SuiteResult:
    """Measure and predict every case, one work after another, its arms in rounds.

    With a ``folder``, both records of every case are written into it, without raw samples.

    Raises:
        FileProblem: the profile cannot be read, or the folder cannot be written.
        MissingCapability: the runtime extra is not installed.
    """
    from tiercast_cli.probing import decode_step_ms

    suite, held_out = store.load_suite()
    ready = scenarios(suite, profile)
    found = _Found([], [])
    drift = {"before": decode_step_ms(suite.base["model"])}
    for index, (work_name, work) in enumerate(suite.works.items()):
        arms = {f"{work_name}/{arm}": ready[f"{work_name}/{arm}"] for arm in work.arms}

        def report_work(what: str, ratio: float, done: int = index, title: str = work_name) -> None:
            report(f"{title}: {what}", (done + ratio) / len(suite.works))

        _run_work(arms, repeats, report_work, found)
    drift["after"] = decode_step_ms(suite.base["model"])
    if folder is not None:
        _write(folder, found.cases)
    hardware = next(iter(ready.values())).hardware
    return result(suite, held_out.cases, found.cases, found.failures).model_copy(
        update={
            "hardware_name": hardware.name,
            "profile_sha256": hardware.sha256,
            "held_out_declared": held_out.declared,
            "repeats": repeats,
            "decode_step_ms": drift,
        }
    )


def _run_work(arms: Mapping[str, ResolvedScenario], repeats: int, report: Report, found: _Found) -> None:
    """One work in rounds; where an arm cannot be run the others are run without it."""
    todo = dict(arms)
    while todo:
        try:
            found.cases += validation.run_cases(todo, repeats=repeats, folder=None, report=report)
        except (InfeasibleScenario, MissingCapability) as error:
            failed = _first_that_fails(todo)
            if failed is None:  # together they do not fit: each by itself
                for name, resolved in todo.items():
                    _run_work({name: resolved}, repeats, report, found)
                return
            found.failures.append(Failure(case=failed, reason=str(error)))
            todo.pop(failed)
        else:
            return


def _first_that_fails(todo: Mapping[str, ResolvedScenario]) -> str | None:
    """The first case that neither the runtime nor the simulator would take by itself."""
    from tiercast_runtime.support import check_supported
    from tiercast_sim.simulate import simulate

    for name, resolved in todo.items():
        try:
            check_supported(resolved)
            simulate(resolved, with_baselines=False, with_bounds=False, keep_samples=False)
        except (InfeasibleScenario, MissingCapability):
            return name
    return next(iter(todo)) if len(todo) == 1 else None


def result(
    suite: Suite, held_out: Sequence[str], cases: Sequence[validation.Case], failures: Sequence[Failure]
) -> SuiteResult:
    """Scores of all cases, of those a constant may have been chosen on, and of those held out."""
    by_name = {case.name: case for case in cases}
    rows = tuple(_case(suite, case, by_name, case.name in held_out) for case in cases)
    groups = {
        "all": [row.name for row in rows],
        "open": [row.name for row in rows if not row.is_held_out],
        "held out": [row.name for row in rows if row.is_held_out],
    }
    scores = {}
    for group, names in groups.items():
        failed = [
            failure.case for failure in failures if group == "all" or (failure.case in held_out) == (group != "open")
        ]
        scores[group] = _scores([row for row in rows if row.name in names], len(failed))
    return SuiteResult(
        hardware_name="",
        profile_sha256="",
        held_out_declared="",
        repeats=1,
        cases=rows,
        failures=tuple(failures),
        scores=scores,
        orders=tuple(_orders(suite, by_name)),
        decode_step_ms={},
    )


def _case(suite: Suite, case: validation.Case, by_name: Mapping[str, validation.Case], is_held_out: bool) -> SuiteCase:
    metrics = {}
    for name in (*RELATIVE, *(name for name, _ in DIFFERENCES)):
        measured, predicted = case.metric(name, of="measured"), case.metric(name, of="predicted")
        if measured is not None and predicted is not None:
            metrics[name] = MeasuredAndPredicted(measured=measured, predicted=predicted)
    baseline = by_name.get(f"{case.name.split('/')[0]}/{suite.baseline}")
    if baseline is not None and baseline is not case:
        pair = [
            validation.penalty(record.metrics.output_tokens_per_s, base.metrics.output_tokens_per_s)
            for record, base in ((case.measured, baseline.measured), (case.predicted, baseline.predicted))
        ]
        metrics["penalty"] = MeasuredAndPredicted(measured=pair[0], predicted=pair[1])
    return SuiteCase(
        name=case.name,
        is_held_out=is_held_out,
        workload_sha256=case.measured.workload_sha256,
        metrics=metrics,
        differing_inputs=tuple(difference.path for difference in case.comparison.differing_inputs),
    )


def _scores(rows: Sequence[SuiteCase], num_failed: int) -> tuple[Score, ...]:
    found = [score(name, "ratio", _pairs(rows, name, 1.0), num_failed=num_failed) for name in RELATIVE]
    for name, unit in DIFFERENCES:
        factor = POINTS if unit == "points" else 1.0
        found.append(score(name, unit, _pairs(rows, name, factor), num_failed=num_failed))
    return tuple(found)


def _pairs(rows: Sequence[SuiteCase], metric: str, factor: float) -> list[Pair]:
    pairs = []
    for row in rows:
        both = row.metrics.get(metric)
        if both is not None:
            measured, predicted = both.measured, both.predicted
            inside = None
            if measured.low is not None and measured.high is not None:
                inside = measured.low <= predicted.value <= measured.high
            pairs.append(
                Pair(
                    case=row.name,
                    measured=measured.value * factor,
                    predicted=predicted.value * factor,
                    is_inside_spread=inside,
                )
            )
    return pairs


def _orders(suite: Suite, by_name: Mapping[str, validation.Case]) -> list[ArmsOrder]:
    found = []
    for work_name, work in suite.works.items():
        order = validation.rank([by_name[name] for arm in work.arms if (name := f"{work_name}/{arm}") in by_name])
        if order is not None:
            arms = [tuple(name.split("/")[1] for name in names) for names in (order.measured, order.predicted)]
            found.append(
                ArmsOrder(
                    work=work_name, measured=arms[0], predicted=arms[1], agrees_up_to_ties=order.agrees_up_to_ties
                )
            )
    return found


def _write(folder: Path, cases: Sequence[validation.Case]) -> None:
    """Both records of every case, raw samples and spans left out: the folder is meant to be committed."""
    for side in ("measured", "simulated"):
        make_folder(folder / side)
    for case in cases:
        for side, record in (("measured", case.measured), ("simulated", case.predicted)):
            small = record.model_copy(update={"samples": None, "spans": ()})
            store.write_text(folder / side / f"{case.name.replace('/', '-')}.json", small.to_json())
