"""Which pages host memory is made of, and on which NUMA node: asked for by the caller, read back from the kernel.

A lookup touches one random page per row, so page size decides how many of its address translations miss.
"""

import ctypes
import errno
import mmap
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.kernel_files import read_choice
from tiercast_profiles.units import GIB, KIB, MIB, format_bytes

PageSize = Literal["4k", "thp", "2m", "1g"]
_HUGETLB_BYTES: Mapping[str, int] = {"2m": 2 * MIB, "1g": GIB}
_MAP_HUGETLB, _HUGE_SHIFT = 0x40000, 26  # linux/mman.h: the page size's logarithm lies in the flags' upper bits
_MBIND = {"x86_64": 237, "aarch64": 235}  # Linux kernel, arch/*/include/…/unistd
_MPOL_BIND = 2  # linux/mempolicy.h
_MASK_BITS = 1024
_RANGE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")


@dataclass(frozen=True, slots=True)
class MemoryRequest:
    """What host tables shall be made of.

    ``page_size``: ``4k`` small pages only, ``thp`` transparent huge pages, ``2m`` and ``1g`` pages from the reserved
    pools; None takes transparent huge pages where the kernel grants them. ``numa_node`` None leaves the placement to
    the kernel (first touch).
    """

    page_size: PageSize | None = None
    numa_node: int | None = None

    @property
    def is_from_pool(self) -> bool:
        """Whether the pages are reserved ones, which the kernel no longer counts as free memory."""
        return self.page_size in _HUGETLB_BYTES


