"""Option and argument types that several commands share."""

from typing import Annotated

import typer

ScenarioArgument = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A scenario file (YAML or JSON) or the name of a shipped scenario.")
]
ScenariosArgument = Annotated[
    list[str], typer.Argument(metavar="SCENARIO...", help="Scenario files or names of shipped scenarios.")
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A shipped name or the path of a file.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables.")]
OutputFile = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write the result to FILE, whole or not at all."),
]
TraceFile = Annotated[
    str | None, typer.Option("--trace", metavar="FILE", help="Write the timeline as a Chrome/Perfetto trace to FILE.")
]
ProfileFile = Annotated[
    str | None,
    typer.Option(
        "--profile", metavar="FILE", help="Hardware profile that takes the place of the hardware the scenario names."
    ),
]
PricesName = Annotated[
    str | None,
    typer.Option(
        "--prices", metavar="NAME", help="A shipped price book or a file, in the place of the one the scenario names."
    ),
]
Repeats = Annotated[
    int, typer.Option("--repeats", min=1, max=1000, metavar="N", help="Run N times; the spread becomes the interval.")
]
Replicates = Annotated[
    int,
    typer.Option(
        "--replicates", min=1, max=1000, metavar="N", help="Predict at N seeds: an interval of chance beside the band."
    ),
]
Jobs = Annotated[int, typer.Option("--jobs", min=1, max=1024, metavar="N", help="Processes that predict the points.")]
ModelName = Annotated[
    str,
    typer.Option("--model", metavar="NAME", help="A shipped model, a model file, or a Hugging Face config.json."),
]


def examples(*lines: str) -> str:
    r"""Help text with one example per line; the leading ``\b`` keeps the line breaks."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def number_list(text: str, option: str, kind: type[int] | type[float]) -> list[int] | list[float]:
    """The numbers of a comma-separated option value.

    Raises:
        typer.BadParameter: when a part is not a number of that kind.
    """
    parts = [part.strip() for part in text.split(",")]
    try:
        return [kind(part) for part in parts]
    except ValueError:
        noun = "whole numbers" if kind is int else "numbers"
        raise typer.BadParameter(f"{option} {text!r}: give {noun} separated by commas, as in 1,4,64") from None
