"""Lookup paths: the right rows or an error, whatever the tier, the layout and the state of the file."""

import errno
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import BadInput, FileProblem, InfeasibleScenario, MissingCapability  # noqa: E402
from tiercast_runtime import aio, paths, table  # noqa: E402
from tiercast_runtime.paths.base import LookupPath  # noqa: E402
from tiercast_runtime.paths.cpu_gather import CpuGatherPath  # noqa: E402
from tiercast_runtime.paths.device import DevicePath  # noqa: E402
from tiercast_runtime.paths.disk import DiskPath  # noqa: E402
from tiercast_runtime.paths.uva import UvaPath, as_words  # noqa: E402

CPU = torch.device("cpu")
LAYOUTS = ["packed", "split", "padded"]
PATHS = ["device", "cpu_gather", "cpu_gather_threads", "disk", "disk_pread_direct", "disk_pread_buffered", "disk_mmap"]


@pytest.fixture
def engram(mini_model):
    return mini_model("v41").engram


@pytest.fixture
def open_named(engram, tmp_path):
    """Opens a path by name over both layers' tables and closes it after the test."""
    opened = []

    def make(name, layout="packed", **options):
        if name.startswith("disk"):
            tables = [table.FileTable(engram, layer, layout, tmp_path) for layer in (0, 1)]
            mode = name.removeprefix("disk_") if name != "disk" else None
            path = DiskPath(tables, CPU, mode=mode, **options)
        else:
            tables = [table.ResidentTable(engram, layer, layout, CPU) for layer in (0, 1)]
            num_threads = 3 if name.endswith("threads") else None
            path = DevicePath(tables, CPU) if name == "device" else CpuGatherPath(tables, CPU, num_threads)
        opened.append(path)
        return path, tables

    yield make
    for path in opened:
        path.close()


def direct_io_works(folder):
    probe = folder / "probe"
    probe.write_bytes(bytes(8192))
    reader = aio.RowReader(probe)
    reader.close()
    return reader.mode != "pread_buffered"


def need(name, folder):
    if name == "disk_pread_direct" and not direct_io_works(folder):
        pytest.skip("this file system refuses direct I/O")


def bytes_of(staged):
    """The rows in token-major order, duplicates expanded."""
    rows = staged.rows if staged.inverse is None else staged.rows[staged.inverse.reshape(-1)]
    return rows.numpy()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PATHS)
def test_every_path_brings_the_rows_asked_for(engram, open_named, tmp_path, name, layout):
    need(name, tmp_path)
    path, tables = open_named(name, layout)
    assert isinstance(path, LookupPath)
    generator = np.random.default_rng(0)
    for num_tokens in (1, 3, 400):
        for layer in (0, 1):
            num_rows = tables[layer].num_rows
            ids = generator.integers(0, num_rows, (num_tokens, engram.num_rows_per_token))
            ids[0, :3] = [num_rows - 1, 0, num_rows - 1]
            staged = path.fetch(layer, torch.from_numpy(ids))
            assert np.array_equal(bytes_of(staged), table.expected_rows(engram, layer, ids.reshape(-1)))
            assert staged.rows.shape[1] == engram.row_bytes
            assert staged.num_rows == ids.size
            num_unique = len(np.unique(ids))
            assert staged.num_rows_read == (num_unique if path.name == "disk" else ids.size)
            if staged.inverse is not None:
                assert staged.inverse.shape == ids.shape
                assert len(staged.rows) == num_unique
    path.check()


@pytest.mark.parametrize("name", PATHS)
def test_no_tokens_no_rows(engram, open_named, tmp_path, name):
    need(name, tmp_path)
    path, _ = open_named(name)
    staged = path.fetch(0, torch.zeros((0, engram.num_rows_per_token), dtype=torch.int64))
    assert staged.rows.shape == (0, engram.row_bytes)
    assert (staged.num_rows, staged.num_rows_read) == (0, 0)


@pytest.mark.parametrize("name", PATHS)
def test_an_id_outside_the_table_is_refused(open_named, tmp_path, name):
    need(name, tmp_path)
    path, tables = open_named(name)
    for bad in (-1, tables[0].num_rows, 2**62):
        ids = torch.zeros((2, 6), dtype=torch.int64)
        ids[1, 4] = bad
        with pytest.raises(BadInput, match="the table has rows 0 …"):
            path.fetch(0, ids)
    assert np.array_equal(bytes_of(path.fetch(0, torch.zeros((1, 6), dtype=torch.int64)))[0], bytes_of_row_0(tables))


