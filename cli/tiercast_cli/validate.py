"""``tiercast validate``: is the simulator right on this machine?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tiercast_cli.options import JsonFlag, OutputFile, ProfileFile, Repeats, examples
from tiercast_profiles.errors import BadInput

if TYPE_CHECKING:
    from tiercast_cli.validation import Validation

EPILOG = examples(
    "tiercast validate --profile profile.yaml",
    "tiercast validate --suite --profile profile.yaml --folder out/suite",
    "tiercast validate --suite --probe --folder out/suite --repeats 5",
    "tiercast validate --records out/suite --profile other.yaml",
    "tiercast validate my.yaml --profile profile.yaml --repeats 5 --max-error 0.2",
    "tiercast validate my.yaml --probe --folder out/my --repeats 5",
)


def command(
    scenarios: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SCENARIO]...", help="Scenario files or shipped names; none: the four arms of the demo."
        ),
    ] = None,
    *,
    profile: ProfileFile = None,
    suite: Annotated[
        bool, typer.Option("--suite", help="Run the shipped suite and score it, held-out cases apart.")
    ] = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Probe the machine in turns with the runs of every round; predict from all those profiles, pooled.",
        ),
    ] = False,
    folder: Annotated[
        str | None,
        typer.Option(
            "--folder",
            metavar="DIR",
            help="With --suite: write all records here; run again to go on. With --probe: where the profiles go.",
        ),
    ] = None,
    records: Annotated[
        str | None,
        typer.Option("--records", metavar="DIR", help="Run nothing: predict what such a folder holds, and score it."),
    ] = None,
    wrong: Annotated[
        str | None,
        typer.Option("--wrong", metavar="HOW", help="With --records: spoil the profile first; errors must show it."),
    ] = None,
    repeats: Repeats = 3,
    max_error: Annotated[
        float | None,
        typer.Option("--max-error", min=0, metavar="RATIO", help="Exit 1 when a throughput error exceeds this ratio."),
    ] = None,
    output: OutputFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Run and predict the same work; show the errors.

    Without a scenario: the four arms of the demo. Take the profile from probes, never from the runs. Several scenarios
    are scored together; one that cannot be run is named, counts, and makes the exit code 1.
    """
    from tiercast_cli import inputs, validation, validation_views
    from tiercast_cli.output import check_writable, emit, progress, save, to_json

    check_writable(output, reads=(*(scenarios or ()), profile))
    if suite or records is not None:
        _check_suite(scenarios, profile, "--suite" if records is None else "--records", is_probed=probe)
    _check_probe(probe, folder=folder, profile=profile)
    if records is not None:
        if suite or folder is not None:
            raise BadInput("--records runs nothing; leave out --suite and --folder, or leave out --records")
        _rescore(str(profile), records, wrong, max_error=max_error, output=output, as_json=as_json)
        return
    if wrong is not None:
        raise BadInput("--wrong belongs to --records DIR: it spoils a profile that is scored against records")
    inputs.require_runtime("validate")
    if suite:
        _suite(profile, folder, repeats=repeats, max_error=max_error, output=output, as_json=as_json)
        return
    names = scenarios or validation.DEMO_ARMS
    if probe:
        found = _probed(names, str(folder), repeats)
    else:
        if folder is not None:
            raise BadInput("--folder belongs to --suite and --probe; write the result of these with -o FILE")
        resolved = {name: inputs.resolve(name, profile) for name in names}
        with progress("validate") as report:
            found = validation.run_cases(resolved, repeats=repeats, folder=None, report=report)
    result = validation.as_json(found)
    if output is not None:
        save(output, to_json(result))
    emit(result, lambda: validation_views.page(found), as_json=as_json)
    validation.check(found, max_error)


def _check_suite(scenarios: list[str] | None, profile: str | None, option: str, *, is_probed: bool) -> None:
    if scenarios:
        raise BadInput(f"{option} has its own scenarios; leave out {', '.join(scenarios)}, or leave out {option}")
    if profile is None and not is_probed:
        raise BadInput(f"{option} needs --profile FILE; write one with: tiercast profile --quick -o profile.yaml")


def _check_probe(is_probed: bool, *, folder: str | None, profile: str | None) -> None:
    if not is_probed:
        return
    if folder is None:
        raise BadInput("--probe needs --folder DIR, where the profile of every round goes")
    if profile is not None:
        raise BadInput("--probe makes its own profiles; leave out --profile, or leave out --probe")


def _probed(names: Sequence[str], folder: str, repeats: int) -> "Validation":
    from pathlib import Path

    from tiercast_cli import probed_rounds
    from tiercast_cli.output import progress

    with progress("validate") as report:
        return probed_rounds.run(names, rounds=repeats, folder=Path(folder), report=report)


def _suite(
    profile: str | None, folder: str | None, *, repeats: int, max_error: float | None, output: str | None, as_json: bool
) -> None:
    from pathlib import Path

    from tiercast_cli import suite, suite_views
    from tiercast_cli.output import emit, make_folder, progress, save, to_json

    target = None if folder is None else Path(folder)
    if target is not None:
        make_folder(target)
    with progress("suite") as report:
        if profile is None:
            assert target is not None, "asked for before"
            result = suite.run_probed(repeats=repeats, folder=target, report=report)
        else:
            result = suite.run(profile, repeats=repeats, folder=target, report=report)
    if target is not None:
        suite_views.write(target, result)
    if output is not None:
        save(output, to_json(result))
    emit(result, lambda: suite_views.page(result), as_json=as_json)
    suite_views.check(result, max_error)


def _rescore(
    profile: str, records: str, wrong: str | None, *, max_error: float | None, output: str | None, as_json: bool
) -> None:
    from pathlib import Path

    from tiercast_cli import suite, suite_views
    from tiercast_cli.changed_profiles import BY_NAME
    from tiercast_cli.output import emit, save, to_json

    chosen = None if wrong is None else BY_NAME.get(wrong)
    if wrong is not None and chosen is None:
        raise BadInput(f"--wrong {wrong}: unknown; one of: {', '.join(BY_NAME)}")
    result = suite.rescore(Path(records), profile, chosen)
    if output is not None:
        save(output, to_json(result))
    emit(result, lambda: suite_views.page(result), as_json=as_json)
    suite_views.check(result, max_error)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("validate", epilog=EPILOG)(command)
