"""``tiercast report``: one page of HTML about runs, sweeps and texts."""

from typing import Annotated

import typer

from tiercast_cli.options import JsonFlag, examples

EPILOG = examples(
    "tiercast report v41-hbm v41-dram v41-nvme -o report.html",
    "tiercast report measured.json simulated.json sweep.json reuse.json -o report.html",
)


def command(
    contents: Annotated[
        list[str],
        typer.Argument(
            metavar="CONTENT...",
            help="Records (JSON of simulate or bench), sweeps (of what-if), row reuse (of locality), or scenarios.",
        ),
    ],
    *,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The page to write.")],
    title: Annotated[str, typer.Option("--title", metavar="TEXT", help="Title of the page.")] = "Tiercast report",
    as_json: JsonFlag = False,
) -> None:
    """Write one self-contained page of HTML.

    The answer in a sentence, speed and price of every run, price against latency, the timeline, what is hidden, what
    moves the answer, and every assumption with mark, source and date. The page needs no network.
    """
    from tiercast_cli import render
    from tiercast_cli.output import check_writable, emit, progress, save
    from tiercast_cli.report import answer, page, whole
    from tiercast_cli.report.gather import gather

    check_writable(output, reads=contents)
    page.plotly_js()
    with progress("report") as report:
        found = gather(contents, report)
    save(output, whole.report(title, found))
    words = answer.sentence(found.entries)
    summary = {
        "answer": words,
        "file": output,
        "runs": [entry.name for entry in found.entries],
        "sections": [section.key for section in whole.sections(found)],
    }
    emit(summary, lambda: render.line(words), as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("report", epilog=EPILOG)(command)
