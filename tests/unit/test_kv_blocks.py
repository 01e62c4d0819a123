"""KV blocks: never more than there are, shared where prompts are equal, forgotten oldest first."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tiercast_profiles.workload import Request
from tiercast_sim.kv_blocks import KvBlocks, prefix_keys


def shared(request_id, prompt, prefix):
    return Request(request_id, 0, prompt, 1, (), prefix)


def test_only_whole_blocks_of_a_prefix_are_shared():
    assert prefix_keys(shared(0, 20, 11), 4) == (("shared", 0), ("shared", 1))
    assert prefix_keys(shared(0, 20, 3), 4) == ()
    with_ids = Request(0, 0, 1030, 1, (7, 8, 9))
    keys = prefix_keys(with_ids, 16)
    assert len(keys) == 1030 // 16
    assert (keys[0][0], keys[31][0], keys[32][0], keys[-1][0]) == (7, 7, 8, 8)
    # A block across two blocks of the trace is known by the second, which stands for all before it.
    assert prefix_keys(with_ids, 500)[1] == (8, 999)


def test_a_second_prompt_finds_the_blocks_of_the_first():
    kv = KvBlocks(10, 4, caches_prefixes=True)
    one, two = kv.table(shared(0, 13, 10)), kv.table(shared(1, 13, 10))
    assert kv.num_cached_tokens(one, 13) == 0
    assert kv.start(one, 0, 13)
    kv.computed(one, 13)
    assert kv.num_cached_tokens(two, 13) == 8
    assert kv.start(two, 8, 13)
    assert kv.num_free == 10 - 4 - 2  # two of the second's four blocks are the first's
    kv.release(one, 13)
    assert kv.num_free == 10 - 4
    kv.release(two, 13)
    assert kv.num_free == 10


def test_the_last_token_of_a_prompt_is_always_computed():
    kv = KvBlocks(10, 4, caches_prefixes=True)
    one = kv.table(shared(0, 8, 8))
    assert kv.start(one, 0, 8)
    kv.computed(one, 8)
    assert kv.num_cached_tokens(kv.table(shared(1, 8, 8)), 8) == 4  # the second block holds token 7
    assert kv.num_cached_tokens(kv.table(shared(1, 9, 8)), 9) == 8


def test_what_was_unused_for_longest_goes_first_and_tails_before_heads():
    kv = KvBlocks(4, 4, caches_prefixes=True)
    old = Request(0, 0, 8, 1, (1,))
    new = Request(1, 0, 8, 1, (2,))
    for request in (old, new):
        table = kv.table(request)
        assert kv.start(table, 0, 8)
        kv.computed(table, 8)
        kv.release(table, 8)
    assert kv.num_free == 4
    other = kv.table(Request(2, 0, 4, 1))
    assert kv.start(other, 0, 4)  # takes the tail of the old one
    longer = {request.hash_ids: Request(9, 0, 9, 1, request.hash_ids) for request in (old, new)}
    assert kv.num_cached_tokens(kv.table(longer[1,]), 9) == 4
    assert kv.num_cached_tokens(kv.table(longer[2,]), 9) == 8


def test_without_prefix_caching_blocks_are_only_counted():
    kv = KvBlocks(3, 4, caches_prefixes=False)
    table = kv.table(shared(0, 12, 12))
    assert table.keys == ()
    assert kv.start(table, 0, 5)
    assert kv.grow(table, 12)
    assert not kv.grow(table, 13)
    assert kv.num_free == 0
    kv.release(table, 12)
    assert kv.num_free == 3
    assert kv.num_cached_tokens(kv.table(shared(1, 12, 12)), 12) == 0


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 20), st.sampled_from([0, 4, 9, 16]), st.integers(1, 20)),
        max_size=40,
    ),
    st.integers(4, 12),
)
def test_blocks_are_conserved_whatever_happens(events, num_blocks):
    """Slots start, grow and release in any order: free and distinct used blocks always add up to all there are."""
    kv = KvBlocks(num_blocks, 4, caches_prefixes=True)
    running = {}
    for slot, prompt, prefix, tokens in events:
        if slot in running:
            table, done = running[slot]
            if tokens % 3 and kv.grow(table, done + tokens):
                running[slot] = (table, done + tokens)
                kv.computed(table, done + tokens)
            else:
                kv.release(table, done)
                del running[slot]
        else:
            table = kv.table(shared(slot, prompt, min(prefix, prompt)))
            cached = kv.num_cached_tokens(table, prompt)
            assert cached < prompt
            if kv.start(table, cached, prompt):
                running[slot] = (table, prompt)
                kv.computed(table, prompt)
        held = Counter(key for table, _ in running.values() for key in table.held)
        private = sum(table.num_private for table, _ in running.values())
        assert all(table.num_private >= 0 for table, _ in running.values())
        assert kv.num_free + len(held) + private == num_blocks
        assert all(table.num_blocks * 4 >= done for table, done in running.values())
