"""Steps with lookups as stories: literal times of stalls and steps."""

import pytest

from tiercast_profiles.scenario import Engine, Speculative
from tiercast_profiles.workload import Fixed, Request, Workload
from tiercast_sim.clock import Clock
from tiercast_sim.links import Network
from tiercast_sim.serving import Scheduler
from tiercast_sim.source import RequestSource
from tiercast_sim.step import Replica, World
from tiercast_sim.work import SPEED_ONE, LookupWork, StepWork, to_speed


class FixedCosts:
    """Stands in for the cost model: hands out given step works in turn."""

    wants_upcoming = False

    def __init__(self, works):
        self._works = list(works)

    def price(self, _plan, _upcoming):
        return self._works.pop(0)


def lookup(duration_ns, usage=(), rate=0.0):
    return LookupWork(duration_ns, usage, rate, rows_read=10, bytes_per_rank=100)


def run(works_by_replica, prefetch="step_entry", capacities=None, speeds=(SPEED_ONE, SPEED_ONE)):
    """One request per replica that lives for as many steps as there are works; the replicas' step logs."""
    clock = Clock()
    requests = tuple(Request(i, 0, 1, len(works)) for i, works in enumerate(works_by_replica))
    workload = Workload(
        kind="closed_loop",
        concurrency=len(requests),
        num_requests=len(requests),
        prompt_tokens=Fixed(fixed=1),
        output_tokens=Fixed(fixed=1),
    )
    source = RequestSource(workload, requests, len(requests))
    world = World(clock, Network(clock, capacities or {}), source, prefetch, *speeds)
    replicas = []
    for index, works in enumerate(works_by_replica):
        replica = Replica(world, index, Scheduler(Engine(), 1000, Speculative(), 0), FixedCosts(works))
        clock.process(replica.run())
        replicas.append(replica)
    clock.run()
    return [replica.steps for replica in replicas]


def times(steps):
    return [(s.start_ns, s.duration_ns, s.stall_ns, s.lookup_ns) for s in steps]


WORK = StepWork(pre_ns=10, segments_ns=(30, 50, 20), lookups=(lookup(40), lookup(25)))


def test_prefetch_hides_what_fits_behind_the_layers():
    # Lookup 0 runs 10–50, wanted at 40: 10 of stall. Lookup 1 runs 50–75, wanted at 100: none.
    (steps,) = run([[WORK]])
    assert times(steps) == [(0, 120, 10, 65)]
    first, second = steps[0].layers
    assert (first.known_ns, first.wanted_ns, first.ready_ns, first.stall_ns) == (10, 40, 50, 10)
    assert (second.wanted_ns, second.ready_ns, second.stall_ns, second.service_ns) == (100, 75, 0, 25)


def test_without_prefetch_the_whole_lookup_is_stall():
    (steps,) = run([[WORK]], prefetch="off")
    assert times(steps) == [(0, 175, 65, 65)]


def test_steps_are_back_to_back():
    (steps,) = run([[WORK, WORK]])
    assert times(steps) == [(0, 120, 10, 65), (120, 120, 10, 65)]


def test_early_lookups_run_during_the_step_before():
    early = StepWork(10, (30, 50, 20), (lookup(0), lookup(0)), early_lookups=(lookup(40), lookup(25)))
    late = StepWork(10, (30, 50, 20), (lookup(0), lookup(0)))
    (steps,) = run([[early, late]], prefetch="prev_step")
    assert times(steps) == [(0, 110, 0, 0), (110, 110, 0, 65)]


def test_early_lookups_that_are_late_stall_the_next_step():
    early = StepWork(10, (30, 50, 20), (lookup(0), lookup(0)), early_lookups=(lookup(200), lookup(5)))
    late = StepWork(10, (30, 50, 20), (lookup(0), lookup(0)))
    (steps,) = run([[early, late]], prefetch="prev_step")
    # Issued at 10, ready at 210; the second step begins at 110 and wants layer 0 at 150.
    assert times(steps) == [(0, 110, 0, 0), (110, 170, 60, 205)]


def test_rows_gathered_by_the_device_are_compute_and_never_stall():
    work = StepWork(10, (30, 50 + 4, 20 + 4), gather_ns=(4, 4), gather_bytes=(8, 8), num_rows=6, num_rows_gathered=6)
    (steps,) = run([[work]])
    assert times(steps) == [(0, 118, 0, 8)]
    assert [layer.stall_ns for layer in steps[0].layers] == [0, 0]
    assert steps[0].rows_read == 6


def test_two_replicas_share_a_link():
    shared = StepWork(0, (0, 10), (lookup(100, (("link", 1.0),), 1.0),))
    both = run([[shared], [shared]], capacities={"link": 1.0})
    assert [times(steps) for steps in both] == [[(0, 210, 200, 200)], [(0, 210, 200, 200)]]


def test_compute_and_lookup_slow_each_other_while_both_run():
    # Compute at half speed beside the lookup, the lookup at 0.8 beside compute.
    work = StepWork(0, (100, 10), (lookup(80),))
    (steps,) = run([[work]], speeds=(to_speed(0.5), to_speed(0.8)))
    # The lookup needs 100 ns, in which compute does 50 of its 100; the other 50 run at full speed.
    assert times(steps) == [(0, 160, 0, 100)]


def test_a_lookup_alone_at_a_stall_runs_at_full_speed():
    work = StepWork(0, (10, 10), (lookup(90),))
    (steps,) = run([[work]], speeds=(to_speed(0.5), to_speed(0.5)))
    # 20 ns beside compute do 10 of 90; the last 80 run alone.
    assert times(steps) == [(0, 110, 80, 100)]


def test_poisson_arrivals_end_idleness():
    clock = Clock()
    requests = (Request(0, 50, 1, 1), Request(1, 400, 1, 1))
    workload = Workload(
        kind="poisson", requests_per_s=1.0, num_requests=2, prompt_tokens=Fixed(fixed=1), output_tokens=Fixed(fixed=1)
    )
    source = RequestSource(workload, requests, 1)
    world = World(clock, Network(clock, {}), source, "step_entry")
    replica = Replica(world, 0, Scheduler(Engine(), 1000, Speculative(), 0), FixedCosts([WORK, WORK]))
    clock.process(replica.run())
    clock.run()
    assert times(replica.steps) == [(50, 120, 10, 65), (400, 120, 10, 65)]
    assert source.first_token_ns == source.finish_ns == [170, 520]


@pytest.mark.parametrize("prefetch", ["off", "step_entry", "prev_step"])
def test_a_lookup_of_nothing_costs_nothing(prefetch):
    work = StepWork(10, (30, 50, 20), (lookup(0), lookup(0)))
    (steps,) = run([[work]], prefetch=prefetch)
    assert times(steps) == [(0, 110, 0, 0)]
