"""Host memory: pages and nodes as asked for or a line that says what is missing; pinned in pieces; read back."""

import ctypes
import mmap

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import BadInput, MissingCapability  # noqa: E402
from tiercast_runtime import host_pages, memory, table  # noqa: E402
from tiercast_runtime.bench import bench  # noqa: E402
from tiercast_runtime.host_pages import MemoryRequest  # noqa: E402

CPU = torch.device("cpu")
MIB = 1 << 20


def filled(size_bytes, **request):
    block = memory.HostBlock(size_bytes, MemoryRequest(**request))
    block.array[:] = 7
    return block


def attempt(size_bytes, **request):
    """The filled block, or None and what was said instead."""
    try:
        return filled(size_bytes, **request), ""
    except MissingCapability as problem:
        return None, str(problem)


def test_small_pages_are_small_and_transparent_ones_huge_where_the_kernel_says_so():
    small = filled(8 * MIB, page_size="4k")
    found = memory.obtained([small])
    assert (found.page_bytes, found.huge_ratio) == (mmap.PAGESIZE, 0.0)
    if host_pages.transparent_policy() in ("always", "madvise"):
        large = filled(16 * MIB, page_size="thp")
        assert memory.obtained([large]).huge_ratio > 0.3
        large.close()
    small.close()


def test_transparent_pages_that_are_switched_off_are_refused(monkeypatch):
    monkeypatch.setattr(host_pages, "transparent_policy", lambda: "never")
    with pytest.raises(MissingCapability, match="switched off; as root: echo madvise > /sys/kernel"):
        memory.HostBlock(MIB, MemoryRequest("thp"))


@pytest.mark.parametrize(("size", "pool"), [("2m", "hugepages-2048kB"), ("1g", "hugepages-1048576kB")])
def test_pages_of_an_empty_pool_are_one_line_that_names_the_pool(size, pool):
    block, refusal = attempt(3 * MIB, page_size=size)
    if block is None:
        assert f"{pool}/nr_hugepages" in refusal
        assert "\n" not in refusal
    else:  # this machine has some reserved
        assert memory.obtained([block]).page_bytes in (2 * MIB, 1 << 30)
        assert len(block.array) == 3 * MIB
        block.close()


def test_a_node_this_machine_has_is_bound_and_another_refused():
    nodes = host_pages.numa_nodes()
    if not nodes:
        pytest.skip("the kernel names no NUMA nodes")
    with pytest.raises(BadInput, match="NUMA node 99; this machine has 0"):
        memory.HostBlock(MIB, MemoryRequest(numa_node=99))
    block, refusal = attempt(4 * MIB, numa_node=nodes[0])
    if block is None:
        assert "allow mbind in this container" in refusal
    else:
        placed = memory.obtained([block]).node_bytes
        assert not placed or set(placed) == {nodes[0]}
        block.close()


def test_a_binding_the_kernel_forbids_is_one_line(monkeypatch):
    class Forbidding:
        def syscall(self, *_):
            ctypes.set_errno(1)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Forbidding())
    monkeypatch.setattr(host_pages, "numa_nodes", lambda: (0,))
    with pytest.raises(MissingCapability, match=r"NUMA node 0 \(Operation not permitted\); allow mbind"):
        memory.HostBlock(MIB, MemoryRequest(numa_node=0))


def test_what_the_kernel_writes_is_read_back(tmp_path):
    (tmp_path / "smaps").write_text(
        "1000-3000 rw-p 0 00:00 0\nKernelPageSize:        4 kB\nRss:   8 kB\nAnonHugePages:   0 kB\n"
        "40000000-c0000000 rw-p 0 00:0f 9 /anon_hugepage (deleted)\nKernelPageSize:  1048576 kB\nRss:  0 kB\n"
        "AnonHugePages:  0 kB\nPrivate_Hugetlb: 2097152 kB\n"
        "d0000000-d0400000 rw-p 0 00:00 0\nKernelPageSize:        4 kB\nRss:   4096 kB\nAnonHugePages:   2048 kB\n"
    )
    (tmp_path / "numa_maps").write_text(
        "00001000 default anon=2 N0=2 kernelpagesize_kB=4\n"
        "40000000 bind:1 file=/anon_hugepage huge anon=2 dirty=2 N1=2 kernelpagesize_kB=1048576\n"
        "d0000000 default anon=1024 N0=1000 N1=24 kernelpagesize_kB=4\n"
    )
    giant = host_pages.read_back([(0x40000000, 1 << 31)], tmp_path)
    assert giant == host_pages.ObtainedMemory(1 << 30, 1.0, {1: 2 << 30})
    mixed = host_pages.read_back([(0xD0001000, 5)], tmp_path)
    assert mixed == host_pages.ObtainedMemory(4096, 0.5, {0: 4_096_000, 1: 98_304})
    assert mixed.facts["table_huge_page_ratio"] == 0.5
    assert "node 1: " in mixed.facts["table_numa_placement"]
    assert host_pages.read_back([(0x40, 5)], tmp_path) is None
    assert host_pages.read_back([(0x40, 5)], tmp_path / "none") is None


