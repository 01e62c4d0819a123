"""N-grams, distinct rows, caches: against the plainest possible counting."""

from collections import OrderedDict

import numpy as np
import pytest

from tiercast_profiles.errors import BadInput
from tiercast_profiles.text import fold, load_text, request_token_ids
from tiercast_profiles.workload import Request
from tiercast_sim.caches import LruCache
from tiercast_sim.locality import locality
from tiercast_sim.reuse import DistinctRows, RequestNgrams, cache_entries_per_layer, ngram_keys
from tiercast_sim.row_counts import RowCounter, TokenBatch
from tiercast_sim.run import run
from tiercast_sim.work import Chunk, RowCount

PAD = 2


def plain_ngrams(ids, order):
    return [tuple(ids[i - k] if i >= k else PAD for k in range(order)) for i in range(len(ids))]


@pytest.fixture(scope="module")
def streams():
    rng = np.random.default_rng(3)
    return [rng.integers(0, 7, size=n) for n in (40, 1, 25)]


def test_equal_numbers_mean_equal_ngrams(mini_model, streams):
    engram = mini_model().engram
    keys = ngram_keys(streams, engram, PAD)
    for index, order in enumerate(engram.ngram_orders):
        plain = [gram for ids in streams for gram in plain_ngrams(ids.tolist(), order)]
        numbers = [int(key) for part in keys for key in part[index]]
        assert len(set(plain)) == len(set(numbers))
        assert len(set(zip(plain, numbers, strict=True))) == len(set(numbers))


def test_no_sequences_no_numbers(mini_model):
    assert ngram_keys([], mini_model().engram, PAD) == []


def test_distinct_rows_follow_the_birthday_formula(mini_model):
    engram = mini_model().engram  # prime sizes a little above 101, two heads an order
    distinct = DistinctRows(engram)
    assert distinct.of([0, 0, 0]) == 0
    assert distinct.of([1, 0, 0]) == 2
    rng = np.random.default_rng(0)
    drawn = [sum(len(set(rng.integers(0, 107, size=60))) for _ in range(2)) for _ in range(300)]
    assert distinct.of([60, 0, 0]) == pytest.approx(np.mean(drawn), rel=0.06)
    assert distinct.of([10**9, 0, 0]) <= 2 * 127  # a table has no more rows than it has


def test_few_ngrams_in_a_large_table_do_not_collide(mini_model):
    distinct = DistinctRows(mini_model(engram={"rows_per_head": [16_000_000] * 3}).engram)
    assert distinct.of([256, 256, 256]) == 3 * 256 * 2


def test_lru_forgets_the_one_not_used_for_longest():
    cache = LruCache(2)
    assert [cache.use([key]) for key in (1, 2, 1, 3, 2)] == [0, 0, 1, 0, 0]
    assert len(cache) == 2
    assert 1 not in cache
    assert LruCache(0).use([1, 1]) == 0


def test_a_cache_is_shared_by_layers_and_spread_over_ranks(mini_model):
    engram = mini_model().engram  # two heads an order, two layers
    assert cache_entries_per_layer(1000, 1, engram, 33) == 1000 // (2 * 33 * 2)
    assert cache_entries_per_layer(1000, 4, engram, 33) == 4000 // (2 * 33 * 2)


def test_locality_of_a_constant_text(mini_model):
    found = locality(np.zeros(1024, dtype=np.int64), mini_model().engram, cache_gib=[1.0], windows=[512])
    assert found.num_tokens == 1024
    assert found.distinct_ratio_by_order == {2: 1 / 1024, 3: 1 / 1024, 4: 1 / 1024}
    assert [share.unique_ratio for share in found.windows] == [1 / 512] * 3
    assert found.caches[0].lru_hit_ratio == 1 - 3 / (3 * 1024)
    assert found.caches[0].static_hit_ratio == 1
    assert found.caches[0].lfu_hit_ratio == found.caches[0].optimal_hit_ratio == 1 - 3 / (3 * 1024)
    assert found.laws == (), "a text without new n-grams has no exponent"


def test_reuse_grows_with_the_cache_and_never_with_streams(mini_model):
    rng = np.random.default_rng(1)
    text = np.tile(rng.integers(0, 61, size=300), 20)
    one_entry_gib = 2 * 33 * 2 / 2**30
    sizes = [100 * one_entry_gib, 1000 * one_entry_gib, 4000 * one_entry_gib]
    found = locality(text, mini_model().engram, cache_gib=sizes, num_streams=[1, 7], windows=[])
    by_streams = {s: [p.lru_hit_ratio for p in found.caches if p.num_streams == s] for s in (1, 7)}
    assert by_streams[1] == sorted(by_streams[1])
    assert by_streams[1][-1] > 0.9


