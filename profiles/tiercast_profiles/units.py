"""The only module that knows how many nanoseconds, bytes or bits a unit holds.

Inside Tiercast time is ``int`` nanoseconds, size is ``int`` bytes and a rate is ``float`` bytes per second.
``GB`` is 1e9 bytes and ``GiB`` is 2**30 bytes, everywhere.
"""

import math

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
S_PER_HOUR = 3_600

KB = 1_000
MB = 1_000_000
GB = 1_000_000_000
TB = 1_000_000_000_000
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

TERA = 1e12
TOKENS_PER_MTOK = 1_000_000


def us_to_ns(time_us: float) -> int:
    """Microseconds to whole nanoseconds, rounded to nearest."""
    return round(time_us * NS_PER_US)


def ns_to_us(time_ns: float) -> float:
    """Nanoseconds to microseconds."""
    return time_ns / NS_PER_US


def ns_to_ms(time_ns: float) -> float:
    """Nanoseconds to milliseconds."""
    return time_ns / NS_PER_MS


def ns_to_s(time_ns: float) -> float:
    """Nanoseconds to seconds."""
    return time_ns / NS_PER_S


def s_to_ns(time_s: float) -> int:
    """Seconds to whole nanoseconds, rounded to nearest."""
    return round(time_s * NS_PER_S)


def gb_to_bytes(size_gb: float) -> int:
    """Decimal gigabytes (1e9) to whole bytes."""
    return round(size_gb * GB)


def gib_to_bytes(size_gib: float) -> int:
    """Binary gibibytes (2**30) to whole bytes."""
    return round(size_gib * GIB)


def bytes_to_gb(size_bytes: float) -> float:
    """Bytes to decimal gigabytes."""
    return size_bytes / GB


def bytes_to_gib(size_bytes: float) -> float:
    """Bytes to binary gibibytes."""
    return size_bytes / GIB


def gb_per_s_to_bytes_per_s(rate_gb_per_s: float) -> float:
    """Decimal gigabytes per second to bytes per second."""
    return rate_gb_per_s * GB


def bytes_per_s_to_gb_per_s(rate_bytes_per_s: float) -> float:
    """Bytes per second to decimal gigabytes per second."""
    return rate_bytes_per_s / GB


def tflops_to_flop_per_s(rate_tflops: float) -> float:
    """Tera floating-point operations per second to operations per second."""
    return rate_tflops * TERA


def transfer_ns(size_bytes: float, rate_bytes_per_s: float) -> int:
    """Whole nanoseconds to move ``size_bytes`` at ``rate_bytes_per_s``, rounded up.

    Raises:
        ValueError: when the rate is not a positive finite number.
    """
    if not (rate_bytes_per_s > 0 and math.isfinite(rate_bytes_per_s)):
        raise ValueError(f"rate_bytes_per_s={rate_bytes_per_s} must be a positive finite number")
    return math.ceil(size_bytes * NS_PER_S / rate_bytes_per_s)


def format_bytes(size_bytes: float) -> str:
    """Human-readable binary size: ``188.83 GiB``, ``264 B``."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(size_bytes) >= factor:
            return f"{size_bytes / factor:,.2f} {unit}"
    return f"{size_bytes:,.0f} B"


def format_ns(time_ns: float) -> str:
    """Human-readable duration: ``1.25 ms``, ``310 ns``."""
    for unit, factor in (("s", NS_PER_S), ("ms", NS_PER_MS), ("µs", NS_PER_US)):
        if abs(time_ns) >= factor:
            return f"{time_ns / factor:,.2f} {unit}"
    return f"{time_ns:,.0f} ns"


def format_rate(rate_bytes_per_s: float) -> str:
    """Human-readable decimal rate: ``55.40 GB/s``."""
    for unit, factor in (("GB/s", GB), ("MB/s", MB), ("KB/s", KB)):
        if abs(rate_bytes_per_s) >= factor:
            return f"{rate_bytes_per_s / factor:,.2f} {unit}"
    return f"{rate_bytes_per_s:,.0f} B/s"
