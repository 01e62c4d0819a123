"""Pre-flight: can this machine, or one known by its profile, hold and serve the tables? Pure checks over facts.

Ids are stable: scripts and run books quote them. What nothing is known about is ``not_supported``, never ``ok``.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from tiercast_plan.host_facts import HostFacts
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import GIB, format_bytes, gb_to_bytes
from tiercast_sim.memory import drive_bytes, memory_plan

CheckId = Literal[
    "host-memory",
    "cgroup-memory",
    "shm-size",
    "memlock-limit",
    "thp-mode",
    "thp-shmem",
    "huge-page-pool",
    "numa-nodes",
    "numa-balancing",
    "page-cache",
    "gpu-driver",
    "gpu-count",
    "disk-space",
    "disk-direct-io",
    "container",
    "unified-memory",
]
CHECK_IDS: tuple[CheckId, ...] = get_args(CheckId)
Status = Literal["ok", "warn", "fail", "not_supported"]
DOCKER_SHM_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Need:
    """What a deployment asks of one host; sizes in bytes, 0 where it does not use a thing."""

    what: str
    host_bytes: int = 0
    shm_bytes: int = 0
    pinned_bytes: int = 0
    disk_bytes: int = 0
    num_gpus: int = 0
    num_copies: int = 0
    is_spread_over_numa: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``is_required``: a ``fail`` means that the deployment does not start or does not hold."""

    check_id: CheckId
    status: Status
    is_required: bool
    found: str
    needed: str
    mend: str


def need_of(resolved: ResolvedScenario) -> Need:
    """What the fullest host of a scenario has to give."""
    plan, placement = memory_plan(resolved), resolved.placement
    in_dram = max((sum(pieces.values()) for pieces in plan.per_host.get("dram", ({},))), default=0)
    tables = max((pieces.get("tables", 0) for pieces in plan.per_host.get("dram", ({},))), default=0)
    is_gpu = resolved.hardware.device.kind != "cpu"
    is_shared = tables > 0 and is_gpu and placement.path == "uva"
    copies = tables // plan.table_bytes if plan.table_bytes else 0
    return Need(
        what=f"{resolved.model.name}, tables in {placement.tier}",
        host_bytes=in_dram,
        shm_bytes=tables if is_shared else 0,
        pinned_bytes=tables if is_shared else 0,
        disk_bytes=max(drive_bytes(resolved)) if placement.tier == "nvme" else 0,
        num_gpus=min(resolved.num_ranks, resolved.hardware.device.num_per_host) if is_gpu else 0,
        num_copies=copies,
        is_spread_over_numa=tables > 0 and placement.replication != "per_rank",
    )


def is_healthy(checks: tuple[Check, ...]) -> bool:
    """True where no required check fails."""
    return not any(check.status == "fail" and check.is_required for check in checks)


def check_host(facts: HostFacts, need: Need) -> tuple[Check, ...]:
    """Every check of the machine at hand, against what is needed."""
    return (
        _at_least("host-memory", facts.memory_available_bytes, need.host_bytes, _MORE_MEMORY),
        _cgroup(facts, need),
        _shm(facts, need),
        _memlock(facts, need),
        _thp(facts, need),
        _thp_shmem(facts, need),
        _pool(facts, need),
        _numa_nodes(facts.num_numa_nodes, need),
        _numa_balancing(facts, need),
        _page_cache(facts, need),
        _driver(facts, need),
        _gpus(facts, need),
        _at_least(
            "disk-space", facts.disk_free_bytes, need.disk_bytes, f"free or mount a larger drive at {facts.disk_path}"
        ),
        _direct_io(facts, need),
        _container(facts, need),
        Check("unified-memory", "not_supported", False, "not told by the kernel", "", ""),
    )


def check_profile(hardware: HardwareProfile, need: Need) -> tuple[Check, ...]:
    """What a profile can answer about a machine that is elsewhere; the rest is not_supported."""
    known = {
        check.check_id: check
        for check in (
            _at_least(
                "host-memory", gb_to_bytes(hardware.host.memory_capacity_gb.value), need.host_bytes, _MORE_MEMORY
            ),
            _numa_nodes(hardware.host.num_numa_nodes, need),
            _gpu_count(hardware.device.num_per_host if hardware.device.kind != "cpu" else 0, need),
            _profile_pages(hardware, need),
            _unified(hardware, need),
            _at_least(
                "disk-space",
                None if hardware.nvme is None else gb_to_bytes(hardware.nvme.capacity_gb.value),
                need.disk_bytes,
                "choose another tier, or add the drive to the profile",
            ),
        )
    }
    elsewhere = "a profile does not tell; run tiercast doctor on the machine"
    return tuple(known.get(name, Check(name, "not_supported", False, elsewhere, "", "")) for name in CHECK_IDS)


_MORE_MEMORY = "tiercast fit --model NAME --hardware NAME   # choose another tier or fewer copies, or add memory"