class FakeCudart:
    """Registers pieces until it has registered ``allowed`` of them."""

    def __init__(self, allowed):
        self.allowed, self.registered = allowed, {}

    def cudaHostRegister(self, address, size_bytes, flags):  # noqa: N802  # CUDA's name
        if len(self.registered) >= self.allowed:
            return 2  # cudaErrorMemoryAllocation
        self.registered[address] = size_bytes
        return 0

    def cudaHostUnregister(self, address):  # noqa: N802
        del self.registered[address]
        return 0


def test_a_block_is_pinned_in_pieces_that_cover_it_once(monkeypatch):
    cudart = FakeCudart(99)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(memory, "PIN_CHUNK_BYTES", MIB)
    block = memory.HostBlock(3 * MIB + 5)
    block.pin()
    address = block.array.ctypes.data
    assert cudart.registered == {address + i * MIB: size for i, size in enumerate([MIB, MIB, MIB, 5])}
    block.close()
    assert cudart.registered == {}


def test_a_pinned_block_that_nobody_closed_is_unpinned_when_it_goes(monkeypatch):
    cudart = FakeCudart(99)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    block = memory.HostBlock(MIB)
    block.pin()
    del block
    assert cudart.registered == {}


def test_a_refused_piece_lets_the_others_go_and_takes_the_error_away(monkeypatch):
    cudart, cleared = FakeCudart(2), []
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(memory, "PIN_CHUNK_BYTES", MIB)
    monkeypatch.setattr(memory, "clear_cuda_error", lambda: cleared.append(len(cudart.registered)))
    block = memory.HostBlock(4 * MIB)
    with pytest.raises(MissingCapability, match=r"cannot pin 4.00 MiB .* \(CUDA error 2 after 2.00 MiB\)"):
        block.pin()
    assert (cudart.registered, cleared) == ({}, [2])
    block.close()


def test_the_error_is_asked_of_the_library_that_is_loaded(tmp_path, monkeypatch):
    maps = tmp_path / "maps"
    maps.write_text("7f00-7f10 r-xp 0 00:0f 9    /usr/lib/libc.so.6\n")
    assert memory.clear_cuda_error(maps) is None
    maps.write_text("7f00-7f10 r-xp 0 00:0f 9    /a folder/libcudart.so.12\n")
    opened = []

    class Library:
        def cudaGetLastError(self):  # noqa: N802  # CUDA's name
            return 2

    monkeypatch.setattr(ctypes, "CDLL", lambda path: opened.append(path) or Library())
    assert memory.clear_cuda_error(maps) == 2
    assert opened == ["/a folder/libcudart.so.12"]


@pytest.mark.usefixtures("one_compute_thread")
def test_a_record_says_what_pages_were_obtained(mini_scenario, tmp_path):
    record = bench(mini_scenario({"tier": "dram"}), memory=MemoryRequest("4k"))
    assert record.provenance.facts["table_page_bytes"] == mmap.PAGESIZE
    assert record.provenance.facts["table_huge_page_ratio"] == 0
    with pytest.raises(BadInput, match="tier nvme on a cpu device has none"):
        bench(mini_scenario({"tier": "nvme"}), memory=MemoryRequest("4k"), folder=tmp_path)


def test_a_table_in_small_pages_holds_the_same_rows(mini_model):
    engram = mini_model("v41").engram
    made = table.HostTable(engram, 0, "split", memory=MemoryRequest("4k"))
    ids = np.arange(made.num_rows)
    assert np.array_equal(torch.cat(made.parts, dim=1).numpy(), table.expected_rows(engram, 0, ids))
    made.close()
