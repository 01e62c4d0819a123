"""``python -m gpu_evidence``: runs what is still to do, one process per stage, until the time budget is used."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from gpu_evidence import (
    stage_arms,
    stage_environment,
    stage_lookups,
    stage_predict,
    stage_probe,
    stage_publish,
    stage_sweep,
    summary,
)
from gpu_evidence.context import Context, environment_of, plain
from gpu_evidence.plan import Case
from gpu_evidence.state import State
from tiercast_profiles.errors import MissingCapability
from tiercast_profiles.units import gib_to_bytes
from tiercast_runtime.memory import host_memory_grows_to

ROOT = Path(__file__).resolve().parents[2]
STAGES: dict[str, Callable[[Context], list[Case]]] = {
    "environment": stage_environment.cases,
    "probe": stage_probe.probe_cases,
    "arms": stage_arms.arm_cases,
    "lookups": stage_lookups.cases,
    "probe-full": stage_probe.full_cases,
    "disk": stage_arms.disk_cases,
    "sweep": stage_sweep.cases,
    "predict": stage_predict.cases,
    "publish": stage_publish.cases,
}
ARITHMETIC = ("predict", "publish")  # stages that any machine can do from the records
LAST_LINE = ("num_done", "num_failed", "num_pending", "throughput_error_median", "penalty_error_median")
LEAST_SECONDS = 20  # a stage is not started with less
EXIT_MACHINE_LACKS = 4  # as the command line has it
GRACE_SECONDS = 45  # past the budget, for a case that takes longer than expected; then it is cut off


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="gpu_evidence", description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="the same stages on the CPU with the tiny model")
    parser.add_argument("--out", type=Path, default=None, help="where everything is kept (out/gpu, out/rehearsal)")
    parser.add_argument("--budget-s", type=float, default=450.0, help="seconds this call may take")
    parser.add_argument("--table-gib", type=float, default=None, help="size of the table, instead of what fits")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"only these, in order: {', '.join(STAGES)}")
    parser.add_argument("--collect", type=Path, default=None, help="copy summary and packed records here at the end")
    parser.add_argument("--retry-failed", action="store_true", help="run cases that failed once more")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = set(options.stages.split(",")) - set(STAGES)
    if unknown:
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are: {', '.join(STAGES)}")
    if options.out is None:
        options.out = Path("out") / ("rehearsal" if options.rehearse else "gpu")
    return options


def context_of(options: argparse.Namespace) -> Context:
    """The context of a stage, over the state as it is on disk now."""
    asked = None if options.table_gib is None else gib_to_bytes(options.table_gib)
    return Context(options.out, options.rehearse, asked, State.load(options.out / "state.json"))


def run_stage(
    context: Context, cases: Sequence[Case], until: float, clock: Callable[[], float] = time.monotonic
) -> None:
    """Run pending cases in order while each is expected to end in time; a failure is recorded and the rest go on."""
    state = context.state
    try:
        for case in cases:
            if not state.is_pending(case.key) or not _fits(context, case, until, clock):
                continue
            print(f"{case.key} …", flush=True)
            begin = clock()
            state.begin(case.key)
            try:
                with host_memory_grows_to(context.grown_bytes):
                    numbers = {name: plain(value) for name, value in case.run(context).items()}
                state.end(case.key, "done", clock() - begin, "", numbers)
            except Exception as error:  # whatever a case dies of is its result
                message = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                context.write(f"logs/{case.key.replace('/', '-')}-failed.txt", traceback.format_exc())
                status = "lacking" if isinstance(error, MissingCapability) else "failed"
                state.end(case.key, status, clock() - begin, message, {})
                print(f"  {status}: {message}", flush=True)
                if _is_context_lost(message):
                    break  # nothing more runs on this device in this process; the next one goes on
            context.free()  # what a failed case had on the device went with its traceback
    finally:
        context.close()


def _fits(context: Context, case: Case, until: float, clock: Callable[[], float]) -> bool:
    """Whether a case is expected to end in time in this process."""
    expected = case.seconds + (context.tables_seconds if case.needs_tables else 0.0)
    return clock() + expected <= until


def _is_context_lost(message: str) -> bool:
    """Whether a CUDA error has made every later call of this process fail too."""
    lasting = ("illegal memory access", "device-side assert", "unspecified launch failure", "misaligned address")
    return any(text in message for text in lasting)


def run(options: argparse.Namespace) -> int:
    """Every stage in a process of its own: a lost CUDA context or a crash ends one stage, not the evidence."""
    until = time.monotonic() + options.budget_s
    if options.retry_failed:
        State.load(options.out / "state.json").forget_failed()
    for stage in options.stages.split(","):
        before = None
        while until - time.monotonic() > LEAST_SECONDS:
            context = context_of(options)
            pending = [case for case in STAGES[stage](context) if context.state.is_pending(case.key)]
            keys = [case.key for case in pending]
            if keys == before or not any(_fits(context, case, until, time.monotonic) for case in pending):
                break
            before = keys
            command = [sys.executable, "-m", "gpu_evidence", *sys.argv[1:], "--out", str(options.out)]
            command += ["--child", stage, "--until", str(until)]
            try:
                _run_child(command, until - time.monotonic() + GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                print(f"{stage}: cut off", flush=True)
    context = context_of(options)
    cases = [case for stage in options.stages.split(",") for case in STAGES[stage](context)]
    data = summary.as_data(context.state, cases, is_rehearsal=options.rehearse)
    print("\n".join(summary.lines(data)))
    for path in summary.pack(options.out, data, options.collect or options.out / "packed"):
        print(f"packed {path} ({path.stat().st_size:,} B)")
    print(json.dumps({name: data[name] for name in LAST_LINE}))
    return 1 if data["num_failed"] else 0


def _run_child(command: Sequence[str], limit_s: float) -> None:
    """Run a stage; what it started itself ends with it, for it would compute beside the next one.

    Raises:
        TimeoutExpired: it took longer and was ended.
    """
    child = subprocess.Popen(command, cwd=ROOT, env=environment_of(ROOT), start_new_session=True)
    try:
        child.wait(timeout=limit_s)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def main() -> int:
    """Parent or, with ``--child``, one stage."""
    options = parse()
    options.out = options.out.resolve()
    needs_gpu = not options.rehearse and not set(options.stages.split(",")) <= set(ARITHMETIC)
    if needs_gpu and not torch.cuda.is_available():
        print("no CUDA GPU that torch can use on this machine; rehearse on the CPU with --rehearse", file=sys.stderr)
        return EXIT_MACHINE_LACKS
    if options.child is None:
        return run(options)
    context = context_of(options)
    run_stage(context, STAGES[options.child](context), options.until)
    return 0


if __name__ == "__main__":
    sys.exit(main())
