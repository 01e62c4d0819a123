"""How often the rows of a text repeat: inside a window, and in a cache of a given size, for mixed streams."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiercast_profiles.errors import BadInput
from tiercast_profiles.model import Engram
from tiercast_profiles.units import gib_to_bytes
from tiercast_sim.reuse import LruCache, cache_entries_per_layer, ngram_keys

DEFAULT_WINDOWS = (512, 2048, 8192)


@dataclass(frozen=True, slots=True)
class UniqueShare:
    """Distinct n-grams of one order in contiguous windows, as a share of the window's tokens."""

    order: int
    window_tokens: int
    unique_ratio: float


@dataclass(frozen=True, slots=True)
class CacheCurvePoint:
    """Share of row reads a cache serves, cold start included.

    ``static_hit_ratio`` keeps the most frequent n-grams of this very text, which no real cache can know beforehand: an
    upper bound for a fixed choice.
    """

    cache_gib: float
    num_entries_per_layer: int
    num_streams: int
    lru_hit_ratio: float
    static_hit_ratio: float


@dataclass(frozen=True, slots=True)
class Locality:
    """Row reuse of one text under one model."""

    num_tokens: int
    distinct_ratio_by_order: dict[int, float]
    windows: tuple[UniqueShare, ...]
    caches: tuple[CacheCurvePoint, ...]


def locality(
    folded_ids: npt.NDArray[np.int64],
    engram: Engram,
    *,
    pad_id: int = 0,
    cache_gib: Sequence[float] = (),
    num_streams: Sequence[int] = (1,),
    windows: Sequence[int] = DEFAULT_WINDOWS,
) -> Locality:
    """Measure the row reuse of folded token ids ``[n] int64``.

    With ``num_streams`` S the text is cut into S parts that advance one token each in turn, as S requests do.

    Raises:
        BadInput: no tokens, or a size, stream count or window that is not positive.
    """
    if len(folded_ids) == 0:
        raise BadInput("the text has no tokens; give a longer text")
    for label, values in (("cache_gib", cache_gib), ("streams", num_streams), ("windows", windows)):
        for value in values:
            if not value > 0:
                raise BadInput(f"{label}={value:g}; must be > 0")
    keys = ngram_keys([folded_ids], engram, pad_id)[0]
    num_tokens = keys.shape[1]
    distinct = {order: len(np.unique(keys[index])) / num_tokens for index, order in enumerate(engram.ngram_orders)}
    shares = tuple(
        UniqueShare(order, window, _unique_share(keys[index], window))
        for index, order in enumerate(engram.ngram_orders)
        for window in windows
        if window <= num_tokens
    )
    caches = []
    frequencies = _frequencies(keys)
    for streams in num_streams:
        if streams > num_tokens:
            raise BadInput(f"streams={streams} exceeds the {num_tokens} tokens of the text; use fewer or a longer text")
        stream = interleave(folded_ids, streams, engram, pad_id)
        for size_gib in cache_gib:
            entries = cache_entries_per_layer(gib_to_bytes(size_gib), 1, engram, engram.row_bytes)
            static = sum(frequencies[:entries]) / keys.size
            caches.append(CacheCurvePoint(size_gib, entries, streams, lru_hit_ratio(stream, entries), static))
    return Locality(num_tokens, distinct, shares, tuple(caches))


def interleave(folded_ids: npt.NDArray[np.int64], num_streams: int, engram: Engram, pad_id: int) -> list[int]:
    """Accesses of S equal parts of the text that advance in turn, as number × orders + order; a rest is left out."""
    length = len(folded_ids) // num_streams
    parts = [folded_ids[index * length : (index + 1) * length] for index in range(num_streams)]
    stacked = np.stack(ngram_keys(parts, engram, pad_id))  # [streams, orders, tokens]
    num_orders = len(engram.ngram_orders)
    by_time: list[int] = (stacked.transpose(2, 0, 1) * num_orders + np.arange(num_orders)).reshape(-1).tolist()
    return by_time


def lru_hit_ratio(accesses: Sequence[int], num_entries: int) -> float:
    """Share of accesses that find their n-gram among the ``num_entries`` last used."""
    return LruCache(num_entries).use(accesses) / len(accesses)


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
