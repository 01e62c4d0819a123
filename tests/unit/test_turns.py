"""Engines served in turns: who goes when, for how long, and what is left when one fails."""

import itertools

import pytest

pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_runtime.turns import STOP_EVERY_NS, run_in_turns

MS = 1_000_000


class Stand:
    """A clock that stand-ins for engines move, and what they did on it."""

    def __init__(self):
        self.ns, self.log = 0, []

    def engine(self, name, num_steps, step_ms=10, *, fails_at=None, stops=True):
        stand = self

        class Engine:
            is_closed, compute_cores = False, None

            def steps(self, progress=None):
                try:
                    for step in range(num_steps):
                        stand.ns += step_ms * MS
                        stand.log.append(name)
                        if step == fails_at:
                            raise OSError(name)
                        progress((step + 1) / num_steps)
                        if stops:
                            yield
                finally:
                    self.is_closed = True
                return f"run of {name}"

        return Engine()

    def turns(self):
        """Who went, for how many steps, in order; all of them made one step before."""
        return [(name, len(list(steps))) for name, steps in itertools.groupby(self.log)]


def go(stand, engines, **options):
    return run_in_turns(engines, clock=lambda: stand.ns, **options)


def test_a_turn_has_the_steps_of_the_laps_first_which_is_another_each_lap():
    stand = Stand()
    engines = [stand.engine("a", 9), stand.engine("b", 9, step_ms=30), stand.engine("c", 9)]
    found = go(stand, engines, turn_ns=20 * MS)
    assert [each.run for each in found] == ["run of a", "run of b", "run of c"]
    warm_up = [("a", 1), ("b", 1), ("c", 1)]
    first = [("a", 2), ("b", 2), ("c", 2)]
    second = [("b", 1), ("c", 1), ("a", 1)]  # one step of the first is longer than a turn
    third = [("c", 2), ("a", 2), ("b", 2)]
    fourth = [("a", 2), ("b", 2), ("c", 2)]
    assert stand.turns()[:15] == [*warm_up, *first, *second, *third, *fourth]
    assert [each.num_turns for each in found] == [6, 6, 6]


def test_those_that_serve_the_same_keep_together_to_the_end_however_slow():
    stand = Stand()
    go(stand, [stand.engine("fast", 40), stand.engine("slow", 40, step_ms=70)], turn_ns=20 * MS)
    done = {"fast": 0, "slow": 0}
    for name in stand.log:
        done[name] += 1
        assert abs(done["fast"] - done["slow"]) <= 3


def test_one_that_does_not_stop_and_one_that_is_short_leave_the_others_their_turns():
    stand = Stand()
    engines = [stand.engine("whole", 5, stops=False), stand.engine("short", 1), stand.engine("long", 8)]
    found = go(stand, engines, turn_ns=20 * MS)
    assert [each.num_turns for each in found][:2] == [1, 1]
    assert stand.log == ["whole"] * 5 + ["short"] + ["long"] * 8
    assert [each.run for each in found] == ["run of whole", "run of short", "run of long"]


def test_between_laps_something_is_looked_at_every_two_seconds_and_not_at_the_end():
    stand, looks = Stand(), []

    def look():
        looks.append(stand.ns)
        stand.ns += 500 * MS

    go(stand, [stand.engine("a", 300), stand.engine("b", 300)], look=look)
    assert len(looks) == 2, "six seconds of steps"
    assert looks[1] - looks[0] >= STOP_EVERY_NS + 500 * MS


def test_progress_is_the_share_of_all():
    stand, seen = Stand(), []
    go(stand, [stand.engine("a", 4), stand.engine("b", 2)], progress=seen.append)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (1 / 8, 1.0)


def test_when_one_fails_the_others_are_ended_too():
    stand = Stand()
    engines = [stand.engine("a", 50), stand.engine("b", 50, fails_at=3)]
    with pytest.raises(OSError, match="b"):
        go(stand, engines)
    assert [engine.is_closed for engine in engines] == [True, True]
