"""Tables: content anyone can recompute, files whole or absent, refusals before memory or disk run out."""

import errno
import os
import resource

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import FileProblem, InfeasibleScenario, MissingCapability  # noqa: E402
from tiercast_runtime import memory, table, table_file  # noqa: E402
from tiercast_runtime.reference import decode_rows  # noqa: E402
from tiercast_runtime.rows import from_parts  # noqa: E402

CPU = torch.device("cpu")
FORMATS = ["fp8_block32", "bf16", "int8_block32"]
LAYOUTS = ["packed", "split", "padded"]


@pytest.fixture
def engram(mini_model):
    return mini_model("v41").engram


def all_rows(engram, layer_index, num_rows):
    return table.expected_rows(engram, layer_index, np.arange(num_rows))


@pytest.mark.parametrize("row_format", FORMATS)
def test_content_is_finite_varied_and_about_one(mini_model, row_format):
    engram = mini_model("v41", engram={"row_format": row_format, "row_values": 64}).engram
    octets = all_rows(engram, 0, 3000)
    values = decode_rows(engram, octets)
    assert np.isfinite(values).all()
    assert 0.05 < values.std() < 5
    assert len(np.unique(octets, axis=0)) == len(octets)
    assert not np.array_equal(octets, all_rows(engram, 1, 3000)), "each layer has its own rows"


def test_content_of_a_row_does_not_depend_on_what_is_asked_with_it(engram):
    everything = all_rows(engram, 0, 5000)
    some = np.array([4999, 0, 17, 17, 2048])
    assert np.array_equal(table.expected_rows(engram, 0, some), everything[some])
    assert table.expected_rows(engram, 0, np.zeros(0, dtype=np.int64)).shape == (0, engram.row_bytes)


def test_content_is_pinned_for_good(engram):
    """A file written by an earlier version must still be the table: change CONTENT_VERSION if this changes."""
    assert all_rows(engram, 0, 1)[0].tobytes().hex() == PINNED_ROW


PINNED_ROW = "a0fd011c7060c40ca8404f4bf1370257b45c6228bd1560bd3b112389b8522d3675"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [table.ResidentTable, table.HostTable])
def test_memory_tables_hold_the_content(engram, layout, kind):
    made = kind(engram, 1, layout, CPU) if kind is table.ResidentTable else kind(engram, 1, layout)
    assert [part.shape for part in made.parts] == [(made.num_rows, width) for width in made.part_widths]
    assert np.array_equal(from_parts(engram, made.parts).numpy(), all_rows(engram, 1, made.num_rows))
    assert made.size_bytes == made.num_rows * engram.stored_row_bytes(layout)
    made.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_table_is_a_real_safetensors_file(engram, layout, tmp_path):
    safetensors = pytest.importorskip("safetensors", reason="the runtime extra is not installed")
    made = table.FileTable(engram, 0, layout, tmp_path / "new" / "folder")
    with safetensors.safe_open(made.path, "pt") as file:
        names = ["values", "scales"] if layout == "split" else ["rows"]
        assert sorted(file.keys()) == sorted(names)
        assert file.metadata()["num_rows"] == str(made.num_rows)
        parts = tuple(file.get_tensor(name) for name in names)
    assert np.array_equal(from_parts(engram, parts).numpy(), all_rows(engram, 0, made.num_rows))
    assert made.file.part_offsets[0] % table_file.DATA_ALIGNMENT_BYTES == 0
    assert made.path.stat().st_size == made.file.size_bytes
    assert list(made.path.parent.iterdir()) == [made.path]


def test_a_whole_file_is_used_again(engram, tmp_path):
    first = table.FileTable(engram, 0, "packed", tmp_path)
    written = first.path.stat().st_mtime_ns
    again = table.FileTable(engram, 0, "packed", tmp_path)
    assert (first.file.was_reused, again.file.was_reused) == (False, True)
    assert again.path.stat().st_mtime_ns == written


