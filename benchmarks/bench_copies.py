"""The probes' rates beside others in one run: host copies beside plain NumPy and torch loops, drive reads beside fio.

Ours and theirs take turns, so that a drift of the machine does not tell them apart. ``--record FILE`` writes every
figure with the machine it was measured on.
"""

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from bench_disk import FILE_BYTES, fio_reads_per_s
from tiercast_profiles.stats import median
from tiercast_profiles.store import load_model
from tiercast_profiles.units import GB, NS_PER_S
from tiercast_runtime.device import num_cores
from tiercast_runtime.probes.copies import copy_bytes, measure_host_copies
from tiercast_runtime.probes.host import read_host
from tiercast_runtime.probes.storage import measure_reads, probe_folder, storage_facts
from tiercast_runtime.probes.timing import Effort, seconds
from tiercast_runtime.table import FileTable
from write_record import write_record

NUM_TURNS, NUM_REPEATS = 6, 3
AGREED_RATIO = 0.15
READS = ((4096, 1), (4096, 32), (16384, 32), (65536, 32))
FIGURES: dict[str, object] = {}


def plain(copy, num_bytes: int) -> list[float]:
    """GB/s of a bare loop."""
    copy()
    rates = []
    for _ in range(NUM_REPEATS):
        start_ns = time.perf_counter_ns()
        copy()
        rates.append(num_bytes / (time.perf_counter_ns() - start_ns) * NS_PER_S / GB)
    return rates


def beside(label: str, ours: list[float], theirs: list[float], unit: str) -> None:
    """One line, and one figure of the record."""
    mine, other = median(ours), median(theirs)
    verdict = "agree" if abs(mine / other - 1) <= AGREED_RATIO else "apart"
    FIGURES[label] = {"ours": mine, "theirs": other, "unit": unit, "ours_over_theirs": mine / other, "verdict": verdict}
    print(f"{label:44} ours {mine:10,.2f}  theirs {other:10,.2f} {unit:8} ours/theirs {mine / other:.2f}  {verdict}")


def copies() -> None:
    num_bytes = copy_bytes(256 << 20, read_host().last_level_cache_bytes)
    source, target = np.arange(num_bytes // 8, dtype=np.int64), np.zeros(num_bytes // 8, dtype=np.int64)
    left, right = torch.from_numpy(source), torch.from_numpy(target)
    print(f"copies of {num_bytes >> 20} MiB in host memory, {NUM_TURNS} turns of {NUM_REPEATS}, median")
    for count in sorted({1, num_cores()}):
        torch.set_num_threads(count)
        ours, numpys, torchs = [], [], []
        for _ in range(NUM_TURNS):
            found = measure_host_copies(num_bytes, (count,), Effort(0, 1, NUM_REPEATS, NUM_REPEATS))
            ours += found.rates[f"threads_{count}"].samples
            torchs += plain(lambda: right.copy_(left), num_bytes)
            if count == 1:
                numpys += plain(lambda: np.copyto(target, source), num_bytes)
        if numpys:
            beside("copy, 1 thread, beside numpy.copyto", ours, numpys, "GB/s")
        beside(f"copy, {count} threads, beside torch copy_", ours, torchs, "GB/s")


def reads() -> None:
    if shutil.which("fio") is None:
        print("fio is not installed, so the reads of the drive stand beside nothing")
        return
    engram = load_model("tiny").engram
    # beside the work, not in /tmp, which is memory on many machines
    with probe_folder(Path.cwd(), FILE_BYTES) as folder:
        file = FileTable(engram, 0, "packed", folder, num_rows=FILE_BYTES // engram.row_bytes).path
        for size, depth in READS:
            ours, theirs = [], []
            for _ in range(NUM_TURNS):
                times = measure_reads(file, (depth,), (size,), Effort(seconds(1), 1, 7, 200))
                probes = storage_facts(file, times).probes
                ours += next(
                    p for p in probes if p.parameters.get("read_bytes") == size and p.unit == "reads/s"
                ).samples
                theirs.append(fio_reads_per_s(file, size, depth))
            beside(f"random reads, {size} B, depth {depth}, beside fio", ours, theirs, "reads/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the figures as JSON")
    record = parser.parse_args().record
    copies()
    reads()
    if record is not None:
        write_record(record, FIGURES, torch=torch.__version__)


if __name__ == "__main__":
    main()
