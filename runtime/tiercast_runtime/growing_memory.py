"""Host memory that grows as it is used: a virtual machine may start with a part of its memory and get more on demand.

There ``MemAvailable`` says little of what can be had, and whoever takes memory faster than it comes is killed. So a
block is touched piece by piece, each once there is room for it, and what can be had is found out by a process that the
kernel would end before any other: ``python -m tiercast_runtime.growing_memory BYTES``.
"""

import contextlib
import mmap
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tiercast_profiles.kernel_files import read_memory_info
from tiercast_profiles.units import GIB, MIB

PIECE_BYTES = 128 * MIB
FLOOR_BYTES = 768 * MIB  # stays free beside the next piece, for everything else that runs
PATIENCE_S = 6.0  # without growth for so long there is no more
_WAIT_S = 0.05
_PAGE_BYTES = 4096
_LONGEST_TRIAL_S = 180


def memory_field(name: str, proc: Path = Path("/proc/meminfo")) -> int:
    """A field of the kernel's memory report, in bytes."""
    return read_memory_info(proc)[name]


def touch_as_it_grows(
    array: npt.NDArray[np.uint8],
    available: Callable[[], int],
    *,
    say: Callable[[int], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    patience_s: float = PATIENCE_S,
) -> int:
    """Touch a fresh block piece by piece, each once it fits beside ``FLOOR_BYTES``, and wait where it does not yet.

    Args:
        array: ``[n] uint8`` of zeros nobody has touched.
        available: bytes that can be taken right now.
        say: told the bytes touched after each piece.
        sleep: waits a number of seconds.
        patience_s: how long to wait for one piece.

    Returns:
        Bytes touched: all of them, or those before the piece that did not come.
    """
    for first in range(0, len(array), PIECE_BYTES):
        piece = array[first : first + PIECE_BYTES]
        waited_s = 0.0
        while available() < len(piece) + FLOOR_BYTES:
            if waited_s >= patience_s:
                return first
            sleep(_WAIT_S)
            waited_s += _WAIT_S
        piece[::_PAGE_BYTES] = 0
        if say is not None:
            say(first + len(piece))
    return len(array)


def memory_that_comes(wanted_bytes: int, command: Sequence[str] | None = None) -> int:
    """How much of ``wanted_bytes`` a process that asks for it gets, as far as it came in three minutes."""
    module = [sys.executable, "-m", "tiercast_runtime.growing_memory", str(wanted_bytes)]
    try:
        done = subprocess.run(
            module if command is None else [*command],
            capture_output=True,
            text=True,
            check=False,
            timeout=_LONGEST_TRIAL_S,
        )
        said = done.stdout
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
    numbers = [int(line) for line in said.split() if line.isdigit()]  # a killed process may leave half a line
    return max(numbers, default=0)


def main(arguments: Sequence[str]) -> None:
    """Touch that much memory and print how far it came, as it comes."""
    with contextlib.suppress(OSError):  # then the kernel chooses by size, which is this process most likely
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    memory = mmap.mmap(-1, int(arguments[0]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # small pages take longer and are as good
            memory.madvise(mmap.MADV_HUGEPAGE)
    last = 0

    def say(touched: int) -> None:
        nonlocal last
        if touched // GIB > last // GIB or touched == len(memory):
            _print(touched)
        last = touched

    array: npt.NDArray[np.uint8] = np.frombuffer(memory, dtype=np.uint8)
    _print(touch_as_it_grows(array, lambda: memory_field("MemAvailable"), say=say))


def _print(touched: int) -> None:
    sys.stdout.write(f"{touched}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
