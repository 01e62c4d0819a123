"""What host lookups take from compute, in the simulator: by hand, in both prefetch modes, and in every engine alike."""

import pytest

from tiercast_sim.overheads import LookupOverheads
from tiercast_sim.simulate import simulate

OVERHEAD = {
    "issue_us": {"value": 100, "low": 90, "high": 120},
    "beside_us": 40,
    "after_us": 60,
    "inline_us": 200,
}
ENTRY = {"tier": "dram", "path": "cpu_gather", "compute_speed_ratio": 1, "lookup_speed_ratio": 1}
CLOSED = {
    "kind": "closed_loop",
    "concurrency": 2,
    "num_requests": 4,
    "prompt_tokens": {"fixed": 8},
    "output_tokens": {"fixed": 6},
    "text": "random",
}


def resolved(sim_scenario, prefetch, overhead=OVERHEAD, **sections):
    entry = ENTRY if overhead is None else ENTRY | {"overhead": overhead}
    placement = {"tier": "dram", "path": "cpu_gather", "prefetch": prefetch}
    return sim_scenario(placement, hardware={"interference": [entry]}, workload=CLOSED, **sections)


def steps_of(scenario):
    return simulate(scenario, with_baselines=False, with_bounds=False)


def at_any_size(issue_ns, taken_ns, lookup_ns):
    return LookupOverheads((0.0,), (issue_ns,), (taken_ns,), (lookup_ns,))


def test_between_sizes_times_go_by_the_logarithm_of_rows_and_outside_they_stay(sim_scenario):
    points = [
        {"num_rows": rows, "issue_us": 10 * rows, "beside_us": 5, "after_us": rows, "inline_us": 2 * rows}
        for rows in (16, 4)  # in any order
    ]
    found = LookupOverheads.of(resolved(sim_scenario, "off", OVERHEAD | {"points": points}), "nominal")
    rows = (1, 4, 8, 16, 1000)
    assert [found.issue_ns(count) for count in rows] == pytest.approx([40_000, 40_000, 100_000, 160_000, 160_000])
    assert [found.taken_ns(count) for count in rows] == [4_000, 4_000, 10_000, 16_000, 16_000]
    assert [found.lookup_ns(count) for count in rows] == [8_000, 8_000, 20_000, 32_000, 32_000]
    ahead = LookupOverheads.of(resolved(sim_scenario, "step_entry", OVERHEAD | {"points": points}), "nominal")
    assert [(ahead.taken_ns(count), ahead.lookup_ns(count)) for count in rows] == [(5_000, 0)] * 5


def test_numbers_follow_the_prefetch_mode_and_the_bound(sim_scenario):
    ahead = resolved(sim_scenario, "step_entry")
    assert LookupOverheads.of(ahead, "nominal") == at_any_size(100_000.0, 40_000.0, 0.0)
    assert LookupOverheads.of(ahead, "optimistic") == at_any_size(90_000.0, 40_000.0, 0.0)
    assert LookupOverheads.of(ahead, "pessimistic") == at_any_size(120_000.0, 40_000.0, 0.0)
    assert LookupOverheads.of(resolved(sim_scenario, "off"), "nominal") == at_any_size(100_000.0, 60_000.0, 200_000.0)
    assert LookupOverheads.of(resolved(sim_scenario, "off", None), "nominal") is None


def test_a_gather_by_the_device_has_none_whatever_the_profile_says(sim_scenario):
    entry = ENTRY | {"tier": "hbm", "path": "device"}
    placement = {"tier": "hbm", "path": "device"}
    taking, bare = (
        sim_scenario(placement, hardware={"interference": [one]}, workload=CLOSED)
        for one in (entry | {"overhead": OVERHEAD}, entry)
    )
    assert LookupOverheads.of(taking, "nominal") is None
    assert spent_on(taking) == spent_on(bare)


@pytest.mark.parametrize(("prefetch", "layer_ns"), [("step_entry", 40_000), ("off", 60_000 + 200_000)])
def test_each_step_grows_by_what_its_lookups_take(sim_scenario, prefetch, layer_ns):
    free = dict.fromkeys(OVERHEAD, 0) | {"issue_us": OVERHEAD["issue_us"]}
    taking, bare = (resolved(sim_scenario, prefetch, overhead) for overhead in (OVERHEAD, free))
    num_layers = len(taking.model.engram.layer_ids)
    with_them, without = (steps_of(scenario).samples.steps.duration_ns for scenario in (taking, bare))
    assert len(with_them) == len(without)
    grown = {more - less for more, less in zip(with_them, without, strict=True)}
    assert max(grown) == num_layers * layer_ns
    # A stall that ends later because compute before it took longer hides a part.
    assert prefetch == "step_entry" or grown == {num_layers * layer_ns}


def spent_on(scenario):
    metrics = simulate(scenario, with_baselines=False, with_bounds=False).metrics
    return {part.name: part.total_ns for part in metrics.time_spent.parts}


def test_what_is_taken_is_said_to_slow_compute_and_nothing_is_handed_over_where_it_is_needed(sim_scenario):
    off = resolved(sim_scenario, "off")
    num_steps, num_layers = len(steps_of(off).samples.steps.duration_ns), len(off.model.engram.layer_ids)
    spent = spent_on(off)
    assert spent["slowed by lookups"] == num_steps * num_layers * 60_000
    assert "lookup issue" not in spent


def test_the_hand_over_is_that_of_the_path_where_it_was_timed(sim_scenario):
    ahead, unknown = resolved(sim_scenario, "step_entry"), resolved(sim_scenario, "step_entry", None)
    num_steps = len(steps_of(ahead).samples.steps.duration_ns)
    assert spent_on(ahead)["lookup issue"] == pytest.approx(num_steps * 100_000, abs=num_steps)
    assert 0 < spent_on(unknown)["lookup issue"] < num_steps * 100_000
