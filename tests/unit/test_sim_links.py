"""Flows over shared resources: who gets how much, and when each ends."""

import pytest

from tiercast_sim.clock import Clock
from tiercast_sim.links import Flow, Network, fair_speeds
from tiercast_sim.work import SPEED_ONE, to_speed


def run_story(capacities, flows):
    """Start (at_ns, duration_ns, usage, rate) flows and return (name, end_ns) in order of their ends."""
    clock = Clock()
    network = Network(clock, capacities)
    log = []

    def flow(name, at_ns, duration_ns, usage, rate):
        yield clock.timeout(at_ns)
        yield network.start(duration_ns, usage, rate).done
        log.append((name, clock.now_ns))

    for name, (at_ns, duration_ns, usage, rate) in flows.items():
        clock.process(flow(name, at_ns, duration_ns, usage, rate))
    clock.run()
    return log


def test_a_flow_alone_takes_exactly_its_own_time():
    assert run_story({"link": 10.0}, {"a": (5, 1_000_003, (("link", 10.0),), 1.0)}) == [("a", 1_000_008)]


def test_two_equal_flows_on_one_link_take_twice_as_long():
    usage = (("link", 10.0),)
    story = {"a": (0, 1000, usage, 1.0), "b": (0, 1000, usage, 1.0)}
    assert run_story({"link": 10.0}, story) == [("a", 2000), ("b", 2000)]


def test_a_late_flow_slows_the_first_only_while_both_run():
    usage = (("link", 10.0),)
    story = {"a": (0, 1000, usage, 1.0), "b": (500, 1000, usage, 1.0)}
    # a is half done at 500, then runs at half speed until 1500; b has 500 left then and ends at 2000.
    assert run_story({"link": 10.0}, story) == [("a", 1500), ("b", 2000)]


def test_flows_that_leave_room_do_not_slow_each_other():
    story = {"a": (0, 1000, (("link", 4.0),), 1.0), "b": (0, 1000, (("link", 6.0),), 1.0)}
    assert run_story({"link": 10.0}, story) == [("a", 1000), ("b", 1000)]


def test_a_slow_flow_keeps_its_rate_and_the_fast_one_takes_the_rest():
    # Byte rates 2 and 12 over a link of 10: max–min fair gives 2 and 8.
    flows = [
        Flow(None, 1000, (("link", 2.0),), 2.0, SPEED_ONE),
        Flow(None, 1000, (("link", 12.0),), 12.0, SPEED_ONE),
    ]
    assert fair_speeds(flows, {"link": 10.0}) == [SPEED_ONE, pytest.approx(8 / 12 * SPEED_ONE, abs=2)]


def test_a_flow_over_two_resources_is_held_by_the_tighter_one():
    flows = [
        Flow(None, 1000, (("link 0", 5.0), ("dram", 5.0)), 5.0, SPEED_ONE),
        Flow(None, 1000, (("link 1", 5.0), ("dram", 5.0)), 5.0, SPEED_ONE),
        Flow(None, 1000, (("link 2", 5.0),), 5.0, SPEED_ONE),
    ]
    speeds = fair_speeds(flows, {"link 0": 5.0, "link 1": 5.0, "link 2": 5.0, "dram": 5.0})
    assert speeds == [SPEED_ONE // 2, SPEED_ONE // 2, SPEED_ONE]


def test_a_lowered_cap_leaves_its_share_to_others():
    flows = [
        Flow(None, 1000, (("link", 10.0),), 10.0, to_speed(0.1)),
        Flow(None, 1000, (("link", 10.0),), 10.0, SPEED_ONE),
    ]
    assert fair_speeds(flows, {"link": 10.0}) == [to_speed(0.1), pytest.approx(0.9 * SPEED_ONE, abs=2)]


def test_a_changed_cap_counts_from_that_moment():
    clock = Clock()
    network = Network(clock, {})
    flow = network.start(1000)

    def slow():
        yield clock.timeout(400)
        network.set_cap(flow, to_speed(0.5))
        yield flow.done
        return clock.now_ns

    story = clock.process(slow())
    clock.run()
    assert story.value == 400 + 1200


def test_speeds_are_never_zero():
    assert to_speed(1e-15) == 1
    assert to_speed(1.0) == SPEED_ONE
