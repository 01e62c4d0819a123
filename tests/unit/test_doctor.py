"""Pre-flight checks over made-up facts, and reading the facts from a made-up /proc and /sys."""

import typing
from dataclasses import replace
from pathlib import Path

import pytest

from tiercast_plan.doctor import CheckId, Need, check_host, check_profile, is_healthy, need_of
from tiercast_plan.host_facts import HostFacts, read_host_facts
from tiercast_profiles import store
from tiercast_profiles.units import GIB, MIB

GOOD = HostFacts(
    memory_total_bytes=1024 * GIB,
    memory_available_bytes=900 * GIB,
    page_cache_bytes=10 * GIB,
    cgroup_limit_bytes=None,
    shm_total_bytes=512 * GIB,
    shm_free_bytes=512 * GIB,
    memlock_limit_bytes=None,
    is_memlock_unlimited=True,
    thp_mode="madvise",
    thp_shmem_mode="advise",
    huge_page_bytes=2 * MIB,
    num_free_huge_pages=0,
    num_numa_nodes=2,
    numa_balancing=0,
    container=None,
    nvidia_driver="580.65.06",
    num_nvidia_devices=8,
    amd_driver=None,
    disk_free_bytes=4000 * GIB,
    has_direct_io=True,
    disk_path="/data",
)
NEED = Need(
    what="tables",
    host_bytes=190 * GIB,
    shm_bytes=189 * GIB,
    pinned_bytes=189 * GIB,
    disk_bytes=189 * GIB,
    num_gpus=8,
    num_copies=2,
    is_spread_over_numa=True,
)


def _checks(**facts):
    return {check.check_id: check for check in check_host(replace(GOOD, **facts), NEED)}


def test_a_good_machine_is_healthy_and_has_nothing_to_mend():
    checks = check_host(GOOD, NEED)
    assert is_healthy(checks)
    assert {check.status for check in checks if check.check_id != "unified-memory"} == {"ok"}
    assert [check.mend for check in checks] == [""] * len(checks)


def test_every_id_is_there_once_here_and_elsewhere():
    ids = list(typing.get_args(CheckId))
    assert [check.check_id for check in check_host(GOOD, NEED)] == ids
    assert [check.check_id for check in check_profile(store.load_hardware("gb200"), NEED)] == ids


@pytest.mark.parametrize(
    ("facts", "check_id", "status", "mend"),
    [
        ({"memory_available_bytes": 100 * GIB}, "host-memory", "fail", "tiercast fit"),
        ({"cgroup_limit_bytes": 64 * GIB}, "cgroup-memory", "fail", "docker run --memory=206g"),
        ({"shm_free_bytes": 64 * MIB}, "shm-size", "fail", "mount -o remount,size=197G /dev/shm"),
        ({"shm_free_bytes": 64 * MIB, "container": "docker"}, "shm-size", "fail", "docker run --shm-size=197g"),
        (
            {"is_memlock_unlimited": False, "memlock_limit_bytes": 8 * MIB},
            "memlock-limit",
            "fail",
            "ulimit -l unlimited",
        ),
        ({"thp_mode": "never"}, "thp-mode", "warn", "transparent_hugepage/enabled"),
        ({"thp_shmem_mode": "never"}, "thp-shmem", "warn", "transparent_hugepage/shmem_enabled"),
        ({"thp_mode": "never"}, "huge-page-pool", "warn", "sysctl vm.nr_hugepages=96768"),
        ({"num_numa_nodes": 4}, "numa-nodes", "warn", "numactl --interleave=all"),
        ({"numa_balancing": 1}, "numa-balancing", "warn", "sysctl kernel.numa_balancing=0"),
        ({"page_cache_bytes": 900 * GIB}, "page-cache", "warn", "drop_caches"),
        ({"nvidia_driver": None}, "gpu-driver", "fail", "modprobe nvidia"),
        ({"num_nvidia_devices": 4}, "gpu-count", "fail", "docker run --gpus all"),
        ({"disk_free_bytes": 1}, "disk-space", "fail", "/data"),
        ({"has_direct_io": False}, "disk-direct-io", "fail", "--disk FOLDER"),
        ({"container": "docker"}, "container", "warn", "--ipc=host"),
    ],
)
def test_each_check_can_fail_and_says_what_to_type(facts, check_id, status, mend):
    check = _checks(**facts)[check_id]
    assert check.status == status
    assert mend in check.mend
    assert is_healthy(check_host(replace(GOOD, **facts), NEED)) is (status == "warn")


