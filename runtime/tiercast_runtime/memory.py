"""Host memory for tables: how much is free, and blocks of it, pinned where a GPU reads them.

Pinned memory is not taken from torch's pinned allocator: that rounds sizes up to a power of two, which would cost a
96 GiB table 32 GiB.
"""

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tiercast_profiles.errors import InfeasibleScenario, MissingCapability
from tiercast_profiles.units import GIB, format_bytes
from tiercast_runtime.growing_memory import PIECE_BYTES, memory_field, touch_as_it_grows
from tiercast_runtime.host_pages import MemoryRequest, ObtainedMemory, map_memory, read_back
from tiercast_runtime.idle_memory import touch_blocks

PIN_CHUNK_BYTES = 8 * GIB
_HOST_REGISTER_PORTABLE_MAPPED = 3  # cudaHostRegisterPortable | cudaHostRegisterMapped


def available_host_bytes(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Host memory that can still be taken: what the kernel calls available, or the container's limit if lower.

    Inside :func:`host_memory_grows_to` what is still to come counts as available.
    """
    available = memory_field("MemAvailable", proc) + _bytes_to_come(proc)
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        cached = dict(line.split() for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return available
    if limit == "max":
        return available
    return min(available, int(limit) - used + int(cached.get("inactive_file", 0)))


_grown_bytes: ContextVar[int | None] = ContextVar("host bytes once it has grown", default=None)


@contextmanager
def host_memory_grows_to(total_bytes: int | None) -> Iterator[None]:
    """Within it the host counts as having ``total_bytes``, though the kernel may not have them yet; None says nothing.

    Blocks made here are touched as memory comes (:mod:`growing_memory`). Threads do not inherit it.
    """
    token = _grown_bytes.set(total_bytes)
    try:
        yield
    finally:
        _grown_bytes.reset(token)


def _bytes_to_come(proc: Path = Path("/proc/meminfo")) -> int:
    grown = _grown_bytes.get()
    return 0 if grown is None else max(0, grown - memory_field("MemTotal", proc))


_allowed_bytes: ContextVar[int | None] = ContextVar("allowed host bytes", default=None)


@contextmanager
def host_bytes_allowed(num_bytes: int) -> Iterator[None]:
    """Within it no block of host memory may be larger, however much is free."""
    token = _allowed_bytes.set(num_bytes)
    try:
        yield
    finally:
        _allowed_bytes.reset(token)


def allowed_host_bytes() -> int | None:
    """What :func:`host_bytes_allowed` allows here; None where nothing was said."""
    return _allowed_bytes.get()


def _require_allowed(needed_bytes: int, what: str) -> None:
    allowed = _allowed_bytes.get()
    if allowed is not None and needed_bytes > allowed:
        raise InfeasibleScenario(
            f"{what} needs {format_bytes(needed_bytes)} of host memory, {format_bytes(allowed)} is allowed; allow "
            f"{format_bytes(needed_bytes - allowed)} more (--memory-gib)",
            shortfall_bytes=needed_bytes - allowed,
        )


def require_bytes(needed_bytes: int, device: torch.device, what: str) -> None:
    """Refuse before allocating what does not fit.

    Raises:
        InfeasibleScenario: with the missing bytes.
    """
    if device.type == "cuda":
        free_bytes, place = int(torch.cuda.mem_get_info(device)[0]), "GPU memory"
    else:
        _require_allowed(needed_bytes, what)
        free_bytes, place = available_host_bytes(), "host memory"
    if needed_bytes > free_bytes:
        raise InfeasibleScenario(
            f"{what} needs {format_bytes(needed_bytes)}; {format_bytes(free_bytes)} of {place} is free; "
            f"{format_bytes(needed_bytes - free_bytes)} short: use a smaller model or a lower tier",
            shortfall_bytes=needed_bytes - free_bytes,
        )


class HostBlock:
    """A block of host memory, by default private and in transparent huge pages where the kernel grants them.

    With ``descriptor`` it is the shared memory file behind that, which stays the caller's.
    ``array`` is ``[size_bytes] uint8``; what it is really made of is known once it is filled (``obtained``).

    Raises:
        BadInput: no such NUMA node here.
        InfeasibleScenario: larger than what is allowed here, or memory that was to grow does not.
        MissingCapability: pages or a binding that were asked for and are not granted.
    """

    def __init__(self, size_bytes: int, request: MemoryRequest | None = None, descriptor: int | None = None) -> None:
        _require_allowed(size_bytes, "a block of rows")
        self._map: mmap.mmap | None = map_memory(size_bytes, request or MemoryRequest(), descriptor)
        self.array: npt.NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)[:size_bytes]
        self._pinned_addresses: list[int] = []
        is_fresh = descriptor is None and (request is None or not request.is_from_pool)
        if is_fresh and size_bytes >= PIECE_BYTES and _bytes_to_come():
            self._wait_for_memory()
        touch_blocks.watch(self)

    def _wait_for_memory(self) -> None:
        touched = touch_as_it_grows(self.array, lambda: memory_field("MemAvailable"))
        missing = len(self.array) - touched
        if missing:
            self.close()
            raise InfeasibleScenario(
                f"the host's memory was to grow but stopped {format_bytes(missing)} short of a block of "
                f"{format_bytes(missing + touched)}; use a smaller model or a lower tier",
                shortfall_bytes=missing,
            )

    @property
    def is_pinned(self) -> bool:
        """Whether any of it is page-locked."""
        return bool(self._pinned_addresses)

    @property
    def span(self) -> tuple[int, int]:
        """Address and bytes of the mapping."""
        assert self._map is not None, "the block was closed"
        return int(self.array.ctypes.data), len(self._map)

    def huge_page_ratio(self, proc: Path = Path("/proc/self")) -> float | None:
        """Share of the touched block that really lies in huge pages, by the kernel's own account; None untold.

        Transparent huge pages are granted or not as memory is fragmented, so what was asked for is not what was got.
        """
        found = read_back([self.span], proc)
        return None if found is None else found.huge_ratio

    def pin(self) -> None:
        """Page-lock the block and map it into the GPU's address space. Fill it first: faulting in locked pages is slow.

        It is registered in pieces of 8 GiB: a driver refuses one piece far larger than that sooner than many. To the
        GPU the pieces are neighbours, as registered memory has one address on both sides (unified addressing).

        Raises:
            MissingCapability: the driver refuses, most often for the locked-memory limit of a container; nothing of
                the block stays pinned, and no CUDA error stays behind for the next caller to find.
        """
        address, size_bytes = self.span
        cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]  # Any: torch does not type its CUDA bindings
        for first in range(0, size_bytes, PIN_CHUNK_BYTES):
            piece = min(PIN_CHUNK_BYTES, size_bytes - first)
            status = int(cudart.cudaHostRegister(address + first, piece, _HOST_REGISTER_PORTABLE_MAPPED))
            if status != 0:
                clear_cuda_error()
                self._unpin()
                done = f" after {format_bytes(first)}" if first else ""
                raise MissingCapability(
                    f"cannot pin {format_bytes(size_bytes)} of host memory (CUDA error {status}{done}); "
                    "raise the locked-memory limit (ulimit -l) or use tier nvme"
                )
            self._pinned_addresses.append(address + first)

    def _unpin(self) -> None:
        cudart: Any = torch.cuda.cudart() if self._pinned_addresses else None  # type: ignore[no-untyped-call]  # Any: as above
        while self._pinned_addresses:
            if int(cudart.cudaHostUnregister(self._pinned_addresses.pop())) != 0:
                clear_cuda_error()

    def __del__(self) -> None:
        """Unpin what nobody closed: what goes back registered cannot be pinned when it is handed out again."""
        if getattr(self, "_pinned_addresses", ()):
            with suppress(Exception):  # nobody is there to hear of it
                self._unpin()

    def close(self) -> None:
        """Unpin and let go; the memory goes back when the last tensor over it is gone."""
        self._unpin()
        self.array = np.empty(0, dtype=np.uint8)
        self._map = None


def obtained(blocks: Sequence[HostBlock]) -> ObtainedMemory | None:
    """What filled blocks are really made of, as the kernel says; None where it does not."""
    return read_back([block.span for block in blocks if len(block.array)])


def clear_cuda_error(maps: Path = Path("/proc/self/maps")) -> int | None:
    """Take the last error of the CUDA runtime away, which a refused call leaves for the next check to trip over.

    torch does not bind ``cudaGetLastError``, so the runtime library that torch has loaded is asked itself.

    Returns:
        The error that was taken away; None where no CUDA runtime library is loaded.
    """
    try:
        text = maps.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    path = next((line.split(maxsplit=5)[5] for line in text.splitlines() if "/libcudart" in line), None)
    if path is None:
        return None
    return int(ctypes.CDLL(path).cudaGetLastError())
