"""Random rows of a file: our disk path beside a pread loop and a memory map; our reader beside fio, if it is here.

Every way starts with the file out of the page cache: ours reads past it, the others find it dropped before a sample.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from figures import Figures
from tiercast_profiles.rng import stream
from tiercast_profiles.stats import median
from tiercast_profiles.store import load_model
from tiercast_runtime.aio import RowReader
from tiercast_runtime.paths.disk import DiskPath
from tiercast_runtime.probes.gather import random_ids
from tiercast_runtime.probes.storage import drop_page_cache, probe_folder
from tiercast_runtime.probes.timing import Effort, Spread, collect, seconds, timed, to_ms
from tiercast_runtime.table import FileTable, expected_rows

FILE_BYTES = 256 << 20
DEPTHS = (1, 32, 128, 256)
READ_SIZES = (4096, 16384)
ROUNDS, SECONDS_EACH = 3, 1
READS_PER_CALL = 1024
OURS, OUR_READER = "ours: disk path", "ours: RowReader"


def lookups(figures: Figures, folder: Path) -> None:
    engram = load_model("tiny").engram
    table = FileTable(engram, 0, "packed", folder, num_rows=FILE_BYTES // engram.row_bytes)
    path = DiskPath([table], torch.device("cpu"))
    first, width = table.file.part_offsets[0], engram.row_bytes
    mapped = np.memmap(table.path, dtype=np.uint8, mode="r", offset=first, shape=(table.num_rows, width))
    descriptor = os.open(table.path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    direct = RowReader(table.path, depth=1)

    def preads(ids: torch.Tensor) -> npt.NDArray[np.uint8]:
        pieces = [os.pread(descriptor, width, first + row * width) for row in ids[0].tolist()]
        return np.frombuffer(b"".join(pieces), dtype=np.uint8).reshape(-1, width)

    def one_direct(ids: torch.Tensor) -> npt.NDArray[np.uint8]:
        out = np.empty((ids.shape[1], width), dtype=np.uint8)
        for index, row in enumerate(ids[0].tolist()):
            direct.read_rows(np.array([first + row * width]), out[index : index + 1])
        return out

    def ours(ids: torch.Tensor) -> npt.NDArray[np.uint8]:
        staged = path.fetch(0, ids)
        return staged.rows[staged.inverse.reshape(-1)].numpy()

    ways = {
        OURS: ours,
        "one at a time, page cache cold": preads,
        f"one at a time, {direct.mode}": one_direct,
        "numpy.memmap, page cache cold": lambda ids: mapped[ids[0].numpy()],
    }
    generator = stream(0, "bench-disk")
    figures.note(
        f"rows of {width} B out of {FILE_BYTES >> 20} MiB, {path.facts['disk_read_mode']} at depth {path.depth}"
    )
    for count, copies in ((8, 1), (96, 1), (768, 1), (3072, 1), (768, 4)):

        def draw(count: int = count, copies: int = copies) -> torch.Tensor:
            some = random_ids(generator, table.num_rows, count // copies, distinct=True)
            return some.repeat(1, copies)[:, torch.from_numpy(generator.permutation(count))]

        ids = draw()
        expected = expected_rows(engram, 0, ids[0].numpy())
        assert all(np.array_equal(way(ids), expected) for way in ways.values()), "a way returned other rows"
        holder = {"ids": ids}

        def prepare(holder: dict[str, torch.Tensor] = holder, draw: Callable[[], torch.Tensor] = draw) -> None:
            holder["ids"] = draw()
            drop_page_cache(table.path)

        cases = [timed(name, lambda way=way, h=holder: way(h["ids"]), prepare) for name, way in ways.items()]
        spreads = {spread.key: to_ms(spread) for spread in collect(cases, Effort(seconds(4), 1, 7, 40))}
        case = f"lookup of {count:,} rows" + (f", each asked for {copies} times" if copies > 1 else "")
        few = count < 96  # as deep as the lookup is: nothing to win beyond that
        figures.compare(case, spreads, unit="ms", ours=OURS, target_ratio=None if few else 5.0)
    os.close(descriptor)
    direct.close()
    path.close()
    reads(figures, table.path)


def reads(figures: Figures, file: Path) -> None:
    """The reader alone: our reads per second beside fio's, in turns, so that both meet the same drive."""
    if shutil.which("fio") is None:
        figures.note("fio is not installed: reads stand without it")
    for size in READ_SIZES:
        for depth in DEPTHS:
            rates: dict[str, list[float]] = {OUR_READER: []}
            for _ in range(ROUNDS):
                rates[OUR_READER].append(our_reads_per_s(file, size, depth))
                if shutil.which("fio") is not None:
                    rates.setdefault("fio libaio", []).append(fio_reads_per_s(file, size, depth))
            case = f"reads of {size >> 10} KiB at depth {depth}"
            if len(rates) == 1:
                print(f"{case:34} {OUR_READER:30} {median(rates[OUR_READER]):12,.0f} /s")
                continue
            spreads = {name: Spread(name, tuple(values)) for name, values in rates.items()}
            figures.compare(case, spreads, unit="reads/s", ours=OUR_READER, target_ratio=0.8)


def our_reads_per_s(file: Path, size: int, depth: int) -> float:
    """Scattered reads for about as long as fio does it; the offsets are drawn before."""
    reader = RowReader(file, depth=depth)
    num_blocks, batch = file.stat().st_size // size, READS_PER_CALL
    out = np.empty((batch, size), dtype=np.uint8)
    generator = stream(0, f"bench-disk reads {size} {depth}")
    batches = [np.sort(generator.choice(num_blocks - 1, batch, replace=False)) * size for _ in range(16)]
    count, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < SECONDS_EACH:
        reader.read_rows(batches[count // batch % len(batches)], out)
        count += batch
    rate = reader.num_reads / elapsed
    reader.close()
    return rate


def fio_reads_per_s(file: Path, size: int, depth: int) -> float:
    command = ["fio", "--name=rows", f"--filename={file}", "--readonly", "--rw=randread", f"--bs={size}", "--direct=1"]
    engine = "psync" if depth == 1 else "libaio"  # one read at a time is one system call that waits, as ours is
    command += [f"--ioengine={engine}", f"--iodepth={depth}", "--time_based", f"--runtime={SECONDS_EACH}"]
    done = subprocess.run([*command, "--output-format=json"], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["jobs"][0]["read"]["iops"])


def main() -> None:
    figures = Figures("Random rows of a file on a drive")
    # beside the work, not in /tmp, which is memory on many machines
    with probe_folder(Path.cwd(), FILE_BYTES) as folder:
        lookups(figures, folder)
    figures.finish()


if __name__ == "__main__":
    main()
