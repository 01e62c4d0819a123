"""``tiercast cost``: dollars per million tokens, placements side by side."""

from typing import Annotated

import typer

from tiercast_cli.options import JsonFlag, OutputFile, PricesName, ProfileFile, ScenariosArgument, examples

EPILOG = examples(
    "tiercast cost v41-hbm v41-dram v41-nvme",
    "tiercast cost v41-dram --api-usd-per-mtok 0.15,0.60",
    "tiercast cost my.yaml                     # its own placement beside every other tier of the machine",
)


def command(
    scenarios: ScenariosArgument,
    *,
    profile: ProfileFile = None,
    prices: PricesName = None,
    api_usd_per_mtok: Annotated[
        str | None,
        typer.Option(
            "--api-usd-per-mtok", metavar="X|IN,OUT", help="An API price to set it beside, USD per million tokens."
        ),
    ] = None,
    output: OutputFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Dollars per million tokens, side by side.

    Each scenario is predicted and priced, with every line of the bill.
    A single scenario is shown beside every other tier its machine has.
    Rented and owned stand side by side, as far as the price book knows what owning costs.
    """
    from tiercast_cli import inputs, pricing, pricing_views
    from tiercast_cli.output import check_writable, emit, progress, save, to_json
    from tiercast_plan.api_price import parse_api_price

    check_writable(output, reads=(*scenarios, profile, prices))
    api_price = None if api_usd_per_mtok is None else parse_api_price(api_usd_per_mtok)
    resolved = [(name, inputs.resolve(name, profile, prices)) for name in scenarios]
    with progress("cost") as report:
        rows = pricing.price_all(pricing.placements(resolved), report, api_price)
    if output is not None:
        save(output, to_json(rows))
    emit(rows, lambda: pricing_views.rows(rows), as_json=as_json)
    pricing.check_any_fits(rows)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("cost", epilog=EPILOG)(command)
