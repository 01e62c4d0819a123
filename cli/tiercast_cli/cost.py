"""``tiercast cost``: dollars per million tokens, placements side by side."""

import typer

from tiercast_cli.options import JsonFlag, OutputFile, ProfileFile, ScenariosArgument, examples

EPILOG = examples(
    "tiercast cost v41-hbm v41-dram v41-nvme",
    "tiercast cost my.yaml                     # its own placement beside every other tier of the machine",
)


def command(
    scenarios: ScenariosArgument,
    *,
    profile: ProfileFile = None,
    output: OutputFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Dollars per million tokens, side by side.

    Each scenario is predicted and priced, with every line of the bill.
    A single scenario is shown beside every other tier its machine has.
    """
    from tiercast_cli import inputs, pricing, pricing_views
    from tiercast_cli.output import check_writable, emit, progress, save, to_json

    check_writable(output)
    resolved = [(name, inputs.resolve(name, profile)) for name in scenarios]
    with progress("cost") as report:
        rows = pricing.price_all(pricing.placements(resolved), report)
    if output is not None:
        save(output, to_json(rows))
    emit(rows, lambda: pricing_views.rows(rows), as_json=as_json)
    pricing.check_any_fits(rows)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("cost", epilog=EPILOG)(command)
