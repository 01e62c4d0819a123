"""The validation suite: every case measured and predicted from one profile, then scored, held-out cases apart."""

from collections.abc import Callable, Mapping
from pathlib import Path

from tiercast_cli import inputs, suite_result
from tiercast_cli.case_scores import Failure
from tiercast_cli.changed_profiles import Wrong, spoilt
from tiercast_cli.measuring import CANNOT_RUN
from tiercast_cli.other_profile import restated
from tiercast_cli.output import part_of
from tiercast_cli.probe_turns import probe_into, probing_round
from tiercast_cli.suite_folder import SuiteFolder, SuiteState, open_measured
from tiercast_cli.suite_result import SuiteResult
from tiercast_cli.suite_rounds import SuiteRounds
from tiercast_cli.validation_case import predict
from tiercast_plan.documents import Documents
from tiercast_plan.settings import apply, document_setting
from tiercast_profiles import store
from tiercast_profiles.errors import BadInput
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.pooling import pool
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
    """Measure every case in as many rounds as it has repeats, predict it from a profile, and score.

    With a ``folder``, both records of every case are written into it, without raw samples; cases that an interrupted
    run of the same profile and repeats left there are not measured again.

    Raises:
        BadInput: the profile lacks layer times of a model of the suite, or the folder is of another run.
        FileProblem: the profile cannot be read, or the folder cannot be written.
        MissingCapability: the runtime extra is not installed.
    """
    suite, _ = store.load_suite()
    ready = scenarios(suite, profile)
    hardware = store.load_hardware(profile)
    check_models(ready, hardware, profile)
    kept = None if folder is None else SuiteFolder(folder)
    state = SuiteState(hardware_name=hardware.name, profile_sha256=hardware.sha256, repeats=repeats)
    if kept is not None:
        state = kept.begin(state) or state
        kept.save(state)
        measured = kept.measured(ready)
        if is_whole(ready, measured, state):
            return predict_and_score(ready, hardware, measured, state, kept)
    rounds = SuiteRounds(suite, ready, hardware, kept, state.failures)
    state = _run_all(rounds, state, kept, report, rounds.run)
    measured = rounds.records()
    if kept is not None:
        for name, record in measured.items():
            kept.write("measured", name, record)
    return predict_and_score(ready, hardware, measured, state, kept)


def run_probed(*, repeats: int, folder: Path, report: Report) -> SuiteResult:
    """As :func:`run`, but the machine is probed in every round, and all those profiles are pooled into one.

    The profile of a machine that others share knows one minute of it; probed in turns with the runs, it knows the
    machine that ran them. The probes are the same and see nothing of the runs. A profile made before any run stays in
    the folder, so that what it alone predicts can be scored beside.

    Raises:
        BadInput: fewer than two repeats, or the folder is of another run.
        FileProblem: the folder cannot be written.
        MissingCapability: the runtime extra is not installed.
    """
    if repeats < 2:
        raise BadInput(f"--repeats {repeats}; probing in every round takes two or more, whose profiles are pooled")
    suite, _ = store.load_suite()
    kept = SuiteFolder(folder)
    state = kept.begin(SuiteState(hardware_name="this machine", profile_sha256="", repeats=repeats, is_probed=True))
    if state is not None and state.profile_sha256:
        ready = scenarios(suite, str(kept.profile_file))
        measured = kept.measured(ready)
        if is_whole(ready, measured, state):
            hardware = store.load_hardware(str(kept.profile_file))
            return predict_and_score(ready, hardware, measured, state, kept)
    models = _models(suite)
    before = kept.first_profile_file
    first = store.load_hardware(str(before)) if before.exists() else probe_into(before, models, report)
    if state is None:
        state = SuiteState(hardware_name=first.name, profile_sha256="", repeats=repeats, is_probed=True)
        kept.save(state)
    ready = scenarios(suite, str(before))
    check_models(ready, first, str(before))
    rounds, profiles = SuiteRounds(suite, ready, first, kept, state.failures), []

    def run_round(number: int, share: Report, keep: Callable[[], None]) -> None:
        with probing_round(models, kept.round_profile_file(number), share) as probes:
            rounds.run(number, share, keep, between=probes.turn)
            profiles.append(probes.finish(share))

    state = _run_all(rounds, state, kept, report, run_round)
    store.write_text(kept.profile_file, store.to_yaml(pool(profiles)))
    whole = store.load_hardware(str(kept.profile_file))
    ready = scenarios(suite, str(kept.profile_file))
    model = store.load_model(suite.base["model"])
    measured = restated(rounds.records(), ready, model, first, whole)
    for name, record in measured.items():
        kept.write("measured", name, record)
    state = state.model_copy(update={"profile_sha256": whole.sha256})
    kept.save(state)
    return predict_and_score(ready, whole, measured, state, kept)


def _run_all(
    rounds: SuiteRounds,
    state: SuiteState,
    kept: SuiteFolder | None,
    report: Report,
    run_round: Callable[[int, Report, Callable[[], None]], None],
) -> SuiteState:
    """Run every round; the state with the cases that failed."""

    def now() -> SuiteState:
        return state.model_copy(update={"failures": tuple(rounds.failures.values())})

    def keep() -> None:
        if kept is not None:
            kept.save(now())

    for number in range(1, state.repeats + 1):
        run_round(number, part_of(report, number - 1, state.repeats), keep)
    return now()


def _models(suite: Suite) -> list[str]:
    """The models whose layers the suite's cases take."""
    named = [suite.base["model"], *(work.settings.get("model") for work in suite.works.values())]
    return [name for name in dict.fromkeys(named) if name is not None]


def is_whole(ready: Mapping[str, ResolvedScenario], measured: Mapping[str, RunRecord], state: SuiteState) -> bool:
    """Whether every case was measured in all rounds or could not be run."""
    return set(ready) <= set(measured) | {failure.case for failure in state.failures}


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
