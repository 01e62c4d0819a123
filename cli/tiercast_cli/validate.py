"""``tiercast validate``: is the simulator right on this machine?"""

from typing import Annotated

import typer

from tiercast_cli.options import JsonFlag, OutputFile, ProfileFile, Repeats, examples

EPILOG = examples(
    "tiercast validate --profile profile.yaml",
    "tiercast validate my.yaml --profile profile.yaml --repeats 5 --max-error 0.2",
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
    repeats: Repeats = 3,
    max_error: Annotated[
        float | None,
        typer.Option("--max-error", min=0, metavar="RATIO", help="Exit 1 when a throughput error exceeds this ratio."),
    ] = None,
    output: OutputFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Run and predict the same work; show the errors.

    Without a scenario: the four arms of the demo. Take the profile from probes, never from the runs.
    """
    from tiercast_cli import inputs, validation, validation_views
    from tiercast_cli.output import check_writable, emit, progress, save, to_json

    inputs.require_runtime("validate")
    check_writable(output)
    resolved = {name: inputs.resolve(name, profile) for name in scenarios or validation.DEMO_ARMS}
    with progress("validate") as report:
        cases = validation.run_cases(resolved, repeats=repeats, folder=None, report=report)
    result = validation.as_json(cases)
    if output is not None:
        save(output, to_json(result))
    emit(result, lambda: validation_views.cases(cases), as_json=as_json)
    validation.check_error(cases, max_error)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("validate", epilog=EPILOG)(command)
