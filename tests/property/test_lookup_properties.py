"""What must hold for any model, any tokens and any rows."""

import contextlib
import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import BadInput  # noqa: E402
from tiercast_profiles.head_sizes import table_rows  # noqa: E402
from tiercast_profiles.model import Engram  # noqa: E402
from tiercast_runtime import aio, hashing, reference, rows, table  # noqa: E402
from tiercast_runtime.distinct import distinct  # noqa: E402
from tiercast_runtime.paths.cpu_gather import CpuGatherPath  # noqa: E402
from tiercast_runtime.paths.device import DevicePath  # noqa: E402
from tiercast_runtime.paths.disk import DiskPath  # noqa: E402

CPU = torch.device("cpu")
LAYOUTS = st.sampled_from(["packed", "split", "padded"])


@st.composite
def engrams(draw):
    dialect = draw(st.sampled_from(["v41", "demo", "qwen4exp"]))
    num_orders = draw(st.integers(1, 3))
    row_format = draw(st.sampled_from(["fp8_block32", "bf16", "int8_block32"]))
    return Engram(
        dialect=dialect,
        layer_ids=tuple(sorted(draw(st.sets(st.integers(0, 60), min_size=1, max_size=3)))),
        ngram_orders=tuple(range(2, 2 + num_orders)),
        num_heads_per_order=draw(st.integers(1, 4)),
        rows_per_head=tuple(draw(st.lists(st.integers(2, 3000), min_size=num_orders, max_size=num_orders))),
        row_values=draw(st.integers(1, 9)) * (32 if row_format != "bf16" else draw(st.sampled_from([1, 20, 32]))),
        row_format=row_format,
        compressed_vocab_size=draw(st.sampled_from([2, 3, 61, 6040, 99_092, 2**31 - 1])),
        pad_token_id=draw(st.integers(0, 1)),
        hash_seed=draw(st.integers(0, 2**40)),
        conv_kernel_size=None if dialect == "v41" else 4,
    )


@st.composite
def engrams_with_windows(draw):
    engram = draw(engrams())
    num_tokens = draw(st.integers(0, 12))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    windows = generator.integers(0, engram.compressed_vocab_size, (num_tokens, engram.ngram_orders[-1]))
    windows[generator.random(windows.shape) < 0.2] = hashing.DEAD
    return engram, windows


@given(engrams_with_windows())
@settings(max_examples=80, deadline=None)
def test_all_hashers_agree_and_stay_in_their_heads(case):
    engram, windows = case
    expected = reference.row_ids(engram, windows)
    assert np.array_equal(hashing.numpy_row_ids(engram, windows), expected)
    hasher = hashing.EngramHasher(engram, CPU)
    assert np.array_equal(hasher.row_ids(torch.from_numpy(windows)).numpy(), expected)
    assert np.array_equal(hasher.torch_row_ids(torch.from_numpy(windows)).numpy(), expected)
    for layer, heads in zip(expected, reference.moduli(engram), strict=True):
        tops = np.cumsum([size for order in heads for size in order])
        bottoms = np.concatenate([[0], tops[:-1]])
        assert ((bottoms <= layer) & (layer < tops)).all(), "every column stays in its own head's rows"


@given(st.lists(st.integers(0, 50), max_size=30), st.data())
@settings(max_examples=60, deadline=None)
def test_chunks_of_windows_make_up_the_whole(ids, data):
    folded = np.array(ids, dtype=np.int64)
    max_order = data.draw(st.integers(1, 5))
    whole = hashing.build_windows(folded, 0, len(folded), max_order)
    for position, window in enumerate(whole.tolist()):
        assert window == [ids[position - k] if position >= k else hashing.DEAD for k in range(max_order)]
    cut = data.draw(st.integers(0, len(folded)))
    first = hashing.build_windows(folded, 0, cut, max_order)
    second = hashing.build_windows(folded, cut, len(folded) - cut, max_order)
    assert np.array_equal(np.concatenate([first, second]), whole)


