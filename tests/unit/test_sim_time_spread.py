"""Lookups and compute that lie apart: mean stalls by hand, and where the simulator takes them."""

import numpy as np
import pytest

from tiercast_plan.estimate import Estimator
from tiercast_profiles.errors import BadInput
from tiercast_profiles.hardware import ComputeTable, StepSpread, TimeSpread
from tiercast_profiles.stats import SampleStatistics, percentiles
from tiercast_sim.run import run
from tiercast_sim.tiers import LookupCosts
from tiercast_sim.time_spread import Cases, mean_stalls_ns
from tiercast_sim.work import SPEED_ONE, LookupWork, StepWork

HALVES = (0.5,) * 5 + (1.5,) * 5
APART = {"num_rows": 24, "time_ratios": list(HALVES)}
NVME = {"tier": "nvme", "path": "disk"}
CLOSED = {
    "kind": "closed_loop",
    "concurrency": 2,
    "num_requests": 4,
    "prompt_tokens": {"fixed": 8},
    "output_tokens": {"fixed": 6},
    "text": "random",
}


def lookup(duration_ns, ratios=HALVES, wait_ns=0):
    return LookupWork(duration_ns, (), 0.0, 1, 1, wait_ns=wait_ns, time_ratios=ratios)


def step(segments_ns, *lookups, ratios=()):
    return StepWork(7, segments_ns, lookups, time_ratios=ratios)


def test_a_mean_lookup_that_just_fits_stalls_in_half_of_the_cases():
    assert mean_stalls_ns(step((100, 0), lookup(100)), "step_entry") == (25,)  # 0 and 50
    assert mean_stalls_ns(step((100, 0), lookup(100, wait_ns=10)), "step_entry") == (30,)  # 0 and 60
    assert mean_stalls_ns(step((150, 0), lookup(100, wait_ns=10)), "step_entry") == (5,)  # 0 and 10


