"""Cache policies and their curves against caches written as plainly as possible; the law against streams it knows."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercast_profiles.workload import Request
from tiercast_sim.cache_curves import fixed_hits, lfu_hits, lru_hits, optimal_hits, previous_uses, stack_distances
from tiercast_sim.caches import LfuCache, LruCache, StaticCache, cache_of
from tiercast_sim.locality import interleave, locality
from tiercast_sim.reuse import RequestNgrams, by_frequency
from tiercast_sim.reuse_law import MIN_ACCESSES, ReuseLaw, fit, footprint
from tiercast_sim.row_counts import RowCounter, TokenBatch
from tiercast_sim.run import request_ngrams, run
from tiercast_sim.work import Chunk, RowCount

STREAMS = st.lists(st.integers(0, 12), min_size=1, max_size=60)
SIZES = st.integers(0, 14)


def plain_lru(keys, size):
    kept, hits = OrderedDict(), 0
    for key in keys:
        hits += key in kept
        kept.pop(key, None)
        kept[key] = True
        while len(kept) > size:
            kept.popitem(last=False)
    return hits


def plain_lfu(keys, size):
    kept, hits = {}, 0
    for now, key in enumerate(keys):
        if key in kept:
            hits += 1
            kept[key] = (kept[key][0] + 1, now)
        elif size:
            if len(kept) == size:
                del kept[min(kept, key=kept.get)]
            kept[key] = (1, now)
    return hits


def plain_optimal(keys, size):
    kept, hits = set(), 0
    for now, key in enumerate(keys):
        hits += key in kept
        kept.add(key)
        if len(kept) > size:
            rest = keys[now + 1 :]
            kept.remove(max(kept, key=lambda k: (rest.index(k) if k in rest else len(rest), k)))
    return hits


def best_of_all(keys, size):
    """Hits of the best choices there are, by trying all of them."""
    states = {frozenset(): 0}
    for key in keys:
        after = {}
        for kept, hits_before in states.items():
            hits = hits_before + (key in kept)
            for out in (kept, *((kept | {key}) - {gone} for gone in kept | {key}), kept | {key}):
                if len(out) <= size:
                    after[out] = max(after.get(out, 0), hits)
        states = after
    return max(states.values())


@given(STREAMS, SIZES)
@settings(max_examples=200, deadline=None)
def test_curves_are_those_of_caches_run_access_by_access(keys, size):
    accesses = np.array(keys, dtype=np.int64)
    previous = previous_uses(accesses)
    assert lru_hits(stack_distances(previous), size) == plain_lru(keys, size) == LruCache(size).use(keys)
    assert lfu_hits(accesses, len(set(keys)), size) == plain_lfu(keys, size) == LfuCache(size).use(keys)
    optimal = optimal_hits(previous, size)
    assert optimal == plain_optimal(keys, size)
    assert optimal >= max(plain_lru(keys, size), plain_lfu(keys, size))


@given(st.lists(st.integers(0, 4), max_size=12).filter(len), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_no_choice_beats_the_optimal_one(keys, size):
    assert optimal_hits(previous_uses(np.array(keys, dtype=np.int64)), size) == best_of_all(keys, size)


def test_stack_distances_by_hand():
    """a b c b a: b has seen c since (2 with itself), a has seen b and c (3)."""
    previous = previous_uses(np.array([10, 20, 30, 20, 10]))
    assert previous.tolist() == [-1, -1, -1, 1, 0]
    assert stack_distances(previous).tolist() == [2, 3]


def test_lfu_keeps_what_is_asked_for_often():
    cache = LfuCache(2)
    assert cache.use([1, 1, 2, 3, 1]) == 2
    assert 1 in cache
    assert 2 not in cache
    assert len(cache) == 2
    assert cache.use([2, 3]) == 0, "3 left for 2 and 2 for 3: both were used once"


def test_a_static_cache_never_changes():
    cache = StaticCache(2, [7, 5, 3])
    assert cache.use([3, 5, 7, 7]) == 3
    assert (len(cache), 3 in cache) == (2, False)


def test_the_fixed_choice_is_the_most_frequent_of_what_it_may_see():
    assert by_frequency([np.array([4, 1, 4]), np.array([2, 1])]) == [1, 4, 2]
    assert by_frequency([]) == []
    assert fixed_hits(np.array([4, 4, 1]), np.array([4, 1, 4, 9]), 1) == 2


@pytest.mark.parametrize("policy", ["lru", "lfu", "static_hot"])
def test_a_cache_of_nothing_has_nothing(policy):
    cache = cache_of(policy, 0, [1, 2])
    assert (cache.use([1, 1]), len(cache), 1 in cache) == (0, 0, False)


@given(STREAMS, st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_footprint_is_the_mean_over_all_windows(keys, window):
    window = min(window, len(keys))
    counted = [len(set(keys[start : start + window])) for start in range(len(keys) - window + 1)]
    found = footprint(previous_uses(np.array(keys, dtype=np.int64)), np.array([window]))
    assert found[0] == pytest.approx(np.mean(counted))


def test_the_law_of_a_zipf_stream_meets_its_caches():
    rng = np.random.default_rng(5)
    accesses = rng.zipf(1.6, size=60_000).astype(np.int64)
    previous = previous_uses(accesses)
    law = fit(previous, stack_distances(previous), 1)
    assert law is not None
    assert law.residual_ratio < 0.05
    assert law.exponent == pytest.approx(1 / 1.6, abs=0.08)  # distinct of n draws grow as n ** (1 / a)
    entries = int(law.distinct(5000))
    assert LruCache(entries).use(accesses.tolist()) / len(accesses) == pytest.approx(law.hit_ratio(entries), abs=0.05)


def test_the_law_of_reads_that_never_repeat_is_a_straight_line():
    accesses = np.arange(MIN_ACCESSES)
    law = fit(previous_uses(accesses), stack_distances(previous_uses(accesses)), 2)
    assert law is None or (law.exponent == pytest.approx(1) and law.hit_ratio(100) == pytest.approx(0, abs=1e-6))


def test_a_law_by_hand():
    """W(w) = 2 w^0.5: 20 n-grams lie in 100 reads, and dW/dw = 2 x 0.5 / 10 misses."""
    law = ReuseLaw(1, 2.0, 0.5, 1, 100, 0.0, 0.0)
    assert law.distinct(100) == 20
    assert law.hit_ratio(20) == pytest.approx(0.9)
    assert law.hit_ratio(0) == 0


def test_locality_is_the_curves_of_the_interleaved_text(mini_model):
    engram = mini_model().engram
    text = np.random.default_rng(2).integers(0, 6, size=400)
    one_entry_gib = 2 * 33 * 2 / 2**30
    point = locality(text, engram, pad_id=2, cache_gib=[90 * one_entry_gib], num_streams=[4], windows=[]).caches[0]
    keys = interleave(text, 4, engram, 2).tolist()
    assert point.num_entries_per_layer == 90
    assert point.lru_hit_ratio == plain_lru(keys, 90) / 1200
    assert point.lfu_hit_ratio == plain_lfu(keys, 90) / 1200
    assert point.optimal_hit_ratio == plain_optimal(keys, 90) / 1200
    hot = set(by_frequency([np.array(keys[:600])])[:90])
    assert point.static_hot_hit_ratio == sum(key in hot for key in keys[600:]) / 600
    assert point.law_hit_ratio is None


@pytest.mark.parametrize(("policy", "cache"), [("lru", LruCache(7)), ("lfu", LfuCache(7))])
def test_a_run_counts_rows_by_policy(sim_scenario, policy, cache):
    """A batch looks before it inserts."""
    resolved = sim_scenario({"tier": "nvme"})
    ngrams, heads = request_ngrams(resolved), resolved.model.engram.num_heads_per_order
    request = Request(0, 0, 3, 1)
    counter = RowCounter(resolved.model.engram, ngrams, 0, 7, removes_duplicates=False, policy=policy)
    all_hits = 0
    for position in (0, 1, 0, 0, 2, 1, 0, 2, 2):
        keys = ngrams.between(request, position, position + 1)
        hits = sum(key in cache for key in keys)
        cache.use(keys)
        wanted = RowCount((3 - hits) * heads, hits * heads, hits * heads)
        assert counter.count(TokenBatch([request], [position])) == wanted
        all_hits += hits
    assert 0 < all_hits < 27


def test_static_hot_is_chosen_from_a_warm_up_that_is_not_the_run(sim_scenario):
    placement = {"tier": "nvme", "cache_gib": 2e-5, "cache_policy": "static_hot"}
    resolved = sim_scenario(placement)
    ngrams = request_ngrams(resolved)
    assert isinstance(ngrams, RequestNgrams)
    assert len(ngrams.hottest) == len(set(ngrams.hottest)) > 100
    assert request_ngrams(sim_scenario({"tier": "nvme"})).hottest == []
    counter = RowCounter(resolved.model.engram, ngrams, 0, 50, removes_duplicates=False, policy="static_hot")
    request = Request(0, 0, 4, 1)
    batch = TokenBatch(chunks=(Chunk(request, 0, 4),))
    keys = ngrams.between(request, 0, 4)
    hits = sum(key in set(ngrams.hottest[:50]) for key in keys)
    heads = resolved.model.engram.num_heads_per_order
    wanted = RowCount((len(keys) - hits) * heads, hits * heads, hits * heads)
    assert [counter.count(batch), counter.count(batch)] == [wanted, wanted]
    served = sum(run(resolved, "nominal").samples.steps.rows_hit)
    big = sim_scenario({**placement, "cache_gib": 0.01})
    assert sum(run(big, "nominal").samples.steps.rows_hit) >= served
    assert run(big, "nominal").samples.steps.rows_hit[0] > 0, "warm from the first step on"
