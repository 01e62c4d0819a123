"""``tiercast plan``: which machine, how many, where the tables go, with which flags, and why not otherwise."""

from typing import Annotated

import typer

from tiercast_cli.options import JsonFlag, ModelName, OutputFile, PricesName, examples

EPILOG = examples(
    "tiercast plan --model deepseek-v4.1-flash --hardware h100,h200,b200,gb200,mi355x --slo-tpot-ms 40",
    "tiercast plan --model deepseek-v4.1-flash --hardware h200 --slo-ttft-ms 500 --demand-tokens-per-day 1e12",
)


def command(
    *,
    model: ModelName,
    hardware: Annotated[
        str, typer.Option("--hardware", metavar="A,B", help="Machines to choose from: shipped names or profile files.")
    ],
    slo_ttft_ms: Annotated[
        float | None, typer.Option("--slo-ttft-ms", min=0.001, metavar="MS", help="Limit of the time to first token.")
    ] = None,
    slo_tpot_ms: Annotated[
        float | None, typer.Option("--slo-tpot-ms", min=0.001, metavar="MS", help="Limit of the time per output token.")
    ] = None,
    percentile: Annotated[
        int, typer.Option("--percentile", min=1, max=99, metavar="P", help="Percentile at which the limits hold.")
    ] = 90,
    demand_tokens_per_day: Annotated[
        str | None,
        typer.Option(
            "--demand-tokens-per-day", metavar="N", help="Input and output tokens the fleet serves a day, as in 1e12."
        ),
    ] = None,
    budget_usd_per_hour: Annotated[
        str | None, typer.Option("--budget-usd-per-hour", metavar="USD", help="Most that the fleet may cost an hour.")
    ] = None,
    prompt_tokens: Annotated[
        str, typer.Option("--prompt-tokens", metavar="N|LOW..HIGH", help="Prompt length, fixed or uniform.")
    ] = "100..1024",
    output_tokens: Annotated[
        str, typer.Option("--output-tokens", metavar="N|LOW..HIGH", help="Output length, fixed or uniform.")
    ] = "100..1024",
    text: Annotated[
        str,
        typer.Option("--text", metavar="TEXT", help="random, docs, code or a text file: decides what a cache hits."),
    ] = "random",
    cache_gib: Annotated[
        str | None,
        typer.Option("--cache-gib", metavar="X,Y", help="Hot-row caches to try in front of finalists, in GiB."),
    ] = None,
    max_num_seqs: Annotated[
        int, typer.Option("--max-num-seqs", min=1, max=100_000, metavar="N", help="Most sequences of one replica.")
    ] = 1024,
    max_num_batched_tokens: Annotated[
        int, typer.Option("--max-num-batched-tokens", min=1, max=10_000_000, metavar="N", help="Tokens of one step.")
    ] = 8192,
    prices: PricesName = None,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of the drawn requests.")] = 0,
    output: OutputFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Choose machines, placement and load under latency limits, a demand or a budget.

    Every option is estimated in closed form; finalists are simulated; the rest is listed with the reason why not.
    TTFT is first token minus arrival, TPOT the time per output token after it, both in the steady state of a closed
    loop that keeps the stated number of requests in flight on each replica.
    """
    from tiercast_cli import inputs, plan_views, planning
    from tiercast_cli.output import check_writable, emit, progress, save, to_json

    check_writable(output)
    question = planning.question(
        model=model,
        hardware=inputs.hardware_names(hardware),
        prices=prices or "default",
        lengths=(prompt_tokens, output_tokens),
        text=text,
        engine_limits=(max_num_seqs, max_num_batched_tokens),
        seed=seed,
        limits=planning.Limits(
            slo_ttft_ms=slo_ttft_ms,
            slo_tpot_ms=slo_tpot_ms,
            percentile=percentile,
            demand_tokens_per_day=demand_tokens_per_day,
            budget_usd_per_hour=budget_usd_per_hour,
        ),
        cache_gib=cache_gib,
    )
    with progress("plan") as report:
        result = planning.answer(question, report)
    if output is not None:
        save(output, to_json(result))
    emit(result, lambda: plan_views.show(result), as_json=as_json)
    planning.check_answered(result)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("plan", epilog=EPILOG)(command)
