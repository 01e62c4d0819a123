"""The validation suite: every case measured and predicted from one profile, then scored, held-out cases apart."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tiercast_cli import inputs, suite_result
from tiercast_cli.case_scores import Failure
from tiercast_cli.changed_profiles import Wrong, spoilt
from tiercast_cli.measuring import CANNOT_RUN, measure
from tiercast_cli.suite_folder import SuiteFolder, SuiteState, open_measured
from tiercast_cli.suite_result import SuiteResult
from tiercast_cli.validation_case import predict
from tiercast_plan.documents import Documents
from tiercast_plan.settings import apply, document_setting
from tiercast_profiles import store
from tiercast_profiles.errors import BadInput
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.record import RunRecord
from tiercast_profiles.scenario import ResolvedScenario, Scenario
from tiercast_profiles.suite import Suite

Report = Callable[[str, float], None]


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

    With a ``folder``, both records of every case are written into it, without raw samples; cases that an interrupted
    run of the same profile and repeats left there are not measured again.

    Raises:
        BadInput: the profile lacks layer times of a model of the suite, or the folder is of another run.
        FileProblem: the profile cannot be read, or the folder cannot be written.
        MissingCapability: the runtime extra is not installed.
    """
    from tiercast_cli.probing import pace_of
    from tiercast_runtime.bench import bench_in_rounds

    suite, _ = store.load_suite()
    ready = scenarios(suite, profile)
    hardware = store.load_hardware(profile)
    check_models(ready, hardware, profile)
    kept = None if folder is None else SuiteFolder(folder)
    state = SuiteState(hardware_name=hardware.name, profile_sha256=hardware.sha256, repeats=repeats)
    if kept is not None:
        state = kept.begin(state) or state
    measured = {} if kept is None else kept.measured(ready)
    if kept is not None:
        kept.save(state)
    failures = {failure.case: failure for failure in state.failures}
    for index, (work_name, work) in enumerate(suite.works.items()):
        names = [f"{work_name}/{arm}" for arm in work.arms]
        todo = {name: ready[name] for name in names if name not in failures}
        if all(name in measured for name in todo):
            continue  # of a work that is not whole every arm is measured again: they are compared in rounds

        def report_run(ratio: float, done: int = index, title: str = work_name) -> None:
            report(title, (done + ratio) / len(suite.works))

        with pace_of(hardware, store.load_model(suite.base["model"])) as pace:
            bench = partial(bench_in_rounds, repeats=repeats, progress=report_run, between=pace.measure)
            found = measure(todo, bench)
        measured |= found.records
        failures |= {name: Failure(case=name, reason=str(error)) for name, error in found.errors.items()}
        state = state.model_copy(update={"failures": tuple(failures.values())})
        if kept is not None:
            for name, record in found.records.items():
                kept.write("measured", name, record)
            kept.save(state)
    return predict_and_score(ready, hardware, measured, state, kept)


def rescore(folder: Path, profile: str, wrong: Wrong | None = None) -> SuiteResult:
    """Predict from a profile what a folder holds measurements of, and score it; nothing is run or written.

    The profile may be the one that was used, after a change of the model; or that of another machine, carried over to
    this one. ``wrong`` spoils it in a known way first: the errors must show it.

    Raises:
        FileProblem: the folder holds no suite, or the profile cannot be read.
    """
    suite, _ = store.load_suite()
    opened, state = open_measured(folder)
    ready, hardware = scenarios(suite, profile), store.load_hardware(profile)
    if wrong is not None:
        hardware = spoilt(hardware, wrong)
        ready = {name: case.model_copy(update={"hardware": hardware}) for name, case in ready.items()}
    return predict_and_score(ready, hardware, opened.measured(ready), state, None)


def check_models(ready: Mapping[str, ResolvedScenario], hardware: HardwareProfile, profile: str) -> None:
    """That the profile holds layer times of every backbone and Engram layer of the suite.

    Raises:
        BadInput: naming the models to probe.
    """
    known = {(table.shape_sha256, table.engram_sha256) for table in hardware.compute}
    lacking = sorted(
        {
            case.model.name
            for case in ready.values()
            if not any(
                (case.model.backbone.shape_sha256, engram) in known
                for engram in (case.model.engram.shape_sha256, case.model.engram.sha256)
            )
        }
    )
    if lacking:
        target = profile if Path(profile).suffix else "profile.yaml"  # a shipped name is no file to write
        wanted = " ".join(f"--model {name}" for name in sorted({case.model.name for case in ready.values()}))
        raise BadInput(
            f"{profile} holds no layer times of {', '.join(lacking)}, which the suite runs; "
            f"write one that does with: tiercast profile {wanted} -o {target}"
        )


def predict_and_score(
    ready: Mapping[str, ResolvedScenario],
    hardware: HardwareProfile,
    measured: Mapping[str, RunRecord],
    state: SuiteState,
    kept: SuiteFolder | None,
) -> SuiteResult:
    """Predict every measured case from its scenario alone, set it against its record, and score."""
    suite, held_out = store.load_suite()
    failures = list(state.failures)
    cases = []
    for name, resolved in ready.items():
        if name not in measured:
            if name not in {failure.case for failure in failures}:
                failures.append(Failure(case=name, reason="no measured record"))
            continue
        try:
            case = predict(name, resolved, measured[name], with_baselines=False)
        except CANNOT_RUN as error:
            failures.append(Failure(case=name, reason=f"not predicted: {error}"))
            continue
        cases.append(case)
        if kept is not None:
            kept.write("simulated", name, case.predicted)
    rows = suite_result.suite_cases(suite, held_out.cases, cases)
    return SuiteResult(
        hardware_name=state.hardware_name,
        profile_sha256=state.profile_sha256,
        predicted_from=hardware.name,
        predicted_from_sha256=hardware.sha256,
        held_out_declared=held_out.declared,
        repeats=state.repeats,
        cases=rows,
        failures=tuple(failures),
        scores=suite_result.grouped_scores(rows, failures, held_out.cases),
        orders=suite_result.orders(rows),
    )
