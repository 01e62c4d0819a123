"""Copy bandwidth and latency of host memory; ``link_copies`` has the link of a GPU.

A rate counts the bytes copied once. The source changes before every timed copy, a word in each page of it, and those
words are compared after it, so that yesterday's bytes cannot pass; all bytes are compared after the last.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tiercast_profiles.errors import TiercastError
from tiercast_profiles.hardware import ProbeResult
from tiercast_profiles.units import GB, KIB, MIB, NS_PER_S
from tiercast_runtime.memory import require_bytes
from tiercast_runtime.probes.block_content import fill_random
from tiercast_runtime.probes.kept_memory import KeptMemory
from tiercast_runtime.probes.timing import (
    Case,
    Clock,
    Effort,
    Spread,
    collect,
    probe_result,
    to_us,
)

MAX_COPY_BYTES = 2048 * MIB
SMALL_COPY_BYTES = 4 * KIB
NUM_SMALL_COPIES = 512  # per sample: one takes about as long as reading the clock
STAMP_WORDS = 512  # one word in 4 KiB changes before every copy

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int64]


class CopyMismatch(TiercastError):
    """A copy delivered other bytes than its source held: the machine is broken, not slow."""


@dataclass(frozen=True, slots=True)
class CopyRates:
    """Rates in GB/s and small-copy latencies in µs, with the probes they come from."""

    rates: dict[str, Spread[str]]
    latencies: dict[str, Spread[str]]
    probes: tuple[ProbeResult, ...]


def pooled(first: CopyRates, second: CopyRates) -> CopyRates:
    """The same copies measured at two times, as one: what drifted in between shows as spread, and is flagged."""
    rates = {key: Spread(key, (*spread.samples, *second.rates[key].samples)) for key, spread in first.rates.items()}
    probes = []
    for one, other in zip(first.probes, second.probes, strict=True):
        joined = probe_result(
            one.name, Spread(one.name, (*one.samples, *other.samples)), one.unit, one.parameters | {"times": 2}
        )
        is_judged = one.status not in ("ok", "unstable")  # what telemetry said of the first stays said
        probes.append(joined.model_copy(update={"status": one.status, "reason": one.reason}) if is_judged else joined)
    return CopyRates(rates, first.latencies, tuple(probes))


def copy_bytes(least_bytes: int, last_level_cache_bytes: int | None) -> int:
    """Size of a copy: the last cache where that is more, so that memory is measured and not a cache.

    Source and target together are then twice the cache, and by the time a copy is through its head is gone: copies of
    once and twice the cache were within 4 % of each other with 480 MiB of cache, one thread and two.
    """
    return min(MAX_COPY_BYTES, max(least_bytes, last_level_cache_bytes or 0)) // 8 * 8


def measure_host_copies(
    num_bytes: int,
    thread_counts: tuple[int, ...],
    effort: Effort,
    clock: Clock = time.perf_counter_ns,
    *,
    memory: KeptMemory | None = None,
) -> CopyRates:
    """Copies between two buffers in host memory.

    Args:
        num_bytes: size of the large copy; a multiple of 8.
        thread_counts: threads to measure with; the rate of ``n`` threads is called ``threads_n``.
        effort: for each thread count.
        clock: ns.
        memory: lends the buffers; by default they are taken and given back.

    Raises:
        CopyMismatch: a copy went wrong.
        InfeasibleScenario: the buffers do not fit in memory.
    """
    memory = memory or KeptMemory()
    if not memory.holds(2 * num_bytes):
        require_bytes(2 * num_bytes, torch.device("cpu"), "the copy probe")
    # A block as tables have it, in huge pages where granted: address translation is not what is measured here.
    with memory.lent(2 * num_bytes) as block:
        fill_random(block.array)  # both buffers: by all cores, and each with bytes of its own
        return _host_copies(block.array[:num_bytes], block.array[num_bytes:], thread_counts, effort, clock)


def _host_copies(
    from_bytes: Bytes, to_bytes: Bytes, thread_counts: tuple[int, ...], effort: Effort, clock: Clock
) -> CopyRates:
    num_bytes = len(from_bytes)
    source, target = from_bytes.view(np.int64), to_bytes.view(np.int64)
    stamps, arrived = source[::STAMP_WORDS], target[::STAMP_WORDS]
    small, small_target = (
        torch.ones(SMALL_COPY_BYTES, dtype=torch.uint8),
        torch.zeros(SMALL_COPY_BYTES, dtype=torch.uint8),
    )
    rates, latencies, probes = {}, {}, []

    def large(key: str, copy: Callable[[], None]) -> Case[str]:
        def case() -> list[tuple[str, float]]:
            np.add(stamps, 1, out=stamps)
            start_ns = clock()
            copy()
            elapsed_ns = clock() - start_ns
            verify(np.array_equal(stamps, arrived))
            return [(key, num_bytes / max(1, elapsed_ns) * NS_PER_S / GB)]

        return case

    def little() -> list[tuple[str, float]]:
        start_ns = clock()
        for _ in range(NUM_SMALL_COPIES):
            small_target.copy_(small)
        return [("small", (clock() - start_ns) / NUM_SMALL_COPIES)]

    for count in thread_counts:
        key = f"threads_{count}"
        with _copier(source, target, count) as copy:
            (rate,) = collect([large(key, copy)], effort, clock)
        rates[key] = rate
        probes.append(
            probe_result("copy.host", rate, "GB/s", {"threads": count, "bytes": num_bytes, "verified": "yes"})
        )
    verify(np.array_equal(source, target))
    (latency,) = collect([little], effort, clock)
    verify(torch.equal(small, small_target))
    latencies["small"] = to_us(latency)
    probes.append(probe_result("copy.host.small", latencies["small"], "us", {"bytes": SMALL_COPY_BYTES}))
    return CopyRates(rates, latencies, tuple(probes))


@contextmanager
def _copier(source: Words, target: Words, num_threads: int) -> Iterator[Callable[[], None]]:
    """The C library's own copy, cut into one piece per thread; NumPy lets go of the interpreter lock inside it."""
    if num_threads == 1:
        yield lambda: np.copyto(target, source)
        return
    pieces = list(zip(np.array_split(target, num_threads), np.array_split(source, num_threads), strict=True))
    with ThreadPoolExecutor(num_threads) as pool:
        yield lambda: list(pool.map(np.copyto, *zip(*pieces, strict=True))).clear()


def verify(is_equal: bool) -> None:
    """Raise ``CopyMismatch`` where a comparison of copied bytes failed."""
    if not is_equal:
        raise CopyMismatch("a copy delivered other bytes than its source holds; check the memory of this machine")