def test_a_second_lookup_queues_behind_the_first_and_gains_by_its_stall():
    # cases: ready at 50 and 100, or at 150 and 300; wanted at 100, and 60 behind whatever the first waited
    assert mean_stalls_ns(step((100, 60, 5), lookup(100), lookup(100)), "step_entry") == (25, (0 + 140) // 2)


def test_a_lookup_beside_compute_runs_at_its_speed():
    assert mean_stalls_ns(step((100, 0), lookup(50)), "step_entry") == ()
    assert mean_stalls_ns(step((100, 0), lookup(50)), "step_entry", SPEED_ONE // 2) == (25,)


def test_nothing_where_no_case_stalls_or_a_lookup_is_all_stall_anyway():
    assert mean_stalls_ns(step((150, 0), lookup(100)), "step_entry") == ()
    assert mean_stalls_ns(step((0, 0), lookup(100)), "off") == ()
    assert mean_stalls_ns(step((0, 0), lookup(100, ())), "step_entry") == ()


def test_every_case_of_compute_meets_every_case_of_the_lookups():
    # lookups of 50 and 150 meet windows of 50 and 150: 0, 0, 100, 0
    assert mean_stalls_ns(step((100, 0), lookup(100), ratios=HALVES), "step_entry") == (25,)
    # windows of 80 and 120 instead: 0, 0, 70, 30
    assert mean_stalls_ns(step((100, 0), lookup(100), ratios=(0.8, 1.2)), "step_entry") == (25,)
    # lookups of 45 and 135 meet windows of 50 and 150: 0, 0, 85, 0; the mean lookup's window is long enough
    assert mean_stalls_ns(step((100, 0), lookup(90), ratios=HALVES), "step_entry") == (round(85 / 4),)
    # windows of 100 and 300: a lookup of 150 stalls in the shorter one only
    assert mean_stalls_ns(step((200, 0), lookup(100), ratios=HALVES), "step_entry") == (round(50 / 4),)
    assert mean_stalls_ns(step((200, 0), lookup(100)), "step_entry") == ()


def test_segments_of_a_step_are_slow_together():
    # windows of 50 and 25 or 150 and 75, lookups of 50 or 150 each: (0, 25), (100, 125), (0, 0) and (0, 75)
    found = mean_stalls_ns(step((100, 50, 9), lookup(100), lookup(100), ratios=HALVES), "step_entry")
    assert found == (100 // 4, (25 + 225 + 75) // 4)


def test_compute_that_lies_apart_beside_lookups_that_do_not_counts_by_its_mean():
    assert mean_stalls_ns(step((100, 0), lookup(100, ()), ratios=HALVES), "step_entry") == ()


def test_ratios_go_by_the_logarithm_of_the_size_and_have_a_mean_of_one():
    cases = Cases({64: (1.0,) * 10, 4: HALVES})
    assert Cases({}).at(4) == ()
    for rows, ratio in ((1, 0.5), (4, 0.5), (16, 0.75), (64, 1.0), (4096, 1.0)):
        assert cases.at(rows) == pytest.approx((ratio,) * 5 + (2 - ratio,) * 5)
    assert Cases({4: tuple(2 * ratio for ratio in HALVES)}).at(4) == pytest.approx(HALVES)


@pytest.mark.parametrize("bad", [(1.0,) * 9, (0.0,) + (1.0,) * 9, (1.1,) + (1.0,) * 9])
def test_ten_ratios_above_zero_that_ascend(bad):
    with pytest.raises(ValueError, match="time_ratios"):
        TimeSpread(num_rows=1, time_ratios=bad)
    with pytest.raises(ValueError, match="time_ratios"):
        StepSpread(num_tokens=1, time_ratios=bad)


def placed(sim_scenario, spreads, **placement):
    """A drive whose lookups have these spreads."""
    resolved = sim_scenario(NVME | placement, workload=CLOSED)
    curves = tuple(
        curve.model_copy(update={"spreads": spreads if curve.tier == "nvme" else ()})
        for curve in resolved.hardware.lookups
    )
    return resolved.model_copy(update={"hardware": resolved.hardware.model_copy(update={"lookups": curves})})


def test_a_run_stalls_by_the_mean_over_cases_and_its_lookups_stay(sim_scenario):
    spread = TimeSpread.model_validate(APART)
    apart, alike = (run(placed(sim_scenario, each), "nominal") for each in ((spread,), ()))
    assert LookupCosts(placed(sim_scenario, (spread,)), "nominal", 0).lookup(24, 0, 0).time_ratios == HALVES
    assert sum(apart.samples.steps.stall_ns) > sum(alike.samples.steps.stall_ns)
    assert apart.samples.steps.lookup_ns == alike.samples.steps.lookup_ns
    assert all(a >= b for a, b in zip(apart.samples.steps.stall_ns, alike.samples.steps.stall_ns, strict=True))


def with_short_windows(resolved, *spreads):
    """The same on a machine whose layers take a third more than a lookup by the first that needs its rows."""
    first, *_ = resolved.model.engram.layer_ids
    layer_us = LookupCosts(resolved, "nominal", 0).lookup(24, 0, 0).duration_ns / 750 / first
    points = [{"num_tokens": 1, "context_tokens": 0, "time_us": layer_us, "low_us": layer_us, "high_us": layer_us}]
    table = {
        "model_name": "mini",
        "shape_sha256": resolved.model.backbone.shape_sha256,
        "engram_sha256": resolved.model.engram.shape_sha256,
        "graph_mode": resolved.placement.graph_mode,
        "context_statistic": "max",
        "components": {"linear": points},
        "spreads": spreads,
    }
    hardware = resolved.hardware.model_copy(update={"compute": (ComputeTable.model_validate(table),)})
    return resolved.model_copy(update={"hardware": hardware})


def test_a_run_takes_the_cases_of_its_tables_steps(sim_scenario):
    apart = TimeSpread.model_validate(APART)
    steps = StepSpread(num_tokens=2, time_ratios=HALVES)

    def served(of_lookups, *of_steps):
        return run(with_short_windows(placed(sim_scenario, of_lookups), *of_steps), "nominal").samples

    both, lookups_alone = served((apart,), steps), served((apart,))
    assert sum(both.steps.stall_ns) > sum(lookups_alone.steps.stall_ns) > 0
    computed = [sum(found.steps.duration_ns) - sum(found.steps.stall_ns) for found in (both, lookups_alone)]
    assert computed[0] == computed[1], "what a step computes stays its mean"
    assert served((apart,), StepSpread(num_tokens=2, time_ratios=(1.0,) * 10)) == lookups_alone
    assert served((), steps) == served(()), "they count where lookups lie apart too"


def test_percentiles_of_steps_are_those_of_their_cases(sim_scenario):
    """By hand: each step in each case, what it computes times the ratio; the mean of all is that of the steps."""
    ratios = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.8)
    resolved = with_short_windows(placed(sim_scenario, ()), StepSpread(num_tokens=2, time_ratios=ratios))
    for tier in ("nvme", "none"):
        case = resolved.model_copy(update={"placement": resolved.placement.model_copy(update={"tier": tier})})
        found = run(case, "nominal")
        lengths_ns = []
        for made in found.steps:
            else_ns = made.pre_ns + made.stall_ns
            lengths_ns += [round((made.duration_ns - else_ns) * ratio) + else_ns for ratio in ratios]
        statistics = found.summary.statistics
        assert statistics.step_ms == percentiles(lengths_ns)
        assert statistics.step_ms.p90.value > percentiles(found.samples.steps.duration_ns).p90.value
        assert statistics.ttft_ms == SampleStatistics(found.samples).ttft_ms, "requests take their steps' means"


def test_steps_of_unknown_cases_stand_for_themselves():
    columns = [np.array(values) for values in ([1, 2], [100, 200], [5, 7])]
    assert Cases({}).lengths_ns(*columns) is None
    assert Cases({2: (0.5, 1.5)}).lengths_ns(*columns).tolist() == [55, 155, 107, 307]


def test_an_estimate_stands_still_for_the_mean_over_cases_too(sim_scenario):
    spread = TimeSpread.model_validate(APART)
    found = [Estimator(placed(sim_scenario, each), 8, 6).at(2) for each in ((spread,), ())]
    apart_ms, alike_ms = (estimate.stall_ms_per_step for estimate in found)
    assert apart_ms > alike_ms
    assert found[0].tpot_ms - found[1].tpot_ms == pytest.approx(apart_ms - alike_ms)


def test_inline_lookups_have_no_window_and_stall_as_before(sim_scenario):
    spread = TimeSpread.model_validate(APART)
    apart, alike = (run(placed(sim_scenario, each, prefetch="off"), "nominal") for each in ((spread,), ()))
    assert apart.samples == alike.samples


def test_spreads_need_the_event_engine_and_say_so(sim_scenario):
    curves = sim_scenario({"tier": "dram", "path": "uva"}, workload=CLOSED)
    spread = (TimeSpread.model_validate(APART),)
    lookups = tuple(
        curve.model_copy(update={"spreads": spread if curve.path == "uva" else ()}) for curve in curves.hardware.lookups
    )
    resolved = curves.model_copy(update={"hardware": curves.hardware.model_copy(update={"lookups": lookups})})
    assert run(resolved, "nominal").engine == "events"
    with pytest.raises(BadInput, match="lookups of one size differ"):
        run(resolved, "nominal", engine="arithmetic")
