"""``tiercast allocate``: a budget of sparse parameters split between experts and Engram the published way, priced."""

from typing import Annotated

import typer

from tiercast_cli.options import JsonFlag, ModelName, PricesName, examples

EPILOG = examples("tiercast allocate --model deepseek-v4.1-flash --hardware h200 --sparse-params 740e9")


def command(
    *,
    model: ModelName,
    hardware: Annotated[
        str, typer.Option("--hardware", metavar="NAME", help="The machine whose device memory holds the experts.")
    ],
    sparse_params: Annotated[
        str, typer.Option("--sparse-params", metavar="N", help="Sparse parameters to spend, as in 740e9.")
    ],
    prices: PricesName = None,
    as_json: JsonFlag = False,
) -> None:
    """Split sparse parameters between experts and Engram by the published law, and price both splits.

    The law gives 75-80 % to experts; its gains are quoted as published and never worked out for another model.
    """
    from tiercast_cli import allocating
    from tiercast_cli.output import emit

    result = allocating.allocate(model=model, hardware=hardware, sparse_params=sparse_params, prices=prices)
    emit(result, lambda: allocating.show(result), as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("allocate", epilog=EPILOG)(command)
