"""Time of one read that the next one depends on: a chase through a ring of random places.

On a CPU the interpreter follows the ring, so no two reads overlap; what it needs for that is taken off by the same
chase through a ring that fits in the nearest cache. The ring covers the whole table: in 2 MiB, where nvbandwidth
chases, places lie in a cache and within the reach of the address translation (facts: NVIDIA/nvbandwidth v0.8).
"""

import time

import numpy as np
import numpy.typing as npt

from tiercast_profiles.rng import stream
from tiercast_profiles.stats import median
from tiercast_profiles.units import KIB
from tiercast_runtime.probes.timing import Clock

NUM_HOPS = 2000
NUM_SAMPLES = 11
NEAR_BYTES = 8 * KIB
STRIDE_WORDS = 16  # one place per 128 bytes, as nvbandwidth has it
LEAST_NS = 0.1  # the difference of two times that a clock cannot tell apart is small, not zero


def lay_ring(words: npt.NDArray[np.int64], num_places: int) -> int:
    """Write a random cycle into ``words`` and return a place of it; ``words[place]`` names the next one.

    There are ``num_places``, or as many as fit, one in each equal part of the block.
    """
    generator = stream(0, "ring")
    num_slots = len(words) // STRIDE_WORDS
    count = min(num_places, num_slots)
    edges = np.arange(count + 1, dtype=np.int64) * num_slots // count
    slots = edges[:-1] + (generator.random(count) * np.diff(edges)).astype(np.int64)
    places = generator.permutation(slots * STRIDE_WORDS)
    words[places] = np.roll(places, -1)
    return int(places[0])


def round_trip_ns(block: npt.NDArray[np.uint8], clock: Clock = time.perf_counter_ns) -> float:
    """Median time of a dependent read of ``block`` by the CPU, in ns; overwrites some of its content."""
    far = block[: len(block) // 8 * 8].view(np.int64)
    near = np.zeros(NEAR_BYTES // 8, dtype=np.int64)
    num_places = NUM_HOPS * (NUM_SAMPLES + 1)  # never the same place twice
    far_place, near_place = lay_ring(far, num_places), lay_ring(near, num_places)
    far_ns, near_ns = [], []
    with far.data as far_words, near.data as near_words:
        for _ in range(NUM_SAMPLES):
            far_place, elapsed_ns = _chase(far_words, far_place, clock)
            far_ns.append(elapsed_ns)
            near_place, elapsed_ns = _chase(near_words, near_place, clock)
            near_ns.append(elapsed_ns)
    return max(LEAST_NS, median(far_ns) - median(near_ns))


def _chase(words: "memoryview[int]", place: int, clock: Clock) -> tuple[int, float]:
    """Where ``NUM_HOPS`` hops lead, and the time of one."""
    start_ns = clock()
    for _ in range(NUM_HOPS):
        place = words[place]
    return place, (clock() - start_ns) / NUM_HOPS
