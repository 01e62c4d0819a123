"""``tiercast hardware|models|prices list|show|diff``: what is known, and from where.

``hardware`` has more: what machines are put together from, and what is done with profiles.
"""

from collections.abc import Callable

import typer

from tiercast_cli import hardware
from tiercast_cli.options import JsonFlag, NameArgument, examples

KINDS = {"hardware": "hardware profiles", "models": "models", "prices": "price books"}
SAMPLES = {
    "hardware": ("h200-sxm", "gb200"),
    "models": ("deepseek-v4.1-flash", "engram-27b"),
    "prices": ("default", "my-prices.yaml"),
}


def register(app: typer.Typer) -> None:
    """Add the three groups to the program."""
    for kind, noun in KINDS.items():
        more = ", parts, compare, import, pool, transfer" if kind == "hardware" else ""
        app.add_typer(_group(kind, noun), name=kind, help=f"The known {noun}: list, show, diff{more}.")


def _group(kind: str, noun: str) -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    first, second = SAMPLES[kind]
    group.command("list", help=f"List the shipped {noun}.", epilog=examples(f"tiercast {kind} list"))(_list(kind))
    group.command(
        "show",
        help="Show every number with its band, its evidence and its source.",
        epilog=examples(f"tiercast {kind} show {first}", f"tiercast {kind} show {first} --json"),
    )(_show(kind))
    group.command(
        "diff",
        help="Show where two of them differ.",
        epilog=examples(f"tiercast {kind} diff {first} {second}"),
    )(_diff(kind))
    if kind == "hardware":
        hardware.register(group)
    return group


def _list(kind: str) -> Callable[[bool], None]:
    def command(as_json: JsonFlag = False) -> None:
        from tiercast_cli import catalogue_views
        from tiercast_cli.output import emit

        rows = catalogue_views.listing(kind)
        emit(rows, lambda: catalogue_views.show_listing(kind, rows), as_json=as_json)

    return command


def _show(kind: str) -> Callable[[str, bool], None]:
    def command(name: NameArgument, as_json: JsonFlag = False) -> None:
        from tiercast_cli import catalogue_views
        from tiercast_cli.output import emit

        document = catalogue_views.load(kind, name)
        emit(document, lambda: catalogue_views.show_document(document), as_json=as_json)

    return command


def _diff(kind: str) -> Callable[[str, str, bool], None]:
    def command(first: NameArgument, second: NameArgument, as_json: JsonFlag = False) -> None:
        from tiercast_cli import catalogue_views
        from tiercast_cli.output import emit

        left, right = catalogue_views.load(kind, first), catalogue_views.load(kind, second)
        rows = catalogue_views.differences(left, right)
        emit(rows, lambda: catalogue_views.show_differences(left, right, rows), as_json=as_json)

    return command
