"""``tiercast doctor``: will this machine hold the tables, and what to type where it will not."""

from typing import Annotated

import typer

from tiercast_cli.options import JsonFlag, examples

EPILOG = examples(
    "tiercast doctor",
    "tiercast doctor v41-dram",
    "tiercast doctor --model deepseek-v4.1-flash --copies 2",
    "tiercast doctor v41-dram --hardware b200-sxm             # a machine you are not sitting at",
)


def command(
    scenario: Annotated[
        str | None, typer.Argument(metavar="[SCENARIO]", help="A scenario file or shipped scenario to check for.")
    ] = None,
    *,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Check for this model's tables in host memory.")
    ] = None,
    copies: Annotated[
        int, typer.Option("--copies", min=1, max=1024, metavar="N", help="Copies of the tables, with --model.")
    ] = 1,
    hardware: Annotated[
        str | None,
        typer.Option("--hardware", metavar="NAME", help="Answer for a machine by its profile instead of this one."),
    ] = None,
    disk: Annotated[str, typer.Option("--disk", metavar="FOLDER", help="Where tables would lie on a drive.")] = ".",
    as_json: JsonFlag = False,
) -> None:
    """Pre-flight of this machine: shared memory, locked memory, huge pages, NUMA, page cache, driver, drive, container.

    Exit code 1 when a required check fails. Nothing is changed; each finding comes with the command that mends it.
    """
    from tiercast_cli import doctor_views, doctoring
    from tiercast_cli.output import emit

    result = doctoring.examine(scenario=scenario, model=model, copies=copies, hardware=hardware, disk=disk)
    emit(result, lambda: doctor_views.show(result), as_json=as_json)
    doctoring.check_healthy(result)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("doctor", epilog=EPILOG)(command)
