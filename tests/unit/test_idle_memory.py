"""Tables that stand still: every page is touched now and then, at a bounded cost."""

import resource
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.gather import SMALL_PAGE_BYTES  # noqa: E402
from tiercast_profiles.units import MIB, NS_PER_S  # noqa: E402
from tiercast_runtime import together  # noqa: E402
from tiercast_runtime.host_pages import MemoryRequest  # noqa: E402
from tiercast_runtime.idle_memory import EVERY_NS, MOST_SHARE, Touch  # noqa: E402
from tiercast_runtime.memory import HostBlock  # noqa: E402
from tiercast_runtime.probes import timing  # noqa: E402


class Clock:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


class FakeBlock:
    """Counts how often its bytes are asked for; each time takes a while."""

    def __init__(self, clock, taken_ns=0, *, is_pinned=False) -> None:
        self.is_pinned, self.num_looks = is_pinned, 0
        self._clock, self._taken_ns = clock, taken_ns

    @property
    def array(self):
        self.num_looks += 1
        self._clock.now_ns += self._taken_ns
        return np.ones(SMALL_PAGE_BYTES, dtype=np.uint8)


def test_every_page_of_a_block_is_touched():
    block = HostBlock(4 * MIB, MemoryRequest("4k"))  # nothing of it is there yet: a touch is a fault of the page
    touch = Touch()
    touch.watch(block)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    assert touch()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before >= 4 * MIB // SMALL_PAGE_BYTES
    block.close()


def test_it_touches_again_after_two_seconds_and_not_before():
    clock = Clock()
    touch, block = Touch(clock), FakeBlock(clock)
    touch.watch(block)
    touch()
    seen = block.num_looks
    clock.now_ns = EVERY_NS - 1
    assert not touch()
    assert block.num_looks == seen
    clock.now_ns = EVERY_NS
    touch()
    assert block.num_looks > seen


def test_it_takes_a_twentieth_of_the_time_at_most():
    clock = Clock()
    touch, block = Touch(clock), FakeBlock(clock, taken_ns=NS_PER_S)
    touch.watch(block)
    assert touch()
    taken_ns = clock.now_ns
    assert taken_ns >= NS_PER_S
    clock.now_ns = MOST_SHARE * taken_ns - 1
    assert not touch()
    clock.now_ns = MOST_SHARE * taken_ns
    assert touch()


def test_pinned_blocks_and_those_that_are_closed_are_left_alone():
    clock = Clock()
    touch, pinned, closed = Touch(clock), FakeBlock(clock, is_pinned=True), HostBlock(MIB)
    touch.watch(pinned)
    touch.watch(closed)
    closed.close()
    touch()  # nothing of the closed one is left to read
    assert pinned.num_looks == 0


def test_blocks_are_not_kept_alive():
    clock = Clock()
    touch, block = Touch(clock), FakeBlock(clock)
    touch.watch(block)
    gone = weakref.ref(block)
    del block
    assert gone() is None


def test_probes_touch_their_tables_between_cases_at_no_budget(monkeypatch):
    clock, touched = Clock(), []

    def touch() -> None:
        touched.append(clock.now_ns)
        clock.now_ns += NS_PER_S

    monkeypatch.setattr(timing, "touch_blocks", touch)
    effort = timing.Effort(NS_PER_S, num_warm_ups=1, min_rounds=2, max_rounds=5)
    (found,) = timing.collect([lambda: [("all", float(len(touched) % 2))]], effort, clock)
    assert len(found.samples) == 5, "a second a case would have ended it after two rounds"
    assert len(touched) == 6


@pytest.mark.parametrize("num_arms", [1, 2])
def test_only_engines_that_take_turns_have_theirs_touched(num_arms, monkeypatch, tmp_path, mini_scenario):
    touched = []
    monkeypatch.setattr(together, "touch_blocks", lambda: touched.append(1))
    scenarios = [mini_scenario({"tier": "dram"}) for _ in range(num_arms)]
    with together.Together(scenarios, together.Sources(folder=tmp_path), None) as group:
        for _ in group.round(lambda _share: None):
            pass
    assert bool(touched) == (num_arms > 1)


@pytest.mark.parametrize("num_arms", [1, 2])
def test_table_files_of_engines_that_are_compared_are_read_through_once(num_arms, monkeypatch, tmp_path, mini_scenario):
    read = []
    monkeypatch.setattr(together, "read_through", read.append)
    scenarios = [mini_scenario({"tier": "nvme"}) for _ in range(num_arms)]
    with together.Together(scenarios, together.Sources(folder=tmp_path), None) as group:
        paths = {table.path for table in group.engines[0].tables}
    assert read == (sorted(paths) if num_arms > 1 else [])
    monkeypatch.setattr(together, "MOST_READ_THROUGH_BYTES", 16)
    read.clear()
    with together.Together(scenarios, together.Sources(folder=tmp_path), None):
        assert not read, "files too large for any host to keep"
