"""Memory that several processes map, without a name: it is gone with the last process that has it, however that ended.

It is a memory file of the kernel (memfd), which no size of ``/dev/shm`` bounds. Where the kernel grants none, a file
without a name in ``/dev/shm`` serves, and one too small for it is refused before anything is written: beyond its end a
write would kill the process.
"""

import os
from pathlib import Path

from tiercast_profiles.errors import InfeasibleScenario, MissingCapability
from tiercast_profiles.units import GIB, format_bytes
from tiercast_runtime.host_pages import MemoryRequest, mapped_bytes, pool_page_bytes, refused_pages

SHM_FOLDER = Path("/dev/shm")
_HUGE_SHIFT = 26  # linux/memfd.h: MFD_HUGE_SHIFT, the page size's logarithm lies in the flags' upper bits


def make_shared(size_bytes: int, request: MemoryRequest, what: str) -> int:
    """A descriptor of new shared memory of ``size_bytes``; the memory is taken, so that touching it cannot fail.

    ``what`` names its use in messages. The descriptor is the caller's to close.

    Raises:
        MissingCapability: reserved pages that are not there, or no shared memory at all.
        InfeasibleScenario: ``/dev/shm`` has to serve and is too small.
    """
    length, page_bytes = mapped_bytes(size_bytes, request), pool_page_bytes(request)
    descriptor = _memory_file(page_bytes)
    if descriptor is None:
        if page_bytes:
            raise MissingCapability(
                f"this kernel or container grants no memfd, which shared pages of {format_bytes(page_bytes)} need; use "
                "page size thp or 4k, or replication none or per_rank"
            )
        descriptor = _nameless_file(length, what)
    try:
        os.ftruncate(descriptor, length)
        os.posix_fallocate(descriptor, 0, length)
    except OSError as error:
        os.close(descriptor)
        if page_bytes:
            raise refused_pages(length, page_bytes, error) from None
        raise InfeasibleScenario(
            f"{what} needs {format_bytes(length)} of shared memory, which the kernel refuses ({error.strerror}); use a "
            "smaller model or a lower tier",
            shortfall_bytes=length,
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _memory_file(page_bytes: int) -> int | None:
    if not hasattr(os, "memfd_create"):
        return None
    flags = os.MFD_CLOEXEC
    if page_bytes:
        flags |= os.MFD_HUGETLB | (page_bytes.bit_length() - 1) << _HUGE_SHIFT
    try:
        return os.memfd_create("tiercast-table", flags)
    except OSError:
        return None


def _nameless_file(length: int, what: str) -> int:
    try:
        found = os.statvfs(SHM_FOLDER)
        free_bytes = found.f_bavail * found.f_frsize
        if free_bytes < length:
            raise InfeasibleScenario(
                f"{what} needs {format_bytes(length)} of {SHM_FOLDER}; {format_bytes(free_bytes)} is free: start the "
                f"container with --shm-size={-(-length // GIB) + 1}g for each such table or --ipc=host, or use "
                "replication none or per_rank",
                shortfall_bytes=length - free_bytes,
            )
        return os.open(SHM_FOLDER, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise MissingCapability(
            f"no shared memory: neither memfd nor {SHM_FOLDER} ({error.strerror}); use replication none or per_rank"
        ) from None
