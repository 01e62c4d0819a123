"""KV on demand and cached prefixes in the serving loop: stories by hand, and what must hold for any workload."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercast_profiles.scenario import Engine, Speculative
from tiercast_profiles.workload import Request
from tiercast_sim.run import run
from tiercast_sim.serving import Scheduler
from tiercast_sim.simulate import simulate


def scheduler_of(capacity_tokens, draft_tokens=0, **limits):
    engine = Engine(**{"max_num_batched_tokens": 8, "max_num_seqs": 4, "kv_block_tokens": 4, **limits})
    return Scheduler(engine, capacity_tokens, Speculative(draft_tokens=draft_tokens), seed=0)


def story(scheduler, requests):
    """Each step as its decodes, its chunks and the ids that finish; and how often each gave a first token."""
    for request in requests:
        scheduler.add(request)
    steps, first = [], []
    while scheduler.has_work:
        assert len(steps) < 10_000, "the run makes no progress"
        plan = scheduler.plan()
        assert plan.num_tokens > 0
        assert 0 <= scheduler.used_blocks <= scheduler._kv.num_blocks
        finished = scheduler.finish()
        first += [request.request_id for request in finished.first_tokens]
        decodes = [(r.request_id, p) for r, p in zip(plan.decode_requests, plan.decode_positions, strict=True)]
        chunks = [(chunk.request.request_id, chunk.start, chunk.num_tokens) for chunk in plan.chunks]
        steps.append((decodes, chunks, [request.request_id for request in finished.done]))
    assert scheduler.used_blocks == 0
    return steps, first


def test_the_last_admitted_gives_way_and_computes_all_it_had_again():
    """Four blocks of 4: both hold two after eight tokens; the ninth of request 0 takes those of request 1."""
    scheduler = scheduler_of(16, kv_reservation="on_demand")
    steps, first = story(scheduler, [Request(0, 0, 4, 9), Request(1, 0, 4, 9)])
    assert steps[4] == ([(0, 7), (1, 7)], [], [])
    assert steps[5] == ([(0, 8)], [], [])  # nobody is admitted in a step that preempted
    assert steps[8] == ([(0, 11)], [], [0])  # request 1 does not fit before
    assert steps[9:] == [
        ([], [(1, 0, 8)], []),
        ([], [(1, 8, 1)], []),  # its prompt of 4 and 5 outputs; yields the sixth
        ([(1, 9)], [], []),
        ([(1, 10)], [], []),
        ([(1, 11)], [], [1]),
    ]
    assert first == [0, 1]
    assert scheduler.counts.preemptions == 1


def test_with_prefix_caching_a_preempted_request_finds_its_own_blocks():
    scheduler = scheduler_of(16, kv_reservation="on_demand", prefix_caching=True)
    steps, _ = story(scheduler, [Request(0, 0, 4, 9), Request(1, 0, 4, 9)])
    # Request 0 needed one block of the three that request 1 left: the tail went, the head of 4 tokens stayed.
    assert steps[9] == ([], [(1, 4, 5)], [])


def test_a_shared_prefix_is_computed_once():
    scheduler = scheduler_of(1000, prefix_caching=True, max_num_batched_tokens=100)
    steps, _ = story(scheduler, [Request(i, 0, 13, 2, (), 10) for i in range(3)])
    assert steps[0][1] == [(0, 0, 13), (1, 8, 5), (2, 8, 5)]
    assert (scheduler.counts.prompt_tokens, scheduler.counts.cached_tokens) == (39, 16)
    assert scheduler.counts.prefix_hit_ratio == 16 / 39


lengths = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 10)), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(
    lengths=lengths,
    spare_blocks=st.integers(0, 12),
    budget=st.integers(4, 40),
    max_num_seqs=st.integers(1, 6),
    drafts=st.integers(0, 3),
    reservation=st.sampled_from(["full", "on_demand"]),
    caching=st.booleans(),
    prefix=st.sampled_from([0, 5, 16]),
)
def test_every_token_is_computed_however_scarce_kv_is(
    lengths, spare_blocks, budget, max_num_seqs, drafts, reservation, caching, prefix
):
    """Each request gives one first token and finishes once; what it has not in KV it computes in order."""
    requests = [Request(i, 0, p, o, (), min(prefix, p)) for i, (p, o) in enumerate(lengths)]
    largest = max(-(-(p + o) // 4) for p, o in lengths)
    limits = {"max_num_batched_tokens": budget, "max_num_seqs": max_num_seqs}
    scheduler = scheduler_of(
        (largest + spare_blocks) * 4, drafts, kv_reservation=reservation, prefix_caching=caching, **limits
    )
    steps, first = story(scheduler, requests)
    assert sorted(first) == sorted(i for _, _, done in steps for i in done) == list(range(len(requests)))
    assert scheduler.counts.prompt_tokens == sum(p for p, _ in lengths)
    known = {}
    for decodes, chunks, _ in steps:
        assert len(decodes) * (1 + drafts) + sum(count for _, _, count in chunks) <= budget
        for request, position in decodes:
            assert position <= known[request] + drafts  # behind what was computed, accepted drafts included
            known[request] = position + 1
        for request, start, count in chunks:
            starts_over = start % 4 == 0 and (caching or start == 0)
            assert start == known.get(request, 0) or starts_over
            assert start <= known.get(request, start) + drafts
            known[request] = start + count
    if reservation == "full" or spare_blocks >= sum(-(-(p + o) // 4) for p, o in lengths):
        assert scheduler.counts.preemptions == 0
    if not caching:
        assert scheduler.counts.cached_tokens == 0


@settings(max_examples=100, deadline=None)
@given(lengths=lengths, budget=st.integers(4, 40))
def test_with_room_for_all_both_reservations_are_one(lengths, budget):
    requests = [Request(i, 0, p, o) for i, (p, o) in enumerate(lengths)]
    full, on_demand = (
        story(scheduler_of(4000, kv_reservation=reservation, max_num_batched_tokens=budget), requests)
        for reservation in ("full", "on_demand")
    )
    assert full == on_demand


TIGHT = {"max_num_batched_tokens": 32, "max_num_seqs": 8, "kv_block_tokens": 4}
CLOSED = {
    "kind": "closed_loop",
    "concurrency": 8,
    "num_requests": 24,
    "prompt_tokens": {"fixed": 40},
    "output_tokens": {"fixed": 60},
}


def tight(sim_scenario, prefetch="step_entry", **engine):
    """KV for about three and a half requests: a token of it is made dear."""
    return sim_scenario(
        {"tier": "dram", "prefetch": prefetch},
        backbone={"kv_bytes_per_token": 4_100_000},
        engine={**TIGHT, **engine},
        workload={**CLOSED, "shared_prefix_tokens": 24},
    )


def test_on_demand_admits_more_and_pays_by_computing_again(sim_scenario):
    full = simulate(tight(sim_scenario), with_baselines=False, with_bounds=False)
    found = simulate(tight(sim_scenario, kv_reservation="on_demand"), with_baselines=False, with_bounds=False)
    assert full.metrics.preemptions_per_request is None
    assert found.metrics.preemptions_per_request.value > 0
    assert max(found.samples.steps.decode_sequences) > max(full.samples.steps.decode_sequences)
    assert sum(found.samples.steps.prefill_tokens) > sum(full.samples.steps.prefill_tokens)
    assert found.provenance.facts["engine"] == "events"


@pytest.mark.parametrize("prefetch", ["off", "step_entry", "prev_step"])
def test_cached_tokens_need_neither_prefill_nor_rows(sim_scenario, prefetch):
    whole = run(tight(sim_scenario, prefetch), "nominal").samples.steps
    cached = simulate(tight(sim_scenario, prefetch, prefix_caching=True), with_baselines=False, with_bounds=False)
    steps = cached.samples.steps
    num_cached = sum(whole.prefill_tokens) - sum(steps.prefill_tokens)
    assert num_cached == 23 * 24  # all but the first request find the whole prefix
    assert cached.metrics.prefix_hit_ratio.value == num_cached / (24 * 40)
    per_token = sum(whole.rows) // (24 * (40 + 59))
    assert sum(whole.rows) - sum(steps.rows) == num_cached * per_token
    assert sum(steps.rows_read) == sum(steps.rows)


@pytest.mark.parametrize("prefetch", ["off", "step_entry", "prev_step"])
def test_rows_of_recomputed_tokens_are_fetched_again(sim_scenario, prefetch):
    steps = run(tight(sim_scenario, prefetch, kv_reservation="on_demand"), "nominal").samples.steps
    assert sum(steps.rows) == sum(steps.rows_read) or prefetch == "prev_step"  # preempted after their rows came
    assert sum(steps.rows_read) >= sum(steps.rows)


def test_on_demand_with_room_for_all_is_arithmetic(sim_scenario):
    resolved = sim_scenario({"tier": "dram"}, engine={**TIGHT, "kv_reservation": "on_demand"})
    fast, events = run(resolved, "nominal"), run(resolved, "nominal", engine="events")
    assert fast.engine == "arithmetic"
    assert fast.samples == events.samples
    assert fast.counts.preemptions == events.counts.preemptions == 0
