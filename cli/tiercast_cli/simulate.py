"""``tiercast simulate``: predict a scenario."""

import typer

from tiercast_cli.options import JsonFlag, OutputFile, ProfileFile, Replicates, ScenarioArgument, TraceFile, examples

EPILOG = examples(
    "tiercast simulate v41-dram",
    "tiercast simulate v41-dram --replicates 5",
    "tiercast simulate my.yaml --profile profile.yaml -o predicted.json --trace predicted-trace.json",
)


def command(
    scenario: ScenarioArgument,
    *,
    profile: ProfileFile = None,
    output: OutputFile = None,
    trace: TraceFile = None,
    replicates: Replicates = 1,
    as_json: JsonFlag = False,
) -> None:
    """Predict a scenario, each number with an interval.

    The result is a simulated record: throughput, latency, stall and memory.
    """
    from tiercast_cli import inputs, views
    from tiercast_cli.output import check_writable, emit, save
    from tiercast_profiles.timeline import chrome_trace
    from tiercast_sim.replicates import simulate_replicates
    from tiercast_sim.simulate import simulate

    resolved = inputs.resolve(scenario, profile)
    check_writable(output, trace, reads=(scenario, profile))
    keeps_samples = as_json or output is not None or trace is not None
    if replicates == 1:
        record = simulate(resolved, keep_samples=keeps_samples)
    else:
        record = simulate_replicates(resolved, replicates, keep_samples=keeps_samples)
    if output is not None:
        save(output, record.to_json())
    if trace is not None:
        save(trace, chrome_trace([record]))
    emit(record, lambda: views.record(record), as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("simulate", epilog=EPILOG)(command)
