"""The scheduling policy as stories: which tokens run in which step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercast_profiles.errors import BadInput, InfeasibleScenario
from tiercast_profiles.workload import Request
from tiercast_runtime.scheduler import Limits, Scheduler


def limits(**changes):
    values = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 100,
        "kv_block_tokens": 4,
        "kv_capacity_tokens": 400,
        "kv_bytes_per_token": 10,
    }
    return Limits(**(values | changes))


def story(given_limits, requests, *, later=()):
    """Run to the end; per step: ids that decode, (id, start, count) chunks, ids that finish.

    ``later`` requests arrive one by one, each when an earlier request finishes.
    """
    scheduler, arrivals, steps = Scheduler(given_limits), list(later), []
    for request in requests:
        scheduler.submit(request)
    while not scheduler.is_idle:
        plan = scheduler.plan()
        decodes = [s.request.request_id for s in plan.decodes]
        chunks = [(c.sequence.request.request_id, c.start, c.count) for c in plan.chunks]
        outcome = scheduler.complete(plan)
        steps.append((decodes, chunks, [s.request.request_id for s in outcome.finished]))
        for _ in outcome.finished:
            if arrivals:
                scheduler.submit(arrivals.pop(0))
        assert len(steps) < 1000, "the story does not end"
    return steps


def test_one_request_prefills_then_decodes_one_token_per_step():
    assert story(limits(), [Request(0, 0, 5, 3)]) == [
        ([], [(0, 0, 5)], []),
        ([0], [], []),
        ([0], [], [0]),
    ]


def test_a_single_output_token_comes_from_the_prefill_itself():
    assert story(limits(), [Request(0, 0, 5, 1)]) == [([], [(0, 0, 5)], [0])]


def test_a_long_prompt_is_cut_into_chunks_of_the_budget_and_decodes_go_first():
    requests = [Request(0, 0, 3, 4), Request(1, 0, 20, 2)]
    assert story(limits(max_num_batched_tokens=8), requests) == [
        ([], [(0, 0, 3), (1, 0, 5)], []),
        ([0], [(1, 5, 7)], []),
        ([0], [(1, 12, 7)], []),
        ([0], [(1, 19, 1)], [0]),
        ([1], [], [1]),
    ]


def test_running_prompts_are_served_before_waiting_ones():
    requests = [Request(0, 0, 10, 1), Request(1, 0, 2, 1), Request(2, 0, 2, 1)]
    assert story(limits(max_num_batched_tokens=6), requests) == [
        ([], [(0, 0, 6)], []),
        ([], [(0, 6, 4), (1, 0, 2)], [0, 1]),
        ([], [(2, 0, 2)], [2]),
    ]


def test_decodes_beyond_the_budget_wait_in_admission_order():
    requests = [Request(i, 0, 1, 3) for i in range(3)]
    assert story(limits(max_num_batched_tokens=2), requests) == [
        ([], [(0, 0, 1), (1, 0, 1)], []),
        ([0, 1], [], []),
        ([0, 1], [], [0, 1]),
        ([], [(2, 0, 1)], []),
        ([2], [], []),
        ([2], [], [2]),
    ]


def test_no_more_than_max_num_seqs_run_and_the_next_is_admitted_when_one_finishes():
    requests = [Request(0, 0, 2, 2), Request(1, 0, 2, 3), Request(2, 0, 2, 1)]
    assert story(limits(max_num_seqs=2), requests) == [
        ([], [(0, 0, 2), (1, 0, 2)], []),
        ([0, 1], [], [0]),
        ([1], [(2, 0, 2)], [1, 2]),
    ]


def test_admission_reserves_the_whole_request_and_stops_at_the_first_that_does_not_fit():
    # 6 blocks of 4 tokens: request 0 takes 3, request 1 needs 4, request 2 would fit but stands behind it.
    requests = [Request(0, 0, 9, 3), Request(1, 0, 13, 1), Request(2, 0, 2, 1)]
    assert story(limits(kv_capacity_tokens=24), requests) == [
        ([], [(0, 0, 9)], []),
        ([0], [], []),
        ([0], [], [0]),
        ([], [(1, 0, 13), (2, 0, 2)], [1, 2]),
    ]


def test_closed_loop_keeps_the_number_of_requests_in_flight():
    assert story(limits(), [Request(0, 0, 2, 2), Request(1, 0, 2, 3)], later=[Request(2, 0, 3, 2)]) == [
        ([], [(0, 0, 2), (1, 0, 2)], []),
        ([0, 1], [], [0]),
        ([1], [(2, 0, 3)], [1]),
        ([2], [], [2]),
    ]


def test_a_request_that_can_never_fit_says_how_many_bytes_are_missing():
    scheduler = Scheduler(limits(kv_capacity_tokens=16))
    with pytest.raises(InfeasibleScenario, match="request 7 needs 5 KV blocks") as caught:
        scheduler.submit(Request(7, 0, 15, 3))
    assert caught.value.shortfall_bytes == 1 * 4 * 10


def test_a_request_without_tokens_is_refused():
    with pytest.raises(BadInput, match="must be at least 1"):
        Scheduler(limits()).submit(Request(0, 0, 0, 1))


@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=12),
    max_num_seqs=st.integers(1, 5),
    budget=st.integers(1, 30),
    capacity_blocks=st.integers(13, 40),
)
@settings(max_examples=60, deadline=None)
def test_every_token_is_computed_once_and_no_limit_is_passed(lengths, max_num_seqs, budget, capacity_blocks):
    given_limits = limits(
        max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, kv_capacity_tokens=4 * capacity_blocks
    )
    requests = [Request(i, 0, prompt, output) for i, (prompt, output) in enumerate(lengths)]
    blocks = {r.request_id: -(-(r.prompt_tokens + r.output_tokens) // 4) for r in requests}
    prefilled, decoded, finished = {}, {}, []
    live = set()
    for decodes, chunks, done in story(given_limits, requests):
        assert 0 < len(decodes) + sum(count for _, _, count in chunks) <= budget
        for request_id, start, count in chunks:
            assert start == prefilled.get(request_id, 0)
            prefilled[request_id] = start + count
            live.add(request_id)
        for request_id in decodes:
            decoded[request_id] = decoded.get(request_id, 0) + 1
        assert len(live) <= max_num_seqs
        assert sum(blocks[i] for i in live) <= capacity_blocks
        live -= set(done)
        finished += done
    assert sorted(finished) == [r.request_id for r in requests]
    assert prefilled == {r.request_id: r.prompt_tokens for r in requests}
    assert all(decoded.get(r.request_id, 0) == r.output_tokens - 1 for r in requests)


def test_slots_are_distinct_while_in_use_and_the_lowest_is_reused():
    scheduler = Scheduler(limits(max_num_seqs=3))
    for i, output in enumerate((3, 1, 3, 2)):
        scheduler.submit(Request(i, 0, 2, output))
    first = scheduler.plan()
    assert [c.sequence.slot for c in first.chunks] == [0, 1, 2]
    scheduler.complete(first)
    second = scheduler.plan()
    assert [(c.sequence.request.request_id, c.sequence.slot) for c in second.chunks] == [(3, 1)]


def test_decoding_sequences_move_down_into_free_slots_and_a_prompt_under_way_stays():
    scheduler = Scheduler(limits(max_num_seqs=6, max_num_batched_tokens=12))
    for i, (prompt, output) in enumerate(((2, 1), (2, 9), (2, 1), (2, 9), (2, 9), (30, 9))):
        scheduler.submit(Request(i, 0, prompt, output))
    scheduler.complete(scheduler.plan())  # requests 0 and 2 are done, 5 has the last of the step's budget
    moves = scheduler.close_gaps()
    assert [(m.source, m.target, m.num_tokens) for m in moves] == [(4, 0, 2), (3, 2, 2)]
    assert scheduler.close_gaps() == []
    plan = scheduler.plan()
    assert {s.request.request_id: s.slot for s in plan.decodes} == {1: 1, 3: 2, 4: 0}
    assert [c.sequence.slot for c in plan.chunks] == [5]
    scheduler.complete(plan)
    scheduler.submit(Request(6, 0, 2, 9))
    admitted = {c.sequence.request.request_id: c.sequence.slot for c in scheduler.plan().chunks}
    assert admitted.get(6, 3) == 3, "what was left is free again"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 8)), min_size=1, max_size=20),
    st.integers(1, 6),
    st.integers(1, 40),
)
def test_slots_stay_distinct_and_hold_what_was_moved_there(sizes, max_num_seqs, budget):
    scheduler = Scheduler(limits(max_num_seqs=max_num_seqs, max_num_batched_tokens=budget))
    for i, (prompt, output) in enumerate(sizes):
        scheduler.submit(Request(i, 0, prompt, output))
    held = {}  # by slot: whose tokens, and how many
    while not scheduler.is_idle:
        plan = scheduler.plan()
        in_use = [sequence.slot for sequence in (*plan.decodes, *(chunk.sequence for chunk in plan.chunks))]
        assert len(set(in_use)) == len(in_use)
        for chunk in plan.chunks:
            held[chunk.sequence.slot] = (chunk.sequence.request.request_id, chunk.start + chunk.count)
        for sequence in plan.decodes:
            assert held[sequence.slot] == (sequence.request.request_id, sequence.decode_position)
            held[sequence.slot] = (sequence.request.request_id, sequence.decode_position + 1)
        scheduler.complete(plan)
        for move in scheduler.close_gaps():
            assert held[move.source][1] == move.num_tokens
            held[move.target] = held[move.source]
