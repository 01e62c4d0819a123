"""``tiercast hardware parts``: what only hardware profiles have, beside list, show and diff."""

import typer

from tiercast_cli.options import JsonFlag, examples


def register(group: typer.Typer) -> None:
    """Add the commands to the group ``hardware``."""
    group.command(
        "parts",
        help="List the GPUs, links, hosts and lower tiers that machines are put together from.",
        epilog=examples("tiercast hardware parts", "tiercast hardware parts --json"),
    )(parts)


def parts(as_json: JsonFlag = False) -> None:
    """Print the shipped parts."""
    from tiercast_cli import hardware_views
    from tiercast_cli.output import emit

    rows = hardware_views.part_rows()
    emit(rows, lambda: hardware_views.show_parts(rows), as_json=as_json)
