"""Random reads of a file past the page cache, and the time of a whole ``disk`` lookup by number of rows.

Both go through the reader and the path the runtime itself uses. The files live in a folder of their own that is removed
again whatever happens. Where the file system refuses direct I/O, the page cache is dropped before every sample and the
share that stayed is reported; a file that cannot leave memory (tmpfs) is not measured as a drive.
"""

import contextlib
import ctypes
import mmap
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from tiercast_profiles.document import Quantity
from tiercast_profiles.errors import FileProblem, MissingCapability
from tiercast_profiles.hardware import ProbeResult, Storage
from tiercast_profiles.quantiles import quantile
from tiercast_profiles.rng import stream
from tiercast_profiles.units import GB, MIB, NS_PER_S, NS_PER_US, format_bytes
from tiercast_runtime.aio import RowReader
from tiercast_runtime.content import expected_rows
from tiercast_runtime.paths.disk import DiskPath
from tiercast_runtime.probes.gather import GatherKey, check_rows, random_ids
from tiercast_runtime.probes.lookup_timer import NUM_DISTURBING_A_DRIVE, LookupTimer
from tiercast_runtime.probes.timing import Case, Clock, Effort, Spread, collect, probe_result, rounded, to_us
from tiercast_runtime.scratch import scratch_folder
from tiercast_runtime.table import FileTable

SPARE_BYTES = 512 * MIB  # what a probe leaves free on the disk it writes to
DISK_ROWS = (1, 8, 32, 96, 256, 1024, 3072)
SMALL_TABLE_BYTES = (
    8 * MIB
)  # in tables like this several rows of a lookup lie in one block, and some drives remember it
SMALL_TABLE_ROWS = (32, 256, 1024, 3072)
MIN_TIMES_SMALL = 8  # a file no larger than so many small tables is one itself
READ_DEPTHS = (1, 8, 32, 128)
READ_BYTES = (512, 4096, 16384, 65536)
SINGLE_READ_BYTES = 4096
NUM_SINGLE_READS = 400  # one at a time; enough for a 99th percentile
QUANTILES = {"p50_us": 0.5, "p90_us": 0.9, "p99_us": 0.99}
LARGE_READ_BYTES = 256 * 1024  # what the rate of the drive is taken from
SAMPLE_BYTES = 8 * MIB  # a sample of small reads moves up to this
MAX_RESIDENT_RATIO = 0.05

ReadKey = tuple[int, int]  # bytes of a read, reads in flight


@dataclass(frozen=True, slots=True)
class ReadTimes:
    """Raw reads of one file: ns per read by size and depth, single reads in µs, and how the file was read."""

    spreads: tuple[Spread[ReadKey], ...]
    single_us: tuple[float, ...]
    single_bytes: int
    granularity_bytes: int
    parameters: dict[str, str | int | float]

    def __add__(self, later: "ReadTimes") -> "ReadTimes":
        """The same reads at two times as one: what the drive drifted in between shows as spread, and is flagged."""
        after = {spread.key: spread.samples for spread in later.spreads}
        pooled = tuple(Spread(one.key, (*one.samples, *after[one.key])) for one in self.spreads)
        return replace(self, spreads=pooled, single_us=(*self.single_us, *later.single_us))


@dataclass(frozen=True, slots=True)
class StorageFacts:
    """What the raw reads say: the drive as a tier, and the probes."""

    storage: Storage
    probes: tuple[ProbeResult, ...]


