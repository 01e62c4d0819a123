"""Speculative decoding: what drafts cost, and how much of what they fetch nobody uses."""

import pytest

from tiercast_sim.run import run
from tiercast_sim.simulate import simulate

ONE = {
    "kind": "closed_loop",
    "concurrency": 1,
    "num_requests": 1,
    "prompt_tokens": {"fixed": 5},
    "output_tokens": {"fixed": 13},
}


def record(sim_scenario, workload=ONE, **speculative):
    resolved = sim_scenario({"tier": "dram"}, workload=workload, speculative=speculative)
    return simulate(resolved, with_baselines=False, with_bounds=False)


def test_rows_nobody_uses_by_hand(sim_scenario):
    """12 tokens after the first: alone 12 steps of 1 + 3; with all accepted 3 steps, nothing past the end."""
    never = record(sim_scenario, draft_tokens=3, acceptance_ratio=0.0)
    assert never.metrics.wasted_row_ratio.value == 12 * 3 / (5 + 12 * 4)
    always = record(sim_scenario, draft_tokens=3, acceptance_ratio=1.0)
    assert always.metrics.wasted_row_ratio.value == 0
    longer = record(sim_scenario, {**ONE, "output_tokens": {"fixed": 15}}, draft_tokens=3, acceptance_ratio=1.0)
    assert longer.metrics.wasted_row_ratio.value == 2 / (5 + 16)  # 14 tokens in four steps of 4: two past the end


def test_waste_is_that_of_a_run_of_successes_cut_at_k(sim_scenario):
    ratio, drafts = 0.6, 4
    workload = {**ONE, "prompt_tokens": {"fixed": 1}, "output_tokens": {"fixed": 20_000}}
    found = record(sim_scenario, workload, draft_tokens=drafts, acceptance_ratio=ratio).metrics.wasted_row_ratio.value
    used = 1 + sum(ratio**i for i in range(1, drafts + 1))
    assert found == pytest.approx(1 - used / (1 + drafts), abs=0.01)


def test_the_draft_model_takes_its_time_before_the_rows_are_known(sim_scenario):
    def steps(draft_step_us):
        speculative = {"draft_tokens": 3, "acceptance_ratio": 0.5, "draft_step_us": draft_step_us}
        return run(sim_scenario({"tier": "dram"}, workload=ONE, speculative=speculative), "nominal").steps

    for free, paid in zip(steps(0.0), steps(100.0), strict=True):
        extra = 300_000 if free.decode_sequences else 0  # a prompt drafts nothing
        assert paid.duration_ns == free.duration_ns + extra
        assert paid.pre_ns == free.pre_ns + extra


def test_draft_time_is_a_part_of_where_the_time_went(sim_scenario):
    spent = record(sim_scenario, draft_tokens=2, acceptance_ratio=0.0, draft_step_us=50.0).metrics.time_spent
    assert {part.name: part.total_ns for part in spent.parts}["draft model"] == pytest.approx(12 * 100_000, abs=2)


def test_free_drafts_are_said(sim_scenario):
    said = "drafts take no time"
    assert any(said in warning for warning in record(sim_scenario, draft_tokens=2).provenance.warnings)
    paid = record(sim_scenario, draft_tokens=2, draft_step_us=0.0)
    assert not any(said in warning for warning in paid.provenance.warnings)


def test_without_drafts_nothing_is_said_of_waste(sim_scenario):
    assert record(sim_scenario, draft_tokens=0).metrics.wasted_row_ratio is None
    assert "wasted_row_ratio" not in record(sim_scenario, draft_tokens=0).to_json()