@pytest.mark.parametrize(("num_nodes", "words"), [(1, "1 node"), (2, "2 nodes")])
def test_nodes_are_counted_in_words(num_nodes, words):
    assert _checks(num_numa_nodes=num_nodes)["numa-nodes"].found == words


@pytest.mark.parametrize(
    ("fact", "check_id"),
    [
        ("memory_available_bytes", "host-memory"),
        ("shm_free_bytes", "shm-size"),
        ("memlock_limit_bytes", "memlock-limit"),
        ("thp_mode", "thp-mode"),
        ("thp_shmem_mode", "thp-shmem"),
        ("huge_page_bytes", "huge-page-pool"),
        ("num_numa_nodes", "numa-nodes"),
        ("numa_balancing", "numa-balancing"),
        ("page_cache_bytes", "page-cache"),
        ("disk_free_bytes", "disk-space"),
        ("has_direct_io", "disk-direct-io"),
    ],
)
def test_what_is_not_known_is_not_ok(fact, check_id):
    checks = _checks(**{fact: None, "is_memlock_unlimited": False})
    assert checks[check_id].status == "not_supported"


def test_a_machine_with_nothing_to_serve_is_healthy():
    assert is_healthy(check_host(replace(GOOD, nvidia_driver=None, num_nvidia_devices=0), Need("nothing")))


def test_need_of_a_scenario(mini_scenario):
    drive = need_of(mini_scenario({"tier": "nvme"}))
    assert drive.disk_bytes > 0
    assert drive.shm_bytes == drive.num_gpus == 0
    assert need_of(mini_scenario({"tier": "dram"})).host_bytes > 0


def test_a_profile_answers_what_it_can():
    checks = {check.check_id: check for check in check_profile(store.load_hardware("gb200"), NEED)}
    assert checks["host-memory"].status == "ok"
    assert checks["gpu-count"].status == "fail"
    assert checks["shm-size"].status == "not_supported"
    assert "run tiercast doctor on the machine" in checks["memlock-limit"].found


def _write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_facts_are_read_from_proc_and_sys(tmp_path):
    root = tmp_path / "root"
    _write(
        root,
        proc__meminfo="MemTotal: 1000 kB\nMemAvailable: 600 kB\nHugePages_Free: 3\nHugepagesize: 2048 kB\n",
        proc__self__cgroup="0::/kubepods/pod1\n",
        proc__1__cgroup="0::/kubepods/pod1\n",
        sys__fs__cgroup__kubepods__memory="",
        proc__sys__kernel__numa_balancing="1\n",
        sys__kernel__mm__transparent_hugepage__enabled="always madvise [never]\n",
        sys__kernel__mm__transparent_hugepage__shmem_enabled="always [advise] never\n",
        proc__driver__nvidia__version="NVRM version: NVIDIA UNIX Open Kernel Module  580.65.06  Release Build\n",
    )
    (root / "sys/fs/cgroup/kubepods/pod1").mkdir(parents=True)
    (root / "sys/fs/cgroup/kubepods/pod1/memory.max").write_text("max\n")
    (root / "sys/fs/cgroup/kubepods/memory.max").write_text("409600\n")
    for node in (0, 1):
        (root / f"sys/devices/system/node/node{node}").mkdir(parents=True)
    (root / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (root / "dev" / name).touch()
    facts = read_host_facts(tmp_path, root)
    assert (facts.memory_total_bytes, facts.memory_available_bytes) == (1_024_000, 614_400)
    assert facts.cgroup_limit_bytes == 409_600
    assert (facts.thp_mode, facts.thp_shmem_mode) == ("never", "advise")
    assert (facts.num_free_huge_pages, facts.huge_page_bytes) == (3, 2 * MIB)
    assert (facts.num_numa_nodes, facts.numa_balancing) == (2, 1)
    assert (facts.nvidia_driver, facts.num_nvidia_devices) == ("580.65.06", 2)
    assert facts.container == "kubepods"
    assert facts.shm_total_bytes is None
    assert facts.disk_free_bytes > 0


def test_first_version_cgroups_say_no_limit_with_a_large_number(tmp_path):
    _write(tmp_path, proc__self__cgroup="5:memory:/docker/abc\n4:cpu:/x\n")
    folder = tmp_path / "sys/fs/cgroup/memory/docker/abc"
    folder.mkdir(parents=True)
    limit = folder / "memory.limit_in_bytes"
    limit.write_text("9223372036854771712\n")
    assert read_host_facts(tmp_path, tmp_path).cgroup_limit_bytes is None
    limit.write_text("1073741824\n")
    assert read_host_facts(tmp_path, tmp_path).cgroup_limit_bytes == GIB