def bytes_of_row_0(tables):
    return table.expected_rows(tables[0].engram, 0, np.zeros(1, dtype=np.int64))[0]


def test_ids_of_another_type_are_refused(open_named):
    path, _ = open_named("device")
    with pytest.raises(BadInput, match="must be int64"):
        path.fetch(0, torch.zeros((2, 6), dtype=torch.int32))


@pytest.mark.parametrize("name", ["cpu_gather", "disk"])
def test_staged_rows_outlive_the_next_fetch(engram, open_named, name):
    """The rows of one step may still be in use when the next step's lookup has begun."""
    path, _ = open_named(name)
    ids = [torch.full((4, 6), row, dtype=torch.int64) for row in (5, 6)]
    first = path.fetch(0, ids[0])
    kept = bytes_of(first).copy()
    path.fetch(0, ids[1])
    path.fetch(1, ids[1])
    assert np.array_equal(bytes_of(first), kept)


@pytest.mark.parametrize("name", PATHS)
def test_closing_twice_is_closing_once(open_named, tmp_path, name):
    need(name, tmp_path)
    path, _ = open_named(name)
    path.close()
    path.close()


@pytest.mark.parametrize("name", ["disk", "disk_pread_direct", "disk_pread_buffered", "disk_mmap"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_truncated_under_the_reader_is_an_error(open_named, tmp_path, name, layout):
    need(name, tmp_path)
    path, tables = open_named(name, layout)
    ids = torch.arange(tables[0].num_rows)[None].contiguous()
    path.fetch(0, ids)
    os.truncate(tables[0].path, tables[0].file.part_offsets[0] + 5000)
    with pytest.raises(FileProblem, match=r"ends too early: offset [\d,]+ gave") as caught:
        path.fetch(0, ids)
    assert str(tables[0].path) in str(caught.value)


def test_a_read_error_names_file_and_offset(open_named, monkeypatch):
    path, tables = open_named("disk_pread_buffered")

    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(FileProblem, match=r"read at offset [\d,]+ failed \(Input/output error\)") as caught:
        path.fetch(0, torch.zeros((1, 6), dtype=torch.int64))
    assert str(tables[0].path) in str(caught.value)


def test_a_kernel_that_takes_no_reads_is_an_error(open_named, tmp_path):
    path, _ = open_named("disk")
    reader = path.readers[0]
    if reader.mode != "aio_direct":
        pytest.skip("no native AIO on this machine")
    other = os.open(tmp_path, os.O_RDONLY)
    kept, reader._descriptor = reader._descriptor, other
    with pytest.raises(FileProblem, match=str(reader.path)):
        path.fetch(0, torch.zeros((1, 6), dtype=torch.int64))
    reader._descriptor = kept
    os.close(other)
    path.fetch(0, torch.zeros((1, 6), dtype=torch.int64))


def test_without_native_aio_threads_read(open_named, tmp_path, monkeypatch):
    if not direct_io_works(tmp_path):
        pytest.skip("this file system refuses direct I/O")

    def refuse(depth, *, polls):
        raise OSError(errno.ENOSYS, "no such system call")

    monkeypatch.setattr(aio, "NativeAio", refuse)
    path, tables = open_named("disk")
    assert path.facts["disk_read_mode"] == "pread_direct"
    ids = torch.arange(6)[None]
    assert np.array_equal(bytes_of(path.fetch(0, ids)), table.expected_rows(tables[0].engram, 0, np.arange(6)))
    with pytest.raises(MissingCapability, match="no native AIO here"):
        aio.RowReader(tables[0].path, mode="aio_direct")


def test_without_direct_io_the_page_cache_serves_and_the_record_can_say_so(open_named, monkeypatch):
    real_open = os.open

    def refuse_direct(path, flags, *rest, **options):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_open(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse_direct)
    path, tables = open_named("disk")
    assert path.facts["disk_read_mode"] == "pread_buffered"
    assert path.facts["disk_bypasses_page_cache"] is False
    ids = torch.arange(6)[None]
    assert np.array_equal(bytes_of(path.fetch(1, ids)), table.expected_rows(tables[0].engram, 1, np.arange(6)))
    with pytest.raises(MissingCapability, match="refuses direct I/O"):
        aio.RowReader(tables[0].path, mode="pread_direct")


def test_a_map_is_taken_only_when_asked_for_and_goes_through_the_page_cache(open_named):
    assert "mmap" not in aio.READ_MODES
    assert open_named("disk_mmap")[0].facts["disk_bypasses_page_cache"] is False


def test_a_file_with_nothing_in_it_is_too_short_for_a_map(tmp_path):
    (tmp_path / "empty").touch()
    reader = aio.RowReader(tmp_path / "empty", mode="mmap")
    with pytest.raises(FileProblem, match="ends too early"):
        reader.read_rows(np.array([0]), np.zeros((1, 8), dtype=np.uint8))
    reader.close()


def test_a_missing_file_and_a_silly_depth_are_refused(tmp_path):
    with pytest.raises(FileProblem, match="No such file"):
        aio.RowReader(tmp_path / "nothing")
    with pytest.raises(BadInput, match="depth=0"):
        aio.RowReader(tmp_path / "nothing", depth=0)


@pytest.mark.parametrize("depth", [1, 2, 64])
def test_neighbours_are_read_once_and_depth_changes_nothing(tmp_path, depth):
    content = np.random.default_rng(0).integers(0, 256, 1 << 18, dtype=np.uint8)
    content.tofile(tmp_path / "data")
    reader = aio.RowReader(tmp_path / "data", depth=depth)
    offsets = np.array([0, 100, 250, 90_000, 150_000, 150_264, (1 << 18) - 264])
    out = np.zeros((len(offsets), 264), dtype=np.uint8)
    reader.read_rows(offsets, out)
    assert all(np.array_equal(row, content[at : at + 264]) for row, at in zip(out, offsets, strict=True))
    assert reader.num_reads == 4
    reader.close()


def test_a_reader_serves_lookups_of_any_size_one_after_the_other(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)
    content.tofile(tmp_path / "data")
    reader = aio.RowReader(tmp_path / "data", depth=4)
    generator = np.random.default_rng(1)
    for count in (3, 300, 2, 1, 40, 900):  # what a lookup leaves behind must not reach the next
        offsets = np.sort(generator.choice(len(content) - 264, count, replace=False))
        out = np.zeros((count, 264), dtype=np.uint8)
        reader.read_rows(offsets, out)
        assert all(np.array_equal(row, content[at : at + 264]) for row, at in zip(out, offsets, strict=True))
    reader.close()


def test_the_scenario_names_the_path(mini_scenario, tmp_path):
    for tier, name in (("hbm", "device"), ("dram", "cpu_gather"), ("nvme", "disk")):
        resolved = mini_scenario({"tier": tier})
        path = paths.open_path(resolved, table.build_tables(resolved, CPU, tmp_path), CPU)
        assert (path.name, path.is_host_driven) == (name, name != "device")
        path.close()


def test_what_the_runtime_lacks_is_said_so(mini_scenario, tmp_path):
    with pytest.raises(BadInput, match="tier 'none' has no tables"):
        paths.open_path(mini_scenario({"tier": "none"}), [], CPU)
    with pytest.raises(InfeasibleScenario, match=r"placement\.cache_gib=100000 needs"):
        paths.open_path(mini_scenario({"tier": "nvme", "cache_gib": 1e5}), [], CPU)
    with pytest.raises(BadInput, match="less than one row"):
        paths.open_path(mini_scenario({"tier": "nvme", "cache_gib": 1e-8}), [], CPU)
    cached = mini_scenario({"tier": "dram", "cache_gib": 1})
    placement = cached.placement.model_copy(update={"path": "uva"})
    with pytest.raises(MissingCapability, match="path uva needs a CUDA GPU"):
        paths.open_path(cached.model_copy(update={"placement": placement}), [], CPU)
    resolved = mini_scenario({"tier": "dram"})
    for name, message in (("uva", "path uva needs a CUDA GPU"), ("pool", "no path 'pool'")):
        asked = resolved.model_copy(update={"placement": resolved.placement.model_copy(update={"path": name})})
        with pytest.raises(MissingCapability, match=message):
            paths.open_path(asked, [], CPU)
    with pytest.raises(MissingCapability, match="path uva needs a CUDA GPU"):
        UvaPath([], CPU)


@pytest.mark.parametrize(
    ("width", "stride", "first", "size"),
    [
        (264, 264, 0, 8),
        (256, 264, 0, 8),
        (8, 264, 256, 8),
        (264, 320, 0, 8),
        (36, 36, 0, 4),
        (34, 34, 0, 2),
        (33, 33, 0, 1),
        (32, 33, 0, 1),
    ],
)
def test_rows_are_read_in_the_widest_words_that_fit(width, stride, first, size):
    rows = torch.zeros((4, stride), dtype=torch.uint8)[:, first : first + width]
    words = as_words(rows)
    assert words.dtype.itemsize == size
    assert words.shape == (4, width // size)
