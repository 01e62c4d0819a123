"""Host memory for tables: how much is free, and how to get it in large pages, pinned where a GPU reads it.

Pinned memory is not taken from torch's pinned allocator: that rounds sizes up to a power of two, which would cost a
96 GiB table 32 GiB.
"""

import contextlib
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tiercast_profiles.errors import InfeasibleScenario, MissingCapability
from tiercast_profiles.units import format_bytes

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


class HostBlock:
    """A private block of host memory in transparent huge pages where the kernel grants them.

    ``array`` is ``[size_bytes] uint8``. A lookup touches one random page per row, so page size decides how many of its
    address translations miss.
    """

    def __init__(self, size_bytes: int) -> None:
        self._map: mmap.mmap | None = mmap.mmap(-1, max(size_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without transparent huge pages serves small ones
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self.array: npt.NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)[:size_bytes]
        self._pinned_address: int | None = None

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
