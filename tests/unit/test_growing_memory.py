"""Memory that grows as it is used: what is asked for, waited for, promised and given up."""

import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="the runtime extra is not installed")

from gpu_evidence import stage_environment
from gpu_evidence.context import Context
from gpu_evidence.state import State
from tiercast_profiles.errors import InfeasibleScenario
from tiercast_profiles.units import GIB, MIB
from tiercast_runtime import growing_memory, memory
from tiercast_runtime.growing_memory import PIECE_BYTES, memory_that_comes, touch_as_it_grows


class Host:
    """Plugs in ``step`` bytes at each wait, up to ``most`` in all."""

    def __init__(self, start, step, most, block):
        self.total, self.step, self.most, self.block, self.waits = start, step, most, block, 0

    def available(self):
        return self.total - int(np.count_nonzero(self.block[::PIECE_BYTES] == 0)) * PIECE_BYTES

    def sleep(self, _seconds):
        self.waits += 1
        self.total = min(self.most, self.total + self.step)


@pytest.fixture
def small_pieces(monkeypatch):
    for name, value in (("PIECE_BYTES", 4096), ("FLOOR_BYTES", 8192)):
        monkeypatch.setattr(growing_memory, name, value)
    monkeypatch.setitem(globals(), "PIECE_BYTES", 4096)


@pytest.mark.usefixtures("small_pieces")
def test_a_block_is_touched_no_faster_than_memory_comes():
    block, said = np.ones(10 * 4096, dtype=np.uint8), []
    host = Host(4 * 4096, 4096, 100 * 4096, block)
    lowest = []

    def available():
        lowest.append(host.available())
        return lowest[-1]

    assert touch_as_it_grows(block, available, say=said.append, sleep=host.sleep) == len(block)
    assert said == [4096 * (number + 1) for number in range(10)]
    assert not block[::4096].any(), "every page was written to"
    assert min(lowest) >= 8192, "the floor stayed free"
    assert host.waits == 8


@pytest.mark.usefixtures("small_pieces")
def test_memory_that_stops_coming_ends_the_wait():
    block = np.ones(10 * 4096, dtype=np.uint8)
    host = Host(6 * 4096, 4096, 7 * 4096, block)
    assert touch_as_it_grows(block, host.available, sleep=host.sleep, patience_s=1.0) == 5 * 4096
    assert block[5 * 4096 :].all(), "nothing behind it was touched"
    assert host.waits <= 1 + 1.0 / growing_memory._WAIT_S + 1


def test_what_is_promised_counts_as_available_and_only_inside(tmp_path):
    proc = tmp_path / "meminfo"
    proc.write_text(f"MemTotal: {16 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {10 * GIB // 1024} kB\n")
    missing = tmp_path / "no cgroup"
    assert memory.available_host_bytes(proc, missing) == 10 * GIB
    with memory.host_memory_grows_to(128 * GIB):
        assert memory.available_host_bytes(proc, missing) == (10 + 112) * GIB
        with memory.host_memory_grows_to(None):
            assert memory.available_host_bytes(proc, missing) == 10 * GIB
    with memory.host_memory_grows_to(8 * GIB):
        assert memory.available_host_bytes(proc, missing) == 10 * GIB, "there is more than was promised"


def test_a_block_waits_for_its_memory_where_more_is_to_come(monkeypatch):
    asked = []

    def touch(array, available):
        asked.append(len(array))
        return len(array) if len(asked) == 1 else 100 * MIB

    monkeypatch.setattr(memory, "touch_as_it_grows", touch)
    monkeypatch.setattr(memory, "_bytes_to_come", lambda: GIB)
    memory.HostBlock(PIECE_BYTES).close()
    memory.HostBlock(PIECE_BYTES - 1).close()
    assert asked == [PIECE_BYTES], "a small block is not waited for"
    with pytest.raises(InfeasibleScenario, match=r"stopped 28.00 MiB short of a block of 128.00 MiB"):
        memory.HostBlock(PIECE_BYTES)


def test_a_trial_tells_how_far_it_came(monkeypatch):
    assert memory_that_comes(3 * MIB) == 3 * MIB
    killed = "import os; print(5, flush=True); print(7, flush=True); os.kill(os.getpid(), 9)"
    assert memory_that_comes(9, [sys.executable, "-c", killed]) == 7
    assert memory_that_comes(9, [sys.executable, "-c", ""]) == 0
    monkeypatch.setattr(growing_memory, "_LONGEST_TRIAL_S", 2)
    stuck = "import time; print(11, flush=True); time.sleep(60)"
    assert memory_that_comes(99, [sys.executable, "-c", stuck]) == 11


def test_the_evidence_plans_with_what_a_trial_got(tmp_path, monkeypatch):
    context = Context(tmp_path, False, None, State(tmp_path / "state.json"))
    assert context.grown_bytes is None
    fields = {"MemTotal": 16 * GIB, "MemAvailable": 14 * GIB}
    monkeypatch.setattr(stage_environment, "memory_field", lambda name: fields[name])
    monkeypatch.setattr(stage_environment, "available_host_bytes", lambda: fields["MemAvailable"])
    monkeypatch.setattr(stage_environment, "memory_that_comes", lambda wanted: fields["MemAvailable"] - GIB)
    assert stage_environment.memory(context)["grown_bytes"] == 0, "a host that has what it shows"

    def grows(wanted):
        fields["MemTotal"] = 120 * GIB
        return wanted

    monkeypatch.setattr(stage_environment, "memory_that_comes", grows)
    numbers = stage_environment.memory(context)
    context.state.begin("environment/memory")
    context.state.end("environment/memory", "done", 1, "", numbers)
    assert context.grown_bytes == 120 * GIB
    fields["MemAvailable"] = 110 * GIB
    assert stage_environment.memory(context)["grown_bytes"] == 0, "nothing to try where there is enough"
    names = [case.name for case in stage_environment.cases(context)]
    assert names[:2] == ["memory", "machine"], "the size of the table is planned behind it"