def _at_least(check_id: CheckId, found: int | None, needed: int, mend: str) -> Check:
    if found is None:
        return Check(check_id, "not_supported", needed > 0, "unknown", format_bytes(needed), "")
    if found < needed:
        short = f"{format_bytes(found)}, short of {format_bytes(needed - found)}"
        return Check(check_id, "fail", True, short, format_bytes(needed), mend)
    return Check(check_id, "ok", needed > 0, format_bytes(found), format_bytes(needed), "")


def _cgroup(facts: HostFacts, need: Need) -> Check:
    if facts.cgroup_limit_bytes is None:
        return Check("cgroup-memory", "ok", need.host_bytes > 0, "no limit", format_bytes(need.host_bytes), "")
    mend = f"docker run --memory={-(-need.host_bytes // GIB) + 16}g   # the tables and 16 GiB for the engine"
    return _at_least("cgroup-memory", facts.cgroup_limit_bytes, need.host_bytes, mend)


def _shm(facts: HostFacts, need: Need) -> Check:
    size_gib = -(-need.shm_bytes // GIB) + 8
    if facts.container is not None:
        mend = f"docker run --shm-size={size_gib}g   # or --ipc=host"
    else:
        mend = f"mount -o remount,size={size_gib}G /dev/shm"
    check = _at_least("shm-size", facts.shm_free_bytes, need.shm_bytes, mend)
    if check.status == "ok" and facts.shm_total_bytes is not None and facts.shm_total_bytes <= DOCKER_SHM_BYTES:
        return Check("shm-size", "warn", False, check.found, check.needed, "docker run --shm-size=8g   # or --ipc=host")
    return check


def _memlock(facts: HostFacts, need: Need) -> Check:
    needed = format_bytes(need.pinned_bytes)
    if facts.is_memlock_unlimited:
        return Check("memlock-limit", "ok", need.pinned_bytes > 0, "unlimited", needed, "")
    in_docker = "docker run --ulimit memlock=-1"
    mend = in_docker if facts.container is not None else "ulimit -l unlimited   # LimitMEMLOCK=infinity in a unit file"
    return _at_least("memlock-limit", facts.memlock_limit_bytes, need.pinned_bytes, mend)


def _thp(facts: HostFacts, need: Need) -> Check:
    needed = "always or madvise"
    if facts.thp_mode is None:
        return Check("thp-mode", "not_supported", False, "unknown", needed, "")
    if facts.thp_mode == "never" and need.host_bytes:
        mend = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        return Check("thp-mode", "warn", False, "never: small pages", needed, mend)
    return Check("thp-mode", "ok", False, facts.thp_mode, needed, "")


def _thp_shmem(facts: HostFacts, need: Need) -> Check:
    needed = "advise, always or within_size"
    if facts.thp_shmem_mode is None:
        return Check("thp-shmem", "not_supported", False, "unknown", needed, "")
    if facts.thp_shmem_mode in ("never", "deny") and need.shm_bytes:
        mend = "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled"
        return Check("thp-shmem", "warn", False, f"{facts.thp_shmem_mode}: shared tables on small pages", needed, mend)
    return Check("thp-shmem", "ok", False, facts.thp_shmem_mode, needed, "")


def _pool(facts: HostFacts, need: Need) -> Check:
    """A pool is a choice, not a must: transparent pages serve too."""
    if facts.huge_page_bytes is None or facts.num_free_huge_pages is None:
        return Check("huge-page-pool", "not_supported", False, "unknown", "", "")
    pages = -(-need.pinned_bytes // facts.huge_page_bytes)
    found = f"{facts.num_free_huge_pages} free of {format_bytes(facts.huge_page_bytes)}"
    is_thp_off = facts.thp_mode == "never" or facts.thp_shmem_mode in ("never", "deny")
    if need.pinned_bytes and is_thp_off and facts.num_free_huge_pages < pages:
        mend = f"sysctl vm.nr_hugepages={pages}"
        return Check("huge-page-pool", "warn", False, found, f"{pages}, as transparent ones are off", mend)
    return Check("huge-page-pool", "ok", False, found, "none: transparent huge pages serve", "")


def _numa_nodes(num_nodes: int | None, need: Need) -> Check:
    if num_nodes is None:
        return Check("numa-nodes", "not_supported", False, "unknown", "", "")
    if num_nodes > 1 and need.is_spread_over_numa and need.num_copies < num_nodes:
        mend = "numactl --interleave=all   # or one copy per node: placement.replication=per_numa"
        return Check(
            "numa-nodes", "warn", False, f"{num_nodes} nodes, {need.num_copies} copies", "a copy per node", mend
        )
    return Check("numa-nodes", "ok", False, f"{num_nodes} node{'s' if num_nodes > 1 else ''}", "", "")


def _numa_balancing(facts: HostFacts, need: Need) -> Check:
    if facts.numa_balancing is None:
        return Check("numa-balancing", "not_supported", False, "unknown", "0", "")
    if facts.numa_balancing and (facts.num_numa_nodes or 1) > 1 and need.host_bytes:
        return Check("numa-balancing", "warn", False, str(facts.numa_balancing), "0", "sysctl kernel.numa_balancing=0")
    return Check("numa-balancing", "ok", False, str(facts.numa_balancing), "0", "")


def _page_cache(facts: HostFacts, need: Need) -> Check:
    """A drive tier is as fast as its pages are warm; a host tier needs the pages that the checkpoint's read left."""
    if facts.page_cache_bytes is None:
        return Check("page-cache", "not_supported", False, "unknown", "", "")
    found = f"{format_bytes(facts.page_cache_bytes)} cached"
    if need.disk_bytes and facts.memory_total_bytes is not None and facts.memory_total_bytes < need.disk_bytes:
        needed = f"tables of {format_bytes(need.disk_bytes)} stay cold: they exceed memory"
        return Check("page-cache", "warn", False, found, needed, "tiercast cost SCENARIO   # cold reads are priced")
    total, free = facts.memory_total_bytes, need.host_bytes
    if need.host_bytes and total is not None and 0 <= total - free < facts.page_cache_bytes:
        mend = "sync; echo 1 > /proc/sys/vm/drop_caches   # before the engine starts, so that huge pages are found"
        return Check("page-cache", "warn", False, found, "room for the tables in whole huge pages", mend)
    return Check("page-cache", "ok", False, found, "", "")


def _driver(facts: HostFacts, need: Need) -> Check:
    found = facts.nvidia_driver or facts.amd_driver
    if found is not None:
        name = "NVIDIA" if facts.nvidia_driver else "amdgpu"
        return Check("gpu-driver", "ok", need.num_gpus > 0, f"{name} {found}", "a driver", "")
    if need.num_gpus:
        return Check("gpu-driver", "fail", True, "no GPU driver loaded", "a driver", "modprobe nvidia   # or amdgpu")
    return Check("gpu-driver", "not_supported", False, "no GPU driver loaded", "", "")


def _gpus(facts: HostFacts, need: Need) -> Check:
    if facts.num_nvidia_devices == 0 and facts.amd_driver is not None:
        return Check("gpu-count", "not_supported", need.num_gpus > 0, "AMD devices are not counted", "", "")
    return _gpu_count(facts.num_nvidia_devices, need)


def _gpu_count(found: int, need: Need) -> Check:
    if found < need.num_gpus:
        mend = "docker run --gpus all   # or a smaller parallel.tensor"
        return Check("gpu-count", "fail", True, f"{found}", f"{need.num_gpus}", mend)
    return Check("gpu-count", "ok", need.num_gpus > 0, f"{found}", f"{need.num_gpus}", "")


def _direct_io(facts: HostFacts, need: Need) -> Check:
    if facts.has_direct_io is None:
        return Check("disk-direct-io", "not_supported", False, f"{facts.disk_path}: cannot be tried", "O_DIRECT", "")
    if facts.has_direct_io:
        return Check("disk-direct-io", "ok", need.disk_bytes > 0, f"{facts.disk_path}: works", "O_DIRECT", "")
    status: Status = "fail" if need.disk_bytes else "warn"
    mend = "tiercast doctor --disk FOLDER   # a folder on a local ext4 or xfs drive, not tmpfs or overlay"
    return Check("disk-direct-io", status, need.disk_bytes > 0, f"{facts.disk_path}: refused", "O_DIRECT", mend)


def _container(facts: HostFacts, need: Need) -> Check:
    if facts.container is None:
        return Check("container", "ok", False, "none seen", "", "")
    if need.shm_bytes:
        mend = "docker run --ipc=host --ulimit memlock=-1 --pid=host   # shared tables pass between processes"
        return Check(
            "container", "warn", False, facts.container, "shared memory, locked pages, one PID namespace", mend
        )
    return Check("container", "ok", False, facts.container, "", "")


def _profile_pages(hardware: HardwareProfile, need: Need) -> Check:
    pages = hardware.host.huge_pages
    if pages == "unknown":
        return Check("thp-mode", "not_supported", False, "the profile does not tell", "always or madvise", "")
    is_off = "transparent never" in pages and need.host_bytes > 0
    mend = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled" if is_off else ""
    return Check("thp-mode", "warn" if is_off else "ok", False, pages, "always or madvise", mend)


def _unified(hardware: HardwareProfile, need: Need) -> Check:
    if hardware.device.has_unified_memory and need.host_bytes:
        mend = "choose tier nvme: host memory is device memory here, so tables in it free nothing"
        return Check("unified-memory", "warn", False, "host and device share one memory", "memory of its own", mend)
    found = "host and device share one memory" if hardware.device.has_unified_memory else "apart"
    return Check("unified-memory", "ok", False, found, "", "")
