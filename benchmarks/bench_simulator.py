"""How fast the simulator answers, each target beside a peer's figure.

Timed: steps of one run (draw, plan, price, add up; warm, best of three), columns of independent steps (best of five),
and whole commands from the shell in a fresh process, start-up included. Peers' figures are constants: nothing of
theirs is run here. They were measured on another machine of two cores, so that they give an order of magnitude and no
ratio (``peers.yaml``). A decode step is one step of the engine, a whole batch; each is priced, none is skipped.
Commands run first: a child counts the memory of its parent as its own until it starts. ``--record FILE`` writes every
figure with the machine it was measured on.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tiercast_profiles.rng import stream
from tiercast_profiles.scenario import ResolvedScenario, Scenario, combine
from tiercast_profiles.store import load_hardware, load_model, load_prices
from tiercast_profiles.workload import Workload
from tiercast_sim import maxplus, schedule_columns
from tiercast_sim.run import run

AISIMULATE = "AISimulate 0.13.0.dev20261027 (Rust): 5.5 s with start-up, 3.4 s without"
VIDUR = "Vidur 7d47513, warm: 13 s for 5,000 requests"
POISSON_PER_S = 20.0
REQUESTS = (50_000, 100_000, 200_000, 400_000)
SCENARIO = """schema_version: 1
hardware: h200-sxm
model: deepseek-v4.1-flash
parallel: {{tensor: 8}}
placement: {{tier: dram}}
workload:
  {{kind: closed_loop, concurrency: 100, num_requests: {count}, prompt_tokens: {prompt}, output_tokens: {output}}}
"""


FIGURES: dict[str, float] = {}


def scenario(
    num_requests: int, output: int, *, layers: int = 2, tensor: int = 8, streams: int = 64
) -> ResolvedScenario:
    """V4.1 on one H200 host with tables in host memory and ``layers`` Engram layers."""
    model = load_model("deepseek-v4.1-flash")
    ids = tuple(range(1, 1 + 3 * layers, 3))
    engram = type(model.engram).model_validate({**model.engram.model_dump(), "layer_ids": ids})
    asked = Scenario.model_validate(
        {
            "schema_version": 1,
            "hardware": "h200-sxm",
            "model": "deepseek-v4.1-flash",
            "parallel": {"tensor": tensor},
            "placement": {"tier": "dram"},
            "workload": {
                "kind": "closed_loop",
                "concurrency": streams,
                "num_requests": num_requests,
                "prompt_tokens": {"fixed": 256},
                "output_tokens": {"fixed": output},
            },
        }
    )
    changed = model.model_copy(update={"engram": engram})
    return combine(asked, load_hardware("h200-sxm"), changed, load_prices("default"))


def best_s(work: Callable[[], object], repeats: int) -> float:
    """Shortest process time of ``repeats`` calls."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def steps_per_s(resolved: ResolvedScenario, engine: str) -> float:
    """Steps simulated per second of one run, its plan not kept from an earlier one."""

    def once() -> int:
        schedule_columns.forget()
        return len(run(resolved, "nominal", engine=engine).steps)

    num_steps = once()
    return num_steps / best_s(once, 3)


def one_run() -> None:
    long = scenario(1280, 4096)
    same = run(long, "nominal", engine="arithmetic").samples == run(long, "nominal", engine="events").samples
    assert same, "the engines differ"
    fast, events = steps_per_s(long, "arithmetic"), steps_per_s(long, "events")
    FIGURES.update(decode_steps_per_s=fast, decode_steps_per_s_by_events=events)
    print(f"decode steps/s of one run        {fast:14,.0f}   target 1,000,000")
    print(f"  the same by SimPy events       {events:14,.0f}   ratio {fast / events:.0f}")


def by_the_clock() -> None:
    """Requests of a Poisson process that the machine keeps up with: steps have to be walked one by one."""
    closed = scenario(2000, 128)
    workload = Workload(
        kind="poisson",
        requests_per_s=POISSON_PER_S,
        num_requests=2000,
        prompt_tokens=closed.scenario.workload.prompt_tokens,
        output_tokens=closed.scenario.workload.output_tokens,
    )
    resolved = closed.model_copy(update={"scenario": closed.scenario.model_copy(update={"workload": workload})})
    same = run(resolved, "nominal", engine="arithmetic").samples == run(resolved, "nominal", engine="events").samples
    assert same, "the engines differ"
    fast, events = steps_per_s(resolved, "arithmetic"), steps_per_s(resolved, "events")
    FIGURES.update(poisson_steps_per_s=fast, poisson_steps_per_s_by_events=events)
    print(f"steps/s, Poisson arrivals        {fast:14,.0f}")
    print(f"  the same by SimPy events       {events:14,.0f}   ratio {fast / events:.0f}")


