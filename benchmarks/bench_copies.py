"""Host copies: the probe's figure beside plain NumPy and torch loops over the same number of bytes."""

import time

import numpy as np
import torch

from tiercast_profiles.stats import median
from tiercast_profiles.units import GB, NS_PER_S
from tiercast_runtime.device import num_cores
from tiercast_runtime.probes.copies import copy_bytes, measure_host_copies
from tiercast_runtime.probes.host import read_host
from tiercast_runtime.probes.timing import Effort, seconds

NUM_REPEATS = 9


def plain(copy, num_bytes: int) -> float:
    """Median GB/s of a bare loop."""
    copy()
    times = []
    for _ in range(NUM_REPEATS):
        start_ns = time.perf_counter_ns()
        copy()
        times.append(time.perf_counter_ns() - start_ns)
    return num_bytes / median(times) * NS_PER_S / GB


def main() -> None:
    num_bytes = copy_bytes(256 << 20, read_host().last_level_cache_bytes)
    counts = tuple(sorted({1, num_cores()}))
    ours = measure_host_copies(num_bytes, counts, Effort(seconds(3), 1, NUM_REPEATS, 30))
    source, target = np.arange(num_bytes // 8, dtype=np.int64), np.zeros(num_bytes // 8, dtype=np.int64)
    print(f"copies of {num_bytes >> 20} MiB in host memory, median of at least {NUM_REPEATS}")
    one = ours.rates["threads_1"]
    for name, rate in ours.rates.items():
        print(f"{f'ours, {name}, verified':34} {rate.value:7.2f} GB/s  [{rate.low:.2f} .. {rate.high:.2f}]")
    numpys = plain(lambda: np.copyto(target, source), num_bytes)
    print(f"{'numpy.copyto loop':34} {numpys:7.2f} GB/s  ours/theirs {one.value / numpys:.2f}")
    left, right = torch.from_numpy(source), torch.from_numpy(target)
    for count in counts:
        torch.set_num_threads(count)
        theirs, mine = plain(lambda: right.copy_(left), num_bytes), ours.rates[f"threads_{count}"]
        print(f"{f'torch copy_ loop, {count} threads':34} {theirs:7.2f} GB/s  ours/theirs {mine.value / theirs:.2f}")


if __name__ == "__main__":
    main()
