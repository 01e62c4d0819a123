"""Host memory for tables: how much is free, and how to get it in large pages, pinned where a GPU reads it.

Pinned memory is not taken from torch's pinned allocator: that rounds sizes up to a power of two, which would cost a
96 GiB table 32 GiB.
"""

import contextlib
import mmap
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from tiercast_profiles.errors import InfeasibleScenario, MissingCapability
from tiercast_profiles.units import GIB, format_bytes

HostPages = Literal["4k", "thp", "1g"]
_MAP_HUGETLB, _MAP_HUGE_1GB = 0x40000, 30 << 26  # linux/mman.h: the page size as a power of two, from bit 26
_HOST_REGISTER_PORTABLE_MAPPED = 3  # cudaHostRegisterPortable | cudaHostRegisterMapped


def available_host_bytes(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Host memory that can still be taken: what the kernel calls available, or the container's limit if lower."""
    fields = dict(line.split(":", 1) for line in proc.read_text(encoding="ascii").splitlines() if ":" in line)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        cached = dict(line.split() for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return available
    if limit == "max":
        return available
    return min(available, int(limit) - used + int(cached.get("inactive_file", 0)))


def require_bytes(needed_bytes: int, device: torch.device, what: str) -> None:
    """Refuse before allocating what does not fit.

    Raises:
        InfeasibleScenario: with the missing bytes.
    """
    if device.type == "cuda":
        free_bytes, place = int(torch.cuda.mem_get_info(device)[0]), "GPU memory"
    else:
        free_bytes, place = available_host_bytes(), "host memory"
    if needed_bytes > free_bytes:
        raise InfeasibleScenario(
            f"{what} needs {format_bytes(needed_bytes)}; {format_bytes(free_bytes)} of {place} is free; "
            f"{format_bytes(needed_bytes - free_bytes)} short: use a smaller model or a lower tier",
            shortfall_bytes=needed_bytes - free_bytes,
        )


def _mapping(size_bytes: int, pages: HostPages) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    if pages == "1g":
        whole = -(-size_bytes // GIB) * GIB
        try:
            return mmap.mmap(-1, whole, flags=flags | _MAP_HUGETLB | _MAP_HUGE_1GB)
        except OSError as error:
            raise MissingCapability(
                f"no {whole // GIB} free pages of 1 GiB ({error.strerror or error}); reserve them "
                "(kernel option hugepagesz=1G hugepages=N) to measure them"
            ) from None
    block = mmap.mmap(-1, size_bytes, flags=flags)
    name = "MADV_NOHUGEPAGE" if pages == "4k" else "MADV_HUGEPAGE"
    if hasattr(mmap, name):
        with contextlib.suppress(OSError):  # a kernel without transparent huge pages serves small ones
            block.madvise(getattr(mmap, name))
    return block


class HostBlock:
    """A private block of host memory: in transparent huge pages where the kernel grants them, or in those asked for.

    ``array`` is ``[size_bytes] uint8``. A lookup touches one random page per row, so page size decides how many of its
    address translations miss.

    Raises:
        MissingCapability: pages of 1 GiB are asked for and too few are reserved.
    """

    def __init__(self, size_bytes: int, pages: HostPages = "thp") -> None:
        self._map: mmap.mmap | None = _mapping(max(size_bytes, 1), pages)
        self.array: npt.NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)[:size_bytes]
        self._pinned_address: int | None = None

    def huge_page_ratio(self, smaps: Path = Path("/proc/self/smaps")) -> float | None:
        """Share of the touched block that really lies in huge pages, by the kernel's own account; None untold.

        Transparent huge pages are granted or not as memory is fragmented, so what was asked for is not what was got.
        """
        assert self._map is not None, "the block was closed"
        address = int(np.frombuffer(self._map, dtype=np.uint8).ctypes.data)
        try:
            text = smaps.read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        resident = huge = 0
        is_ours = False
        for line in text.splitlines():
            name, _, rest = line.partition(" ")
            if "-" in name and not name.endswith(":"):
                first, last = (int(end, 16) for end in name.split("-"))
                is_ours = first < address + len(self._map) and address < last
            elif is_ours and name == "Rss:":
                resident += int(rest.split()[0])
            elif is_ours and name in ("AnonHugePages:", "Private_Hugetlb:"):
                huge += int(rest.split()[0])
                resident += int(rest.split()[0]) if name == "Private_Hugetlb:" else 0
        return huge / resident if resident else None

    def pin(self) -> None:
        """Page-lock the block and map it into the GPU's address space. Fill it first: faulting in locked pages is slow.

        Raises:
            MissingCapability: the driver refuses, most often for the locked-memory limit of a container.
        """
        assert self._map is not None, "the block was closed"
        address, size_bytes = int(self.array.ctypes.data), len(self._map)
        cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]  # Any: torch does not type its CUDA bindings
        status = int(cudart.cudaHostRegister(address, size_bytes, _HOST_REGISTER_PORTABLE_MAPPED))
        if status != 0:
            raise MissingCapability(
                f"cannot pin {format_bytes(size_bytes)} of host memory (CUDA error {status}); "
                "raise the locked-memory limit (ulimit -l) or use tier nvme"
            )
        self._pinned_address = address

    def close(self) -> None:
        """Unpin and let go; the memory goes back when the last tensor over it is gone."""
        if self._pinned_address is not None:
            cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]  # Any: as above
            cudart.cudaHostUnregister(self._pinned_address)
            self._pinned_address = None
        self.array = np.empty(0, dtype=np.uint8)
        self._map = None