@contextlib.contextmanager
def probe_folder(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A new folder inside ``folder`` for files of ``num_bytes`` in all, removed at the end, also after a failure.

    Raises:
        MissingCapability: the disk has too little room.
        FileProblem: the folder cannot be made.
    """
    try:
        free = shutil.disk_usage(folder).free
        if free < num_bytes + SPARE_BYTES:
            raise MissingCapability(
                f"{folder}: {format_bytes(free)} free; the storage probe writes {format_bytes(num_bytes)} and leaves "
                f"{format_bytes(SPARE_BYTES)}; give a folder on a larger disk"
            )
    except OSError as error:
        raise FileProblem(f"{folder}: cannot be written ({error.strerror or error}); give another folder") from None
    with scratch_folder(folder) as made:
        yield made


def measure_reads(
    path: Path, depths: Sequence[int], read_bytes: Sequence[int], effort: Effort, clock: Clock = time.perf_counter_ns
) -> ReadTimes:
    """Random reads of one file by size and by reads in flight.

    Raises:
        MissingCapability: the file cannot leave memory, so nothing would be read from a drive.
        FileProblem: the file cannot be read.
    """
    readers: dict[int, RowReader] = {}
    try:
        for depth in depths:
            readers[depth] = RowReader(path, depth=depth)
        reader = readers[depths[0]]
        state = exclude_page_cache(path, is_direct=reader.mode != "pread_buffered")
        sizes = [size for size in (*read_bytes, LARGE_READ_BYTES) if size % max(1, reader.granularity_bytes) == 0]
        cases = []
        for size in sizes:
            for depth in depths:
                # enough reads that the queue is full most of the time
                least = 8 * depth if size < LARGE_READ_BYTES else 2 * depth
                count = min(max(least, min(32 * depth, SAMPLE_BYTES // size)), _blocks(path, size))
                cases.append(_read_case((size, depth), readers[depth], count, clock))
        spreads = collect(cases, effort, clock)
        granularity = reader.granularity_bytes
        mode = reader.mode
        single = max(SINGLE_READ_BYTES, reader.granularity_bytes)
        alone = single_reads_us(RowReader(path, depth=1), single, clock) if _blocks(path, single) else ()
    finally:
        for open_reader in readers.values():
            open_reader.close()
    parameters: dict[str, str | int | float] = {"mode": mode, "page_cache": state, "file_bytes": path.stat().st_size}
    return ReadTimes(tuple(spreads), alone, single, granularity, parameters)


def storage_facts(path: Path, times: ReadTimes) -> StorageFacts:
    """The drive that holds ``path`` as a tier, and a probe for every size and depth."""
    probes = []
    for spread in times.spreads:
        size, depth = spread.key
        here = times.parameters | {"read_bytes": size, "depth": depth}
        probes.append(probe_result("storage.random_read", _per_s(spread), "reads/s", here))
    if times.single_us:
        probes.append(_distribution(times.single_us, times.parameters | {"read_bytes": times.single_bytes, "depth": 1}))
    return StorageFacts(_storage(path, times.spreads, times.granularity_bytes), tuple(probes))


def single_reads_us(reader: RowReader, size: int, clock: Clock = time.perf_counter_ns) -> tuple[float, ...]:
    """Times in µs of reads of one block each, one after the other, at random places; closes the reader.

    The bulk rates hide what a lookup waits for: its slowest read. A file that the page cache keeps is dropped once
    before, and no place is read twice.
    """
    generator = stream(0, f"storage/single/{size}")
    num_blocks = _blocks(reader.path, size)
    try:
        if reader.mode == "pread_buffered":
            drop_page_cache(reader.path)
        count = min(NUM_SINGLE_READS, num_blocks)
        times = []
        for block in generator.choice(num_blocks, size=count, replace=False):
            offset = np.array([block * size], dtype=np.int64)
            start_ns = clock()
            reader.read_blocks(offset, size)
            times.append((clock() - start_ns) / NS_PER_US)
    finally:
        reader.close()
    return tuple(times)


def _distribution(times_us: Sequence[float], parameters: dict[str, str | int | float]) -> ProbeResult:
    """Every single read and the quantiles; a wide distribution is the finding, not a fault of the measurement."""
    quantiles = {name: rounded(quantile(times_us, ratio)) for name, ratio in QUANTILES.items()}
    return ProbeResult(
        name="storage.single_read",
        parameters=parameters | quantiles,
        unit="us",
        samples=tuple(rounded(time_us) for time_us in times_us),
        status="ok",
    )


def measure_disk_lookups(
    table: FileTable,
    row_counts: Sequence[int],
    effort: Effort,
    clock: Clock = time.perf_counter_ns,
    *,
    moment: int = 0,
) -> tuple[list[Spread[GatherKey]], int, dict[str, str | int | float | bool]]:
    """Whole lookups of the ``disk`` path on a table file, by number of distinct rows.

    Some are made of the first rows alone, as if the table ended there. Another ``moment`` asks for other rows: whoever
    stands behind a virtual drive may remember those of the one before.

    Returns:
        The times in µs, the bytes a read is rounded to, and what the path says of itself.

    Raises:
        WrongRows: the path delivered wrong bytes.
        MissingCapability: the file cannot leave memory.
        FileProblem: the file cannot be read.
    """
    path = DiskPath([table], torch.device("cpu"))
    timer = LookupTimer(path, clock, num_disturbing=NUM_DISTURBING_A_DRIVE)
    try:
        reader = path.readers[0]
        exclude_page_cache(table.path, is_direct=reader.mode != "pread_buffered")
        row_bytes = table.engram.row_bytes
        whole: list[GatherKey] = [("disk", row_bytes, count, table.size_bytes) for count in row_counts]
        small: list[GatherKey] = [("disk", row_bytes, count, SMALL_TABLE_BYTES) for count in small_table_rows(table)]
        cases = [_lookup_case(key, path, table, timer, moment) for key in (*whole, *small)]
        spreads = [to_us(spread) for spread in collect(cases, effort, clock)]
        return spreads, reader.granularity_bytes, dict(path.facts)
    finally:
        timer.close()
        path.close()


def small_table_rows(table: FileTable) -> tuple[int, ...]:
    """Rows of the lookups that are made of a file's first rows alone; none of a file that is small itself."""
    is_large = table.size_bytes > MIN_TIMES_SMALL * SMALL_TABLE_BYTES
    num_rows = SMALL_TABLE_BYTES // table.engram.row_bytes
    return tuple(count for count in SMALL_TABLE_ROWS if count <= num_rows) if is_large else ()


def exclude_page_cache(path: Path, *, is_direct: bool) -> str:
    """Make sure reads of a file come from its drive; says how.

    Raises:
        MissingCapability: the file stays in memory whatever is asked.
    """
    if is_direct:
        return "bypassed"
    left = drop_page_cache(path)
    if left > MAX_RESIDENT_RATIO:
        raise MissingCapability(
            f"{path.parent}: files there stay in memory ({left:.0%} after dropping the page cache), so no drive would "
            "be measured; give a folder on a drive"
        )
    return "dropped before every sample"


def drop_page_cache(path: Path) -> float:
    """Write a file's pages back and drop them; returns the share that is still in memory (0 where nobody can tell)."""
    if not hasattr(os, "posix_fadvise"):
        return 1.0
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return resident_ratio(descriptor)
    finally:
        os.close(descriptor)


def resident_ratio(descriptor: int) -> float:
    """Share of a file's pages that are in memory, by ``mincore``."""
    size = os.fstat(descriptor).st_size
    if size == 0:
        return 0.0
    num_pages = -(-size // mmap.PAGESIZE)
    flags = np.zeros(num_pages, dtype=np.uint8)
    with mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE) as view:
        holder = (ctypes.c_char * size).from_buffer(view)
        mincore = ctypes.CDLL(None, use_errno=True).mincore
        status = mincore(
            ctypes.c_void_p(ctypes.addressof(holder)), ctypes.c_size_t(size), ctypes.c_void_p(flags.ctypes.data)
        )
        del holder
    if status != 0:
        raise MissingCapability("this system does not tell which pages of a file are in memory (mincore failed)")
    return float(np.mean(flags & 1))


def _blocks(path: Path, size: int) -> int:
    return path.stat().st_size // size


def _read_case(key: ReadKey, reader: RowReader, count: int, clock: Clock) -> Case[ReadKey]:
    """``count`` reads of whole blocks at random places; the value is ns per read."""
    size, depth = key
    generator = stream(0, f"storage/{size}/{depth}")
    num_blocks = _blocks(reader.path, size)

    def case() -> list[tuple[ReadKey, float]]:
        offsets = generator.choice(num_blocks, size=count, replace=False).astype(np.int64) * size
        if reader.mode == "pread_buffered":
            drop_page_cache(reader.path)
        start_ns = clock()
        reader.read_blocks(offsets, size)
        return [(key, (clock() - start_ns) / count)]

    return case


def _lookup_case(key: GatherKey, path: DiskPath, table: FileTable, timer: LookupTimer, moment: int) -> Case[GatherKey]:
    is_whole = key[3] == table.size_bytes
    num_rows = table.num_rows if is_whole else key[3] // key[1]
    generator = stream(0, f"disk/{key[1]}/{key[2]}/{moment}" + ("" if is_whole else "/small"))
    ids = random_ids(generator, num_rows, key[2], distinct=True)
    expected = expected_rows(table.engram, table.layer_index, ids[0].numpy())
    check_rows(path.fetch(0, ids), torch.from_numpy(expected))

    def case() -> list[tuple[GatherKey, float]]:
        fresh = random_ids(generator, num_rows, key[2], distinct=True)
        if path.readers[0].mode == "pread_buffered":
            drop_page_cache(table.path)
        return [(key, timer.time_ns(fresh))]

    return case


def _per_s(spread: Spread[ReadKey]) -> Spread[ReadKey]:
    return Spread(spread.key, tuple(NS_PER_S / sample for sample in spread.samples))


def _storage(path: Path, spreads: Sequence[Spread[ReadKey]], granularity: int) -> Storage:
    """The drive as a tier: latency of one small read, most small reads per second, rate of the best size and depth."""
    small = [spread for spread in spreads if spread.key[0] == min(s.key[0] for s in spreads)]
    alone = min(small, key=lambda spread: spread.key[1])
    most = max((_per_s(spread) for spread in small), key=lambda spread: spread.value)
    rates = [Spread(s.key, tuple(s.key[0] * sample / GB for sample in _per_s(s).samples)) for s in spreads]
    fastest = max(rates, key=lambda spread: spread.value)
    return Storage(
        capacity_gb=Quantity(value=rounded(shutil.disk_usage(path.parent).total / GB)),
        read_bandwidth_gb_per_s=quantity(fastest),
        latency_us=quantity(alone.scaled(1 / NS_PER_US)),
        max_reads_per_s=quantity(most),
        read_granularity_bytes=granularity,
    )


def quantity(spread: Spread[ReadKey]) -> Quantity:
    """Median with its quartiles as the band."""
    return Quantity(value=rounded(spread.value), low=rounded(spread.low), high=rounded(spread.high))
