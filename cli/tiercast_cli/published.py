"""``tiercast published``: the ledger of published measurements beside what Tiercast predicts for them."""

import typer

from tiercast_cli.options import JsonFlag, OutputFile, examples

EPILOG = examples("tiercast published", "tiercast published --json")


def command(*, output: OutputFile = None, as_json: JsonFlag = False) -> None:
    """Predict every published case; misses first.

    Nothing is fitted: predictions come from shipped profiles and the inputs the sources give.
    A case whose inputs are missing, or which the shipped data was taken from, is not scored, and the table says why.
    """
    from tiercast_cli import published_views
    from tiercast_cli.output import check_writable, emit, progress, save, to_json
    from tiercast_plan.ledger import ledger

    check_writable(output)
    with progress("published cases") as report:
        found = ledger(report)
    if output is not None:
        save(output, to_json(found))
    emit(found, lambda: published_views.show(found), as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("published", epilog=EPILOG)(command)
