"""The discipline of timed probes, on a clock that the test moves."""

import gc

import pytest

from tiercast_profiles.units import NS_PER_S
from tiercast_runtime.probes.timing import (
    Effort,
    Spread,
    Stopwatch,
    collect,
    not_measured,
    probe_result,
    rounded,
    seconds,
    timed,
    to_ms,
    to_us,
    without_garbage_collection,
)


class FakeClock:
    """Nanoseconds that move when told to."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, time_ns: int) -> None:
        self.now_ns += time_ns


def test_warm_ups_leave_no_samples_and_every_later_sample_is_kept():
    clock, durations = FakeClock(), iter([900, 800, 100, 101, 102, 99, 100])
    case = timed("a", lambda: clock.advance(next(durations)), clock=clock)
    (spread,) = collect([case], Effort(seconds(1), num_warm_ups=2, min_rounds=5, max_rounds=50), clock)
    assert spread.samples == (100, 101, 102, 99, 100)
    assert spread.value == 100
    assert (spread.low, spread.high) == (100, 101)
    assert not spread.is_unstable


def test_unstable_cases_are_repeated_until_they_settle():
    clock, durations = FakeClock(), iter([100, 300, 100, 300] + [200] * 100)
    case = timed("a", lambda: clock.advance(next(durations)), clock=clock)
    (spread,) = collect([case], Effort(seconds(1), num_warm_ups=0, min_rounds=4, max_rounds=50), clock)
    assert 4 < len(spread.samples) < 50
    assert not spread.is_unstable


def test_the_budget_ends_what_never_settles_and_the_result_says_so():
    clock, turn = FakeClock(), iter([NS_PER_S, 3 * NS_PER_S] * 100)
    case = timed("a", lambda: clock.advance(next(turn)), clock=clock)
    (spread,) = collect([case], Effort(seconds(11), num_warm_ups=0, min_rounds=3, max_rounds=50), clock)
    assert sum(spread.samples) == 12 * NS_PER_S
    assert spread.is_unstable
    result = probe_result("x", spread, "ns", {"n": 1})
    assert result.status == "unstable"
    assert "5 %" in result.reason


def test_a_round_that_would_end_past_the_budget_is_not_begun():
    clock, turn = FakeClock(), iter([2 * NS_PER_S, 4 * NS_PER_S] * 100)
    case = timed("a", lambda: clock.advance(next(turn)), clock=clock)
    (spread,) = collect([case], Effort(seconds(9.1), num_warm_ups=1, min_rounds=2, max_rounds=50), clock)
    assert clock.now_ns == 8 * NS_PER_S
    assert len(spread.samples) == 2


def test_few_rounds_are_made_even_past_the_budget():
    clock = FakeClock()
    case = timed("a", lambda: clock.advance(100 * NS_PER_S), clock=clock)
    (spread,) = collect([case], Effort(seconds(1), num_warm_ups=1, min_rounds=5, max_rounds=9), clock)
    assert len(spread.samples) == 5


def test_a_round_visits_every_case_once_and_the_first_one_rotates():
    clock, seen = FakeClock(), []

    def case(name):
        def run():
            seen.append(name)
            clock.advance(1)
            return [(name, 1.0)]

        return run

    collect([case("a"), case("b"), case("c")], Effort(seconds(1), 0, 3, 3), clock)
    assert seen == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_samples_of_one_key_are_pooled_over_cases():
    spreads = collect([lambda: [("k", 1.0)], lambda: [("k", 3.0), ("other", 5.0)]], Effort(0, 0, 2, 2), FakeClock())
    assert {spread.key: sorted(spread.samples) for spread in spreads} == {"k": [1, 1, 3, 3], "other": [5, 5]}


def test_preparation_is_not_timed():
    clock = FakeClock()
    case = timed("a", lambda: clock.advance(7), prepare=lambda: clock.advance(1000), clock=clock)
    assert list(case()) == [("a", 7.0)]


def test_units_and_rounding():
    spread = Spread("a", (1_000.0, 2_000.0, 3_000_000.0))
    assert to_us(spread).samples == (1.0, 2.0, 3000.0)
    assert to_ms(spread).samples == (0.001, 0.002, 3.0)
    assert rounded(123456.789) == 123460.0
    assert rounded(0.000123456) == 0.00012346


def test_what_is_not_measured_has_no_samples_and_a_reason():
    result = not_measured("lookup.dram.uva", "no GPU")
    assert (result.samples, result.status, result.reason) == ((), "not_supported", "no GPU")
    assert not_measured("x", "broke", is_failure=True).status == "failed"


def test_garbage_collection_is_off_inside_and_back_on_after_a_failure():
    assert gc.isenabled()
    states = []

    def fail():
        with without_garbage_collection():
            states.append(gc.isenabled())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert states == [False]
    assert gc.isenabled()


def test_a_stopwatch_gives_the_laps_and_starts_anew():
    torch = pytest.importorskip("torch", reason="the runtime extra is not installed")
    clock = FakeClock()
    watch = Stopwatch(torch.device("cpu"), clock)
    watch.lap()
    clock.advance(5)
    watch.lap()
    clock.advance(7)
    watch.lap()
    assert watch.laps_ns() == [5, 7]
    assert watch.laps_ns() == []


def test_what_is_added_up_is_a_mean_and_one_sample_cannot_carry_it_away():
    """Nine parts of 10 and one of 20 take 110 in all: a sum of medians would say 100."""
    assert Spread("part", (10.0,) * 9 + (20.0,)).mean == 11.0
    assert Spread("part", (10.0,) * 9 + (5000.0,)).mean == 12.0  # another process had the core: counted as 30


def test_what_is_done_between_cases_counts_against_no_budget():
    now, done = [0], []

    def between():
        done.append(now[0])
        now[0] += 1000

    def case():
        now[0] += 10
        return [("key", float(len(done)))]

    effort = Effort(budget_ns=50, num_warm_ups=1, min_rounds=2, max_rounds=9)
    (spread,) = collect([case], effort, lambda: now[0], between=between)
    assert len(spread.samples) == 4
    assert len(done) == 5
