"""Random rows of a file: our disk path beside a pread loop and a memory map; our reader beside fio, if it is here.

Every way starts with the file out of the page cache: ours reads past it, the others find it dropped before a sample.
numpy.memmap is timed in rounds of its own: it reads most of the file ahead and leaves the processor's caches cold for
what comes next, which took a lookup of 96 rows from 1.1 to 2.8 ms. What cold caches cost has a case of its own, where
every way runs after as much compute as a short step has.
"""

import json
import mmap
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
from tiercast_runtime.paths.base import StagedRows
from tiercast_runtime.paths.disk import DiskPath
from tiercast_runtime.probes.gather import random_ids
from tiercast_runtime.probes.lookup_timer import DISTURBING_SIDE, NUM_DISTURBING_A_DRIVE
from tiercast_runtime.probes.storage import drop_page_cache, probe_folder
from tiercast_runtime.probes.timing import Effort, Spread, collect, seconds, timed, to_ms
from tiercast_runtime.table import FileTable, expected_rows

FILE_BYTES = 256 << 20
DEPTHS = (1, 32, 256)
ROUNDS, SECONDS_EACH = 3, 1
READS_PER_CALL = 4096
CPU = torch.device("cpu")
OURS, OUR_READER = "ours: disk path", "ours: RowReader"
NAIVE_MAP = "numpy.memmap, cache cold"


