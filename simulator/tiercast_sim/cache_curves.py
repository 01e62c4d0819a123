"""Hits of a stream of accesses by cache size: LRU at all sizes at once, the best any cache could do, a fixed choice."""

from heapq import heappush, heappushpop

import numpy as np
import numpy.typing as npt

from tiercast_sim.caches import LfuCache
from tiercast_sim.reuse import by_frequency

Accesses = npt.NDArray[np.int64]
NEVER = -1


def previous_uses(accesses: Accesses) -> Accesses:
    """Index of the use before each access ``[n]``, ``NEVER`` for the first of its key."""
    order = np.argsort(accesses, kind="stable")
    same = accesses[order[1:]] == accesses[order[:-1]]
    previous = np.full(len(accesses), NEVER, dtype=np.int64)
    previous[order[1:][same]] = order[:-1][same]
    return previous


def stack_distances(previous: Accesses) -> Accesses:
    """Distinct keys used since the use before, that key counted, for every access that has one: ``[num repeats]``.

    An LRU cache of C entries hits exactly the accesses of distance at most C (Mattson et al. 1970, Evaluation
    techniques for storage hierarchies). Behind the use p before access i, access j is the first of its key if its own
    use before is at most p: there are #{j < i: previous[j] <= p} − (p + 1) of them. They are counted bit by bit of the
    index, a whole level at a time.
    """
    num = len(previous)
    # Ranks by previous use; first uses stand before all others and are counted by all of them.
    positions = np.argsort(previous, kind="stable")
    earlier = np.zeros(num, dtype=np.int64)
    for bit in reversed(range(max(1, num - 1).bit_length())):
        high = (positions >> bit) & 1
        group = positions >> (bit + 1) << (bit + 1)  # where the group of equal higher bits starts
        num_low = np.cumsum(1 - high)
        before_group = np.concatenate(([0], num_low))[group]
        low_in_group = num_low - (1 - high) - before_group
        is_high = high == 1
        earlier[positions[is_high]] += low_in_group[is_high]
        places = np.where(
            high == 0,
            group + low_in_group,
            group + (1 << bit) + (np.arange(num) - group - low_in_group),
        )
        moved = np.empty_like(positions)
        moved[places] = positions
        positions = moved
    repeats = np.flatnonzero(previous != NEVER)
    distances: Accesses = earlier[repeats] - previous[repeats]
    return distances


def lru_hits(distances: Accesses, num_entries: int) -> int:
    """Hits of an LRU cache that starts empty."""
    return int(np.count_nonzero(distances <= num_entries))


def lfu_hits(accesses: Accesses, num_distinct: int, num_entries: int) -> int:
    """Hits of an LFU cache that starts empty."""
    if num_entries >= num_distinct:
        return len(accesses) - num_distinct
    return LfuCache(num_entries).use(accesses.tolist())


def optimal_hits(previous: Accesses, num_entries: int) -> int:
    """Hits no cache of this size that starts empty can exceed (Belady 1966), which may also leave an access uncached.

    Keeping a key from one use to the next is an interval; at no access may more than ``num_entries`` be kept across it.
    The one whose next use is farthest goes.
    """
    if num_entries == 0:
        return 0
    num = len(previous)
    repeats = np.flatnonzero(previous != NEVER)
    following = np.full(num, num, dtype=np.int64)  # num: never again
    following[previous[repeats]] = repeats
    # Across the point behind access i lie all intervals that have started and not ended.
    open_now = np.cumsum((following < num).astype(np.int64) - (previous != NEVER))
    if len(repeats) == 0 or int(open_now.max()) <= num_entries:
        return len(repeats)
    is_kept = bytearray(num)
    farthest: list[int] = []  # next uses, negated; those that have passed lie at the bottom and are never looked at
    num_kept = num_hits = 0
    for now, after in enumerate(following.tolist()):
        if is_kept[now]:
            num_hits += 1
            num_kept -= 1
        if after < num:
            is_kept[after] = 1
            if num_kept < num_entries:
                heappush(farthest, -after)
                num_kept += 1
            else:
                is_kept[-heappushpop(farthest, -after)] = 0
    return num_hits


def fixed_hits(chosen_from: Accesses, served: Accesses, num_entries: int) -> int:
    """Hits in ``served`` of the ``num_entries`` most frequent keys of ``chosen_from``; of equals the smaller number."""
    return int(np.count_nonzero(np.isin(served, by_frequency([chosen_from])[:num_entries])))
