"""Decode steps behind prompts: which steps count as unsettled, and how much longer they are."""

import pytest

from tiercast_profiles.errors import BadInput
from tiercast_profiles.hardware import Settling, SettlingPoint
from tiercast_profiles.store import parse
from tiercast_sim.run import run
from tiercast_sim.settling import MAX_STEPS, SettlingShares, Unsettled
from tiercast_sim.simulate import simulate

POINTS = (
    SettlingPoint(num_sequences=2, first_ratio=0.4, decay_ratio=0.5),
    SettlingPoint(num_sequences=6, first_ratio=0.2, decay_ratio=0.7),
)
SHARES = SettlingShares(Settling(chunk_tokens=200, points=POINTS))


def after(*prefill_tokens):
    """Shares of the steps that only decode, of two sequences, in a row of steps with so many prompt tokens each."""
    state, shares = Unsettled(), []
    for tokens in prefill_tokens:
        state.note(tokens)
        if not tokens:
            shares.append(SHARES.of(2, state))
    return shares


def test_a_batch_settles_step_by_step_and_starts_settled():
    assert after(0, 0) == [0.0, 0.0]
    assert after(200, 0, 0, 0) == pytest.approx([0.4, 0.2, 0.1])
    assert after(200, *[0] * MAX_STEPS)[-1] > 0.0
    assert after(200, *[0] * (MAX_STEPS + 3))[MAX_STEPS:] == [0.0, 0.0, 0.0]


def test_small_prompts_disturb_less_and_larger_ones_than_measured_no_more():
    assert after(50, 0) == pytest.approx([0.1])
    assert after(900, 0) == after(200, 0)


def test_a_small_prompt_behind_a_large_one_does_not_hide_it():
    assert after(200, 10, 0, 0) == after(200, 0, 0)
    assert after(200, 0, 0, 10, 0) == pytest.approx([0.4, 0.2, 0.4])
    assert after(200, *[0] * MAX_STEPS, 50, 0)[-1] == pytest.approx(0.1), "by then it had settled"


def test_between_measured_batches_it_is_linear_and_constant_beyond():
    state = Unsettled()
    state.note(200)
    state.note(0)
    shares = {count: SHARES.of(count, state) for count in (1, 2, 4, 6, 50)}
    assert shares == pytest.approx({1: 0.4, 2: 0.4, 4: 0.3, 6: 0.2, 50: 0.2})
    state.note(0)
    assert SHARES.of(4, state) == pytest.approx(0.3 * 0.6)


@pytest.fixture
def measured(sim_scenario):
    """A run whose machine has one table: 1 ms for each part of a step."""

    def scenario(settling):
        resolved = sim_scenario(
            {"tier": "none"},
            workload={
                "kind": "closed_loop",
                "concurrency": 2,
                "num_requests": 2,
                "prompt_tokens": {"fixed": 100},
                "output_tokens": {"fixed": 5},
            },
            engine={"max_num_batched_tokens": 400, "max_num_seqs": 8, "kv_block_tokens": 4},
        )
        point = {"num_tokens": 1, "context_tokens": 0, "time_us": 1000.0, "low_us": 1000.0, "high_us": 1000.0}
        names = ("embed", "linear", "attention_decode", "attention_prefill", "head", "step_overhead")
        table = {
            "model_name": "mini",
            "shape_sha256": resolved.model.backbone.shape_sha256,
            "graph_mode": resolved.placement.graph_mode,
            "context_statistic": "max",
            "components": {name: [point] for name in names},
            "settling": settling,
        }
        hardware = type(resolved.hardware).model_validate(
            {**resolved.hardware.model_dump(mode="json"), "compute": [table]}
        )
        return resolved.model_copy(update={"hardware": hardware})

    return scenario


def test_a_run_has_longer_steps_behind_its_prompts_and_says_where_the_time_went(measured):
    settling = {"chunk_tokens": 200, "points": [{"num_sequences": 2, "first_ratio": 0.5, "decay_ratio": 0.5}]}
    plain, unsettled = (run(measured(given), "nominal").samples.steps.duration_ns for given in (None, settling))
    assert unsettled[0] == plain[0], "the step with the prompts itself"
    compute_ns = plain[1] - 1_000_000  # all but the host's overhead
    added = [more - less for more, less in zip(unsettled[1:], plain[1:], strict=True)]
    assert added == pytest.approx([compute_ns / 2, compute_ns / 4, compute_ns / 8, compute_ns / 16], abs=2)
    parts = {part.name: part.total_ns for part in simulate(measured(settling)).metrics.time_spent.parts}
    assert parts["settling behind prompts"] == pytest.approx(sum(added), abs=10)
    assert "settling behind prompts" not in {p.name for p in simulate(measured(None)).metrics.time_spent.parts}


@pytest.mark.parametrize(
    ("counts", "decay", "words"), [((4, 2), 0.5, "ascending"), ((2, 2), 0.5, "once"), ((2,), 1.0, "less than 1")]
)
def test_a_profile_that_never_settles_or_says_it_twice_is_refused(counts, decay, words):
    points = [{"num_sequences": count, "first_ratio": 0.1, "decay_ratio": decay} for count in counts]
    with pytest.raises(BadInput, match=words):
        parse(Settling, {"chunk_tokens": 10, "points": points}, "settling")
