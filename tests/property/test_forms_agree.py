"""Simulator, closed form, max–plus recursion and per-layer reference agree to the nanosecond (INV-7)."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercast_profiles.scenario import Engine, Speculative
from tiercast_profiles.workload import Fixed, Request, Workload
from tiercast_sim import closed_form, maxplus, reference
from tiercast_sim.clock import Clock
from tiercast_sim.links import Network
from tiercast_sim.serving import Scheduler
from tiercast_sim.source import RequestSource
from tiercast_sim.step import Replica, World
from tiercast_sim.work import LookupWork, StepWork

MODES = st.sampled_from(["off", "step_entry", "prev_step"])


@st.composite
def runs(draw, longest_ns=40):
    """Up to five steps of one model of up to eight layers, up to three of which have tables; the mode they run in."""
    num_layers = draw(st.integers(1, 8))
    engram_layers = tuple(sorted(draw(st.sets(st.integers(0, num_layers - 1), max_size=3))))
    mode = draw(MODES)
    some_ns = st.integers(0, longest_ns)

    def column(count):
        return tuple(draw(some_ns) for _ in range(count))

    steps = [
        reference.LayeredStep(
            draw(some_ns),
            column(num_layers + 1),
            engram_layers,
            column(len(engram_layers)),
            column(len(engram_layers)) if mode == "prev_step" else (),
            column(len(engram_layers)) if mode != "off" and draw(st.booleans()) else (),
        )
        for _ in range(draw(st.integers(1, 5)))
    ]
    return mode, steps


def segments_of(step):
    edges = (0, *step.engram_layers, len(step.layers_ns))
    return tuple(sum(step.layers_ns[first:last]) for first, last in pairwise(edges))


def times_of(step):
    on_worker_ns = tuple(wait_ns + ns if ns else 0 for wait_ns, ns in step.asked())
    return maxplus.StepTimes(step.pre_ns, segments_of(step), on_worker_ns, step.early_ns)


def work_of(step):
    own = tuple(LookupWork(ns, (), 0.0, 1, 1, wait_ns=wait_ns) for wait_ns, ns in step.asked())
    early = tuple(LookupWork(ns, (), 0.0, 1, 1) for ns in step.early_ns)
    return StepWork(step.pre_ns, segments_of(step), own, early)


def by_reference(mode, steps):
    machine = reference.Machine()
    return [reference.run_step(step, mode, machine) for step in steps]


def by_maxplus(mode, steps):
    carry, found = maxplus.Carry(), []
    for step in steps:
        start_ns = carry.now_ns
        carry, passages = maxplus.step(times_of(step), mode, carry)
        found.append((carry.now_ns - start_ns, tuple(passage.stall_ns for passage in passages)))
    return found


def by_closed_form(mode, steps):
    state = closed_form.WorkerState()
    outcomes = [closed_form.run_step(work_of(step), mode, state) for step in steps]
    return [(outcome.duration_ns, outcome.stall_ns) for outcome in outcomes]


class GivenCosts:
    wants_upcoming = False

    def __init__(self, works):
        self._works = list(works)

    def price(self, _plan, _upcoming):
        return self._works.pop(0)


def by_events(mode, steps):
    clock = Clock()
    one = Fixed(fixed=1)
    workload = Workload(kind="closed_loop", concurrency=1, num_requests=1, prompt_tokens=one, output_tokens=one)
    source = RequestSource(workload, (Request(0, 0, 1, len(steps)),), 1)
    costs = GivenCosts(work_of(step) for step in steps)
    replica = Replica(
        World(clock, Network(clock, {}), source, mode), 0, Scheduler(Engine(), 1000, Speculative(), 0), costs
    )
    clock.process(replica.run())
    clock.run()
    return [(step.duration_ns, tuple(layer.stall_ns for layer in step.layers)) for step in replica.steps]


@settings(max_examples=2000, deadline=None)
@given(drawn=runs())
def test_four_forms_of_a_step_agree(drawn):
    mode, steps = drawn
    expected = by_reference(mode, steps)
    assert by_maxplus(mode, steps) == expected
    assert by_closed_form(mode, steps) == expected
    assert by_events(mode, steps) == expected


@settings(max_examples=1000, deadline=None)
@given(drawn=runs(longest_ns=3_000_000))
def test_events_and_maxplus_agree_on_steps_of_real_length(drawn):
    mode, steps = drawn
    assert by_events(mode, steps) == by_maxplus(mode, steps)


@settings(max_examples=300, deadline=None)
@given(drawn=runs(longest_ns=3_000_000))
def test_columns_equal_the_recursion_step_by_step(drawn):
    mode, steps = drawn
    steps = [
        reference.LayeredStep(s.pre_ns, s.layers_ns, s.engram_layers, s.lookups_ns, waits_ns=s.waits_ns) for s in steps
    ]
    times = [times_of(step) for step in steps]

    def stacked(rows):
        return np.array([list(row) for row in rows], dtype=np.int64).reshape(len(steps), -1).T

    found = maxplus.step_columns(
        np.array([t.pre_ns for t in times], dtype=np.int64),
        stacked([t.segments_ns for t in times]),
        stacked([t.lookups_ns for t in times]),
        mode,
    )
    for index, one in enumerate(times):
        carry, passages = maxplus.step(one, mode, maxplus.Carry())
        assert found.duration_ns[index] == carry.now_ns
        columns = (found.wanted_ns, found.issued_ns, found.ready_ns, found.stall_ns)
        assert [tuple(int(c[layer, index]) for c in columns) for layer in range(len(passages))] == list(
            map(tuple, passages)
        )
