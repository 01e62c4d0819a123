"""``tiercast locality``: how often the rows of a text repeat."""

from typing import Annotated

import typer

from tiercast_cli.options import JsonFlag, ModelName, OutputFile, examples, number_list

EPILOG = examples(
    "tiercast locality docs --model deepseek-v4.1-flash --cache-gib 1,2,4 --streams 1,4,64",
    "tiercast locality prompts.txt --model tiny --cache-gib 0.01,0.1 --streams 1",
)


def command(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="docs, code, or the path of a UTF-8 text file.")],
    model: ModelName,
    *,
    cache_gib: Annotated[
        str, typer.Option("--cache-gib", metavar="SIZES", help="Cache sizes in GiB, separated by commas.")
    ] = "1,2,4",
    streams: Annotated[
        str, typer.Option("--streams", metavar="COUNTS", help="Numbers of concurrent streams, separated by commas.")
    ] = "1,4,64",
    output: OutputFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure how often the rows of a text repeat.

    Shows the share of distinct n-grams by window, what a cache of a given size and policy would serve, and a law that
    reaches beyond the text.
    """
    from tiercast_cli import text_locality
    from tiercast_cli.output import check_writable, emit, progress, save, to_json
    from tiercast_profiles.store import load_model

    sizes = [float(size) for size in number_list(cache_gib, "--cache-gib", float)]
    counts = [int(count) for count in number_list(streams, "--streams", int)]
    check_writable(output, reads=(text, model))
    with progress("locality") as report:
        result = text_locality.measure(text, load_model(model), cache_gib=sizes, num_streams=counts, report=report)
    if output is not None:
        save(output, to_json(result))
    emit(result, lambda: text_locality.view(result), as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("locality", epilog=EPILOG)(command)
