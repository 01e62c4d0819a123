"""A cache of rows in front of a tier: set-associative, and without a Python loop over rows.

A set is chosen by a multiplicative hash of the row id; inside a set the least recently (``lru``) or the least often
(``lfu``) used row makes room, or none ever does (``static_hot``). A batch looks before it inserts, as the simulator's
cache does (Assumption A12). NumPy only, so that the lookup process, which knows nothing of torch, can hold one;
``cache_torch`` is the same algorithm on a device.

A stamp orders the rows of a set by who leaves first: the time of the last use, and with ``lfu`` the number of uses
above it. Uses are lookups that asked for the row while it was here, at most ``MAX_USES``.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

Policy = Literal["lru", "lfu", "static_hot"]  # those of placement.cache_policy
Int64Array = npt.NDArray[np.int64]

DEFAULT_WAYS = 16
INDEX_BYTES_PER_SLOT = 16  # a tag and a stamp, int64 each
# 2**64 divided by the golden ratio, as a signed number (Knuth, The Art of Computer Programming, vol. 3, section 6.4)
HASH_FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)
HASH_SHIFT, HASH_MASK = 32, 0xFFFF_FFFF  # the high half of the product is the mixed one
ONE_USE = 1 << 40  # above the clock of any run: it counts rows looked up
MAX_USES = 1 << 22
_FILL_ROWS = 65_536


def cache_geometry(num_slots: int, num_ways: int = DEFAULT_WAYS) -> tuple[int, int]:
    """Sets and ways of a cache of at most ``num_slots`` rows; a remainder that makes no whole set is not used."""
    assert num_slots >= 1, "a cache holds at least one row"
    ways = min(num_ways, num_slots)
    return num_slots // ways, ways


def sets_of(ids: Int64Array, num_sets: int) -> Int64Array:
    """The set of each row id."""
    sets: Int64Array = ((ids * HASH_FACTOR >> HASH_SHIFT) & HASH_MASK) % num_sets
    return sets


def hot_places(ids: Int64Array, num_slots: int, num_ways: int = DEFAULT_WAYS) -> tuple[Int64Array, Int64Array]:
    """Which of some row ids, hottest first, a cache of ``num_slots`` rows keeps, and in which slots.

    Where a set is full the colder rows are left out; of an id that comes twice the first counts.

    Returns:
        The ids kept, ascending, and the slot of each.
    """
    num_sets, num_ways = cache_geometry(num_slots, num_ways)
    ids = ids[np.sort(np.unique(ids, return_index=True)[1])]
    sets = sets_of(ids, num_sets)
    order = np.argsort(sets, kind="stable")
    rank = np.arange(len(ids)) - np.searchsorted(sets[order], sets[order], side="left")
    is_kept = rank < num_ways
    kept, slots = ids[order][is_kept], sets[order][is_kept] * num_ways + rank[is_kept]
    ascending = np.argsort(kept)
    return kept[ascending], slots[ascending]


class RowCache:
    """Rows of one table that were asked for last or most often, or that were named once.

    Memory is taken as pages are first touched. One thread at a time.

    Args:
        num_slots: rows it may hold; rounded down to whole sets.
        row_bytes: bytes of a row.
        policy: which row of a set makes room; ``static_hot`` keeps what ``fill`` gave it.
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

    @property
    def row_ids(self) -> Int64Array:
        """``[n] int64``, ascending, of the rows it has."""
        ids: Int64Array = np.sort(self._tags[self._tags > 0]) - 1
        return ids

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
        stamps = self._stamps.reshape(-1)
        stamps[slots] = self._used_again(stamps[slots], self._clock + places)
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
        if self.policy != "static_hot" and len(ids):
            self._place(ids, rows)

    def fetch(
        self, ids: Int64Array, out: npt.NDArray[np.uint8], read: Callable[[Int64Array, npt.NDArray[np.uint8]], object]
    ) -> npt.NDArray[np.bool_]:
        """Rows into ``out``: those it has, and the rest as ``read`` delivers them, which are then kept.

        Args:
            ids: ``[n] int64``, ascending.
            out: ``[n, row_bytes] uint8``.
            read: puts the rows of ascending ids ``[m] int64`` into ``[m, row_bytes] uint8``; not called for none.

        Returns:
            ``[n] bool``, true where the row was read.
        """
        missing = self.lookup(ids, out)
        num_missing = int(np.count_nonzero(missing))
        if num_missing:
            wanted, rows = ids[missing], np.empty((num_missing, out.shape[1]), dtype=np.uint8)
            read(wanted, rows)
            out[missing] = rows
            self.insert(wanted, rows)
        return missing

    def fill(self, ids: Int64Array, read: Callable[[Int64Array], npt.NDArray[np.uint8]]) -> int:
        """Fill an empty cache, hottest row first; where a set is full the colder rows are left out.

        Args:
            ids: ``[n] int64``; of an id that comes twice the first counts.
            read: rows ``[m, row_bytes] uint8`` of ascending ids ``[m] int64``.

        Returns:
            How many rows were kept.
        """
        assert not self._tags.any(), "only an empty cache is filled"
        kept, slots = hot_places(ids, self.num_slots, self.num_ways)
        for first in range(0, len(kept), _FILL_ROWS):
            part = slice(first, first + _FILL_ROWS)
            self._rows[slots[part]] = read(kept[part])
        self._tags.reshape(-1)[slots] = kept + 1
        self._stamps.reshape(-1)[slots] = ONE_USE
        return len(kept)

    def clear(self) -> None:
        """Forget every row and every count."""
        self._tags[...] = 0
        self._stamps[...] = 0
        self._clock = 1
        self.num_lookups = self.num_hits = self.num_evictions = 0

    def _sets(self, ids: Int64Array) -> Int64Array:
        return sets_of(ids, self.num_sets)

    def _used_again(self, stamps: Int64Array, now: Int64Array) -> Int64Array:
        """Stamps of rows that had these ones and are used now."""
        if self.policy != "lfu":
            return now + ONE_USE
        uses = np.minimum(stamps // ONE_USE + 1, MAX_USES)
        return uses * ONE_USE + now

    def _place(self, ids: Int64Array, rows: npt.NDArray[np.uint8]) -> None:
        """Give the rows of each set the ways of those that leave first; of more rows than such ways the last are kept.

        Rows come one after the other, each in the place of the one that leaves first. With ``lfu`` a row that came just
        now leaves before one that was used twice: a set has as many ways to give as it has rows used once at most, or
        one.
        """
        by_set = self._sets(ids)
        order = np.argsort(by_set, kind="stable")
        sets, position = by_set[order], np.arange(len(ids))
        first, end = np.searchsorted(sets, sets, side="left"), np.searchsorted(sets, sets, side="right")
        stamps = self._stamps[sets]
        num_given: Int64Array | int = self.num_ways
        if self.policy == "lfu":
            num_given = np.maximum(np.count_nonzero(stamps < 2 * ONE_USE, axis=1), 1)
        rank = position - np.maximum(first, end - num_given)
        is_kept = rank >= 0
        order, sets, rank, stamps = order[is_kept], sets[is_kept], rank[is_kept], stamps[is_kept]
        first_to_leave = np.argsort(stamps, axis=1, kind="stable")
        slots = sets * self.num_ways + first_to_leave[np.arange(len(rank)), rank]
        tags = self._tags.reshape(-1)
        self.num_evictions += int(np.count_nonzero(tags[slots]))
        tags[slots] = ids[order] + 1
        self._stamps.reshape(-1)[slots] = ONE_USE + self._clock + order
        self._rows[slots] = rows[order]
        self._clock += len(ids)
