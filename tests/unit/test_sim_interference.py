"""Interference by size: which point serves, the same in both engines, and a word where nothing near was measured."""

import pytest

from tiercast_sim.interference import decode_tokens, interference_speeds, interference_warning
from tiercast_sim.run import run
from tiercast_sim.simulate import simulate
from tiercast_sim.work import SPEED_ONE, to_speed

UVA = {"tier": "dram", "path": "uva"}
CLOSED = {
    "kind": "closed_loop",
    "concurrency": 4,
    "num_requests": 8,
    "prompt_tokens": {"fixed": 20},
    "output_tokens": {"fixed": 8},
}


def point(num_rows, compute, lookup=1.0, **changes):
    size = {"num_tokens": 4, "num_rows": num_rows, "row_bytes": 66}
    return {**size, "compute_speed_ratio": compute, "lookup_speed_ratio": lookup, **changes}


def scenario(sim_scenario, points, **sections):
    entry = {**UVA, "compute_speed_ratio": 0.5, "lookup_speed_ratio": 0.5, "points": points}
    return sim_scenario(UVA, hardware={"interference": [entry]}, workload=CLOSED, **sections)


def speeds(resolved):
    return tuple(speed / SPEED_ONE for speed in interference_speeds(resolved, "nominal")[:2])


def test_the_profiles_own_size_serves_where_no_other_is_known(sim_scenario):
    assert speeds(scenario(sim_scenario, [])) == (0.5, 0.5)


def test_a_decode_step_lies_between_two_points(sim_scenario):
    """Four sequences ask for 24 rows of a layer: half way from 12 to 48 by ratio."""
    resolved = scenario(sim_scenario, [point(48, 0.7, 0.4), point(12, 0.9, 0.8)])
    assert resolved.model.engram.num_rows_per_token == 6
    assert decode_tokens(resolved.scenario) == 4
    assert speeds(resolved) == pytest.approx((0.8, 0.6), abs=1e-6)
    assert interference_warning(resolved) is None


def test_four_ranks_ask_for_two_of_six_rows_each(sim_scenario):
    resolved = scenario(sim_scenario, [point(8, 0.95), point(24, 0.75)], parallel={"tensor": 4})
    assert speeds(resolved) == pytest.approx((0.95, 1.0), abs=1e-6)


def test_beyond_the_points_the_nearest_serves_and_the_record_says_so(sim_scenario):
    resolved = scenario(sim_scenario, [point(8, 0.9), point(16, 0.8)])
    assert speeds(resolved) == pytest.approx((0.8, 1.0), abs=1e-6)
    warnings = simulate(resolved, with_baselines=False, with_bounds=False).provenance.warnings
    assert any("measured with 8 to 16 rows in a lookup, a decode step has 24" in warning for warning in warnings)


def test_the_nearest_grid_row_and_step_serve(sim_scenario):
    own_grid = max(1, scenario(sim_scenario, []).hardware.device.num_compute_units // 2)
    points = [
        point(24, 0.9, num_programs=own_grid),
        point(24, 0.3, num_programs=64 * own_grid),
        point(24, 0.4, num_programs=own_grid, row_bytes=4096),
        point(24, 0.6, num_programs=own_grid, num_tokens=4096),
    ]
    assert speeds(scenario(sim_scenario, points)) == pytest.approx((0.9, 1.0), abs=1e-6)


def test_arrivals_by_the_clock_take_the_profiles_own_size(sim_scenario):
    entry = {**UVA, "compute_speed_ratio": 0.5, "lookup_speed_ratio": 0.5, "points": [point(24, 0.9)]}
    poisson = {**{key: value for key, value in CLOSED.items() if key != "concurrency"}, "kind": "poisson"}
    resolved = sim_scenario(
        UVA, hardware={"interference": [entry]}, workload={**poisson, "requests_per_s": 10, "text": "random"}
    )
    assert speeds(resolved) == (0.5, 0.5)


def test_both_engines_take_the_same_speeds(sim_scenario):
    resolved = scenario(sim_scenario, [point(12, 0.9, 0.8), point(48, 0.7, 0.4)])
    by_events, by_arithmetic = (run(resolved, "nominal", engine=name).samples for name in ("events", "arithmetic"))
    assert by_events == by_arithmetic
    undisturbed = run(scenario(sim_scenario, [point(24, 1.0)]), "nominal").samples
    assert sum(by_events.steps.duration_ns) > sum(undisturbed.steps.duration_ns)
    assert to_speed(1.0) == SPEED_ONE
