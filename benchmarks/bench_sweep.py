"""How long a sweep of 10,000 points takes on two processes, and that every way to run one gives the same rows.

The target is a minute on two cores. The same points run on this process, on two processes, and on a Dask cluster of two
workers of which one is killed midway; the rows of the last must equal those of the first to the byte. Nothing of
another tool is run: the peer's figure is a constant of another machine of two cores.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tiercast_cli.inputs import load_scenario
from tiercast_plan.sweep import SoFar, SweepRow, sweep

CALCULON = "Calculon caa4b11, llm-optimal-execution: 8,112 configurations in 19 s"
SETS = ("workload.num_requests=64",)
# 200 runs, each priced at 58 prices: points that differ in prices alone share a prediction.
SHARED = ("placement.tier=hbm,dram,nvme,cxl,none", "workload.concurrency=4..80..4", "placement.prefetch=off,step_entry")
NUM_PRICES = 58
PRICES = "prices.dram_usd_per_gb=4..32.5..0.5"
# The same number of points, no two of them one run.
APART = ("placement.tier=hbm,dram", "workload.concurrency=4..80..4", "seed=0..249")


def timed(varies: tuple[str, ...], **how: object) -> tuple[float, tuple[SweepRow, ...]]:
    scenario = load_scenario("v41-dram")
    start = time.perf_counter()
    rows = sweep(scenario, SETS, varies, is_nominal=True, **how)  # type: ignore[arg-type]
    return time.perf_counter() - start, rows


def lines(rows: tuple[SweepRow, ...]) -> list[str]:
    return [row.model_dump_json() for row in rows]


@contextmanager
def dask(*arguments: str, line: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    program = str(Path(sys.executable).with_name("dask"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [program, *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    )
    try:
        for text in process.stderr or ():
            if found := re.search(line, text):
                yield process, found[1]
                return
        raise SystemExit(f"dask {arguments[0]} did not start")
    finally:
        process.kill()
        process.wait()


def on_cluster(varies: tuple[str, ...]) -> tuple[float, tuple[SweepRow, ...], int]:
    """Two workers of one thread, one of which is killed once a tenth of the points is done."""
    quiet = ("--no-dashboard", "--host", "127.0.0.1")
    worker = ("--nthreads", "1", "--no-nanny", *quiet)
    with (
        dask("scheduler", "--port", "0", "--no-show", *quiet, line=r"Scheduler at:\s+(tcp://\S+)") as (_, address),
        dask("worker", address, *worker, line=r"(Registered to)") as (victim, _),
        dask("worker", address, *worker, line=r"(Registered to)"),
    ):
        killed_at = 0

        def listen(far: SoFar) -> None:
            nonlocal killed_at
            if victim.poll() is None and far.done > far.total // 10:
                victim.send_signal(signal.SIGKILL)
                victim.wait()
                killed_at = far.done

        seconds, rows = timed(varies, cluster=address, progress=listen)
        return seconds, rows, killed_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", metavar="FILE", help="write what is printed to FILE as well")
    record = parser.parse_args().record
    said = []

    def say(text: str) -> None:
        said.append(text)
        print(text, flush=True)

    seconds, rows = timed(APART, num_jobs=2)
    say(
        f"{len(rows):,} points, each a run of its own, two processes: {seconds:6.1f} s   target 60 s   peer: {CALCULON}"
    )
    seconds, rows = timed((*SHARED, PRICES), num_jobs=2)
    say(f"{len(rows):,} points of {len(rows) // NUM_PRICES:,} runs, two processes: {seconds:6.1f} s")
    few = ("placement.tier=hbm,dram", "workload.concurrency=4..80..4", "seed=0..24")
    local_s, local = timed(few)
    say(f"{len(local):,} points, this process: {local_s:6.1f} s")
    remote_s, remote, killed_at = on_cluster(few)
    assert lines(remote) == lines(local), "the rows differ"
    assert 0 < killed_at < len(local), "no worker died midway"
    say(
        f"the same on two Dask workers, one killed after {killed_at:,} points: {remote_s:6.1f} s, "
        "rows equal to the byte"
    )
    if record is not None:
        Path(record).write_text("\n".join(said) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