def sweep() -> None:
    num_layers, count = 2, 100_000
    generator = stream(0, "bench-simulator")

    def drawn(rows: int) -> np.ndarray:
        return generator.integers(1, 3_000_000, (rows, count))

    pre, segments, lookups = drawn(1)[0], drawn(num_layers + 1), drawn(num_layers)
    found = maxplus.step_columns(pre, segments, lookups, "step_entry")
    for index in range(0, count, 997):
        times = maxplus.StepTimes(
            int(pre[index]), tuple(map(int, segments[:, index])), tuple(map(int, lookups[:, index]))
        )
        assert maxplus.step(times, "step_entry", maxplus.Carry())[0].now_ns == found.duration_ns[index]
    seconds = best_s(lambda: maxplus.step_columns(pre, segments, lookups, "step_entry"), 5)
    FIGURES["step_scenarios_per_s"] = count / seconds
    print(f"step-scenarios/s in a sweep      {count / seconds:14,.0f}   target 10,000,000")


def from_the_shell(what: str, text: str | None, target: str, peer: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        name = "v41-dram"
        if text is not None:
            name = str(Path(folder) / "scenario.yaml")
            Path(name).write_text(text)
        command = [sys.executable, "-m", "tiercast_cli.main", "simulate", name]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ)
        _, status, used = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - start
        process.returncode = status
        assert status == 0, "the command failed"
        cpu = used.ru_utime + used.ru_stime
        size = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**20
        FIGURES.update({f"{what}: wall_s": elapsed, f"{what}: cpu_s": cpu, f"{what}: peak_mib": size})
        print(f"{what:38} {elapsed:7.2f} s wall, {cpu:6.2f} s CPU, {size:5.0f} MiB peak   target {target}   {peer}")


def growth() -> None:
    """Cost of a step as one thing grows, plan and pricing included."""
    print("µs per step (arithmetic | events) as the scenario grows; 128 output tokens each")
    base = {"layers": 2, "tensor": 8, "streams": 64}
    for name, values in (("layers", (1, 2, 4, 8)), ("tensor", (4, 8)), ("streams", (1, 16, 64, 256))):
        for value in values:
            resolved = scenario(256, 128, **{**base, name: value})
            fast, events = (1e6 / steps_per_s(resolved, engine) for engine in ("arithmetic", "events"))
            FIGURES[f"{name} {value}: us_per_step"] = fast
            FIGURES[f"{name} {value}: us_per_step_by_events"] = events
            print(f"  {name:8} {value:4}   {fast:8.2f} | {events:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the figures as JSON")
    record = parser.parse_args().record
    from_the_shell("first answer (tiercast simulate)", None, "1 s", "")
    for count in REQUESTS:
        target = "3 s" if count == 100_000 else "–"
        text = SCENARIO.format(count=count, prompt="{fixed: 1024}", output="{fixed: 128}")
        peer = f"{AISIMULATE}; {VIDUR}" if count == 100_000 else ""
        from_the_shell(f"{count:,} requests × 128 tokens", text, target, peer)
    text = SCENARIO.format(count=100_000, prompt="{uniform: [512, 1536]}", output="{uniform: [64, 192]}")
    from_the_shell("100,000 requests × 64–192 tokens", text, "3 s", "")
    few, many = (FIGURES[f"{count:,} requests × 128 tokens: peak_mib"] for count in (REQUESTS[0], REQUESTS[-1]))
    FIGURES["bytes_per_request"] = (many - few) * 2**20 / (REQUESTS[-1] - REQUESTS[0])
    print(f"memory that grows with requests  {FIGURES['bytes_per_request']:14,.0f}   bytes a request")
    one_run()
    by_the_clock()
    sweep()
    growth()
    if record is not None:
        from write_record import write_record  # brings torch: commands started beside it would count its memory

        write_record(record, {name: float(f"{value:.4g}") for name, value in FIGURES.items()})


if __name__ == "__main__":
    main()