@given(engrams(), st.integers(0, 5), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_any_bytes_decode_as_the_oracle_says(engram, num_rows, seed):
    octets = np.random.default_rng(seed).integers(0, 256, (num_rows, engram.row_bytes), dtype=np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = reference.decode_rows(engram, octets)
    decoded = rows.decode_rows(engram, torch.from_numpy(octets)).numpy()
    assert np.array_equal(expected, decoded, equal_nan=True)
    assert np.array_equal(np.signbit(expected[expected == 0]), np.signbit(decoded[expected == 0]))


def read_modes(folder):
    """The ways to read that this file system and kernel have."""
    probe = Path(folder) / "probe"
    probe.write_bytes(bytes(8192))
    modes = []
    for mode in get_args(aio.ReadMode):
        with contextlib.suppress(aio.MissingCapability):
            aio.RowReader(probe, mode=mode).close()
            modes.append(mode)
    return modes


def opened(stack, engram, layout, folder, cache_slots):
    """Every path on the CPU, by name, each with a cache where one can stand in front of it."""
    layers = range(len(engram.layer_ids))
    memory = [table.ResidentTable(engram, index, layout, CPU) for index in layers]
    files = [table.FileTable(engram, index, layout, Path(folder)) for index in layers]
    paths = {"device": DevicePath(memory, CPU), "cpu_gather": CpuGatherPath(memory, CPU, cache_slots=cache_slots)}
    paths["cpu_gather, 3 threads"] = CpuGatherPath(memory, CPU, 3, cache_slots=cache_slots)
    for mode in read_modes(folder):
        paths[mode] = DiskPath(files, CPU, depth=4, mode=mode, cache_slots=cache_slots)
        paths[f"{mode}, polling"] = DiskPath(files, CPU, depth=4, mode=mode, cache_slots=cache_slots, polls=True)
    for path in paths.values():
        stack.callback(path.close)
    return paths


@given(engrams(), LAYOUTS, st.sampled_from([0, 0, 1, 16, 5000]), st.integers(0, 41), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_every_path_brings_what_the_oracle_recomputes(engram, layout, cache_slots, num_tokens, seed):
    generator = np.random.default_rng(seed)
    layer = seed % len(engram.layer_ids)
    num_rows = table_rows(engram)[layer]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        paths = opened(stack, engram, layout, folder, cache_slots)
        for _ in range(3):  # a cache is filled by one lookup and asked by the next
            ids = generator.integers(0, num_rows, (num_tokens, engram.num_rows_per_token))
            ids[: num_tokens // 3] = [[0], [num_rows - 1]][seed % 2]  # duplicates of the first or the last row
            ids[-1:] = num_rows - 1
            expected = table.expected_rows(engram, layer, ids.reshape(-1))
            for name, path in paths.items():
                staged = path.fetch(layer, torch.from_numpy(ids))
                found = staged.rows if staged.inverse is None else staged.rows[staged.inverse.reshape(-1)]
                assert np.array_equal(found.numpy(), expected), name
                assert staged.num_rows == ids.size, name
                unique = len(np.unique(ids))
                if cache_slots and path.name != "device":
                    assert staged.num_rows_read <= unique, name
                    assert staged.num_rows_read + staged.num_rows_hit <= ids.size, name
                else:
                    assert staged.num_rows_read == (unique if path.name == "disk" else ids.size), name
        for bad in (-1, num_rows, 2**62):
            wrong = torch.zeros((1, engram.num_rows_per_token), dtype=torch.int64)
            wrong[0, -1] = bad
            for path in paths.values():
                with pytest.raises(BadInput, match="the table has rows 0 …"):
                    path.fetch(layer, wrong)


@given(st.lists(st.integers(-3, 40), max_size=80))
def test_distinct_ids_are_those_numpy_finds(draws):
    ids = np.array(draws, dtype=np.int64)
    unique, inverse = distinct(ids)
    assert np.array_equal(unique, np.unique(ids))
    assert np.array_equal(unique[inverse], ids)


@given(
    st.integers(1, 20_000),
    st.integers(1, 700),
    st.lists(st.integers(0, 2**31), max_size=60),
    st.sampled_from([*get_args(aio.ReadMode), None]),
)
@settings(max_examples=60, deadline=None)
def test_a_reader_returns_the_bytes_of_the_file(size, width, draws, mode):
    width = min(width, size)
    content = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    offsets = np.sort(np.array(draws, dtype=np.int64) % (size - width + 1))
    out = np.zeros((len(offsets), width), dtype=np.uint8)
    with tempfile.NamedTemporaryFile() as file:
        file.write(content.tobytes())
        file.flush()
        try:
            reader = aio.RowReader(Path(file.name), depth=3, mode=mode)
        except aio.MissingCapability:
            return  # this file system or kernel has no such way to read
        reader.read_rows(offsets, out)
        reader.close()
    assert all(np.array_equal(row, content[at : at + width]) for row, at in zip(out, offsets, strict=True))
