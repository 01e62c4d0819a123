"""Cores that serve a drive's interrupts, and computing on others.

A drive with one queue, as most virtual ones have, sends the interrupts of all reads to one core, whichever asked for
them. A thread that computes there loses the time they take, beside lookups of thousands of rows a fifth of its speed
(``benchmarks/bench_turns.py``), and one on another core little. Which core a thread runs on is the scheduler's choice,
so the same run is fast or slow by chance. Drives with a queue for each core interrupt the one that asked, and there is
nothing to keep clear of.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tiercast_profiles.errors import TiercastError
from tiercast_profiles.rng import stream
from tiercast_runtime.aio import RowReader
from tiercast_runtime.cores import on_cores

NUM_READS = 64  # by each core that is tried: some ten milliseconds
NUM_CORES_TRIED = 4
INTERRUPTS = Path("/proc/interrupts")


def interrupt_counts(text: str) -> Counter[tuple[str, int]]:
    """How often each line has interrupted each core, out of ``/proc/interrupts``.

    Lines with a name are the processor's own (timers, calls between cores): no device is behind them.

    Raises:
        ValueError: the text is not what Linux writes there.
    """
    header, *lines = text.splitlines()
    cores = [int(name.removeprefix("CPU")) for name in header.split()]
    found: Counter[tuple[str, int]] = Counter()
    for line in lines:
        name, _, rest = line.partition(":")
        if name.strip().isdecimal():
            found.update({(name.strip(), core): int(count) for core, count in zip(cores, rest.split(), strict=False)})
    return found


def fixed_cores(read: Callable[[], None], cores: frozenset[int], counts: Callable[[], str]) -> frozenset[int]:
    """Of ``cores``, those that a drive interrupts for reads that others asked for.

    A core counts when some line interrupted it for half the reads at least, whichever core made them, and did not do
    so in the same time without reads.

    Args:
        read: makes ``NUM_READS`` reads, one after the other.
        cores: on which this thread may run.
        counts: the text of ``/proc/interrupts`` now.
    """
    tried = sorted(cores)
    tried = [tried[place * (len(tried) - 1) // max(1, NUM_CORES_TRIED - 1)] for place in range(NUM_CORES_TRIED)]
    found = set(cores)
    for core in dict.fromkeys(tried):
        with on_cores(frozenset({core})):
            before, begin = interrupt_counts(counts()), time.perf_counter()
            read()
            took_s, middle = time.perf_counter() - begin, interrupt_counts(counts())
            time.sleep(took_s)
            after = interrupt_counts(counts())
        by_reads, without = middle - before, after - middle
        found &= {hit for (line, hit), count in by_reads.items() if count - without[line, hit] >= NUM_READS // 2}
    return frozenset(found)


def clear_cores(file: Path, num_threads: int) -> frozenset[int] | None:
    """Cores for threads that compute beside reads of a file, off those that serve its drive's interrupts.

    None where there is nothing to keep clear of, the rest would be fewer than ``num_threads``, or this system does not
    say or does not let a thread choose. What a drive does is found out once, by some ten milliseconds of reads.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = frozenset(os.sched_getaffinity(0))
    try:
        rest = cores - _fixed_cores_of(file, file.stat().st_dev, cores)
    except (OSError, ValueError, TiercastError):
        return None
    return rest if rest != cores and len(rest) >= num_threads else None


_known: dict[tuple[int, frozenset[int]], frozenset[int]] = {}


def _fixed_cores_of(file: Path, device: int, cores: frozenset[int]) -> frozenset[int]:
    """As ``fixed_cores`` of the drive a file lies on, found out once for each drive."""
    if (device, cores) not in _known:
        reader = RowReader(file, depth=1)
        try:
            _known[device, cores] = (
                fixed_cores(lambda: _read(reader, file), cores, lambda: INTERRUPTS.read_text(encoding="ascii"))
                if reader.bypasses_page_cache and len(cores) > 1
                else frozenset()
            )
        finally:
            reader.close()
    return _known[device, cores]


def _read(reader: RowReader, file: Path) -> None:
    """``NUM_READS`` reads at random places."""
    width = reader.granularity_bytes
    places = stream(0, "interrupts").integers(0, max(1, file.stat().st_size // width), size=NUM_READS)
    target = np.empty((1, width), dtype=np.uint8)
    for place in places:
        reader.read_rows(np.array([place * width], dtype=np.int64), target)
