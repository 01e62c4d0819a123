"""What one small read costs the host beyond the drive's own time: system call, file system, completion, wake-up.

A thread reads 4 KiB at a time past the page cache and times each read; the kernel counts the time the same requests
spent at the drive (/proc/diskstats). Reads a page that is in memory show what the call alone costs.
"""

import argparse
import datetime
import json
import mmap
import os
import platform
import tempfile
import time
from pathlib import Path

from tiercast_profiles.quantiles import quantile
from tiercast_profiles.rng import stream
from tiercast_profiles.stats import median
from tiercast_runtime.probes.storage import probe_folder

FILE_BYTES = 256 << 20
READ_BYTES = 4096
NUM_ROUNDS = 60
READS_PER_ROUND = 500
DISKSTATS = Path("/proc/diskstats")


def at_the_drive(device: int) -> tuple[int, int]:
    """Reads a block device has done, and the ms they spent there (kernel documentation, admin-guide/iostats)."""
    for line in DISKSTATS.read_text().splitlines():
        words = line.split()
        if (int(words[0]), int(words[1])) == (os.major(device), os.minor(device)):
            return int(words[3]), int(words[6])
    raise SystemExit("this file system lies on no block device of /proc/diskstats; give a folder that does")


def rounds_us(path: Path, flags: int) -> list[tuple[float, float]]:
    """Mean µs of a read as the reader sees it, and at the drive, by round; the second is 0 where nothing was read."""
    generator = stream(0, "bench-read-cost")
    room = mmap.mmap(-1, READ_BYTES)
    descriptor = os.open(path, os.O_RDONLY | flags)
    device = os.fstat(descriptor).st_dev
    found = []
    try:
        for _ in range(NUM_ROUNDS):
            offsets = (generator.integers(0, FILE_BYTES // READ_BYTES, READS_PER_ROUND) * READ_BYTES).tolist()
            reads_before, ms_before = at_the_drive(device)
            start_ns = time.perf_counter_ns()
            for offset in offsets:
                assert os.preadv(descriptor, [room], offset) == READ_BYTES, "a short read"
            elapsed_ns = time.perf_counter_ns() - start_ns
            reads, ms = at_the_drive(device)
            if flags and reads - reads_before > READS_PER_ROUND * 1.02:
                continue  # somebody else read the drive in this round
            own_us = (ms - ms_before) * 1e3 / READS_PER_ROUND if flags else 0.0
            found.append((elapsed_ns / 1e3 / READS_PER_ROUND, own_us))
    finally:
        os.close(descriptor)
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median, and what a tenth of the rounds lies below and above."""
    ordered = sorted(values)
    found = {"p10": quantile(ordered, 0.1), "median": median(ordered), "p90": quantile(ordered, 0.9)}
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the figures as JSON")
    arguments = parser.parse_args()
    with probe_folder(arguments.folder, FILE_BYTES) as folder:
        path = folder / "reads.bin"
        path.write_bytes(stream(0, "bench-read-cost/file").bytes(FILE_BYTES))
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        direct = rounds_us(path, os.O_DIRECT)
        in_memory = rounds_us(path, 0)
        os.close(descriptor)
    if not direct:
        raise SystemExit("the drive was never ours alone for a round; run again on a quieter machine")
    figures = {
        "read, as the reader sees it": spread([seen for seen, _ in direct]),
        "read, at the drive": spread([own for _, own in direct]),
        "host's share of a read": spread([seen - own for seen, own in direct]),
        "page in memory": spread([seen for seen, _ in in_memory]),
    }
    print(f"reads of {READ_BYTES} B one after another; us, over {len(direct)} rounds of {READS_PER_ROUND}")
    for name, values in figures.items():
        print(f"{name:30} {values['median']:8.2f} [{values['p10']:.2f} .. {values['p90']:.2f}]")
    if arguments.record is not None:
        record = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "num_cores": os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 2),
            "kernel": platform.release(),
            "num_rounds": len(direct),
            "reads_per_round": READS_PER_ROUND,
            "us": figures,
        }
        arguments.record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
