"""What this machine says about itself that decides whether big tables can be served: read from /proc and /sys only.

No accelerator library is loaded. An unknown is None, never a zero.
"""

import os
import resource
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tiercast_profiles.kernel_files import read_choice, read_memory_info, read_number, read_words


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Facts of the host this program runs on; sizes in bytes, None where the kernel does not say."""

    memory_total_bytes: int | None
    memory_available_bytes: int | None
    page_cache_bytes: int | None
    cgroup_limit_bytes: int | None
    shm_total_bytes: int | None
    shm_free_bytes: int | None
    memlock_limit_bytes: int | None
    is_memlock_unlimited: bool
    thp_mode: str | None
    thp_shmem_mode: str | None
    huge_page_bytes: int | None
    num_free_huge_pages: int | None
    num_numa_nodes: int | None
    numa_balancing: int | None
    container: str | None
    nvidia_driver: str | None
    num_nvidia_devices: int
    amd_driver: str | None
    disk_free_bytes: int | None
    has_direct_io: bool | None
    disk_path: str


def read_host_facts(disk: Path, root: Path = Path("/")) -> HostFacts:
    """The facts; ``disk`` is where tables would lie on a drive, ``root`` is where proc, sys and dev are (for tests)."""
    memory = read_memory_info(root / "proc/meminfo")
    shm = _filesystem(root / "dev/shm")
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    free = _filesystem(disk)
    return HostFacts(
        memory_total_bytes=memory.get("MemTotal"),
        memory_available_bytes=memory.get("MemAvailable"),
        page_cache_bytes=memory.get("Cached"),
        cgroup_limit_bytes=_cgroup_limit(root),
        shm_total_bytes=None if shm is None else shm[0],
        shm_free_bytes=None if shm is None else shm[1],
        memlock_limit_bytes=None if soft == resource.RLIM_INFINITY else soft,
        is_memlock_unlimited=soft == resource.RLIM_INFINITY,
        thp_mode=read_choice(root / "sys/kernel/mm/transparent_hugepage/enabled"),
        thp_shmem_mode=read_choice(root / "sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        huge_page_bytes=memory.get("Hugepagesize"),
        num_free_huge_pages=memory.get("HugePages_Free"),
        num_numa_nodes=len(list((root / "sys/devices/system/node").glob("node[0-9]*"))) or None,
        numa_balancing=read_number(root / "proc/sys/kernel/numa_balancing"),
        container=_container(root),
        nvidia_driver=_nvidia_driver(root),
        num_nvidia_devices=len(list((root / "dev").glob("nvidia[0-9]*"))),
        amd_driver=read_words(root / "sys/module/amdgpu/version"),
        disk_free_bytes=None if free is None else free[1],
        has_direct_io=_has_direct_io(disk),
        disk_path=str(disk),
    )


def _filesystem(path: Path) -> tuple[int, int] | None:
    """Bytes of a file system and those free to this user."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _cgroup_limit(root: Path) -> int | None:
    """The tightest memory limit above this process, version 2 or 1; None without one."""
    limits = []
    for line in (read_words(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers not in ("", "memory"):
            continue
        is_second = controllers == ""
        base = root / "sys/fs/cgroup" / ("" if is_second else "memory")
        name = "memory.max" if is_second else "memory.limit_in_bytes"
        folder = base / group.lstrip("/")
        for level in (folder, *folder.parents):
            limits.append(read_number(level / name))
            if level == base:
                break
    limits.append(read_number(root / "sys/fs/cgroup/memory.max"))
    # Version 1 says "no limit" with a number near 2^63.
    return min((limit for limit in limits if limit is not None and limit < 1 << 62), default=None)


def _container(root: Path) -> str | None:
    """What kind of container this is, by the marks that each leaves; None where there is none."""
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    words = read_words(root / "proc/1/cgroup") or ""
    return next((kind for kind in ("kubepods", "docker", "lxc", "containerd") if kind in words), None)


def _nvidia_driver(root: Path) -> str | None:
    """Version of the loaded NVIDIA kernel module."""
    text = read_words(root / "sys/module/nvidia/version")
    if text is not None:
        return text
    line = (read_words(root / "proc/driver/nvidia/version") or "").splitlines()[:1]
    words = line[0].split() if line else []
    return next((word for word in words if word[0].isdigit() and "." in word), None)


def _has_direct_io(folder: Path) -> bool | None:
    """Whether a file there opens with O_DIRECT; None where nothing can be written or the system has no such flag."""
    flag = getattr(os, "O_DIRECT", None)
    if flag is None:
        return None
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            try:
                os.close(os.open(file.name, os.O_RDONLY | flag))
            except OSError:
                return False
    except OSError:
        return None
    return True
