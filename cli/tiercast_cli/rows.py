"""``tiercast rows``: the row ids a sequence looks up, to check a serving engine against."""

from typing import Annotated

import typer

from tiercast_cli.options import JsonFlag, ModelName, OutputFile, examples, number_list

EPILOG = examples(
    "tiercast rows --model tiny --layer 4 --token-ids 5,17,4000",
    "tiercast rows --model deepseek-v4.1-flash --layer 14 --token-ids 5,17,99000 --folded",
    "tiercast rows --model deepseek-v4.1-flash --layer 1 --token-ids 5,17 --tokenizer tokenizer.json",
)


def command(
    *,
    model: ModelName,
    layer: Annotated[int, typer.Option("--layer", metavar="ID", help="0-based id of the Engram layer.")],
    token_ids: Annotated[
        str, typer.Option("--token-ids", metavar="IDS", help="Token ids of one sequence, separated by commas.")
    ],
    is_folded: Annotated[
        bool,
        typer.Option("--folded", help="The ids are already folded; -1 marks a position no n-gram may cross."),
    ] = False,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="FILE",
            help="The model's tokenizer: a Hugging Face tokenizer.json, a tekken JSON or a tiktoken ranks file.",
        ),
    ] = None,
    output: OutputFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the rows each position of a sequence looks up.

    Use it to check the hashing of a serving engine against.
    """
    from tiercast_cli import row_lookup
    from tiercast_cli.output import emit, save, to_json
    from tiercast_profiles.store import load_model

    spec = load_model(model)
    ids = [int(value) for value in number_list(token_ids, "--token-ids", int)]
    result = row_lookup.look_up(spec, layer, ids, is_folded=is_folded, tokenizer=tokenizer)
    if output is not None:
        save(output, to_json(result))
    emit(result, lambda: row_lookup.view(result), as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("rows", epilog=EPILOG)(command)
