"""Prefetch ``prev_step``: which prompt tokens are looked up ahead, and that every token gets its own rows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.drafts import accepted_drafts  # noqa: E402
from tiercast_profiles.scenario import Engine, Speculative  # noqa: E402
from tiercast_profiles.workload import Request  # noqa: E402
from tiercast_runtime.early import EarlyLedger  # noqa: E402
from tiercast_runtime.early_rows import HeldRows  # noqa: E402
from tiercast_runtime.paths.base import StagedRows  # noqa: E402
from tiercast_runtime.scheduler import Limits, Scheduler  # noqa: E402
from tiercast_sim.serving import Scheduler as SimScheduler  # noqa: E402


def limits(**changes):
    values = {"max_num_seqs": 8, "max_num_batched_tokens": 8, "kv_block_tokens": 4, "kv_capacity_tokens": 400}
    return Limits(**(values | changes), kv_bytes_per_token=10)


def parts_of(parts):
    return [(part.request.request_id, part.start, part.count) for part in parts]


def story(given_limits, requests):
    """Per step: (decodes, chunks, early tokens, looked up ahead)."""
    scheduler, ledger, steps = Scheduler(given_limits), EarlyLedger(), []
    for request in requests:
        scheduler.submit(request)
    while not scheduler.is_idle:
        plan = scheduler.plan()
        split = ledger.split(plan, scheduler.upcoming(plan))
        assert split.first_early == len(plan.decodes)
        assert ledger.num_booked <= given_limits.max_num_batched_tokens
        chunks = [(c.sequence.request.request_id, c.start, c.count) for c in plan.chunks]
        steps.append((len(plan.decodes), chunks, split.num_early, parts_of(split.ahead)))
        scheduler.complete(plan)
    assert ledger.num_booked == 0, "every row looked up ahead is used"
    return steps


def test_a_long_prompt_is_looked_up_one_step_ahead_and_decodes_never_are():
    assert story(limits(), [Request(0, 0, 20, 2)]) == [
        (0, [(0, 0, 8)], 0, [(0, 8, 8)]),
        (0, [(0, 8, 8)], 8, [(0, 16, 4)]),
        (0, [(0, 16, 4)], 4, []),
        (1, [], 0, []),
    ]


def test_what_the_next_step_has_no_room_for_is_kept_and_not_looked_up_again():
    assert story(limits(), [Request(0, 0, 4, 3), Request(1, 0, 18, 1)]) == [
        (0, [(0, 0, 4), (1, 0, 4)], 0, [(1, 4, 8)]),
        (1, [(1, 4, 7)], 7, [(1, 12, 6)]),
        (1, [(1, 11, 7)], 7, []),
    ]


def test_a_waiting_prompt_is_looked_up_before_its_request_is_admitted():
    assert story(limits(max_num_seqs=1), [Request(0, 0, 3, 3), Request(1, 0, 5, 1)]) == [
        (0, [(0, 0, 3)], 0, [(1, 0, 5)]),
        (1, [], 0, []),
        (1, [], 0, []),
        (0, [(1, 0, 5)], 5, []),
    ]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 6)), min_size=1, max_size=8),
    spare_budget=st.integers(0, 11),
    max_num_seqs=st.integers(1, 5),
    drafts=st.integers(0, 3),
)
def test_the_simulator_looks_ahead_at_the_same_tokens(lengths, spare_budget, max_num_seqs, drafts):
    """A5 on both sides; and a peek changes nothing, because the plans stay equal."""
    budget, speculative = 1 + drafts + spare_budget, Speculative(draft_tokens=drafts)
    given_limits = limits(
        max_num_batched_tokens=budget, max_num_seqs=max_num_seqs, kv_capacity_tokens=72, num_draft_tokens=drafts
    )
    requests = [Request(number, 0, prompt, output) for number, (prompt, output) in enumerate(lengths)]
    ours = Scheduler(given_limits, {r.request_id: accepted_drafts(r, speculative, 0) for r in requests})
    engine = Engine(max_num_batched_tokens=budget, max_num_seqs=max_num_seqs, kv_block_tokens=4)
    theirs = SimScheduler(engine, 72, speculative, 0)
    ledger = EarlyLedger()
    for request in requests:
        ours.submit(request)
        theirs.add(request)
    while not ours.is_idle:
        plan, expected = ours.plan(), theirs.plan()
        assert [(c.start, c.count) for c in plan.chunks] == [(c.start, c.num_tokens) for c in expected.chunks]
        upcoming = ours.upcoming(plan)
        assert upcoming == ours.upcoming(plan)
        assert parts_of(upcoming) == [(c.request.request_id, c.start, c.num_tokens) for c in theirs.upcoming_chunks()]
        assert ledger.split(plan, upcoming).first_early == len(plan.decodes) * (1 + drafts)
        ours.complete(plan)
        theirs.finish()
    assert ledger.num_booked == 0


ROWS_PER_TOKEN = 2


def staged(tokens, *, has_inverse):
    """The lookup of tokens whose row r is filled with their number × 2 + r; half of them repeat where there is one."""
    ids = torch.tensor([[token * 2, token * 2 + 1] for token in tokens], dtype=torch.int64).view(-1, ROWS_PER_TOKEN)
    if not has_inverse:
        return StagedRows(ids.reshape(-1, 1).to(torch.uint8), None, ids.numel(), ids.numel())
    unique, inverse = torch.unique(ids, return_inverse=True)
    return StagedRows(unique.view(-1, 1).to(torch.uint8), inverse, ids.numel(), len(unique))


def tokens_of(merged):
    rows = merged.rows if merged.inverse is None else merged.rows[merged.inverse.reshape(-1)]
    pairs = rows.view(-1, ROWS_PER_TOKEN).tolist()
    assert all(high == low + 1 for low, high in pairs)
    return [low // 2 for low, _ in pairs]


@pytest.mark.parametrize("has_inverse", [False, True])
def test_early_rows_land_between_the_decodes_and_the_rest_of_the_prompts(has_inverse):
    held = HeldRows()
    borrowed = staged([10, 11, 11, 10, 12], has_inverse=has_inverse)
    held.add(borrowed, 5)
    own = staged([1, 2, 30, 1], has_inverse=has_inverse)
    merged = held.merge(own, 2, 3, (7, ROWS_PER_TOKEN))
    assert tokens_of(merged) == [1, 2, 10, 11, 11, 30, 1]
    borrowed.rows.zero_()  # the lookup's place is used again
    assert held.num_tokens == 2
    held.add(staged([40, 41], has_inverse=has_inverse), 2)
    assert held.merge(own, 2, 0, (4, ROWS_PER_TOKEN)) is own
    assert tokens_of(held.merge(None, 0, 3, (3, ROWS_PER_TOKEN))) == [10, 12, 40]
    assert tokens_of(held.merge(None, 0, 1, (1, ROWS_PER_TOKEN))) == [41]
    assert held.num_tokens == 0
    with pytest.raises(AssertionError, match="rows are held"):
        held.merge(None, 0, 1, (1, ROWS_PER_TOKEN))
