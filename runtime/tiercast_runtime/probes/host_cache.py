"""What a cache of rows in front of a tier takes of a lookup that the host makes, beside reading what is missing.

Timed is the cache itself, full, so that a row that comes makes another one leave, in a thread that slept while another
one computed, as the prefetcher's worker does: a cache asked in a loop finds its index and its code where they were.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from tiercast_profiles.document import Quantity
from tiercast_profiles.hardware import HostCachePoint, ProbeResult
from tiercast_profiles.rng import stream
from tiercast_runtime.cache import Int64Array, RowCache
from tiercast_runtime.distinct import distinct_rows
from tiercast_runtime.probes.lookup_timer import disturber
from tiercast_runtime.probes.timing import Case, Clock, Effort, Spread, collect, probe_result, rounded, to_us

CACHE_ROWS = (1, 32, 256, 1024, 3072)  # nearly a line between them: fewer sizes, and more samples of each
NUM_SLOTS = 16_384  # of the built-in models' rows a cache of 0.01 GiB holds about as many for a layer
MAX_SHARE = 2  # a lookup of more than half of them would find rows gone that it has kept itself
TABLE_RATIO = 64  # rows of the table for each that the cache holds: few drawn at random are there
SPARE_ROWS = 64
FILL_RATIO = 4  # rows offered for each slot: every set gets its share

CacheKey = tuple[str, int, int]  # find, keep or hit; bytes of a row; rows


def measure_host_cache(
    row_sizes: Sequence[int],
    most_rows: int,
    effort: Effort,
    clock: Clock = time.perf_counter_ns,
    *,
    num_slots: int = NUM_SLOTS,
) -> tuple[list[HostCachePoint], list[ProbeResult]]:
    """What the cache of the host's paths takes, by row size and rows of a lookup.

    Args:
        row_sizes: bytes of a row.
        most_rows: rows of the largest lookup; timed as far as the cache holds twice as many.
        effort: of all of it.
        clock: ns.
        num_slots: rows the cache holds, least recently used first to leave.
    """
    counts = sorted(count for count in {*CACHE_ROWS, most_rows} if MAX_SHARE * count <= num_slots)
    sizes = sorted(set(row_sizes))
    with ThreadPoolExecutor(1, thread_name_prefix="tiercast-cache") as worker:
        cases: list[Case[CacheKey]] = []
        for row_bytes in sizes:
            trials = _Trials(RowCache(num_slots, row_bytes), row_bytes, worker, clock)
            for count in counts:
                cases += [trials.missing(count), trials.hits(count)]
        found = {spread.key: to_us(spread) for spread in collect(cases, effort, clock)}
    points = [
        HostCachePoint(
            num_rows=count,
            row_bytes=row_bytes,
            find_us=_mean(found["find", row_bytes, count]),
            keep_us=_mean(found["keep", row_bytes, count]),
            hit_us=_mean(found["hit", row_bytes, count]),
        )
        for row_bytes in sizes
        for count in counts
    ]
    return points, [_probe(spread, num_slots) for spread in found.values()]


class _Trials:
    """Lookups of one full cache: of rows it lacks, and of rows it has."""

    def __init__(self, cache: RowCache, row_bytes: int, worker: ThreadPoolExecutor, clock: Clock) -> None:
        self._cache, self._row_bytes, self._worker, self._clock = cache, row_bytes, worker, clock
        self._disturb = disturber()
        self._random = stream(0, f"cache/host/{row_bytes}")
        self._num_table_rows = TABLE_RATIO * cache.num_slots
        self._cache.fill(self._random.integers(0, self._num_table_rows, FILL_RATIO * cache.num_slots), self._rows)

    def missing(self, count: int) -> Case[CacheKey]:
        """Rows none of which is there: up to the read, and behind it."""
        out, source = self._rows(np.arange(count)), self._rows(np.arange(count))

        def case() -> list[tuple[CacheKey, float]]:
            begun_ns, read_ns, back_ns, ended_ns = self._timed(self._absent(count), out, source)
            assert read_ns, "none of the rows is there"
            found_ns, kept_ns = float(read_ns - begun_ns), float(ended_ns - back_ns)
            return [(("find", self._row_bytes, count), found_ns), (("keep", self._row_bytes, count), kept_ns)]

        return case

    def hits(self, count: int) -> Case[CacheKey]:
        """Rows all of which are there."""
        out, source = self._rows(np.arange(count)), self._rows(np.arange(count))

        def case() -> list[tuple[CacheKey, float]]:
            begun_ns, read_ns, _, ended_ns = self._timed(self._present(count), out, source)
            assert not read_ns, "all rows are there"
            return [(("hit", self._row_bytes, count), float(ended_ns - begun_ns))]

        return case

    def _timed(
        self, ids: Int64Array, out: npt.NDArray[np.uint8], source: npt.NDArray[np.uint8]
    ) -> tuple[int, int, int, int]:
        """When a lookup began, went to read and came back from it (0: it did not), and ended."""
        read_ns = back_ns = 0

        def read(_ids: Int64Array, rows: npt.NDArray[np.uint8]) -> None:
            nonlocal read_ns, back_ns
            read_ns = self._clock()
            rows[...] = source
            back_ns = self._clock()

        def lookup() -> tuple[int, int]:
            distinct, _ = distinct_rows(ids, self._num_table_rows, "the cache's probe")  # untimed, as a path begins
            begun_ns = self._clock()
            self._cache.fetch(distinct, out, read)
            return begun_ns, self._clock()

        self._disturb()
        begun_ns, ended_ns = self._worker.submit(lookup).result()
        return begun_ns, read_ns, back_ns, ended_ns

    def _absent(self, count: int) -> Int64Array:
        drawn = np.unique(self._random.integers(0, self._num_table_rows, 2 * count + SPARE_ROWS))
        absent = self._random.permutation(drawn[~np.isin(drawn, self._cache.row_ids)])[:count]
        assert len(absent) == count, "few of those drawn come twice or are there"
        return absent

    def _present(self, count: int) -> Int64Array:
        return self._random.permutation(self._cache.row_ids)[:count]

    def _rows(self, ids: Int64Array) -> npt.NDArray[np.uint8]:
        return np.ones((len(ids), self._row_bytes), dtype=np.uint8)


def _mean(spread: Spread[CacheKey]) -> Quantity:
    """Mean, with a band that holds the quartiles."""
    low, high = min(spread.low, spread.mean), max(spread.high, spread.mean)
    return Quantity(value=rounded(spread.mean), low=rounded(low), high=rounded(high))


def _probe(spread: Spread[CacheKey], num_slots: int) -> ProbeResult:
    part, row_bytes, num_rows = spread.key
    return probe_result(
        f"cache.host.{part}", spread, "us", {"row_bytes": row_bytes, "num_rows": num_rows, "num_slots": num_slots}
    )
