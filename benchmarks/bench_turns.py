"""Arms served in turns beside arms served one after the other: how far what they lose scatters from round to round.

And why a thread that computes beside reads of a drive keeps off the core that serves the drive's interrupts: layers
bound to that core and to another one, alone and beside a lookup.
"""

import os
from contextlib import ExitStack
from pathlib import Path

import torch

from figures import Figures
from tiercast_cli import suite
from tiercast_profiles import store
from tiercast_profiles.quantiles import median
from tiercast_profiles.rng import stream
from tiercast_profiles.stats import SampleStatistics
from tiercast_runtime.cores import on_cores
from tiercast_runtime.device import set_compute_threads
from tiercast_runtime.engine import Engine
from tiercast_runtime.interrupts import clear_cores
from tiercast_runtime.paths.disk import DiskPath
from tiercast_runtime.prefetch import Prefetcher
from tiercast_runtime.probes.gather import random_ids
from tiercast_runtime.probes.step_bench import Geometry, StepBench
from tiercast_runtime.probes.timing import Spread
from tiercast_runtime.table import FileTable
from tiercast_runtime.table_folders import table_folder
from tiercast_runtime.turns import run_in_turns

CPU = torch.device("cpu")
PROFILE = Path(__file__).parents[1] / "validation" / "two-core-epyc" / "suite" / "profile.yaml"  # only room counts here
WORK, ARMS = "eight", ("none", "dram", "nvme", "nvme-off")
ROUNDS, PASSES = 10, 12
CHUNK_TOKENS = 228


def main() -> None:
    figures = Figures("Arms served in turns beside arms served one after the other")
    set_compute_threads()
    folder = table_folder(None)
    losses = _losses(folder)
    figures.note(f"work {WORK} of the suite, model tiny, {ROUNDS} rounds each way, which take turns")
    for arm in ARMS[1:]:
        found = {way: by_arm[arm] for way, by_arm in losses.items()}
        lost = ", ".join(f"{median(values):.1f} {way}" for way, values in found.items())
        figures.note(f"{arm}: median points of throughput lost against no Engram: {lost}")
        off = {way: [abs(value - median(values)) for value in values] for way, values in found.items()}
        figures.compare(
            f"{arm}: distance of a round's loss from the median", _spreads(off), unit="points", ours="in turns"
        )
    _interrupts(figures, folder)
    figures.finish()


def _spreads(found: dict[str, list[float]]) -> dict[str, Spread[str]]:
    return {way: Spread(way, tuple(values)) for way, values in found.items()}


def _losses(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Points of throughput lost against the first arm in the same round, by way and arm."""
    cases, _ = store.load_suite()
    ready = suite.scenarios(cases, str(PROFILE))
    losses: dict[str, dict[str, list[float]]] = {way: {arm: [] for arm in ARMS[1:]} for way in ("in turns", "in a row")}
    with ExitStack() as stack:
        engines: list[Engine] = []
        for arm in ARMS:
            engines.append(stack.enter_context(Engine(ready[f"{WORK}/{arm}"], CPU, folder, others=engines)))
        for _ in range(ROUNDS):
            for way, by_arm in losses.items():
                runs = [each.run for each in run_in_turns(engines)] if way == "in turns" else [e.run() for e in engines]
                rates = [SampleStatistics(run.samples).output_tokens_per_s for run in runs]
                for arm, rate in zip(ARMS[1:], rates[1:], strict=True):
                    by_arm[arm].append(100 * (1 - rate / rates[0]))
    return losses


def _interrupts(figures: Figures, folder: Path) -> None:
    """Layers of a chunk beside the lookups of a step, bound to a core that the drive interrupts and to another."""
    model = store.load_model("tiny")
    table = FileTable(model.engram, 0, "packed", folder)
    clear = clear_cores(table.path, 1)
    if clear is None:
        figures.note("this drive interrupts whichever core asks: nothing to keep clear of")
        return
    cores = {"clear of interrupts": min(clear), "interrupted": min(set(os.sched_getaffinity(0)) - clear)}
    num_layers = len(model.engram.layer_ids)
    path = DiskPath([table] * num_layers, CPU)
    generator = stream(0, "bench turns")
    beside: dict[str, list[float]] = {name: [] for name in cores}
    with StepBench(model, CPU, Geometry(1, 256, 256)) as bench, torch.inference_mode():
        prefetcher = Prefetcher(path, "step_entry")
        batch = bench.batch(bench.step([], [(0, CHUNK_TOKENS)]))
        hidden = bench.backbone.embed(batch)

        def pass_ns() -> int:
            begin_ns = bench.clock()
            bench.layers_pass(hidden, batch)
            return bench.clock() - begin_ns

        for _ in range(PASSES):
            for name, core in cores.items():
                ids = [
                    random_ids(generator, table.num_rows, CHUNK_TOKENS * model.engram.num_rows_per_token)
                    for _ in range(num_layers)
                ]
                with on_cores(frozenset({core})):
                    pass_ns()
                    before_ns = pass_ns()
                    prefetcher.begin_step(torch.stack(ids))
                    beside_ns = pass_ns()
                    for index in range(num_layers):
                        prefetcher.rows_for(index)
                    prefetcher.take_timings()
                    pass_ns()
                    beside[name].append(beside_ns / ((before_ns + pass_ns()) / 2))
        prefetcher.close()
    path.close()
    figures.note(f"a lookup of {CHUNK_TOKENS} tokens for each of {num_layers} layers beside all decoder layers")
    figures.compare(
        "layers beside lookups from a drive, over the same alone",
        _spreads(beside),
        unit="times",
        ours="clear of interrupts",
    )


if __name__ == "__main__":
    main()
