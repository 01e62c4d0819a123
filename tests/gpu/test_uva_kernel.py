"""The gather kernel: its logic in Triton's interpreter anywhere, the real thing beside the other paths on a GPU."""

import importlib.util
import os
import subprocess
import sys
from contextlib import ExitStack, closing

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import BadInput, MissingCapability  # noqa: E402
from tiercast_runtime import rows, table  # noqa: E402
from tiercast_runtime.hashing import EngramHasher, build_windows, numpy_row_ids  # noqa: E402
from tiercast_runtime.paths import uva  # noqa: E402
from tiercast_runtime.paths.cached import CachedPath  # noqa: E402
from tiercast_runtime.paths.cpu_gather import CpuGatherPath  # noqa: E402
from tiercast_runtime.paths.device import DevicePath  # noqa: E402
from tiercast_runtime.paths.disk import DiskPath  # noqa: E402
from tiercast_runtime.paths.uva import UvaPath  # noqa: E402
from tiercast_runtime.prefetch import Prefetcher  # noqa: E402
from tiercast_runtime.reference import decode_rows  # noqa: E402

HAS_TRITON = importlib.util.find_spec("triton") is not None
HAS_CUDA = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not HAS_CUDA, reason="no CUDA GPU on this machine")
LAYOUTS = ["packed", "split", "padded"]

INTERPRETED = """
import torch
from tiercast_runtime.paths.uva_kernel import launch_gather
complaints = torch.zeros(1, dtype=torch.int32)
for width, stride in ((264, 264), (264, 320), (256, 256), (8, 8), (250, 250), (33, 33)):
    rows = torch.randint(1, 256, (500, stride), dtype=torch.uint8)
    for num_ids in (0, 1, 7) + (520,) * (stride == 320):
        ids, out = torch.randint(0, 500, (num_ids,)), torch.zeros(num_ids, 264, dtype=torch.uint8)
        launch_gather(rows[:, :width], ids, out[:, :width], complaints, 5)
        assert torch.equal(out[:, :width], rows[ids][:, :width]), (width, stride, num_ids)
        assert not out[:, width:].any(), "nothing is written beside the row"
assert not complaints[0]
ids, out = torch.tensor([0, 5, 500, -1, 3]), torch.zeros(5, 33, dtype=torch.uint8)
launch_gather(rows, ids, out, complaints, 2)
assert complaints[0] == 1 and not out[[2, 3]].any() and torch.equal(out[[0, 1, 4]], rows[[0, 5, 3]])
# ids that a cache had are passed over without a complaint and without touching their place
complaints.zero_()
ids, out = torch.tensor([4, -(1 << 62), 9]), torch.full((3, 33), 5, dtype=torch.uint8)
launch_gather(rows, ids, out, complaints, 2)
assert not complaints[0] and (out[1] == 5).all() and torch.equal(out[[0, 2]], rows[[4, 9]])
# a row beyond 2**31 bytes and beyond 2**31 of the widest words' bytes: untouched pages of a sparse block cost nothing
stride, num_rows = 264, (1 << 31) // 264 + 5
table = torch.empty(num_rows * stride, dtype=torch.uint8).view(num_rows, stride)
ids = torch.tensor([0, num_rows - 1, num_rows // 2])
table[ids] = torch.arange(3, dtype=torch.uint8)[:, None] + 7
out, complaints = torch.zeros(3, stride, dtype=torch.uint8), torch.zeros(1, dtype=torch.int32)
launch_gather(table, ids, out, complaints, 2)
assert torch.equal(out, table[ids]) and not complaints[0]
"""


