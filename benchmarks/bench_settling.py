"""Steps behind a chunk of a prompt: how well three rows of each batch, as a quick profile has them, say what they take.

Of many rounds the whole says how much longer the first step is; three rounds at a time are set against it, once with
one time for all batches and once with a time for each batch out of its own rows (the root mean square over batches).
"""

from math import sqrt
from statistics import fmean

import torch

from figures import Figures
from tiercast_profiles import store
from tiercast_profiles.units import NS_PER_US
from tiercast_runtime.device import pick_device, set_compute_threads
from tiercast_runtime.probes.layers import in_a_row
from tiercast_runtime.probes.plan import QUICK
from tiercast_runtime.probes.settling import fit_settling
from tiercast_runtime.probes.step_bench import StepBench
from tiercast_runtime.probes.timing import Spread

MODEL = "tiny"
ROUNDS, ROUNDS_OF_A_PROFILE = 60, 3
NUM_LONG_STEPS = 2  # of the longest context between two rows, as the layer probe has them

Rows = dict[int, list[list[float]]]


def main() -> None:
    figures = Figures("Decode batches that settle behind a chunk of a prompt")
    set_compute_threads()
    rows_us = _rows_us()
    whole = fit_settling(rows_us)
    figures.note(
        f"model {MODEL}, {ROUNDS} rounds of ten steps behind a chunk of {QUICK.grid.disturbing_tokens} tokens for each "
        f"of {len(rows_us)} batches; over all of them the first step takes {whole.first_us:.0f} us more "
        f"(standard error {whole.error_us:.0f} us)"
    )
    off: dict[str, list[float]] = {"one time for all batches": [], "a time for each batch": []}
    for begin in range(0, ROUNDS - ROUNDS_OF_A_PROFILE + 1, ROUNDS_OF_A_PROFILE):
        few = {count: rows[begin : begin + ROUNDS_OF_A_PROFILE] for count, rows in rows_us.items()}
        found_us = {
            "one time for all batches": [fit_settling(few).first_us],
            "a time for each batch": [fit_settling({count: rows}).first_us for count, rows in few.items()],
        }
        for way, firsts_us in found_us.items():
            off[way].append(sqrt(fmean((first_us - whole.first_us) ** 2 for first_us in firsts_us)))
    figures.compare(
        "three rows of each batch beside all rows",
        {way: Spread(way, tuple(values)) for way, values in off.items()},
        unit="us",
        ours="one time for all batches",
    )
    figures.finish()


def _rows_us() -> Rows:
    """By sequences, rows of steps behind a chunk; batches take turns."""
    grid, rows_us = QUICK.grid, {}
    with torch.inference_mode(), StepBench(store.load_model(MODEL), pick_device(), grid.geometry) as bench:
        steps = {
            count: (
                bench.step([grid.typical_context] * count, []),
                bench.step([grid.typical_context] * count, [(0, grid.disturbing_tokens)]),
                bench.step([grid.contexts[-1]] * count, []),
            )
            for count in grid.sequences
        }
        for _ in range(ROUNDS):
            for count, (step, mixed, long) in steps.items():
                row = [time_ns / NS_PER_US for _, time_ns in in_a_row(bench, step, mixed)]
                rows_us.setdefault(count, []).append(row)
                for _ in range(NUM_LONG_STEPS):
                    bench.walk(long)
    return rows_us


if __name__ == "__main__":
    main()
