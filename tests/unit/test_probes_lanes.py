"""The two times of what a GPU computes behind the host's calls, with the device replaced by a list of times."""

import itertools

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_runtime.probes import lanes  # noqa: E402
from tiercast_runtime.probes.hold import LEAST_HOLD_NS, MOST_HOLD_NS  # noqa: E402
from tiercast_runtime.probes.lanes import FIRST_HOLD_NS, Holds, LaneWatch  # noqa: E402

GPU = torch.device("cuda")


class Events:
    """Events of a device that reaches them at times given before."""

    def __init__(self, times):
        self.times, self.num = times, 0

    def lap(self):
        self.num += 1

    def laps_ns(self):
        return [float(second - first) for first, second in itertools.pairwise(self.times[: self.num])]


class Clock:
    """Time passes where a test says so, and a nanosecond with every reading."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        self.now += 1
        return self.now


@pytest.fixture
def held(monkeypatch):
    asked = []
    monkeypatch.setattr(lanes, "hold", asked.append)
    return asked


def watch_of(monkeypatch, times, clock):
    monkeypatch.setattr(lanes, "Stopwatch", lambda device, clock: Events(times))
    return LaneWatch(GPU, clock)


def test_the_host_counts_its_calls_and_the_device_its_work(monkeypatch, held):
    clock = Clock()
    watch = watch_of(monkeypatch, [0, 100, 5_000, 5_010, 5_060, 5_090, 5_500], clock)
    watch.lap()
    clock.now += 70  # before the stream is held
    watch.lap()
    watch.shut(4_000)
    clock.now += 900  # a part whose launches take longer than its work
    watch.lap()
    clock.now += 30
    watch.lap()
    clock.now += 20  # issued, and then waited for
    watch.issued()
    clock.now += 400
    watch.lap()
    device, host = watch.laps_ns()
    # an empty lap takes 10; the first lap was not held, and the device waited for its calls
    assert device == [71.0, 40.0, 20.0, 400.0]
    assert host == [71.0, 901.0, 31.0, 21.0]
    assert held == [4_000]


def test_what_an_event_takes_leaves_no_time_at_nothing(monkeypatch, held):
    watch = watch_of(monkeypatch, [0, 10, 20, 25], Clock())
    watch.lap()
    watch.shut(1)
    watch.lap()
    assert watch.laps_ns()[0] == [1.0], "ratios are taken of it"


def test_without_a_hold_every_lap_is_as_it_was(monkeypatch, held):
    watch = watch_of(monkeypatch, [0, 10, 30], Clock())
    for _ in range(3):
        watch.lap()
    assert watch.laps_ns() == ([10.0, 20.0], [1.0, 1.0])
    assert held == []


def test_a_cpu_has_one_time_and_is_never_held(held):
    ticks = itertools.count(0, 1_000)
    watch = LaneWatch(torch.device("cpu"), lambda: next(ticks))
    watch.lap()
    watch.shut(1_000_000)
    watch.issued()
    watch.lap()
    assert watch.laps_ns() == ([1_000.0], None), "no reading of the clock but the laps' own"
    assert watch.since_shut_ns == 0
    assert held == []


def test_the_next_walk_of_a_kind_is_held_for_longer_than_the_last_took():
    holds = Holds()
    assert holds.of("decode") == FIRST_HOLD_NS
    holds.learn("decode", 4_000_000)
    assert (holds.of("decode"), holds.of("chunk")) == (6_000_000, FIRST_HOLD_NS)
    holds.learn("decode", 1)
    holds.learn("chunk", 10**12)  # a kernel was compiled in it
    assert (holds.of("decode"), holds.of("chunk")) == (LEAST_HOLD_NS, MOST_HOLD_NS)
