"""What host lookups take from compute, in the simulator: by hand, in both prefetch modes, and in every engine alike."""

from dataclasses import replace

import pytest

from tiercast_sim.overheads import LookupOverheads
from tiercast_sim.run import run
from tiercast_sim.simulate import simulate
from tiercast_sim.tiers import LookupCosts

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


def at_any_size(issue_ns, taken_ns, lookup_ns, worker_ns=(0.0, 0.0, 0.0)):
    return LookupOverheads((0.0,), (issue_ns,), (taken_ns,), (lookup_ns,), *((time,) for time in worker_ns))


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


WORKER = {
    "wake_us": {"value": 70, "low": 60, "high": 90},
    "turn_us": 15,
    "behind_us": {"value": 9, "low": 4, "high": 12},
}


def test_a_worker_that_was_timed_wakes_up_and_turns_where_lookups_go_ahead(sim_scenario):
    ahead = resolved(sim_scenario, "step_entry", OVERHEAD | WORKER)
    assert LookupOverheads.of(ahead, "nominal").wait_ns(24, is_behind=False) == 70_000
    assert LookupOverheads.of(ahead, "nominal").wait_ns(24, is_behind=True) == 15_000
    of_each = [
        (found.wait_ns(24, is_behind=False), found.saved_ns(24))
        for found in (LookupOverheads.of(ahead, bound) for bound in ("optimistic", "pessimistic"))
    ]
    assert of_each == [(60_000, 12_000.0), (90_000, 4_000.0)], "what is saved is more at the better end"
    inline = LookupOverheads.of(resolved(sim_scenario, "off", OVERHEAD | WORKER), "nominal")
    assert (inline.wait_ns(24, is_behind=False), inline.wait_ns(24, is_behind=True), inline.saved_ns(24)) == (0, 0, 0)


def test_waits_of_a_worker_go_by_rows_and_count_where_all_sizes_say_them(sim_scenario):
    points = [OVERHEAD | {"num_rows": rows, "wake_us": 10 * rows, "turn_us": 4, "behind_us": 1} for rows in (4, 16)]
    found = LookupOverheads.of(resolved(sim_scenario, "step_entry", OVERHEAD | {"points": points}), "nominal")
    assert [found.wait_ns(rows, is_behind=False) for rows in (1, 4, 8, 16, 99)] == [
        40_000,
        40_000,
        100_000,
        160_000,
        160_000,
    ]
    del points[0]["wake_us"]
    found = LookupOverheads.of(resolved(sim_scenario, "step_entry", OVERHEAD | {"points": points}), "nominal")
    assert found.wait_ns(16, is_behind=False) == 0
    assert found.wait_ns(16, is_behind=True) == 4_000


def test_a_lookup_behind_another_takes_less_by_its_fixed_time_at_most(sim_scenario):
    bare = LookupCosts(resolved(sim_scenario, "step_entry"), "nominal", 0)
    costs = LookupCosts(resolved(sim_scenario, "step_entry", OVERHEAD | WORKER), "nominal", 0)
    alone = bare.lookup(24, 0, 4)
    assert bare.lookup(24, 0, 0, is_behind=True).wait_ns == 0
    assert replace(costs.lookup(24, 0, 4), wait_ns=0) == alone
    first, behind = costs.lookup(24, 0, 0), costs.lookup(24, 0, 0, is_behind=True)
    assert (first.wait_ns, behind.wait_ns) == (70_000, 15_000)
    fixed_ns = costs.curve.fixed_ns
    assert first.duration_ns - behind.duration_ns == round(min(9_000, fixed_ns))
    all_of_it = resolved(sim_scenario, "step_entry", OVERHEAD | WORKER | {"behind_us": 1e6})
    least = LookupCosts(all_of_it, "nominal", 0).lookup(24, 0, 0, is_behind=True)
    assert first.duration_ns - least.duration_ns == round(fixed_ns)


def test_a_lookup_that_reads_nothing_saves_nothing_behind_another(sim_scenario):
    costs = LookupCosts(resolved(sim_scenario, "step_entry", OVERHEAD | WORKER), "nominal", 0)
    assert costs.lookup(0, 24, 0).duration_ns == costs.lookup(0, 24, 0, is_behind=True).duration_ns
    assert costs.lookup(1, 23, 0).duration_ns > costs.lookup(1, 23, 0, is_behind=True).duration_ns


@pytest.mark.parametrize("engine", ["events", "arithmetic"])
def test_lookups_begin_when_the_worker_has_woken_up_and_turned(sim_scenario, engine):
    steps = tuple(run(resolved(sim_scenario, "step_entry", OVERHEAD | WORKER), "nominal", engine=engine).steps)
    assert len(steps) > 1
    for step in steps:
        first, second = step.layers
        assert first.ready_ns - first.service_ns - first.issued_ns == 70_000
        assert second.ready_ns - second.service_ns - first.ready_ns == 15_000
        assert first.service_ns > second.service_ns


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