@pytest.mark.parametrize(
    ("ids", "changes", "message"),
    [
        ([], {}, "no tokens"),
        ([1, 2], {"cache_gib": [0]}, "cache_gib=0"),
        ([1, 2], {"cache_gib": [float("nan")]}, "cache_gib=nan"),
        ([1, 2], {"cache_gib": [float("inf")]}, "cache_gib=inf"),
        ([1, 2], {"num_streams": [-1]}, "streams=-1"),
        ([1, 2], {"num_streams": [3], "cache_gib": [1]}, "streams=3 exceeds the 2 tokens"),
    ],
)
def test_bad_questions(mini_model, ids, changes, message):
    with pytest.raises(BadInput, match=message):
        locality(np.array(ids, dtype=np.int64), mini_model().engram, **changes)


def batches(requests):
    """Prompts in two chunks, then decodes of all requests together."""
    for request in requests:
        half = request.prompt_tokens // 2
        yield TokenBatch(chunks=(Chunk(request, 0, half),))
        yield TokenBatch(chunks=(Chunk(request, half, request.prompt_tokens - half),))
    for step in range(requests[0].output_tokens - 1):
        positions, accepted = [r.prompt_tokens + step for r in requests], ()
        if step % 2:  # two right drafts of the first sequence, one of the last
            accepted = (min(2, requests[0].output_tokens - 1 - step), *[0] * (len(requests) - 2), 1)
        yield TokenBatch(list(requests), positions, num_drafts=2, accepted=accepted)


@pytest.mark.parametrize("removes_duplicates", [False, True])
@pytest.mark.parametrize("entries", [0, 40, 10_000])
def test_rows_of_batches_against_a_plain_replay(mini_model, removes_duplicates, entries):
    model = mini_model(engram={"rows_per_head": [16_000_000] * 3})  # so large that hashes do not collide
    requests = [Request(i, 0, 20, 6) for i in range(4)]
    text = load_text("random", model)
    pad = int(fold(np.array([PAD]), text, model)[0])
    grams = {}
    for request in requests:
        ids = fold(request_token_ids(text, model, request, 1), text, model) % 5
        grams[request.request_id] = [
            [(order, *(ids[p - k] if p >= k else pad for k in range(order))) for order in (2, 3, 4)] for p in range(26)
        ]
    ngrams = RequestNgrams(text, model, requests, 1)
    numbers = {}
    ngrams._by_request = {
        r: [numbers.setdefault(g, len(numbers)) * 3 + g[0] - 2 for position in positions for g in position]
        for r, positions in grams.items()
    }
    counter = RowCounter(model.engram, ngrams, 0, entries, removes_duplicates=removes_duplicates)
    kept = OrderedDict()
    for batch in batches(requests):
        asked = []
        for r, p, right in zip(batch.requests, batch.positions, batch.accepted or [0] * 4, strict=False):
            asked += [g for position in grams[r.request_id][p : p + 1 + right] for g in position]
        for chunk in batch.chunks:
            positions = grams[chunk.request.request_id][chunk.start : chunk.start + chunk.num_tokens]
            asked += [g for position in positions for g in position]
        missing = [g for g in asked if g not in kept]
        read = (len(set(missing)) if removes_duplicates else len(missing)) + 3 * batch.num_drafts
        hits = [g for g in asked if g in kept]
        found = len(set(hits)) if removes_duplicates else len(hits)
        assert counter.count(batch) == RowCount(read * 2, len(hits) * 2, found * 2)
        for g in asked:
            kept.pop(g, None)
            kept[g] = True
            while len(kept) > entries:
                kept.popitem(last=False)


def test_runs_that_share_what_was_counted_give_the_same_as_runs_that_do_not(sim_scenario):
    """Poisson arrivals batch differently at each bound: the shared history parts and must be replayed."""
    resolved = sim_scenario(
        {"tier": "nvme", "cache_gib": 3e-6},
        hardware={"device": {"memory_efficiency_ratio": {"value": 0.5, "low": 0.01, "high": 0.9}}},
        workload={
            "kind": "poisson",
            "requests_per_s": 150.0,
            "num_requests": 30,
            "prompt_tokens": {"uniform": [3, 40]},
            "output_tokens": {"uniform": [2, 12]},
        },
    )
    requests = tuple(Request(i, 0, n, o) for i, (n, o) in enumerate(zip(*_lengths(resolved), strict=True)))
    shared = RequestNgrams(load_text("random", resolved.model), resolved.model, requests, resolved.scenario.seed)
    alone = [run(resolved, bound).samples for bound in ("nominal", "pessimistic", "optimistic")]
    together = [run(resolved, bound, shared).samples for bound in ("nominal", "pessimistic", "optimistic")]
    assert together == alone
    assert alone[0].steps.rows_read != alone[1].steps.rows_read


def _lengths(resolved):
    requests = run(resolved, "nominal").samples.requests
    return requests.prompt_tokens, requests.output_tokens
