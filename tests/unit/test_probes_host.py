"""Host facts read from a made-up /proc and /sys."""

import os
import platform

import pytest

from tiercast_runtime.probes.host import core_cache_bytes, read_host


def write(root, path, text):
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


@pytest.fixture
def linux(tmp_path):
    write(tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: Test CPU 9000\nflags\t: a b\n")
    write(tmp_path, "proc/meminfo", "MemTotal:       1000 kB\nMemAvailable:    600 kB\nHugePages_Total:       0\n")
    write(tmp_path, "proc/cmdline", "ro intel_iommu=on quiet\n")
    for node in (0, 1):
        write(tmp_path, f"sys/devices/system/node/node{node}/cpulist", "0\n")
    write(tmp_path, "sys/devices/system/cpu/cpu0/cache/index2/size", "512K\n")
    write(tmp_path, "sys/devices/system/cpu/cpu0/cache/index2/level", "2\n")
    write(tmp_path, "sys/devices/system/cpu/cpu0/cache/index3/size", "32M\n")
    write(tmp_path, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    write(tmp_path, "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "7\n")
    write(tmp_path, "sys/class/iommu/dmar0/x", "")
    write(tmp_path, "sys/module/pcie_aspm/parameters/policy", "[default] performance\n")
    return tmp_path


def test_linux_facts(linux):
    facts = read_host(linux)
    assert facts.cpu_model == "Test CPU 9000"
    assert facts.memory_total_bytes == 1000 * 1024
    assert facts.memory_available_bytes == 600 * 1024
    assert facts.num_numa_nodes == 2
    assert facts.last_level_cache_bytes == 32 << 20
    assert core_cache_bytes(linux) == 512 << 10
    assert core_cache_bytes(linux / "elsewhere") is None
    assert facts.huge_pages == "transparent madvise, 7 reserved of 2 MiB"
    assert facts.iommu == "dmar0 intel_iommu=on"
    assert facts.aspm_policy == "default"
    assert facts.num_cores >= 1


def test_a_container_limit_bounds_the_memory(linux):
    write(linux, "sys/fs/cgroup/memory.max", "204800\n")
    assert read_host(linux).memory_total_bytes == 204800
    write(linux, "sys/fs/cgroup/memory.max", "max\n")
    assert read_host(linux).memory_total_bytes == 1000 * 1024


def test_unknowns_are_marked_and_never_zero(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sysconf_names", {"SC_PAGE_SIZE": os.sysconf_names["SC_PAGE_SIZE"]})
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    facts = read_host(tmp_path)
    assert facts.cpu_model == "riscv64"
    assert facts.memory_total_bytes is None
    assert facts.num_numa_nodes is None
    assert facts.huge_pages == "unknown"
    readings = facts.probe_result().telemetry
    unknown = {name for name, reading in readings.items() if reading.status == "not_supported"}
    assert {"memory_total", "memory_available", "numa_nodes", "last_level_cache", "huge_pages", "iommu"} <= unknown
    assert all(readings[name].value is None for name in unknown)
    assert all(readings[name].value != 0 for name in readings if name != "load_average")


def test_other_systems_say_what_the_standard_library_knows(tmp_path, monkeypatch):
    pages = {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf_names", dict.fromkeys(pages, 0))
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    facts = read_host(tmp_path)
    assert facts.memory_total_bytes == 40960
    assert facts.memory_available_bytes is None


def test_a_busy_machine_is_flagged(linux, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1e6, 0.0, 0.0))
    result = read_host(linux).probe_result()
    assert result.status == "unstable"
    assert "load average" in result.reason
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert read_host(linux).probe_result().status == "ok"