def mapped_bytes(size_bytes: int, request: MemoryRequest) -> int:
    """Bytes a mapping of ``size_bytes`` takes: whole pages where they are reserved ones."""
    page_bytes = _HUGETLB_BYTES.get(request.page_size or "", 1)
    return -(-max(size_bytes, 1) // page_bytes) * page_bytes


def pool_page_bytes(request: MemoryRequest) -> int:
    """Bytes of a reserved page, where the request is for such; else 0."""
    return _HUGETLB_BYTES.get(request.page_size or "", 0)


def map_memory(size_bytes: int, request: MemoryRequest, descriptor: int | None = None) -> mmap.mmap:
    """Untouched private memory of at least ``size_bytes``, as asked for; with a descriptor the memory file behind it.

    Such a file (``shared_pages``) is of the pages it was made of; the other wishes are applied to the mapping.

    Raises:
        BadInput: no such NUMA node here.
        MissingCapability: this machine does not grant the pages or the binding; says what would make it.
    """
    length, page_bytes = mapped_bytes(size_bytes, request), pool_page_bytes(request)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if descriptor is None else mmap.MAP_SHARED
    if page_bytes and descriptor is None:
        flags |= _MAP_HUGETLB | (page_bytes.bit_length() - 1) << _HUGE_SHIFT
    try:
        memory = mmap.mmap(-1 if descriptor is None else descriptor, length, flags=flags)
    except (OSError, ValueError) as error:
        if not page_bytes:
            raise
        raise refused_pages(length, page_bytes, error) from None
    if not page_bytes:
        _advise(memory, request.page_size)
    if request.numa_node is not None:
        _bind(memory, request.numa_node)
    return memory


def refused_pages(length: int, page_bytes: int, error: Exception) -> MissingCapability:
    """The error for reserved pages that are not there."""
    pool = f"/sys/kernel/mm/hugepages/hugepages-{page_bytes // KIB}kB/nr_hugepages"
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return MissingCapability(
        f"cannot get {length // page_bytes} huge pages of {format_bytes(page_bytes)} ({reason}); reserve them as root "
        f"(echo {length // page_bytes} > {pool}; for 2 MiB pages also sysctl vm.nr_hugepages) or use page size thp"
    )


def _advise(memory: mmap.mmap, page_size: PageSize | None) -> None:
    wanted = getattr(mmap, "MADV_NOHUGEPAGE" if page_size == "4k" else "MADV_HUGEPAGE", None)
    try:
        if wanted is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        memory.madvise(wanted)
    except OSError as error:
        # without transparent huge pages all pages are small, which is what 4k asks for
        if page_size == "thp":
            raise MissingCapability(
                f"this kernel has no transparent huge pages ({error.strerror}); use page size 4k, 2m or 1g"
            ) from None
    if page_size == "thp" and transparent_policy() == "never":
        raise MissingCapability(
            "transparent huge pages are switched off; as root: echo madvise > "
            "/sys/kernel/mm/transparent_hugepage/enabled, or use page size 4k, 2m or 1g"
        )


def transparent_policy(root: Path = Path("/")) -> str | None:
    """``always``, ``madvise`` or ``never``; None where the kernel does not say."""
    return read_choice(root / "sys/kernel/mm/transparent_hugepage/enabled")


def numa_nodes(root: Path = Path("/")) -> tuple[int, ...]:
    """The NUMA nodes of this machine; empty where the kernel does not say."""
    folders = (root / "sys/devices/system/node").glob("node[0-9]*")
    return tuple(sorted(int(folder.name.removeprefix("node")) for folder in folders))


def _bind(memory: mmap.mmap, node: int) -> None:
    nodes = numa_nodes()
    if nodes and node not in nodes:
        raise BadInput(f"NUMA node {node}; this machine has {', '.join(map(str, nodes))}")
    number = _MBIND.get(platform.machine())
    if sys.platform != "linux" or number is None or not 0 <= node < _MASK_BITS:
        raise MissingCapability("memory can be bound to a NUMA node on Linux, x86_64 and aarch64, only")
    libc = ctypes.CDLL(None, use_errno=True)
    mask = (ctypes.c_ulong * (_MASK_BITS // 64))()
    mask[node // 64] = 1 << (node % 64)
    address = address_of(memory)
    arguments = (ctypes.c_void_p(address), ctypes.c_ulong(len(memory)), ctypes.c_long(_MPOL_BIND), mask)
    status = libc.syscall(ctypes.c_long(number), *arguments, ctypes.c_ulong(_MASK_BITS), ctypes.c_ulong(0))
    if status != 0:
        reason = os.strerror(ctypes.get_errno())
        raise MissingCapability(
            f"memory cannot be bound to NUMA node {node} ({reason}); allow mbind in this container (CAP_SYS_NICE or "
            "its seccomp profile) or leave the node out"
        )


def address_of(memory: mmap.mmap) -> int:
    """Where the mapping starts."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@dataclass(frozen=True, slots=True)
class ObtainedMemory:
    """What the kernel says of the mappings that hold some ranges.

    ``page_bytes`` is the mappings' own page size, ``huge_ratio`` the share of the resident bytes in huge pages, and
    ``node_bytes`` the resident bytes by NUMA node, empty where the kernel does not tell. Neighbouring mappings of one
    kind are one to the kernel, so the ratio may take in a neighbour.
    """

    page_bytes: int
    huge_ratio: float
    node_bytes: Mapping[int, int]

    @property
    def facts(self) -> dict[str, str | int | float | bool]:
        """As a record states them."""
        facts: dict[str, str | int | float | bool] = {
            "table_page_bytes": self.page_bytes,
            "table_huge_page_ratio": round(self.huge_ratio, 4),
        }
        if self.node_bytes:
            nodes = ", ".join(f"node {node}: {format_bytes(size)}" for node, size in sorted(self.node_bytes.items()))
            facts["table_numa_placement"] = nodes
        return facts


def read_back(ranges: list[tuple[int, int]], proc: Path = Path("/proc/self")) -> ObtainedMemory | None:
    """What the kernel really gave for ``(address, size_bytes)`` ranges; None where it does not say."""
    try:
        smaps = (proc / "smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    page_kib, huge_kib, resident_kib, starts = 0, 0, 0, set()
    is_ours = False
    for line in smaps.splitlines():
        match = _RANGE.match(line)
        if match:
            low, high = int(match[1], 16), int(match[2], 16)
            is_ours = any(first < high and low < first + size for first, size in ranges)
            if is_ours:
                starts.add(low)
            continue
        if not is_ours:
            continue
        name, _, rest = line.partition(":")
        if name == "KernelPageSize":
            page_kib = max(page_kib, int(rest.split()[0]))
        elif name in ("AnonHugePages", "ShmemPmdMapped", "Private_Hugetlb", "Shared_Hugetlb"):
            huge_kib += int(rest.split()[0])
            resident_kib += int(rest.split()[0]) if name.endswith("Hugetlb") else 0  # Rss leaves the pools' pages out
        elif name == "Rss":
            resident_kib += int(rest.split()[0])
    if not starts:
        return None
    return ObtainedMemory(page_kib * KIB, huge_kib / resident_kib if resident_kib else 0.0, _by_node(starts, proc))


def _by_node(starts: set[int], proc: Path) -> dict[int, int]:
    try:
        lines = (proc / "numa_maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    by_node: dict[int, int] = {}
    for line in lines:
        words = line.split()
        if not words or int(words[0], 16) not in starts:
            continue
        page = next((int(word.partition("=")[2]) for word in words if word.startswith("kernelpagesize_kB=")), 4) * KIB
        for word in words:
            match = re.fullmatch(r"N(\d+)=(\d+)", word)
            if match:
                by_node[int(match[1])] = by_node.get(int(match[1]), 0) + int(match[2]) * page
    return by_node
