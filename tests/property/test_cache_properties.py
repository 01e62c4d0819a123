"""The row cache against a set-associative LRU cache written as plainly as possible, and its torch form against both."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tiercast_runtime.cache import MAX_USES, ONE_USE, RowCache, cache_geometry

ROW_BYTES = 5
POLICIES = st.sampled_from(["lru", "lfu"])
BATCHES = st.lists(st.lists(st.integers(0, 60), max_size=40), min_size=1, max_size=8)


class PlainCache:
    """A dict per set, oldest first; a batch looks before it inserts, row by row."""

    def __init__(self, num_slots, num_ways, policy="lru"):
        self.num_sets, self.num_ways = cache_geometry(num_slots, num_ways)
        self.policy = policy
        self.sets = [OrderedDict() for _ in range(self.num_sets)]
        self.num_hits = self.num_evictions = 0

    def set_of(self, row_id):
        product = row_id * 0x9E3779B97F4A7C15 % 2**64
        return self.sets[(product >> 32) % self.num_sets]

    def batch(self, ids):
        """True for every id that is missing."""
        missing = []
        for row_id in ids:
            members = self.set_of(row_id)
            missing.append(row_id not in members)
            if row_id in members:
                members.move_to_end(row_id)
                members[row_id] += 1
                self.num_hits += 1
        survivors = [set(members) for members in self.sets]
        for row_id, is_missing in zip(ids, missing, strict=True):
            if is_missing:
                members = self.set_of(row_id)
                if len(members) == self.num_ways:
                    self.make_room(members)
                members[row_id] = 1
        self.num_evictions += sum(len(old - set(new)) for old, new in zip(survivors, self.sets, strict=True))
        return missing

    def make_room(self, members):
        fewest = min(members.values()) if self.policy == "lfu" else None
        leaving = next(key for key, uses in members.items() if fewest in (None, uses))
        del members[leaving]


def table_rows(ids):
    """Rows nobody could mistake for another's."""
    return (np.asarray(ids, dtype=np.int64)[:, None] * 7 + np.arange(ROW_BYTES) * 3 + 1).astype(np.uint8)


@given(BATCHES, st.integers(1, 80), st.integers(1, 5), POLICIES)
@example(batches=[[], [0], [0, 1], [0]], num_slots=1, num_ways=4, policy="lru")
@example(batches=[list(range(40)), list(range(20, 60)), list(range(40))], num_slots=6, num_ways=3, policy="lru")
@example(batches=[list(range(61)), list(range(61))], num_slots=4096, num_ways=16, policy="lru")
@example(batches=[[1, 2], [1, 2], list(range(20)), [1, 2, 3]], num_slots=3, num_ways=3, policy="lfu")
@settings(max_examples=150, deadline=None)
def test_the_cache_is_a_set_associative_cache_of_its_policy(batches, num_slots, num_ways, policy):
    cache = RowCache(num_slots, ROW_BYTES, policy=policy, num_ways=num_ways)
    plain = PlainCache(num_slots, num_ways, policy)
    num_lookups = 0
    for batch in batches:
        ids = np.unique(np.array(batch, dtype=np.int64))
        out = np.full((len(ids), ROW_BYTES), 255, dtype=np.uint8)
        missing = cache.lookup(ids, out)
        assert missing.tolist() == plain.batch(ids.tolist())
        assert np.array_equal(out[~missing], table_rows(ids[~missing]))
        assert (out[missing] == 255).all(), "rows of missing ids are left as they are"
        cache.insert(ids[missing], table_rows(ids[missing]))
        num_lookups += len(ids)
    assert cache.num_lookups == num_lookups
    assert cache.num_hits == plain.num_hits
    assert cache.num_evictions == plain.num_evictions


