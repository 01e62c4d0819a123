"""The serving policy as stories: which tokens each step computes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercast_profiles.drafts import accepted_drafts
from tiercast_profiles.errors import InfeasibleScenario
from tiercast_profiles.scenario import Engine, Speculative
from tiercast_profiles.workload import Request
from tiercast_runtime.scheduler import Limits
from tiercast_runtime.scheduler import Scheduler as RuntimeScheduler
from tiercast_sim.serving import Scheduler, check_requests_fit


def engine(**limits):
    return Engine(**{"max_num_batched_tokens": 8, "max_num_seqs": 4, "kv_block_tokens": 4, **limits})


def story(requests, limits, capacity_tokens=1000, speculative=None):
    """Run all requests from t = 0; each step as its decodes, its chunks and the ids that finish."""
    scheduler = Scheduler(limits, capacity_tokens, speculative or Speculative(), seed=0)
    for request in requests:
        scheduler.add(request)
    steps = []
    while scheduler.has_work:
        plan = scheduler.plan()
        assert plan.num_tokens <= limits.max_num_batched_tokens
        done = [request.request_id for request in scheduler.finish().done]
        decodes = [(r.request_id, p) for r, p in zip(plan.decode_requests, plan.decode_positions, strict=True)]
        chunks = [(chunk.request.request_id, chunk.start, chunk.num_tokens) for chunk in plan.chunks]
        steps.append((decodes, chunks, done))
    assert scheduler.used_blocks == 0
    return steps


def test_decodes_come_first_then_chunks_then_new_requests():
    requests = [Request(0, 0, 3, 3), Request(1, 0, 10, 2), Request(2, 0, 2, 1)]
    assert story(requests, engine()) == [
        ([], [(0, 0, 3), (1, 0, 5)], []),
        ([(0, 3)], [(1, 5, 5), (2, 0, 2)], [2]),
        ([(0, 4), (1, 10)], [], [0, 1]),
    ]


def test_a_long_prompt_runs_in_chunks_of_the_budget():
    assert story([Request(0, 0, 20, 1)], engine()) == [
        ([], [(0, 0, 8)], []),
        ([], [(0, 8, 8)], []),
        ([], [(0, 16, 4)], [0]),
    ]


def test_the_head_of_the_line_waits_for_kv_and_nobody_overtakes():
    # Eight blocks of 4: request 0 takes 4, request 1 needs 5 and waits although request 2 would fit.
    requests = [Request(0, 0, 8, 8), Request(1, 0, 16, 2), Request(2, 0, 2, 1)]
    steps = story(requests, engine(), capacity_tokens=32)
    first_of = {
        request: next(i for i, step in enumerate(steps) if any(c[0] == request for c in step[1]))
        for request in (0, 1, 2)
    }
    finished_0 = next(i for i, step in enumerate(steps) if 0 in step[2])
    assert first_of[1] == finished_0 + 1
    assert first_of[2] >= first_of[1]


def test_max_num_seqs_holds():
    steps = story([Request(i, 0, 1, 3) for i in range(5)], engine(max_num_seqs=2))
    assert max(len(decodes) + len(chunks) for decodes, chunks, _ in steps) == 2


def test_decodes_beyond_the_budget_wait_in_admission_order():
    requests = [Request(i, 0, 1, 4) for i in range(4)]
    steps = story(requests, engine(max_num_batched_tokens=3, max_num_seqs=4))
    assert steps[1] == ([(0, 1), (1, 1), (2, 1)], [], [])
    assert steps[-1][0] == [(3, 3)]


def test_drafts_shorten_a_request_by_what_is_accepted():
    request = Request(0, 0, 2, 12)
    always = story([request], engine(), speculative=Speculative(draft_tokens=3, acceptance_ratio=1.0))
    never = story([request], engine(), speculative=Speculative(draft_tokens=3, acceptance_ratio=0.0))
    assert [decodes for decodes, _, _ in always] == [[], [(0, 2)], [(0, 6)], [(0, 10)]]
    assert len(never) == 12


def test_accepted_drafts_stop_at_the_first_failure_and_repeat():
    speculative = Speculative(draft_tokens=4, acceptance_ratio=0.5)
    request = Request(3, 0, 5, 4000)
    accepted = accepted_drafts(request, speculative, seed=1)
    assert accepted == accepted_drafts(request, speculative, seed=1)
    # Mean of a run of successes cut at 4: p + p^2 + p^3 + p^4.
    assert sum(accepted) / len(accepted) == pytest.approx(0.9375, abs=0.08)


def test_a_request_that_can_never_fit_is_refused_with_its_shortfall():
    with pytest.raises(InfeasibleScenario, match="request 1 needs 24 KV tokens and the KV memory holds 16") as error:
        check_requests_fit(np.array([4, 20]), np.array([4, 3]), engine(), 16, 100.0)
    assert error.value.shortfall_bytes == 800


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 10)), min_size=1, max_size=16),
    capacity_blocks=st.integers(10, 30),
    max_num_seqs=st.integers(1, 6),
    spare_budget=st.integers(0, 39),
    speculative=st.builds(
        Speculative, draft_tokens=st.integers(0, 4), acceptance_ratio=st.sampled_from([0.0, 0.5, 0.8, 1.0])
    ),
)
def test_the_runtime_plans_the_same_steps(lengths, capacity_blocks, max_num_seqs, spare_budget, speculative):
    """Two implementations of one policy that share no code but the draw of what is accepted: every step is the same."""
    requests = [Request(i, 0, prompt, output) for i, (prompt, output) in enumerate(lengths)]
    budget = 1 + speculative.draft_tokens + spare_budget
    limits = engine(max_num_batched_tokens=budget, max_num_seqs=max_num_seqs)
    simulated = story(requests, limits, capacity_tokens=capacity_blocks * 4, speculative=speculative)
    accepted = {request.request_id: accepted_drafts(request, speculative, 0) for request in requests}
    runtime = RuntimeScheduler(
        Limits(max_num_seqs, budget, 4, capacity_blocks * 4, 1, speculative.draft_tokens), accepted
    )
    for request in requests:
        runtime.submit(request)
    steps = []
    while not runtime.is_idle:
        plan = runtime.plan()
        assert plan.num_tokens <= budget
        decodes = [(s.request.request_id, s.decode_position) for s in plan.decodes]
        chunks = [(chunk.sequence.request.request_id, chunk.start, chunk.count) for chunk in plan.chunks]
        done = [s.request.request_id for s in runtime.complete(plan).finished]
        steps.append((decodes, chunks, done))
    assert simulated == steps
