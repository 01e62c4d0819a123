"""``tiercast fit``: does a model fit, on which machine, with how many ranks, and if not, by how many bytes not."""

from typing import Annotated

import typer

from tiercast_cli.options import JsonFlag, OutputFile, examples

EPILOG = examples(
    "tiercast fit --model deepseek-v4.1-flash --hardware h100,h200,gb200",
    "tiercast fit --model deepseek-v4.1-flash --hardware h200 --tier dram --replication per_numa,per_rank",
)


def command(
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="NAME",
            help="A shipped model, a model file, a Hugging Face config.json, or a checkpoint: its headers are enough.",
        ),
    ],
    hardware: Annotated[
        str | None, typer.Option("--hardware", metavar="A,B", help="Machines; without it, every shipped one.")
    ] = None,
    tier: Annotated[
        str, typer.Option("--tier", metavar="A,B", help="Tiers of the tables: hbm, dram, cxl, nvme, pool.")
    ] = "hbm,dram",
    replication: Annotated[
        str, typer.Option("--replication", metavar="A,B", help="Copies: none, per_rank, per_numa, per_node.")
    ] = "per_node",
    context_tokens: Annotated[
        int, typer.Option("--context-tokens", min=1, max=10_000_000, metavar="N", help="Longest request to hold.")
    ] = 8192,
    max_num_seqs: Annotated[
        int, typer.Option("--max-num-seqs", min=1, max=100_000, metavar="N", help="Most sequences of one replica.")
    ] = 512,
    max_num_batched_tokens: Annotated[
        int, typer.Option("--max-num-batched-tokens", min=1, max=10_000_000, metavar="N", help="Tokens of one step.")
    ] = 8192,
    output: OutputFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Fit matrix of machines and ranks per replica, with the shortfall in bytes.

    Exit code 3 when nothing fits.
    """
    from tiercast_cli import fit_views, fitting, inputs
    from tiercast_cli.output import check_writable, emit, save, to_json

    check_writable(output)
    rows = fitting.matrix(
        model=model,
        hardware=None if hardware is None else inputs.hardware_names(hardware),
        tiers=tier,
        replications=replication,
        context_tokens=context_tokens,
        engine_limits=(max_num_seqs, max_num_batched_tokens),
    )
    if output is not None:
        save(output, to_json(rows))
    emit(rows, lambda: fit_views.show(rows), as_json=as_json)
    fitting.check_any_fits(rows)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("fit", epilog=EPILOG)(command)
