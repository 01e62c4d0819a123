"""``tiercast diff``: what was changed between two scenarios or records, and what it did."""

from typing import Annotated

import typer

from tiercast_cli.options import JsonFlag, OutputFile, ProfileFile, examples

EPILOG = examples(
    "tiercast diff v41-hbm v41-dram",
    "tiercast diff v41-dram --set placement.tier=nvme",
    "tiercast diff v41-dram --set prices.dram_usd_per_gb=32 --markdown",
    "tiercast diff before.json after.json    # records that simulate or bench wrote",
)


def command(
    before: Annotated[
        str, typer.Argument(metavar="A", help="A scenario file, a shipped scenario, or a record (JSON).")
    ],
    after: Annotated[
        str | None, typer.Argument(metavar="[B]", help="The same; without it A again, with what --set changes.")
    ] = None,
    *,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change one field of B (repeatable).")
    ] = None,
    profile: ProfileFile = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, as for a comment on a change.")] = False,
    output: OutputFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what was changed from A to B, what it did, and what it costs or saves.

    Scenarios are predicted; records are taken as they are.
    """
    from tiercast_cli import diff_views, differing
    from tiercast_cli.output import check_writable, emit, save, to_json

    if after is None and not sets:
        raise typer.BadParameter("nothing differs; give a second scenario or record, or --set FIELD=VALUE")
    if markdown and as_json:
        raise typer.BadParameter("--markdown and --json are two forms of one result; give one")
    check_writable(output, reads=(before, after, profile))
    found = differing.find(before, before if after is None else after, sets or [], profile)
    if output is not None:
        save(output, diff_views.markdown(found) if markdown else to_json(found))
    emit(found, lambda: diff_views.show(found, is_markdown=markdown), as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("diff", epilog=EPILOG)(command)
