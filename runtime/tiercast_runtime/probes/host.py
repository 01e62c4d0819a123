"""What the host says of itself: cores, memory, NUMA, page sizes. Read, not measured.

Linux tells in ``/proc`` and ``/sys``. Elsewhere the standard library gives what it can and the rest is reported as
not supported. An unknown is never a zero.
"""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from tiercast_profiles.hardware import ProbeResult, Reading
from tiercast_profiles.kernel_files import read_choice, read_memory_info, read_number, read_words
from tiercast_profiles.units import KIB, MIB

CORE_CACHE_LEVEL = 2


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The host as the kernel describes it; None where it does not say.

    ``num_cores`` are the cores this process may use. ``memory_total_bytes`` is the machine's memory or the limit of
    this container, whichever is smaller.
    """

    cpu_model: str
    num_cores: int
    num_numa_nodes: int | None
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    last_level_cache_bytes: int | None
    page_size_bytes: int
    huge_pages: str
    kernel: str
    iommu: str | None
    aspm_policy: str | None
    load_average: float | None

    @property
    def is_busy(self) -> bool:
        """True when other work kept more than half of the cores busy during the last minute."""
        return self.load_average is not None and self.load_average > self.num_cores / 2

    def probe_result(self) -> ProbeResult:
        """The facts as readings, unknown ones marked as such."""
        busy = f"other work was running: load average {self.load_average} on {self.num_cores} cores before the probes"
        return ProbeResult(
            name="host",
            unit="",
            status="unstable" if self.is_busy else "ok",
            reason=busy if self.is_busy else "",
            telemetry={
                "cpu_model": _reading(self.cpu_model, ""),
                "cores": _reading(self.num_cores, "cores"),
                "numa_nodes": _reading(self.num_numa_nodes, "nodes"),
                "memory_total": _reading(self.memory_total_bytes, "bytes"),
                "memory_available": _reading(self.memory_available_bytes, "bytes"),
                "last_level_cache": _reading(self.last_level_cache_bytes, "bytes"),
                "page_size": _reading(self.page_size_bytes, "bytes"),
                "huge_pages": _reading(None if self.huge_pages == "unknown" else self.huge_pages, ""),
                "kernel": _reading(self.kernel, ""),
                "iommu": _reading(self.iommu, ""),
                "aspm_policy": _reading(self.aspm_policy, ""),
                "load_average": _reading(self.load_average, "processes"),
            },
        )


def read_host(root: Path = Path("/")) -> HostFacts:
    """The facts of this host; ``root`` is where ``proc`` and ``sys`` lie, which a test may replace."""
    memory = read_memory_info(root / "proc/meminfo")
    total = memory.get("MemTotal")
    if total is None:
        total = _sysconf_bytes("SC_PHYS_PAGES")
    limit = read_number(root / "sys/fs/cgroup/memory.max")
    if total is not None and limit is not None:
        total = min(total, limit)
    available = memory.get("MemAvailable")
    if available is None:
        available = _sysconf_bytes("SC_AVPHYS_PAGES")
    return HostFacts(
        cpu_model=_cpu_model(root),
        num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1),
        num_numa_nodes=len(list((root / "sys/devices/system/node").glob("node[0-9]*"))) or None,
        memory_total_bytes=total,
        memory_available_bytes=available,
        last_level_cache_bytes=_last_level_cache(root),
        page_size_bytes=os.sysconf("SC_PAGE_SIZE"),
        huge_pages=_huge_pages(root),
        kernel=platform.release() or "unknown",
        iommu=_iommu(root),
        aspm_policy=read_choice(root / "sys/module/pcie_aspm/parameters/policy"),
        load_average=_load_average(),
    )


def _reading(value: str | float | None, unit: str) -> Reading:
    if value is None:
        return Reading(value=None, unit=unit, status="not_supported")
    return Reading(value=value if isinstance(value, str) else float(value), unit=unit, status="ok")


def _load_average() -> float | None:
    """Processes that wanted a core during the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def _sysconf_bytes(pages: str) -> int | None:
    if pages not in os.sysconf_names:
        return None
    count = os.sysconf(pages)
    return count * os.sysconf("SC_PAGE_SIZE") if count > 0 else None


def _cpu_model(root: Path) -> str:
    for line in (read_words(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("model name", "cpu model", "hardware") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown CPU"


def core_cache_bytes(root: Path = Path("/")) -> int | None:
    """The second-level cache of core 0, which today's cores have for themselves; None where nothing says."""
    sizes = [size for path, size in _caches(root) if read_number(path / "level") == CORE_CACHE_LEVEL]
    return max(sizes, default=None)


def _last_level_cache(root: Path) -> int | None:
    """The largest cache core 0 sees."""
    return max((size for _, size in _caches(root)), default=None)


def _caches(root: Path) -> list[tuple[Path, int]]:
    """The caches core 0 sees, each the folder that describes it and its bytes."""
    found = []
    for path in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = read_words(path) or ""
        for suffix, factor in (("K", KIB), ("M", MIB)):
            if text.endswith(suffix) and text[:-1].isdecimal():
                found.append((path.parent, int(text[:-1]) * factor))
    return found


def _huge_pages(root: Path) -> str:
    """Transparent huge pages and the reserved pools, in one line; ``unknown`` where nothing says."""
    parts = []
    policy = read_choice(root / "sys/kernel/mm/transparent_hugepage/enabled")
    if policy is not None:
        parts.append(f"transparent {policy}")
    for pool in sorted((root / "sys/kernel/mm/hugepages").glob("hugepages-*kB")):
        count, size_kib = read_number(pool / "nr_hugepages"), pool.name.removeprefix("hugepages-").removesuffix("kB")
        if count is not None and size_kib.isdecimal():
            parts.append(f"{count} reserved of {int(size_kib) // KIB} MiB")
    return ", ".join(parts) or "unknown"


def _iommu(root: Path) -> str | None:
    """Names of the IOMMUs the kernel drives, ``none`` without one; what the boot line asks for behind it."""
    folder = root / "sys/class/iommu"
    if not folder.is_dir():
        return None
    names = sorted(entry.name for entry in folder.iterdir())
    wanted = [word for word in (read_words(root / "proc/cmdline") or "").split() if "iommu" in word]
    return " ".join([*(names or ["none"]), *wanted])
