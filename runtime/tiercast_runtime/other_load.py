"""How much of the machine other processes used while something was timed.

Two busy processes on one core's hardware threads slow each other, and nothing in either's own clock says why. What the
kernel counts as busy, less what this process and those it started used, is what others took.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

PROC = Path("/proc")
BUSY_FIELDS = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal; idle and iowait are not busy
UTIME, STIME = 11, 12  # counted behind the name, which ends at the last bracket
PARENT = 1


class OtherLoad:
    """Cores that others used between ``with`` and its end; None where the kernel does not say.

    Args:
        proc: where the kernel's files are.
    """

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        self._total_s = 0.0
        self._others_s = 0.0
        self._is_known = (proc / "stat").is_file()
        self._start = (0.0, 0.0, 0.0)

    def __enter__(self) -> Self:
        self._start = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        busy, own, now = (after - before for after, before in zip(self._read(), self._start, strict=True))
        self._total_s += now
        self._others_s += max(0.0, busy - own)

    @property
    def num_cores(self) -> float | None:
        """Cores used by others on average over every ``with`` so far."""
        return self._others_s / self._total_s if self._is_known and self._total_s > 0 else None

    def _read(self) -> tuple[float, float, float]:
        """Seconds of all cores busy, of this process and those it started, and of the clock."""
        if not self._is_known:
            return 0.0, 0.0, time.perf_counter()
        whole = (self._proc / "stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        busy = sum(int(whole[field]) for field in BUSY_FIELDS)
        me = str(os.getpid())
        parents, used = {}, {}
        for folder in self._proc.iterdir():
            if not folder.name.isdecimal():
                continue
            try:
                fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:  # it ended while we looked
                continue
            parents[folder.name], used[folder.name] = fields[PARENT], int(fields[UTIME]) + int(fields[STIME])
        own = sum(ticks for name, ticks in used.items() if _descends(name, me, parents))
        return busy / self._ticks_per_s, own / self._ticks_per_s, time.perf_counter()


def _descends(name: str, ancestor: str, parents: Mapping[str, str]) -> bool:
    """Whether a process is another, or one that it started, at any remove."""
    seen: set[str] = set()  # processes come and go while they are read: parents may run in a circle
    while name != ancestor and name in parents and name not in seen:
        seen.add(name)
        name = parents[name]
    return name == ancestor
