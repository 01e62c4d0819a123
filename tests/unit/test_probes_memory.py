"""Memory that probes lend each other: what is kept, what is taken anew, and that it is given back."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.units import MIB
from tiercast_runtime.host_pages import MemoryRequest
from tiercast_runtime.memory import host_bytes_allowed
from tiercast_runtime.probes import block_content, kept_memory
from tiercast_runtime.probes.block_content import FILL_PIECE_BYTES, fill_random
from tiercast_runtime.probes.kept_memory import KeptMemory

SMALL = MemoryRequest("4k")


def test_a_block_is_lent_again_while_it_is_large_enough_and_of_the_same_pages():
    with KeptMemory(4 * MIB) as memory:
        with memory.lent(2 * MIB, SMALL) as block:
            block.array[:] = 7
        assert memory.holds(MIB, SMALL)
        with memory.lent(MIB, SMALL) as smaller:
            assert (len(smaller.array), smaller.array.min()) == (MIB, 7), "the same bytes, not fresh ones"
        assert not memory.holds(3 * MIB, SMALL)
        with memory.lent(3 * MIB, SMALL) as larger:
            assert larger.array.max() == 0
            assert len(block.array) == 0, "the first block went before the larger one came"
        assert not memory.holds(MIB)
    assert not memory.holds(MIB, SMALL)


def test_a_block_of_each_kind_is_kept_while_there_is_room_and_the_oldest_goes_first(monkeypatch):
    monkeypatch.setattr(kept_memory, "transparent_policy", lambda: "madvise")
    with KeptMemory(4 * MIB) as memory:
        memory.reserve(2 * MIB)
        with memory.lent(MIB) as block:
            block.array[:] = 7
        with memory.lent(2 * MIB, SMALL):
            pass
        assert memory.holds(2 * MIB)
        with memory.lent(MIB) as again:
            assert again.array.min() == 7, "another kind of pages has not taken its place"
        with memory.lent(3 * MIB, SMALL):
            assert not memory.holds(MIB), "no room beside the larger one"
        memory.reserve(8 * MIB)
        assert not memory.holds(8 * MIB), "more than may be kept is not reserved"
        assert memory.holds(3 * MIB, SMALL)
    assert not memory.holds(MIB, SMALL)


def test_what_is_too_large_to_keep_is_given_back():
    memory = KeptMemory(MIB)
    with memory.lent(2 * MIB, SMALL) as block:
        assert len(block.array) == 2 * MIB
    assert len(block.array) == 0
    with pytest.raises(RuntimeError), KeptMemory().lent(MIB) as block:
        raise RuntimeError
    assert len(block.array) == 0, "also after a failure"


def test_huge_pages_by_wish_and_by_demand_are_the_same_only_where_the_kernel_grants_them(monkeypatch):
    with KeptMemory(4 * MIB) as memory:
        with memory.lent(2 * MIB):
            pass
        for policy, is_same in (("madvise", True), ("always", True), ("never", False), (None, False)):
            monkeypatch.setattr(kept_memory, "transparent_policy", lambda policy=policy: policy)
            assert memory.holds(MIB, MemoryRequest("thp")) == is_same
        assert not memory.holds(MIB, MemoryRequest("thp", numa_node=0))


def test_nothing_is_kept_where_memory_has_several_nodes(monkeypatch):
    monkeypatch.setattr(kept_memory, "node_cores", lambda: {0: {0}})
    with KeptMemory.of_this_host() as memory:
        with memory.lent(MIB):
            pass
        assert memory.holds(MIB)
    with host_bytes_allowed(3 * MIB):
        memory = KeptMemory.of_this_host()
        with memory.lent(MIB):
            pass
        assert not memory.holds(MIB), "three tenths of what is allowed"
    monkeypatch.setattr(kept_memory, "node_cores", lambda: {0: {0}, 1: {1}})
    memory = KeptMemory.of_this_host()
    with memory.lent(MIB):
        pass
    assert not memory.holds(MIB)


@pytest.mark.parametrize("num_cores", [1, 3])
def test_every_piece_of_a_filled_block_differs_however_many_threads_fill(monkeypatch, num_cores):
    monkeypatch.setattr(block_content, "num_cores", lambda: num_cores)
    monkeypatch.setattr(block_content, "node_cores", lambda: {0: {0}})
    block = np.zeros(5 * FILL_PIECE_BYTES + 808, dtype=np.uint8)
    fill_random(block)
    heads = block[: 5 * FILL_PIECE_BYTES].reshape(5, -1)[:, :64]
    assert len({head.tobytes() for head in heads}) == 5
    assert np.count_nonzero(block[-808:]) > 700
    again = np.zeros_like(block)
    monkeypatch.setattr(block_content, "num_cores", lambda: 2)
    fill_random(again)
    assert np.array_equal(block, again)
