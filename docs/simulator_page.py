"""The place of benchmarks/README.md that shows how fast the simulator is, what peers took beside it."""

import json
from pathlib import Path

import yaml

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
PER_STEP = ": us_per_step"
FIRST_ANSWER = "first answer (tiercast simulate)"
SHELL = ("100,000 requests × 128 tokens", "100,000 requests × 64–192 tokens")


def simulator_places() -> dict[str, str]:
    """What the committed record of ``bench_simulator.py`` says, by marker name."""
    record = json.loads((BENCHMARKS / "records" / "simulator-two-core.json").read_text(encoding="utf-8"))
    peers = yaml.safe_load((BENCHMARKS / "peers.yaml").read_text(encoding="utf-8"))
    found: dict[str, float] = record["figures"]
    lines = [
        f"Measured {record['date']} on {record['num_cores']} cores of {record['cpu_model']}, "
        f"Python {record['python']}, NumPy {record['numpy']}, load average {record['load_average']}.",
        "",
        "| what | ours | target |",
        "|---|---|---|",
        _rate(found, "steps of one run", "decode_steps_per_s", "1,000,000 /s"),
        _rate(found, "the same by events", "decode_steps_per_s_by_events", "–"),
        _rate(found, "steps of one run, Poisson arrivals", "poisson_steps_per_s", "–"),
        _rate(found, "the same by events", "poisson_steps_per_s_by_events", "–"),
        _rate(found, "step-scenarios in columns", "step_scenarios_per_s", "10,000,000 /s"),
        _shell(found, FIRST_ANSWER, "1 s"),
        *(_shell(found, what, "3 s") for what in SHELL),
        f"| memory that grows with requests | {found['bytes_per_request']:,.0f} bytes a request | – |",
        "",
        "| requests × 128 tokens, concurrency 100 | wall s | peak MiB |",
        "|---|---|---|",
        *_sizes(found),
        "",
        "| what grows | µs a step by arithmetic | by events |",
        "|---|---|---|",
    ]
    for name in (key.removesuffix(PER_STEP) for key in found if key.endswith(PER_STEP)):
        lines.append(f"| {name} | {found[name + PER_STEP]:.2f} | {found[f'{name}{PER_STEP}_by_events']:.1f} |")
    lines += ["", "| a peer, on two other cores | work | time | date |", "|---|---|---|---|"]
    lines += [f"| {one['peer']} | {one['work']} | {one['time_s']} s | {one['date']} |" for one in peers]
    return {"simulator-speed": "\n".join(lines)}


def _rate(found: dict[str, float], what: str, name: str, target: str) -> str:
    return f"| {what} | {found[name]:,.0f} /s | {target} |"


def _shell(found: dict[str, float], what: str, target: str) -> str:
    return f"| {what}, from the shell, start-up included | {found[f'{what}: wall_s']:.2f} s | {target} |"


def _sizes(found: dict[str, float]) -> list[str]:
    ending = " requests × 128 tokens: peak_mib"
    counts = [name.removesuffix(ending) for name in found if name.endswith(ending)]
    return [
        f"| {count} | {found[f'{count} requests × 128 tokens: wall_s']:.2f} | {found[count + ending]:,.0f} |"
        for count in counts
    ]
