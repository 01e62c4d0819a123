"""``tiercast demo``: measure, predict, compare and price on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from tiercast_cli.options import JsonFlag, Repeats, examples

EPILOG = examples("tiercast demo", "tiercast demo --folder out/demo --repeats 3")


def command(
    *,
    folder: Annotated[
        Path, typer.Option("--folder", metavar="FOLDER", help="Where records and the summary are written.")
    ] = Path("out/demo"),
    repeats: Repeats = 3,
    as_json: JsonFlag = False,
) -> None:
    """Measure, predict, compare and price in a few minutes.

    Probes this machine, runs and predicts the demo arms, then predicts DeepSeek-V4.1-Flash on eight H200.
    """
    from tiercast_cli import demo_job, demo_views, inputs
    from tiercast_cli.output import emit, progress

    inputs.require_runtime("demo")
    with progress("demo") as report:
        result = demo_job.run(folder, repeats, report, show=None if as_json else demo_views.show)
    demo_job.write(folder, result)
    emit(demo_job.summary(result), lambda: demo_views.closing(folder, result), as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("demo", epilog=EPILOG)(command)
