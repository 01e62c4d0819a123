"""What other processes used while something was timed: the kernel's count less our own."""

import os

import pytest

pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_runtime.other_load import OtherLoad

TICKS = os.sysconf("SC_CLK_TCK")


def kernel(folder, *, busy_s: float, own_s: float, child_s: float, stranger_s: float):
    """A made-up /proc: three processes, one of them ours and one its child; names may hold brackets and spaces."""
    folder.mkdir(exist_ok=True)
    (folder / "stat").write_text(f"cpu  {round(busy_s * TICKS)} 0 0 999 999 0 0 0 0 0\ncpu0 1 1\n")
    me = os.getpid()
    for process, parent, used in ((me, 1, own_s), (me + 1, me, child_s), (me + 2, 1, stranger_s)):
        place = folder / str(process)
        place.mkdir(exist_ok=True)
        (place / "stat").write_text(f"{process} (a (b) c) S {parent} " + "0 " * 9 + f"{round(used * TICKS)} 0 0")


def test_own_and_childrens_time_is_not_others(tmp_path, monkeypatch):
    now = iter((10.0, 14.0))
    monkeypatch.setattr("tiercast_runtime.other_load.time.perf_counter", lambda: next(now))
    kernel(tmp_path, busy_s=100, own_s=5, child_s=1, stranger_s=50)
    with OtherLoad(tmp_path) as load:
        kernel(tmp_path, busy_s=107, own_s=8.5, child_s=1.5, stranger_s=53)
    assert load.num_cores == pytest.approx(3 / 4)


def test_a_kernel_that_does_not_say_is_unknown_not_zero(tmp_path):
    with OtherLoad(tmp_path / "missing") as load:
        pass
    assert load.num_cores is None
