"""Which cores serve a drive's interrupts: on machines made of text, and on this one."""

import os
from collections import Counter

import pytest

pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_runtime import interrupts
from tiercast_runtime.cores import on_cores
from tiercast_runtime.interrupts import NUM_READS, clear_cores, fixed_cores, interrupt_counts

CORES = frozenset(range(4))
SOME = """           CPU0       CPU1
 36:          5   10797780 PCI-MSIX-0000:00:02.0   1-edge      virtio1-req.0
 41:         12          0 PCI-MSIX-0000:00:04.0   1-edge      virtio3-rx
LOC:    4495680    6164642   Local timer interrupts
ERR:          0
"""


class Machine:
    """A kernel's counts, moved by reads; ``serving`` says which core a read made on a core interrupts."""

    def __init__(self, monkeypatch, serving, *, ticks=0):
        self.counts, self.on, self._serving, self._ticks = Counter(), None, serving, ticks
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(CORES))
        monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: setattr(self, "on", min(cores)))
        monkeypatch.setattr("time.sleep", lambda _: self._tick())

    def read(self):
        self.counts["36", self._serving(self.on)] += NUM_READS
        self._tick()

    def _tick(self):
        self.counts["41", 2] += self._ticks

    def text(self):
        lines = ["  ".join(f"CPU{core}" for core in sorted(CORES))]
        lines += [
            f"{line}: " + " ".join(str(self.counts[line, core]) for core in sorted(CORES)) for line in ("36", "41")
        ]
        return "\n".join([*lines, "LOC: 9 9 9 9 timers"])


def test_lines_of_devices_are_counted_by_core_and_the_processors_own_left_out():
    counts = interrupt_counts(SOME)
    assert counts["36", 1] == 10797780
    assert counts["41", 0] == 12
    assert {line for line, _ in counts} == {"36", "41"}


@pytest.mark.parametrize(
    ("serving", "found"),
    [
        (lambda _on: 3, {3}),  # one queue
        (lambda on: on, set()),  # a queue per core
        (lambda on: on // 2 * 2, set()),  # a queue for two cores
    ],
)
def test_a_core_is_fixed_that_is_interrupted_whoever_reads(monkeypatch, serving, found):
    machine = Machine(monkeypatch, serving)
    assert fixed_cores(machine.read, CORES, machine.text) == found


def test_a_device_that_is_busy_all_the_time_is_not_the_drive(monkeypatch):
    machine = Machine(monkeypatch, lambda on: on, ticks=500)
    assert fixed_cores(machine.read, CORES, machine.text) == set()


def test_threads_are_kept_off_where_enough_cores_are_left(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(CORES))
    found = {"fixed": frozenset({1})}
    monkeypatch.setattr(interrupts, "_fixed_cores_of", lambda _file, _device, _cores: found["fixed"])
    file = tmp_path / "table"
    file.touch()
    assert clear_cores(file, 3) == {0, 2, 3}
    assert clear_cores(file, 4) is None
    found["fixed"] = frozenset()
    assert clear_cores(file, 1) is None, "nothing to keep clear of"
    assert clear_cores(tmp_path / "missing", 1) is None
    monkeypatch.delattr(os, "sched_setaffinity")
    found["fixed"] = frozenset({1})
    assert clear_cores(file, 1) is None, "a system without a choice"


@pytest.mark.parametrize("text", ["", "no header\n 36: 1 2\n", "CPU0 CPU1\n 36: many none\n"])
def test_a_kernel_that_writes_something_else_binds_nothing(monkeypatch, tmp_path, text):
    """Sandboxes that imitate Linux leave such files empty."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(CORES))
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    monkeypatch.setattr(interrupts, "_known", {})
    monkeypatch.setattr(interrupts, "INTERRUPTS", tmp_path / "interrupts")
    monkeypatch.setattr(interrupts.RowReader, "bypasses_page_cache", True)
    (tmp_path / "interrupts").write_text(text)
    file = tmp_path / "table"
    file.write_bytes(bytes(1 << 16))
    assert clear_cores(file, 1) is None


def test_on_this_machine_a_drive_is_looked_at_once(tmp_path, monkeypatch):
    file = tmp_path / "table"
    file.write_bytes(bytes(1 << 20))
    before, reads = os.sched_getaffinity(0), []
    monkeypatch.setattr(interrupts, "_known", {})
    monkeypatch.setattr(interrupts, "_read", lambda reader, _file: reads.append(reader))
    cores = clear_cores(file, 1)
    num_reads = len(reads)
    assert clear_cores(file, 1) == cores
    assert len(reads) == num_reads
    assert cores is None or cores < before
    assert os.sched_getaffinity(0) == before


def test_inside_a_thread_runs_there_and_behind_it_where_it_did(monkeypatch):
    before = os.sched_getaffinity(0)
    chosen = frozenset({min(before)})

    def fail_inside():
        with on_cores(chosen):
            assert os.sched_getaffinity(0) == chosen
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert os.sched_getaffinity(0) == before
    with on_cores(None):
        assert os.sched_getaffinity(0) == before
