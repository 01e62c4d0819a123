"""``tiercast profile``: probe this machine."""

from typing import Annotated

import typer

from tiercast_cli.options import JsonFlag, OutputFile, examples

MAX_MEMORY_GIB = 1 << 20
EPILOG = examples(
    "tiercast profile --quick -o profile.yaml",
    "tiercast profile --model tiny -o profile.yaml --json",
    "tiercast profile -o profile.yaml --resume",
)


def command(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer points and repeats: under a minute or two.")] = False,
    output: OutputFile = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help="Time the layers of this model (repeatable; default: tiny)."),
    ] = None,
    memory_gib: Annotated[
        float | None,
        typer.Option(
            "--memory-gib",
            metavar="N",
            help="Most host memory that a table or a copy of a probe may take; default: half of what is free.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with an interrupted full run: keep the gather sweeps in FILE.partial."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Probe this machine; write its hardware profile.

    The profile is what the simulator reads in place of a datasheet.
    What could not be measured is in it too, with the reason.
    """
    from tiercast_cli import catalogue_views, inputs, probing
    from tiercast_cli.output import check_writable, emit, save
    from tiercast_profiles.errors import BadInput
    from tiercast_profiles.store import to_yaml
    from tiercast_profiles.units import gib_to_bytes

    inputs.require_runtime("profile")
    if memory_gib is not None and not 0 < memory_gib <= MAX_MEMORY_GIB:
        raise BadInput(f"--memory-gib {memory_gib:g}; must be above 0 and at most {MAX_MEMORY_GIB}")
    if resume and (output is None or quick):
        raise BadInput("--resume goes on with a full run that had -o FILE: give the same -o and leave out --quick")
    check_writable(output)
    profile = probing.probe(
        model or ["tiny"],
        quick=quick,
        memory_bytes=None if memory_gib is None else gib_to_bytes(memory_gib),
        output=output,
        is_resumed=resume,
    )
    if output is not None:
        save(output, to_yaml(profile))
        probing.forget_partial(output)
    emit(profile, lambda: catalogue_views.profile_summary(profile), as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("profile", epilog=EPILOG)(command)
