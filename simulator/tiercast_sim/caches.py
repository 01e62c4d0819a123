"""Caches of n-grams by policy: the least recently used goes, the least frequently used goes, or nothing ever does."""

from collections import OrderedDict
from collections.abc import Iterable
from heapq import heappush, heapreplace
from typing import Protocol

from tiercast_profiles.scenario import CachePolicy

ONE_USE = 1 << 48  # above any number of uses a run can have
TIME_MASK = ONE_USE - 1


class NgramCache(Protocol):
    """A set of n-grams of bounded size that decides for itself what stays."""

    def __contains__(self, key: int) -> bool: ...

    def __len__(self) -> int: ...

    def use(self, keys: Iterable[int]) -> int:
        """Use n-grams in order; how many of them were there at their turn."""
        ...


class LruCache:
    """Least-recently-used set of n-grams; what is used becomes the youngest."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, key: int) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def use(self, keys: Iterable[int]) -> int:
        """Use n-grams in order, each the youngest afterwards; how many of them were there at their turn."""
        if self.capacity == 0:
            return 0
        entries, capacity, num_hits = self._entries, self.capacity, 0
        for key in keys:
            if key in entries:
                entries.move_to_end(key)
                num_hits += 1
            else:
                entries[key] = None
                if len(entries) > capacity:
                    entries.popitem(last=False)
        return num_hits


class LfuCache:
    """Least-frequently-used set of n-grams; of equals the one not used for longest goes.

    Uses are counted while an n-gram is in the cache and forgotten when it leaves. The heap holds one entry for each
    n-gram, as it was when the entry was last looked at: an n-gram only rises, so an old entry never hides a lower one.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._ranks: dict[int, int] = {}  # uses × ONE_USE + time of the last use
        self._lowest: list[tuple[int, int]] = []
        self._now = 0

    def __contains__(self, key: int) -> bool:
        return key in self._ranks

    def __len__(self) -> int:
        return len(self._ranks)

    def use(self, keys: Iterable[int]) -> int:
        """Use n-grams in order; how many of them were there at their turn."""
        if self.capacity == 0:
            return 0
        ranks, lowest, now, num_hits = self._ranks, self._lowest, self._now, 0
        for key in keys:
            now += 1
            rank = ranks.get(key)
            if rank is not None:
                ranks[key] = (rank | TIME_MASK) + 1 + now
                num_hits += 1
                continue
            entry = (ONE_USE + now, key)
            ranks[key] = entry[0]
            if len(ranks) <= self.capacity:
                heappush(lowest, entry)
                continue
            old, leaving = lowest[0]
            while ranks[leaving] != old:
                heapreplace(lowest, (ranks[leaving], leaving))
                old, leaving = lowest[0]
            del ranks[leaving]
            heapreplace(lowest, entry)
        self._now = now
        return num_hits


class StaticCache:
    """N-grams chosen once, the hottest first; what is used changes nothing."""

    def __init__(self, capacity: int, hottest: Iterable[int]) -> None:
        kept = [key for key, _ in zip(hottest, range(capacity), strict=False)]
        self._entries = frozenset(kept)

    def __contains__(self, key: int) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def use(self, keys: Iterable[int]) -> int:
        """How many of the n-grams are in the set."""
        entries = self._entries
        return sum([key in entries for key in keys])


def cache_of(policy: CachePolicy, capacity: int, hottest: Iterable[int]) -> NgramCache:
    """A cache of ``capacity`` n-grams at the start of a run; ``hottest`` is read by ``static_hot`` alone."""
    if policy == "static_hot":
        return StaticCache(capacity, hottest)
    return LfuCache(capacity) if policy == "lfu" else LruCache(capacity)
