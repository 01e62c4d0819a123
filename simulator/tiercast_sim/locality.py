"""How often the rows of a text repeat: inside a window, and in a cache of a given size, for mixed streams."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiercast_profiles.errors import BadInput
from tiercast_profiles.model import Engram
from tiercast_profiles.units import gib_to_bytes
from tiercast_sim.cache_curves import (
    Accesses,
    fixed_hits,
    lfu_hits,
    lru_hits,
    optimal_hits,
    previous_uses,
    stack_distances,
)
from tiercast_sim.reuse import cache_entries_per_layer, ngram_keys
from tiercast_sim.reuse_law import ReuseLaw, fit

DEFAULT_WINDOWS = (512, 2048, 8192)


@dataclass(frozen=True, slots=True)
class UniqueShare:
    """Distinct n-grams of one order in contiguous windows, as a share of the window's tokens."""

    order: int
    window_tokens: int
    unique_ratio: float


@dataclass(frozen=True, slots=True)
class CacheCurvePoint:
    """Share of row reads a cache serves.

    ``lru``, ``lfu`` and ``optimal`` start empty and read the whole text; no cache that starts empty serves more than
    ``optimal`` (Belady). ``static_hot_hit_ratio`` keeps the n-grams most frequent in the first half of every stream and
    is scored on the second. ``static_hit_ratio`` keeps the most frequent of this very text, which no real cache can
    know beforehand: an upper bound for a fixed choice. ``law_hit_ratio`` is what the fitted law expects of an LRU cache
    on an endless text of this kind; None where no law could be fitted.
    """

    cache_gib: float
    num_entries_per_layer: int
    num_streams: int
    lru_hit_ratio: float
    lfu_hit_ratio: float
    optimal_hit_ratio: float
    static_hot_hit_ratio: float
    static_hit_ratio: float
    law_hit_ratio: float | None


@dataclass(frozen=True, slots=True)
class Locality:
    """Row reuse of one text under one model; ``laws`` has one entry for each number of streams that could be fitted."""

    num_tokens: int
    distinct_ratio_by_order: dict[int, float]
    windows: tuple[UniqueShare, ...]
    caches: tuple[CacheCurvePoint, ...]
    laws: tuple[ReuseLaw, ...]


def locality(
    folded_ids: npt.NDArray[np.int64],
    engram: Engram,
    *,
    pad_id: int = 0,
    cache_gib: Sequence[float] = (),
    num_streams: Sequence[int] = (1,),
    windows: Sequence[int] = DEFAULT_WINDOWS,
    progress: Callable[[], object] = lambda: None,
) -> Locality:
    """Measure the row reuse of folded token ids ``[n] int64``.

    With ``num_streams`` S the text is cut into S parts that advance one token each in turn, as S requests do.
    ``progress`` is called after each cache size of each number of streams.

    Raises:
        BadInput: no tokens, or a size, stream count or window that is not positive.
    """
    if len(folded_ids) == 0:
        raise BadInput("the text has no tokens; give a longer text")
    for label, values in (("cache_gib", cache_gib), ("streams", num_streams), ("windows", windows)):
        for value in values:
            if not 0 < value < float("inf"):
                raise BadInput(f"{label}={value:g}; must be > 0 and finite")
    keys = ngram_keys([folded_ids], engram, pad_id)[0]
    num_tokens = keys.shape[1]
    distinct = {order: len(np.unique(keys[index])) / num_tokens for index, order in enumerate(engram.ngram_orders)}
    shares = tuple(
        UniqueShare(order, window, _unique_share(keys[index], window))
        for index, order in enumerate(engram.ngram_orders)
        for window in windows
        if window <= num_tokens
    )
    caches: list[CacheCurvePoint] = []
    laws: list[ReuseLaw] = []
    frequencies = _frequencies(keys)
    entries = [cache_entries_per_layer(gib_to_bytes(size), 1, engram, engram.row_bytes) for size in cache_gib]
    static = [sum(frequencies[:count]) / keys.size for count in entries]
    for streams in num_streams:
        if streams > num_tokens:
            raise BadInput(f"streams={streams} exceeds the {num_tokens} tokens of the text; use fewer or a longer text")
        curves = _Curves(interleave(folded_ids, streams, engram, pad_id), streams)
        laws += [] if curves.law is None else [curves.law]
        for size_gib, count, static_ratio in zip(cache_gib, entries, static, strict=True):
            caches.append(curves.point(size_gib, count, static_ratio))
            progress()
    return Locality(num_tokens, distinct, shares, tuple(caches), tuple(laws))


class _Curves:
    """Hits of one stream of accesses, by cache size."""

    def __init__(self, accesses: Accesses, num_streams: int) -> None:
        self._accesses, self._num_streams = accesses, num_streams
        self._previous = previous_uses(accesses)
        self._distances = stack_distances(self._previous)
        self.law = fit(self._previous, self._distances, num_streams)

    def point(self, size_gib: float, entries: int, static_ratio: float) -> CacheCurvePoint:
        """All policies at one size."""
        num = len(self._accesses)
        early, late = np.split(self._accesses, [num // 2])
        num_distinct = num - len(self._distances)
        return CacheCurvePoint(
            cache_gib=size_gib,
            num_entries_per_layer=entries,
            num_streams=self._num_streams,
            lru_hit_ratio=lru_hits(self._distances, entries) / num,
            lfu_hit_ratio=lfu_hits(self._accesses, num_distinct, entries) / num,
            optimal_hit_ratio=optimal_hits(self._previous, entries) / num,
            static_hot_hit_ratio=fixed_hits(early, late, entries) / len(late),
            static_hit_ratio=static_ratio,
            law_hit_ratio=None if self.law is None else self.law.hit_ratio(entries),
        )


def interleave(folded_ids: npt.NDArray[np.int64], num_streams: int, engram: Engram, pad_id: int) -> Accesses:
    """Accesses of S equal parts of the text that advance in turn, as number × orders + order; a rest is left out."""
    length = len(folded_ids) // num_streams
    parts = [folded_ids[index * length : (index + 1) * length] for index in range(num_streams)]
    stacked = np.stack(ngram_keys(parts, engram, pad_id))  # [streams, orders, tokens]
    num_orders = len(engram.ngram_orders)
    by_time: Accesses = (stacked.transpose(2, 0, 1) * num_orders + np.arange(num_orders)).reshape(-1)
    return by_time


def _unique_share(keys: npt.NDArray[np.int64], window: int) -> float:
    count = len(keys) // window
    ordered = np.sort(keys[: count * window].reshape(count, window), axis=1)
    return float((1 + np.count_nonzero(np.diff(ordered, axis=1), axis=1)).mean() / window)


def _frequencies(keys: npt.NDArray[np.int64]) -> list[int]:
    counts: Counter[int] = Counter()
    for index in range(keys.shape[0]):
        _, occurrences = np.unique(keys[index], return_counts=True)
        counts.update(occurrences.tolist())
    return [size for size in sorted(counts, reverse=True) for _ in range(counts[size])]
