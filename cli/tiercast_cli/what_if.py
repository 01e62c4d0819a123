"""``tiercast what-if``: the same scenario with some fields changed."""

from typing import Annotated

import typer

from tiercast_cli.options import Jobs, JsonFlag, OutputFile, ProfileFile, ScenarioArgument, examples

EPILOG = examples(
    "tiercast what-if v41-dram --vary placement.tier=hbm,dram,nvme",
    "tiercast what-if v41-dram --set parallel.tensor=4 --vary workload.concurrency=16..256*2",
)


def command(
    scenario: ScenarioArgument,
    *,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change one field of the scenario file (repeatable)."),
    ] = None,
    varies: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="FIELD=V1,V2",
            help="Try each value; lo..hi..step and lo..hi*factor are ranges (repeatable: all combinations).",
        ),
    ] = None,
    profile: ProfileFile = None,
    jobs: Jobs = 1,
    output: OutputFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Sweep a scenario over values of its fields.

    Every combination is predicted and priced; one that does not fit is a row that says so.
    """
    from tiercast_cli import sweeping
    from tiercast_cli.output import check_writable, emit, save, to_json

    check_writable(output)
    rows = sweeping.run(scenario, sets or [], varies or [], profile, jobs)
    if output is not None:
        save(output, to_json(rows))
    emit(rows, lambda: sweeping.view(rows), as_json=as_json)
    sweeping.check_any_result(rows)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("what-if", epilog=EPILOG)(command)
