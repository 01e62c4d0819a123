"""Random rows of a file: our disk path beside a pread loop and a memory map; our reader beside fio, if it is here.

Every way starts with the file out of the page cache: ours reads past it, the others find it dropped before a sample.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch

from tiercast_profiles.rng import stream
from tiercast_profiles.stats import median
from tiercast_profiles.store import load_model
from tiercast_runtime.paths.disk import DiskPath
from tiercast_runtime.probes.gather import random_ids
from tiercast_runtime.probes.storage import QUANTILES, drop_page_cache, measure_reads, probe_folder, storage_facts
from tiercast_runtime.probes.timing import Effort, collect, seconds, timed
from tiercast_runtime.table import FileTable, expected_rows

FILE_BYTES = 256 << 20
COUNTS = (8, 96, 768)
DEPTHS = (1, 32, 128)
READ_SIZES = (4096, 16384, 65536)
FIO_SECONDS = 2
AGREED_RATIO = 0.15


def lookups(folder: Path) -> None:
    engram = load_model("tiny").engram
    table = FileTable(engram, 0, "packed", folder, num_rows=FILE_BYTES // engram.row_bytes)
    path = DiskPath([table], torch.device("cpu"))
    first, width = table.file.part_offsets[0], engram.row_bytes
    mapped = np.memmap(table.path, dtype=np.uint8, mode="r", offset=first, shape=(table.num_rows, width))
    descriptor = os.open(table.path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def preads(ids):
        pieces = [os.pread(descriptor, width, first + row * width) for row in ids[0].tolist()]
        return np.frombuffer(b"".join(pieces), dtype=np.uint8).reshape(-1, width)

    def ours(ids):
        staged = path.fetch(0, ids)
        return staged.rows[staged.inverse.reshape(-1)].numpy()

    ways = {"ours: disk path": ours, "os.pread loop": preads, "numpy.memmap[ids]": lambda ids: mapped[ids[0].numpy()]}
    generator = stream(0, "bench-disk")
    print(f"rows of {width} B out of {FILE_BYTES >> 20} MiB, {path.facts['disk_read_mode']}; median ms [quartiles]")
    for count in COUNTS:
        ids = random_ids(generator, table.num_rows, count, distinct=True)
        expected = expected_rows(engram, 0, ids[0].numpy())
        assert all(np.array_equal(way(ids), expected) for way in ways.values()), "a way returned other rows"
        holder = {"ids": ids}

        def prepare(holder=holder, count=count):
            holder["ids"] = random_ids(generator, table.num_rows, count, distinct=True)
            drop_page_cache(table.path)

        cases = [timed(name, lambda way=way, h=holder: way(h["ids"]), prepare) for name, way in ways.items()]
        spreads = {spread.key: spread for spread in collect(cases, Effort(seconds(4), 1, 7, 40))}
        mine = spreads["ours: disk path"].value
        for name, spread in spreads.items():
            low, value, high = (np.array([spread.low, spread.value, spread.high]) / 1e6).round(2)
            print(f"{count:6} rows  {name:20} {value:8} [{low} .. {high}]  this/ours {spread.value / mine:.2f}")
    os.close(descriptor)
    path.close()
    reads(table.path)


def reads(file: Path) -> None:
    facts = storage_facts(file, measure_reads(file, DEPTHS, READ_SIZES, Effort(seconds(6), 1, 7, 40)))
    has_fio = shutil.which("fio") is not None
    print("random reads, direct" + ("" if has_fio else "; fio is not installed, so ours stands alone"))
    for probe in facts.probes:
        if probe.name == "storage.single_read":
            times = "  ".join(f"{name} {probe.parameters[name]:g}" for name in QUANTILES)
            print(f"{probe.parameters['read_bytes']:6} B  one read at a time, {len(probe.samples)} of them: {times}")
            continue
        size = int(probe.parameters["read_bytes"])
        if size not in READ_SIZES:
            continue
        depth, mine = int(probe.parameters["depth"]), median(probe.samples)
        beside = ""
        if has_fio:
            theirs = fio_reads_per_s(file, size, depth)
            verdict = "agree" if abs(mine / theirs - 1) <= AGREED_RATIO else "apart"
            beside = f"  fio {theirs:9,.0f}  ours/fio {mine / theirs:.2f} {verdict}"
        print(f"{size:6} B  depth {depth:4}  ours {mine:9,.0f} reads/s{beside}")


def fio_reads_per_s(file: Path, size: int, depth: int) -> float:
    command = ["fio", "--name=rows", f"--filename={file}", "--readonly", "--rw=randread", f"--bs={size}", "--direct=1"]
    command += ["--ioengine=libaio", f"--iodepth={depth}", "--time_based", f"--runtime={FIO_SECONDS}"]
    done = subprocess.run([*command, "--output-format=json"], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["jobs"][0]["read"]["iops"])


def main() -> None:
    # beside the work, not in /tmp, which is memory on many machines
    with probe_folder(Path.cwd(), FILE_BYTES) as folder:
        lookups(folder)


if __name__ == "__main__":
    main()
