"""The lookup worker as a process beside the same worker as a thread: what each costs the compute that runs beside it.

Both serve the same lookups from the same file, as fast as they can, while decoder layers run on the compute thread.
"""

import time
from pathlib import Path

import torch

from figures import Figures
from tiercast_profiles.rng import stream
from tiercast_profiles.store import load_model
from tiercast_runtime.aio import DEFAULT_DEPTH
from tiercast_runtime.device import set_compute_threads
from tiercast_runtime.paths.disk import DiskPath
from tiercast_runtime.prefetch_lanes import WorkerLane
from tiercast_runtime.prefetch_process import ProcessLane
from tiercast_runtime.probes.gather import random_ids
from tiercast_runtime.probes.step_bench import Geometry, StepBench
from tiercast_runtime.probes.storage import probe_folder
from tiercast_runtime.probes.timing import Spread
from tiercast_runtime.table import FileTable

CPU = torch.device("cpu")
NUM_LOOKUPS = 8  # per pass of the layers: more than fit beside it, so that one is always running
SEQUENCES, CONTEXT = 8, 128
ROUNDS = 25
FILE_BYTES = 256 << 20


def main() -> None:
    figures = Figures("The lookup worker of path disk as a process beside the same as a thread")
    model = load_model("tiny")
    set_compute_threads()
    columns = model.engram.num_rows_per_token
    with probe_folder(Path.cwd(), FILE_BYTES) as folder, StepBench(model, CPU, Geometry(SEQUENCES, 256, 256)) as bench:
        table = FileTable(model.engram, 0, "packed", folder)
        path = DiskPath([table] * NUM_LOOKUPS, CPU)
        generator = stream(0, "bench-lookup-worker")

        def ids() -> torch.Tensor:
            drawn = [random_ids(generator, table.num_rows, SEQUENCES * columns) for _ in range(NUM_LOOKUPS)]
            return torch.stack(drawn)

        lanes = {"thread": WorkerLane(path, time.perf_counter_ns), "process": ProcessLane(path)}
        with torch.inference_mode():
            batch = bench.batch(bench.step([CONTEXT] * SEQUENCES, []))
            hidden = bench.backbone.embed(batch)

            def compute_ms() -> float:
                begin = time.perf_counter_ns()
                bench.layers_pass(hidden, batch)
                return (time.perf_counter_ns() - begin) / 1e6

            alone, beside, served = [], {name: [] for name in lanes}, {name: [] for name in lanes}
            for _ in range(ROUNDS):
                alone.append(compute_ms())
                for name, lane in lanes.items():
                    lane.begin_step(ids())
                    beside[name].append(compute_ms())
                    for index in range(NUM_LOOKUPS):
                        lane.rows_for(index)
                    served[name] += [(t.ready_ns - t.started_ns) / 1e6 for t in lane.take_timings()]
        figures.note(f"{model.backbone.num_layers} decoder layers, {SEQUENCES} sequences, depth {DEFAULT_DEPTH}")
        computes = {"process": beside["process"], "thread": beside["thread"], "alone": alone}
        for case, found in (("compute beside a lookup", computes), ("lookup beside compute", served)):
            spreads = {name: Spread(name, tuple(times)) for name, times in found.items()}
            figures.compare(case, spreads, unit="ms", ours="process", aside=("alone",))
        for lane in lanes.values():
            lane.close()
        path.close()
    figures.finish()


if __name__ == "__main__":
    main()