class Ways:
    """Each way from ids ``[1, n]`` to rows. Maps are made anew for each sample: a mapped page cannot be dropped."""

    def __init__(self, table: FileTable) -> None:
        self.table = table
        self.path = DiskPath([table], CPU)
        self._first, self._width = table.file.part_offsets[0], table.engram.row_bytes
        self._file = os.open(table.path, os.O_RDONLY)
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)
        self._direct = RowReader(table.path, depth=1)
        self._block = self._direct.granularity_bytes
        self._page = mmap.mmap(-1, 1 << 16)
        self._mapped: DiskPath | None = None
        self._plain_map: npt.NDArray[np.uint8] | None = None
        self.ways: dict[str, Callable[[torch.Tensor], npt.NDArray[np.uint8]]] = {
            OURS: lambda ids: _rows(self.path.fetch(0, ids)),
            "one pread at a time, cache cold": self._preads,
            "one direct read at a time": self._direct_reads,
            "path disk by mmap, cache cold": lambda ids: _rows(self._mapped.fetch(0, ids)),
            NAIVE_MAP: lambda ids: self._plain_map[ids[0].numpy()],
        }

    def prepare(self) -> None:
        """Drop the page cache, with nothing mapped, and map again."""
        if self._mapped is not None:
            self._mapped.close()
        self._plain_map = None
        drop_page_cache(self.table.path)
        self._mapped = DiskPath([self.table], CPU, mode="mmap")
        shape = (self.table.num_rows, self._width)
        self._plain_map = np.memmap(self.table.path, dtype=np.uint8, mode="r", offset=self._first, shape=shape)

    def _preads(self, ids: torch.Tensor) -> npt.NDArray[np.uint8]:
        pieces = [os.pread(self._file, self._width, self._first + row * self._width) for row in ids[0].tolist()]
        return np.frombuffer(b"".join(pieces), dtype=np.uint8).reshape(-1, self._width)

    def _direct_reads(self, ids: torch.Tensor) -> npt.NDArray[np.uint8]:
        pieces = []
        for row in ids[0].tolist():
            offset = self._first + row * self._width
            start = offset // self._block * self._block
            length = -(-(offset + self._width) // self._block) * self._block - start
            os.preadv(self._direct._descriptor, [memoryview(self._page)[:length]], start)
            pieces.append(self._page[offset - start : offset - start + self._width])
        return np.frombuffer(b"".join(pieces), dtype=np.uint8).reshape(-1, self._width)

    def close(self) -> None:
        if self._mapped is not None:
            self._mapped.close()
        self._plain_map = None
        os.close(self._file)
        self._direct.close()
        self.path.close()


def _rows(staged: StagedRows) -> npt.NDArray[np.uint8]:
    """Rows in the order of the ids, as the other ways deliver them.

    NumPy, not torch: after a pause torch's second thread is asleep, and indexing 96 rows with two threads took 5 ms.
    """
    places = staged.inverse.numpy().reshape(-1)
    return staged.rows.numpy()[places]


def lookups(figures: Figures, folder: Path) -> None:
    engram = load_model("tiny").engram
    table = FileTable(engram, 0, "packed", folder, num_rows=FILE_BYTES // engram.row_bytes)
    both = Ways(table)
    generator = stream(0, "bench-disk")
    facts = both.path.facts
    figures.note(
        f"rows of {engram.row_bytes} B out of {FILE_BYTES >> 20} MiB, {facts['disk_read_mode']}, "
        f"depth {both.path.depth}, blocks of {facts['disk_block_bytes']} B"
    )
    vector, matrix = torch.ones(1, DISTURBING_SIDE), torch.ones(DISTURBING_SIDE, DISTURBING_SIDE)
    for count, copies, num_products in (
        (8, 1, 0),
        (96, 1, 0),
        (96, 1, NUM_DISTURBING_A_DRIVE),
        (768, 1, 0),
        (3072, 1, 0),
        (768, 4, 0),
    ):
        holder = {}

        def prepare(
            count: int = count,
            copies: int = copies,
            num_products: int = num_products,
            holder: dict[str, torch.Tensor] = holder,
        ) -> None:
            some = random_ids(generator, table.num_rows, count // copies, distinct=True)
            holder["ids"] = some.repeat(1, copies)[:, torch.from_numpy(generator.permutation(count))]
            both.prepare()
            for _ in range(num_products):
                torch.mm(vector, matrix)

        prepare()
        expected = expected_rows(engram, 0, holder["ids"][0].numpy())
        assert all(np.array_equal(way(holder["ids"]), expected) for way in both.ways.values()), "other rows"
        cases = {name: timed(name, lambda way=way, h=holder: way(h["ids"]), prepare) for name, way in both.ways.items()}
        naive = cases.pop(NAIVE_MAP)
        found = [*collect(list(cases.values()), Effort(seconds(4), 1, 15, 40)), *collect([naive], Effort(0, 1, 7, 7))]
        spreads = {spread.key: to_ms(spread) for spread in found}
        case = f"lookup of {count:,} rows" + (f", each asked for {copies} times" if copies > 1 else "")
        case += ", after a short step's compute" if num_products else ""
        few = count < 96  # fewer reads than the drive takes at once
        maps = tuple(name for name in spreads if "mmap" in name or "memmap" in name)
        figures.compare(case, spreads, unit="ms", ours=OURS, target_ratio=None if few else 5.0, aside=maps)
        beside_maps = {name: spreads[name] for name in (OURS, *maps)}
        figures.compare(f"{case}, beside a map", beside_maps, unit="ms", ours=OURS)
    both.close()
    reads(figures, table.path)


def reads(figures: Figures, file: Path) -> None:
    """The reader alone: our reads per second beside fio's, in turns, so that both meet the same drive."""
    has_fio = shutil.which("fio") is not None
    if not has_fio:
        figures.note("fio is not installed: reads stand without it")
    reader = RowReader(file)
    sizes = {reader.granularity_bytes: "rows of 264 B, each in a block of", 4096: "reads of", 16384: "reads of"}
    reader.close()
    for size, what in sizes.items():
        for depth in DEPTHS:
            rates: dict[str, list[float]] = {OUR_READER: []}
            for _ in range(ROUNDS):
                rates[OUR_READER].append(our_reads_per_s(file, size, depth, cuts_rows=what.startswith("rows")))
                if has_fio:
                    rates.setdefault("fio libaio", []).append(fio_reads_per_s(file, size, depth))
            case = f"{what} {size:,} B, depth {depth}"
            if not has_fio:
                print(f"{case:34} {OUR_READER:30} {median(rates[OUR_READER]):12,.0f} /s")
                continue
            spreads = {name: Spread(name, tuple(values)) for name, values in rates.items()}
            figures.compare(case, spreads, unit="reads/s", ours=OUR_READER, target_ratio=0.8)


def our_reads_per_s(file: Path, size: int, depth: int, *, cuts_rows: bool) -> float:
    """Scattered reads of one block each for about as long as fio does it; the offsets are drawn before."""
    reader = RowReader(file, depth=depth)
    num_blocks, batch = file.stat().st_size // size - 1, READS_PER_CALL
    out = np.empty((batch, 264), dtype=np.uint8)
    generator = stream(0, f"bench-disk reads {size} {depth}")
    batches = [np.sort(generator.choice(num_blocks, batch, replace=False)) * size for _ in range(16)]
    count, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < SECONDS_EACH:
        offsets = batches[count % len(batches)]
        if cuts_rows:
            reader.read_rows(offsets, out)
        else:
            reader.read_blocks(offsets, size)
        count += 1
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
