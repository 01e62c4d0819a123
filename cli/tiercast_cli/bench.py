"""``tiercast bench``: run the real runtime here."""

from pathlib import Path
from typing import Annotated

import typer

from tiercast_cli.options import JsonFlag, OutputFile, ProfileFile, Repeats, ScenarioArgument, TraceFile, examples

EPILOG = examples(
    "tiercast bench demo-prefetch --profile profile.yaml",
    "tiercast bench my.yaml --repeats 5 -o measured.json --trace measured-trace.json",
    "tiercast bench my.yaml --checkpoint /models/my-engram",
)

CheckpointPath = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        metavar="PATH",
        help="Safetensors checkpoint (folder, index or file) whose Engram rows and weights are used.",
    ),
]


def command(
    scenario: ScenarioArgument,
    *,
    profile: ProfileFile = None,
    repeats: Repeats = 1,
    checkpoint: CheckpointPath = None,
    output: OutputFile = None,
    trace: TraceFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a scenario here with the real Engram runtime.

    The result is a measured record; on a machine without a GPU the CPU is the device.
    """
    from tiercast_cli import inputs, views
    from tiercast_cli.output import check_writable, emit, progress, save
    from tiercast_profiles.timeline import chrome_trace

    inputs.require_runtime("bench")
    resolved = inputs.resolve(scenario, profile)
    check_writable(output)
    check_writable(trace)
    rows = None if checkpoint is None else Path(checkpoint)
    from tiercast_runtime.bench import bench  # takes seconds to import: not before the input is known to be good

    with progress(f"bench {scenario}") as report:
        record = bench(resolved, repeats=repeats, checkpoint=rows, progress=lambda ratio: report("", ratio))
    if output is not None:
        save(output, record.to_json())
    if trace is not None:
        save(trace, chrome_trace([record]))
    emit(record, lambda: views.record(record), as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("bench", epilog=EPILOG)(command)
