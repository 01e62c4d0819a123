"""Whether memory that stands still stays: the first touch of its pages after all other probes, beside the second.

The host of a virtual machine may take away what nothing has read for some seconds and give it back page by page. Rows
of a large table in DRAM that are seldom asked for then cost microseconds, and no counter of the guest says so.
"""

import time

import numpy as np

from tiercast_profiles.gather import SMALL_PAGE_BYTES
from tiercast_profiles.hardware import ProbeResult
from tiercast_profiles.rng import stream
from tiercast_profiles.units import MIB, NS_PER_S
from tiercast_runtime.host_pages import MemoryRequest, map_memory
from tiercast_runtime.probes.timing import Clock, rounded

PROBE = "memory.idle"
REGION_BYTES, NUM_REGIONS = 2 * MIB, 32  # of the size of a huge page, which is taken and given back whole or in parts
PAGES_OF_REGION = 64
OTHER_BYTES = 64 * MIB  # read before each pass, which puts the block out of most caches


class IdleMemory:
    """A block that is filled now and read again at the end; it is no :class:`HostBlock`, which would be kept mapped.

    Args:
        clock: ns.
    """

    def __init__(self, clock: Clock = time.perf_counter_ns) -> None:
        self._clock = clock
        self._map = map_memory(NUM_REGIONS * REGION_BYTES, MemoryRequest())
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)
        self._bytes[:] = 1
        self._other = np.ones(OTHER_BYTES, dtype=np.uint8)
        self._since_ns = clock()

    def look(self) -> tuple[ProbeResult, ...]:
        """Touch some pages of every region for the first time and again, in ns a page; and how long it stood still.

        A sample is the mean of a region. Regions differ where some were taken away: that is what is looked for, and no
        bad sample.
        """
        idle_ns = self._clock() - self._since_ns
        generator = stream(0, PROBE)
        pages = [
            region * REGION_BYTES
            + SMALL_PAGE_BYTES * generator.permutation(REGION_BYTES // SMALL_PAGE_BYTES)[:PAGES_OF_REGION]
            for region in range(NUM_REGIONS)
        ]
        found = {"first": self._pass(pages), "again": self._pass(pages)}
        stood = ProbeResult(name=f"{PROBE}.stood", unit="s", samples=(rounded(idle_ns / NS_PER_S),), status="ok")
        return (
            stood,
            *(
                ProbeResult(name=f"{PROBE}.{touch}", unit="ns", samples=tuple(map(rounded, samples)), status="ok")
                for touch, samples in found.items()
            ),
        )

    def _pass(self, pages: "list[np.ndarray[tuple[int], np.dtype[np.int64]]]") -> list[float]:
        found = []
        for places in pages:
            self._other.max()
            begin_ns = self._clock()
            self._bytes[places].max()
            found.append((self._clock() - begin_ns) / PAGES_OF_REGION)
        return found