CACHED = """
import torch
from tiercast_runtime.cache_torch import TorchRowCache
cpu = torch.device("cpu")
for width, slots, ways, policy in ((264, 64, 16, "lru"), (33, 21, 3, "lru"), (34, 64, 16, "static_hot")):
    table = torch.randint(0, 256, (300, width), dtype=torch.uint8)
    caches = [TorchRowCache(slots, width, cpu, policy=policy, num_ways=ways) for _ in range(2)]
    caches[0].has_kernel = True
    if policy == "static_hot":
        for cache in caches:
            cache.fill(torch.arange(85, 0, -1).numpy(), lambda ids: table[torch.from_numpy(ids)].numpy())
    for num_ids in (0, 1, 7, 40, 33, 100):
        ids = torch.randint(0, 90, (num_ids,))
        if num_ids > 3:
            ids[1] = -1  # no id of an empty place
        outs, left = [], []
        for cache in caches:
            out = torch.full((num_ids, width), 7, dtype=torch.uint8)
            left.append(cache.lookup(ids, out))
            outs.append(out)
        assert torch.equal(left[0], left[1]) and torch.equal(outs[0], outs[1]), (width, num_ids)
        for cache, missing, out in zip(caches, left, outs):
            rows = torch.where((missing >= 0)[:, None], table[ids.clamp(min=0)], out)
            cache.insert(missing, rows)
        assert torch.equal(caches[0].tags[:-1], caches[1].tags[:-1])
        assert torch.equal(caches[0].stamps[:-1], caches[1].stamps[:-1])
        assert (caches[0].num_hits, caches[0].num_evictions) == (caches[1].num_hits, caches[1].num_evictions)
    assert caches[0].num_hits > 0 and (policy == "static_hot" or caches[0].num_evictions > 0)
"""


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_a_lookup_in_the_cache_is_the_same_in_one_kernel():
    done = subprocess.run(
        [sys.executable, "-c", CACHED],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("policy", ["lru", "lfu", "static_hot"])
@pytest.mark.parametrize("mode", ["off", "step_entry"])
def test_a_cache_on_the_gpu_brings_the_rows(mini_model, gpu, held, mode, policy):
    engram = mini_model("v41", engram={"row_values": 256, "rows_per_head": [5001] * 3}).engram
    tables = [held.enter_context(closing(table.HostTable(engram, layer, "split", is_pinned=True))) for layer in (0, 1)]
    path = CachedPath(UvaPath(tables, gpu), tables, cache_slots=2000, policy=policy)
    for layer in (0, 1):
        path.fill_cache(layer, np.arange(1500) * 7)
    prefetcher = Prefetcher(path, mode)
    generator, num_hits = np.random.default_rng(0), 0
    for num_tokens in (1, 300, 40, 300):
        row_ids = torch.from_numpy(generator.integers(0, 3000, (2, num_tokens, 6))).to(gpu)
        prefetcher.begin_step(row_ids)
        for layer in (0, 1):
            staged = prefetcher.rows_for(layer)
            content = table.expected_rows(engram, layer, row_ids[layer].cpu().numpy().reshape(-1))
            assert np.array_equal(staged.rows.cpu().numpy(), content)
        for timing in prefetcher.take_timings():
            assert timing.num_rows_read + timing.num_rows_hit == timing.num_rows
            num_hits += timing.num_rows_hit
    assert num_hits > 0
    prefetcher.close()
    path.close()


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_the_kernel_copies_the_rows_in_the_interpreter():
    """In a process of its own: Triton decides once, when it is imported, whether it interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def gpu():
    return torch.device("cuda", 0)


@pytest.fixture
def held():
    """What is closed when a test ends, however it ends: memory that stays pinned cannot be pinned by the next one."""
    with ExitStack() as stack:
        yield stack


def open_path(name, engram, layout, device, folder, held):
    layers = range(len(engram.layer_ids))
    if name == "device":
        return DevicePath([table.ResidentTable(engram, layer, layout, device) for layer in layers], device)
    if name == "disk":
        return DiskPath([table.FileTable(engram, layer, layout, folder) for layer in layers], device)
    tables = [held.enter_context(closing(table.HostTable(engram, layer, layout, is_pinned=True))) for layer in layers]
    return UvaPath(tables, device) if name == "uva" else CpuGatherPath(tables, device)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("mode", ["off", "step_entry"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["device", "uva", "cpu_gather", "disk"])
def test_every_path_on_the_gpu_brings_the_rows(mini_model, gpu, held, tmp_path, name, layout, mode):
    engram = mini_model("v41", engram={"row_values": 256, "rows_per_head": [5001] * 3}).engram
    path = open_path(name, engram, layout, gpu, tmp_path, held)
    prefetcher = Prefetcher(path, mode)
    generator = np.random.default_rng(0)
    for num_tokens in (1, 300, 2, 2000):
        folded = generator.integers(0, engram.compressed_vocab_size, num_tokens)
        windows = torch.from_numpy(build_windows(folded, 0, num_tokens, 4))
        row_ids = EngramHasher(engram, gpu).row_ids(windows.to(gpu))
        expected_ids = numpy_row_ids(engram, windows.numpy())
        assert np.array_equal(row_ids.cpu().numpy(), expected_ids)
        prefetcher.begin_step(row_ids)
        for layer in (0, 1):
            staged = prefetcher.rows_for(layer)
            decoded = rows.decode_rows(engram, staged.rows)
            if staged.inverse is not None:
                decoded = decoded[staged.inverse.reshape(-1)]
            content = table.expected_rows(engram, layer, expected_ids[layer].reshape(-1))
            assert np.array_equal(decoded.cpu().numpy(), decode_rows(engram, content))
        for timing in prefetcher.take_timings():
            assert timing.issued_ns <= timing.started_ns <= timing.ready_ns
            assert timing.stall_ns >= 0
    prefetcher.close()
    path.close()


@pytest.mark.gpu
@needs_gpu
def test_an_id_outside_the_table_voids_the_step(mini_model, gpu, held, tmp_path):
    engram = mini_model("v41").engram
    path = open_path("uva", engram, "packed", gpu, tmp_path, held)
    prefetcher = Prefetcher(path, "step_entry")
    row_ids = torch.zeros((2, 3, 6), dtype=torch.int64, device=gpu)
    row_ids[1, 2, 5] = 10**6
    prefetcher.begin_step(row_ids)
    for layer in (0, 1):
        prefetcher.rows_for(layer)
    with pytest.raises(BadInput, match="outside its table"):
        prefetcher.take_timings()
    prefetcher.close()
    path.close()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("row_format", ["fp8_block32", "bf16", "int8_block32"])
def test_decoding_on_the_gpu_equals_the_oracle(mini_model, gpu, row_format):
    engram = mini_model("v41", engram={"row_format": row_format, "row_values": 64}).engram
    octets = np.random.default_rng(0).integers(0, 256, (999, engram.row_bytes), dtype=np.uint8)
    decoded = rows.decode_rows(engram, torch.from_numpy(octets).to(gpu)).cpu().numpy()
    assert np.array_equal(decode_rows(engram, octets), decoded, equal_nan=True)


def test_a_table_in_pieces_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(uva, "_MAPPING_STRIDE_BYTES", 1000)
    part = torch.zeros((30, 100), dtype=torch.uint8)
    base, asked = part.data_ptr(), []

    def address_of(address):
        asked.append(address - base)
        return address + 4096 + (64 if address - base >= 2000 else 0)

    uva.check_mapping(part[:19], lambda address: address + 4096)
    uva.check_mapping(part[:0], address_of)
    with pytest.raises(MissingCapability, match=r"3,000 bytes in pieces \(at 2,000\)"):
        uva.check_mapping(part, address_of)
    assert asked == [0, 1000, 2000]
