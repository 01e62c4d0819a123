"""``tiercast what-if``: the same scenario with some fields changed."""

from typing import Annotated

import typer

from tiercast_cli.options import Jobs, JsonFlag, ProfileFile, ScenarioArgument, examples

EPILOG = examples(
    "tiercast what-if v41-dram --vary placement.tier=hbm,dram,nvme",
    "tiercast what-if v41-dram --set parallel.tensor=4 --vary workload.concurrency=16..256*2",
    "tiercast what-if v41-dram --vary prices.dram_usd_per_gb=4,11,20,32",
    "tiercast what-if v41-dram --vary hardware.host_to_device.bandwidth_gb_per_s=14..56*2 --plot link.html",
    "tiercast what-if v41-dram --vary seed=0..99 --nominal --jobs 2 --state seeds.jsonl -o seeds.csv",
)


def command(
    scenario: ScenarioArgument,
    *,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Change one field of the scenario, or of the hardware, model or prices it names (repeatable).",
        ),
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
    nominal: Annotated[
        bool,
        typer.Option("--nominal", help="Nominal inputs only: no intervals and no baselines, several times faster."),
    ] = False,
    jobs: Jobs = 1,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", metavar="ADDRESS", help="Dask scheduler whose workers predict the points."),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option("--state", metavar="FILE", help="Keep finished points in FILE; a killed sweep goes on from it."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the rows to FILE, as CSV where it ends in .csv."),
    ] = None,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE", help="Draw the sweep into FILE, a page of HTML.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Sweep a scenario over values of its fields.

    Every combination is predicted and priced; one that does not fit is a row that says so. A field behind hardware.,
    model. or prices. is one of the document that the scenario names.
    """
    from tiercast_cli import sweeping
    from tiercast_cli.output import check_writable, emit, save, to_json

    if cluster is not None and jobs != 1:
        raise typer.BadParameter("--jobs is for processes of this machine, --cluster for workers elsewhere; give one")
    check_writable(output, plot, state, reads=(scenario, profile))
    if plot is not None:
        sweeping.require_charts()
    rows = sweeping.run(
        scenario,
        sets or [],
        varies or [],
        profile,
        num_jobs=jobs,
        cluster=cluster,
        state=state,
        is_nominal=nominal,
    )
    if output is not None:
        save(output, sweeping.to_csv(rows) if output.endswith(".csv") else to_json(rows))
    if plot is not None:
        save(plot, sweeping.page(rows, scenario))
    emit(rows, lambda: sweeping.view(rows), as_json=as_json)
    sweeping.check_any_result(rows)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("what-if", epilog=EPILOG)(command)