@given(BATCHES, st.integers(1, 80), st.integers(1, 5), st.sampled_from(["lru", "lfu", "static_hot"]))
@settings(max_examples=60, deadline=None)
def test_the_torch_form_does_the_same_for_ids_in_any_order(batches, num_slots, num_ways, policy):
    torch = pytest.importorskip("torch", reason="the runtime extra is not installed")
    from tiercast_runtime.cache_torch import SKIP_ROW, TorchRowCache

    cache = RowCache(num_slots, ROW_BYTES, policy=policy, num_ways=num_ways)
    other = TorchRowCache(num_slots, ROW_BYTES, torch.device("cpu"), policy=policy, num_ways=num_ways)
    if policy == "static_hot":
        hot = np.arange(60, 0, -1)
        assert cache.fill(hot, table_rows) == other.fill(hot, table_rows)
    for batch in batches:
        ids = np.array(batch, dtype=np.int64)
        out = np.full((len(ids), ROW_BYTES), 255, dtype=np.uint8)
        found = torch.from_numpy(out.copy())
        missing = cache.lookup(ids, out)
        left = other.lookup(torch.from_numpy(ids), found)
        assert left.tolist() == np.where(missing, ids, SKIP_ROW).tolist()
        assert np.array_equal(found.numpy(), out)
        distinct = np.unique(ids[missing])
        cache.insert(distinct, table_rows(distinct))
        other.insert(left, torch.from_numpy(table_rows(ids)))
    assert (other.num_lookups, other.num_hits, other.num_evictions) == (
        cache.num_lookups,
        cache.num_hits,
        cache.num_evictions,
    )
    other.clear()
    assert (other.num_lookups, other.num_hits) == (0, 0)
    assert bool((other.lookup(torch.arange(61), torch.zeros((61, ROW_BYTES), dtype=torch.uint8)) >= 0).all())


def test_no_empty_place_is_taken_for_the_row_before_the_first():
    torch = pytest.importorskip("torch", reason="the runtime extra is not installed")
    from tiercast_runtime.cache_torch import TorchRowCache

    cache = TorchRowCache(8, ROW_BYTES, torch.device("cpu"))
    assert cache.lookup(torch.tensor([-1]), torch.zeros((1, ROW_BYTES), dtype=torch.uint8)).tolist() == [-1]


def test_uses_are_counted_up_to_a_limit():
    cache = RowCache(1, ROW_BYTES, policy="lfu")
    cache.insert(np.array([3]), table_rows([3]))
    cache._stamps[...] = MAX_USES * ONE_USE + 7
    cache.lookup(np.array([3]), np.zeros((1, ROW_BYTES), dtype=np.uint8))
    assert MAX_USES * ONE_USE < int(cache._stamps[0, 0]) < (MAX_USES + 1) * ONE_USE


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 40), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_a_static_cache_keeps_the_hottest_of_each_set_and_never_changes(hot, num_slots, num_ways):
    cache = RowCache(num_slots, ROW_BYTES, policy="static_hot", num_ways=num_ways)
    plain = PlainCache(num_slots, num_ways)
    for row_id in hot:
        members = plain.set_of(row_id)
        if len(members) < plain.num_ways:
            members[row_id] = 1
    kept = sorted(row_id for members in plain.sets for row_id in members)
    assert cache.fill(np.array(hot, dtype=np.int64), table_rows) == len(kept)
    every = np.arange(301)
    for _ in range(2):
        out = np.zeros((301, ROW_BYTES), dtype=np.uint8)
        missing = cache.lookup(every, out)
        assert np.flatnonzero(~missing).tolist() == kept
        assert np.array_equal(out[kept], table_rows(kept))
        cache.insert(every[missing], table_rows(every[missing]))
    assert cache.num_evictions == 0


def test_an_id_asked_for_twice_at_once_is_found_twice():
    cache = RowCache(8, ROW_BYTES)
    cache.insert(np.array([3, 9]), table_rows([3, 9]))
    out = np.zeros((4, ROW_BYTES), dtype=np.uint8)
    missing = cache.lookup(np.array([3, 4, 3, 9]), out)
    assert missing.tolist() == [False, True, False, False]
    assert np.array_equal(out[[0, 2, 3]], table_rows([3, 3, 9]))
    assert (cache.num_lookups, cache.num_hits) == (4, 3)


def test_a_cleared_cache_has_nothing():
    cache = RowCache(8, ROW_BYTES)
    cache.insert(np.array([3]), table_rows([3]))
    cache.clear()
    assert cache.lookup(np.array([3]), np.zeros((1, ROW_BYTES), dtype=np.uint8)).tolist() == [True]
    assert (cache.num_lookups, cache.num_hits, cache.num_evictions) == (1, 0, 0)
    assert cache.size_bytes == 8 * (ROW_BYTES + 16)


def test_rows_spread_over_the_sets():
    """Heads lie one after the other in a table: consecutive ids must not crowd a few sets."""
    cache = RowCache(1 << 14, 1, num_ways=16)
    ids = np.arange(1 << 13)
    cache.insert(ids, np.zeros((len(ids), 1), dtype=np.uint8))
    kept = ~cache.lookup(ids, np.zeros((len(ids), 1), dtype=np.uint8))
    assert kept.mean() > 0.98