def test_tables_that_differ_have_different_files(engram, mini_model, tmp_path):
    other = mini_model("v41", engram={"hash_seed": 1}).engram
    paths = {
        table.FileTable(engram, 0, "packed", tmp_path).path,
        table.FileTable(engram, 1, "packed", tmp_path).path,
        table.FileTable(engram, 0, "padded", tmp_path).path,
        table.FileTable(engram, 0, "packed", tmp_path, num_rows=50).path,
        table.FileTable(other, 0, "packed", tmp_path).path,
    }
    assert len(paths) == 5


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: os.truncate(path, path.stat().st_size - 1), "truncated"),
        (lambda path: os.truncate(path, 5), "no whole safetensors header"),
        (lambda path: os.truncate(path, 0), "no whole safetensors header"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "too long"),
        (lambda path: path.write_bytes(b"\xff" * 9000), "no whole safetensors header"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0"), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b'"layer_id":"1"', b'"layer_id":"7"')), "layer_id is"),
    ],
)
def test_a_file_that_is_not_the_table_is_refused_and_left_alone(engram, tmp_path, damage, message):
    path = table.FileTable(engram, 0, "packed", tmp_path).path
    damage(path)
    before = path.read_bytes()
    with pytest.raises(FileProblem, match=message) as caught:
        table.FileTable(engram, 0, "packed", tmp_path)
    assert "delete" in str(caught.value)
    assert path.read_bytes() == before


def test_a_disk_that_fills_while_writing_leaves_nothing(engram, tmp_path, monkeypatch):
    real_write, num_writes = os.pwrite, [0]

    def full_after_the_header(descriptor, data, offset):
        num_writes[0] += 1
        if num_writes[0] > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full_after_the_header)
    with pytest.raises(FileProblem, match="No space left on device"):
        table.FileTable(engram, 0, "packed", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_size_limit_leaves_nothing(engram, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(FileProblem, match="File too large"):
            table.FileTable(engram, 0, "packed", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_with_too_little_room_is_found_before_writing(engram, tmp_path, monkeypatch):
    real = os.statvfs(tmp_path)

    class Nearly:
        f_frsize, f_bavail = real.f_frsize, 1

    monkeypatch.setattr(os, "statvfs", lambda _: Nearly)
    with pytest.raises(FileProblem, match="a table file needs"):
        table.FileTable(engram, 0, "packed", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_short_writes_are_carried_on(engram, tmp_path, monkeypatch):
    real_write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real_write(fd, data[:1000], offset))
    made = table.FileTable(engram, 0, "packed", tmp_path)
    body = np.fromfile(made.path, dtype=np.uint8)[made.file.part_offsets[0] :]
    assert np.array_equal(body.reshape(made.num_rows, -1), all_rows(engram, 0, made.num_rows))


def test_a_folder_that_cannot_be_made_is_one_line(engram, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileProblem, match="cannot be written"):
        table.FileTable(engram, 0, "packed", tmp_path / "file" / "folder")


def test_a_table_larger_than_memory_is_refused_before_it_is_taken(mini_scenario, mini_model, tmp_path):
    model = mini_model("v41", engram={"rows_per_head": [1_000_000_007] * 3})
    for tier in ("hbm", "dram"):
        with pytest.raises(InfeasibleScenario, match="short") as caught:
            table.build_tables(mini_scenario({"tier": tier}, model=model), CPU, tmp_path)
        assert caught.value.shortfall_bytes > 0


def test_memory_that_is_free_is_the_smaller_of_host_and_container(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 4000 kB\nMemAvailable:    3000 kB\n")
    assert memory.available_host_bytes(meminfo, tmp_path) == 3000 * 1024
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_host_bytes(meminfo, tmp_path) == 3000 * 1024
    (tmp_path / "memory.max").write_text("1000000\n")
    assert memory.available_host_bytes(meminfo, tmp_path) == 200_000


def test_a_scenario_gets_the_tables_its_tier_names(mini_scenario, tmp_path):
    kinds = {"hbm": table.ResidentTable, "dram": table.HostTable, "nvme": table.FileTable}
    for tier, kind in kinds.items():
        made = table.build_tables(mini_scenario({"tier": tier, "row_layout": "padded"}), CPU, tmp_path)
        assert [type(one) for one in made] == [kind, kind]
        assert [one.layer_index for one in made] == [0, 1]
        assert {one.layout for one in made} == {"padded"}
        for one in made:
            one.close()
    assert table.build_tables(mini_scenario({"tier": "none"}), CPU, tmp_path) == []


def test_a_tier_the_runtime_lacks_is_said_so(mini_scenario, tmp_path):
    resolved = mini_scenario({"tier": "dram"})
    pool = resolved.model_copy(update={"placement": resolved.placement.model_copy(update={"tier": "pool"})})
    with pytest.raises(MissingCapability, match="no pool tier"):
        table.build_tables(pool, CPU, tmp_path)
