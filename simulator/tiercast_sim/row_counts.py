"""How many rows a batch of tokens makes a tier deliver, after duplicates and cache hits."""

from dataclasses import dataclass, field

from tiercast_profiles.model import Engram
from tiercast_profiles.scenario import CachePolicy
from tiercast_profiles.workload import Request
from tiercast_sim.caches import cache_of
from tiercast_sim.reuse import DistinctRows, RequestNgrams
from tiercast_sim.work import Chunk, RowCount


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Tokens whose rows one batch of lookups fetches.

    ``accepted``: how many tokens behind each position are fed too, as drafts that turn out right; empty: none.
    ``num_drafts`` are the other drafts, which are counted, not named.
    """

    requests: list[Request] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    num_drafts: int = 0
    chunks: tuple[Chunk, ...] = ()
    accepted: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """All tokens of the batch."""
        num_decode_tokens = len(self.positions) + sum(self.accepted) + self.num_drafts
        return num_decode_tokens + sum(chunk.num_tokens for chunk in self.chunks)

    def identity(self) -> tuple[object, ...]:
        """Equal for batches of the same tokens."""
        ids = tuple([request.request_id for request in self.requests])
        return (ids, tuple(self.positions), self.num_drafts, self.chunks, self.accepted)


class RowCounter:
    """Counts the rows of one replica's batches in order; a cache remembers what earlier batches fetched.

    The count depends on the batches alone, not on time. Runs that share ``ngrams`` (the bounds of one scenario) look
    up what an earlier run found for the same history, and replay it into the cache only once histories part.
    """

    def __init__(
        self,
        engram: Engram,
        ngrams: RequestNgrams,
        replica: int,
        cache_entries: int,
        *,
        removes_duplicates: bool,
        policy: CachePolicy = "lru",
    ) -> None:
        self._num_orders = len(engram.ngram_orders)
        self._heads = engram.num_heads_per_order
        self._distinct = DistinctRows(engram)
        self._ngrams = ngrams
        self._cache = cache_of(policy, cache_entries, ngrams.hottest)
        self._removes_duplicates = removes_duplicates
        # With no cache, or one that never changes, a batch has no history, and every history is the same.
        self._history: object = (replica, cache_entries, removes_duplicates, policy, engram.rows_per_head)
        self._has_history = cache_entries > 0 and policy != "static_hot"
        self._behind: list[TokenBatch] = []

    def count(self, batch: TokenBatch) -> RowCount:
        """Rows of the next batch."""
        key = (self._history, batch.identity())
        known = self._ngrams.known_counts.get(key)
        if known is not None:
            if self._has_history:
                self._behind.append(batch)
            history, found = known
        else:
            for earlier in self._behind:
                self._cache.use(self._keys(earlier))
            self._behind = []
            found = self._count(batch)
            history = len(self._ngrams.known_counts) if self._has_history else self._history
            self._ngrams.known_counts[key] = (history, found)
        self._history = history
        return found

    def _count(self, batch: TokenBatch) -> RowCount:
        keys = self._keys(batch)
        missing = [key for key in keys if key not in self._cache]
        self._cache.use(keys)
        # Assumption A15: drafts that are rejected are n-grams of their own, neither repeated nor worth caching.
        drafts = batch.num_drafts * self._num_orders
        hits = (len(keys) - len(missing)) * self._heads
        if not self._removes_duplicates:
            return RowCount((len(missing) + drafts) * self._heads, hits, hits)
        by_order = [batch.num_drafts] * self._num_orders
        different = set(missing)  # only counted: the order of a set does not show
        for key in different:
            by_order[key % self._num_orders] += 1
        num_found = len(set(keys)) - len(different) if hits else 0
        return RowCount(self._distinct.of(by_order), hits, num_found * self._heads)

    def _keys(self, batch: TokenBatch) -> list[int]:
        keys: list[int] = []
        accepted = batch.accepted or (0,) * len(batch.positions)
        for request, position, ahead in zip(batch.requests, batch.positions, accepted, strict=True):
            keys += self._ngrams.between(request, position, position + 1 + ahead)
        for chunk in batch.chunks:
            keys += self._ngrams.between(chunk.request, chunk.start, chunk.start + chunk.num_tokens)
        return keys
