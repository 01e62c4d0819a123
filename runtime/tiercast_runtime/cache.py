"""A cache of rows in front of a tier: set-associative, and without a Python loop over rows.

A set is chosen by a multiplicative hash of the row id; inside a set the least recently used row makes room. A batch
looks before it inserts, as the simulator's cache does (Assumption A12). NumPy only, so that the lookup process, which
knows nothing of torch, can hold one; ``cache_torch`` is the same algorithm on a device.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

Policy = Literal["lru", "static"]
Int64Array = npt.NDArray[np.int64]

DEFAULT_WAYS = 16
INDEX_BYTES_PER_SLOT = 16  # a tag and a stamp, int64 each
# 2**64 divided by the golden ratio, as a signed number (Knuth, The Art of Computer Programming, vol. 3, section 6.4)
HASH_FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)
HASH_SHIFT, HASH_MASK = 32, 0xFFFF_FFFF  # the high half of the product is the mixed one


def cache_geometry(num_slots: int, num_ways: int = DEFAULT_WAYS) -> tuple[int, int]:
    """Sets and ways of a cache of at most ``num_slots`` rows; a remainder that makes no whole set is not used."""
    assert num_slots >= 1, "a cache holds at least one row"
    ways = min(num_ways, num_slots)
    return num_slots // ways, ways


class RowCache:
    """Rows of one table that were asked for last (``lru``), or that were named once (``static``).

    Memory is taken as pages are first touched. One thread at a time.

    Args:
        num_slots: rows it may hold; rounded down to whole sets.
        row_bytes: bytes of a row.
        policy: ``lru`` replaces the least recently used row of a set; ``static`` keeps what ``fill`` gave it.
        num_ways: rows per set.
    """

    def __init__(self, num_slots: int, row_bytes: int, *, policy: Policy = "lru", num_ways: int = DEFAULT_WAYS) -> None:
        self.num_sets, self.num_ways = cache_geometry(num_slots, num_ways)
        self.policy: Policy = policy
        self.num_slots = self.num_sets * self.num_ways
        self.num_lookups = self.num_hits = self.num_evictions = 0
        self._rows = np.zeros((self.num_slots, row_bytes), dtype=np.uint8)
        self._tags = np.zeros((self.num_sets, self.num_ways), dtype=np.int64)  # row id + 1; 0 is empty
        self._stamps = np.zeros((self.num_sets, self.num_ways), dtype=np.int64)  # when last used; 0 is never
        self._clock = 1

    @property
    def size_bytes(self) -> int:
        """Bytes of rows and index when full."""
        return self._rows.nbytes + self._tags.nbytes + self._stamps.nbytes

    def lookup(self, ids: Int64Array, out: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Copy the rows it has into ``out`` and say which are missing.

        Args:
            ids: ``[n] int64``, row ids of the table.
            out: ``[n, row_bytes] uint8``; rows of missing ids are left as they are.

        Returns:
            ``[n] bool``, true where the row is missing.
        """
        sets = self._sets(ids)
        is_match = self._tags[sets] == (ids + 1)[:, None]
        is_hit = is_match.any(axis=1)
        places = np.flatnonzero(is_hit)
        slots = sets[places] * self.num_ways + is_match[places].argmax(axis=1)
        out[places] = self._rows[slots]
        self._stamps.reshape(-1)[slots] = self._clock + places
        self._clock += len(ids)
        self.num_lookups += len(ids)
        self.num_hits += len(places)
        missing: npt.NDArray[np.bool_] = ~is_hit
        return missing

    def insert(self, ids: Int64Array, rows: npt.NDArray[np.uint8]) -> None:
        """Keep rows that a lookup missed, the last of them as the youngest; a static cache ignores them.

        Args:
            ids: ``[n] int64``, ascending, none of them in the cache.
            rows: ``[n, row_bytes] uint8``, their rows.
        """
        assert len(ids) < 2 or bool(np.all(ids[1:] > ids[:-1])), "ids ascend, so that none comes twice"
        if self.policy == "lru":
            self._place(ids, rows, keeps_last=True)

    def fill(self, ids: Int64Array, rows: npt.NDArray[np.uint8]) -> int:
        """Fill an empty cache once, hottest row first; where a set is full the colder rows are left out.

        Args:
            ids: ``[n] int64``; of an id that comes twice the first counts.
            rows: ``[n, row_bytes] uint8``, their rows.

        Returns:
            How many rows were kept.
        """
        assert self._clock == 1, "only a cache that was never used is filled"
        firsts = np.sort(np.unique(ids, return_index=True)[1])
        return self._place(ids[firsts], rows[firsts], keeps_last=False)

    def clear(self) -> None:
        """Forget every row and every count."""
        self._tags[...] = 0
        self._stamps[...] = 0
        self._clock = 1
        self.num_lookups = self.num_hits = self.num_evictions = 0

    def _sets(self, ids: Int64Array) -> Int64Array:
        sets: Int64Array = ((ids * HASH_FACTOR >> HASH_SHIFT) & HASH_MASK) % self.num_sets
        return sets

    def _place(self, ids: Int64Array, rows: npt.NDArray[np.uint8], *, keeps_last: bool) -> int:
        """Give the rows of each set its oldest ways; of more rows than ways the last or the first are kept."""
        by_set = self._sets(ids)
        order = np.argsort(by_set, kind="stable")
        sets, position = by_set[order], np.arange(len(ids))
        first, end = np.searchsorted(sets, sets, side="left"), np.searchsorted(sets, sets, side="right")
        if keeps_last:
            rank = position - np.maximum(first, end - self.num_ways)
            is_kept = rank >= 0
        else:
            rank = position - first
            is_kept = rank < self.num_ways
        order, sets, rank = order[is_kept], sets[is_kept], rank[is_kept]
        oldest_first = np.argsort(self._stamps[sets], axis=1, kind="stable")
        slots = sets * self.num_ways + oldest_first[np.arange(len(rank)), rank]
        tags = self._tags.reshape(-1)
        self.num_evictions += int(np.count_nonzero(tags[slots]))
        tags[slots] = ids[order] + 1
        self._stamps.reshape(-1)[slots] = self._clock + order
        self._rows[slots] = rows[order]
        self._clock += len(ids)
        return len(slots)
