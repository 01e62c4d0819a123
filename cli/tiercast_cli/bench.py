"""``tiercast bench``: run the real runtime here."""

from enum import StrEnum
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


class PageSizes(StrEnum):
    """Pages that tables in host memory can be made of."""

    SMALL = "4k"
    TRANSPARENT = "thp"
    TWO_MIB = "2m"
    ONE_GIB = "1g"


PageSizeName = Annotated[
    PageSizes | None,
    typer.Option("--page-size", help="Pages of tables in host memory; 2m and 1g come from the reserved pools."),
]
NumaNode = Annotated[
    int | None, typer.Option("--numa-node", min=0, metavar="N", help="NUMA node of tables in host memory.")
]


def command(
    scenario: ScenarioArgument,
    *,
    profile: ProfileFile = None,
    repeats: Repeats = 1,
    checkpoint: CheckpointPath = None,
    page_size: PageSizeName = None,
    numa_node: NumaNode = None,
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
    check_writable(output, trace, reads=(scenario, profile))
    rows = None if checkpoint is None else Path(checkpoint)
    from tiercast_runtime.host_pages import MemoryRequest

    memory = MemoryRequest(None if page_size is None else page_size.value, numa_node)
    from tiercast_runtime.bench import bench  # takes seconds to import: not before the input is known to be good

    with progress(f"bench {scenario}") as report:
        record = bench(
            resolved, repeats=repeats, checkpoint=rows, memory=memory, progress=lambda ratio: report("", ratio)
        )
    if output is not None:
        save(output, record.to_json())
    if trace is not None:
        save(trace, chrome_trace([record]))
    emit(record, lambda: views.record(record), as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("bench", epilog=EPILOG)(command)
