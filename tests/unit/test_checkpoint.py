"""Checkpoints: written and found by published names, refused in one line, and the same bytes by every path."""

import json
import os
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import BadInput, FileProblem, MissingCapability  # noqa: E402
from tiercast_profiles.head_sizes import table_rows  # noqa: E402
from tiercast_profiles.store import load_model  # noqa: E402
from tiercast_runtime import table  # noqa: E402
from tiercast_runtime.bench import bench  # noqa: E402
from tiercast_runtime.checkpoint import Checkpoint, expected_tensors  # noqa: E402
from tiercast_runtime.checkpoint_write import write_checkpoint  # noqa: E402
from tiercast_runtime.engine import Engine  # noqa: E402
from tiercast_runtime.layer_weights import load_weights  # noqa: E402
from tiercast_runtime.paths.cpu_gather import CpuGatherPath  # noqa: E402
from tiercast_runtime.paths.device import DevicePath  # noqa: E402
from tiercast_runtime.paths.disk import DiskPath  # noqa: E402
from tiercast_runtime.shard import HeadShard, build_shard_tables  # noqa: E402

CPU = torch.device("cpu")
FORMATS = ["fp8_block32", "bf16", "int8_block32"]
LAYOUTS = ["packed", "split", "padded"]


class SomeRows:
    """Rows that no formula gives: what a path returns can only have come from the checkpoint."""

    tag, places, identity = "", (), {}

    def __init__(self, engram, layer_index):
        generator = np.random.default_rng(1000 + layer_index)
        shape = (table_rows(engram)[layer_index], engram.row_bytes)
        self.octets = generator.integers(0, 0x7F, shape, dtype=np.uint8)
        if engram.row_format == "fp8_block32":
            self.octets[:, engram.value_bytes :] = generator.integers(115, 121, (shape[0], engram.scale_bytes))

    def read(self, first_row, count):
        return self.octets[first_row : first_row + count]


def some_projections(model):
    generator = np.random.default_rng(7)
    specs, given = expected_tensors(model), []
    for layer_id in model.engram.layer_ids:
        shapes = {name: specs[f"layers.{layer_id}.engram.{name}"].shape for name in ("wkv.weight", "wkv.scale")}
        one = np.ones((2, model.backbone.num_branches * model.backbone.hidden_size), dtype=np.float32)
        one += generator.normal(0, 0.1, one.shape).astype(np.float32)
        halves = torch.from_numpy(one).bfloat16().view(torch.uint8).numpy()
        given.append(
            {
                "wkv.weight": generator.integers(0, 0x7F, np.prod(shapes["wkv.weight"]), dtype=np.uint8),
                "wkv.scale": generator.integers(110, 116, np.prod(shapes["wkv.scale"]), dtype=np.uint8),
                "q_weight": halves[0],
                "k_weight": halves[1],
            }
        )
    return given


def written(model, folder):
    rows = [SomeRows(model.engram, layer) for layer in range(len(model.engram.layer_ids))]
    write_checkpoint(model, folder, rows, some_projections(model))
    return rows


@pytest.fixture
def model(mini_model):
    return mini_model("v41")


def test_names_types_and_sizes_are_the_published_ones():
    specs = expected_tensors(load_model("deepseek-v4.1-flash"))
    sizes = {name: int(np.prod(spec.shape)) for name, spec in specs.items()}
    assert (sizes["layers.1.engram.embed.weight"], sizes["layers.1.engram.embed.scale"]) == (
        98_305_579_008,
        3_072_049_344,
    )
    assert (sizes["layers.14.engram.embed.weight"], sizes["layers.14.engram.embed.scale"]) == (
        98_308_270_592,
        3_072_133_456,
    )
    assert (sizes["layers.1.engram.wkv.weight"], sizes["layers.1.engram.wkv.scale"]) == (157_286_400, 153_600)
    assert specs["layers.14.engram.q_weight"].shape == (4, 5120)


def test_what_is_written_is_what_the_library_reads(model, tmp_path):
    rows = written(model, tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert sorted(path.name for path in tmp_path.iterdir()) == [*shards, "model.safetensors.index.json"]
    tensors = {name: t for shard in shards for name, t in safetensors_torch.load_file(tmp_path / shard).items()}
    assert tensors.keys() == index["weight_map"].keys() == expected_tensors(model).keys()
    assert sum(tensor.nbytes for tensor in tensors.values()) == index["metadata"]["total_size"]
    weight, scale = tensors["layers.3.engram.embed.weight"], tensors["layers.3.engram.embed.scale"]
    assert (weight.dtype, scale.dtype) == (torch.float8_e4m3fn, torch.float8_e8m0fnu)
    both = torch.cat((weight.view(torch.uint8), scale.view(torch.uint8)), dim=1).numpy()
    assert np.array_equal(both, rows[1].octets)


@pytest.mark.parametrize("row_format", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_path_brings_the_bytes_of_the_checkpoint(mini_model, row_format, layout, tmp_path):
    model = mini_model("v41", engram={"row_format": row_format, "row_values": 64})
    engram, rows = model.engram, written(model, tmp_path / "checkpoint")
    sources = [Checkpoint(tmp_path / "checkpoint", model).rows(layer) for layer in (0, 1)]
    memory = [table.ResidentTable(engram, layer, layout, CPU, source=sources[layer]) for layer in (0, 1)]
    files = [table.FileTable(engram, layer, layout, tmp_path, source=sources[layer]) for layer in (0, 1)]
    assert all(file.is_in_checkpoint == (layout == "split" or row_format == "bf16") for file in files)
    for layer in (0, 1):
        last = table_rows(engram)[layer] - 1
        ids = np.array([[0, last, 5, 5, 0, last - 1], [7, 300, 1, 2, last, 0]])
        for path in (DevicePath(memory, CPU), CpuGatherPath(memory, CPU), DiskPath(files, CPU)):
            staged = path.fetch(layer, torch.from_numpy(ids))
            found = staged.rows if staged.inverse is None else staged.rows[staged.inverse.reshape(-1)]
            assert np.array_equal(found.numpy(), rows[layer].octets[ids.reshape(-1)]), path.name
            path.close()


def test_the_split_layout_is_read_where_it_lies_and_others_are_written_once(model, tmp_path):
    written(model, tmp_path / "checkpoint")
    folder = tmp_path / "tables"
    rows = Checkpoint(tmp_path / "checkpoint", model).rows(0)
    split = table.FileTable(model.engram, 0, "split", folder, source=rows)
    assert split.path.parent == tmp_path / "checkpoint"
    assert not folder.exists()
    first = table.FileTable(model.engram, 0, "packed", folder, source=rows)
    again = table.FileTable(model.engram, 0, "packed", folder, source=rows)
    assert (first.file.was_reused, again.file.was_reused) == (False, True)
    computed = table.FileTable(model.engram, 0, "packed", folder)
    assert computed.path != first.path
    # the same bytes written again are another checkpoint: nothing proves that they did not change
    written(model, tmp_path / "checkpoint")
    os.utime(tmp_path / "checkpoint" / "model-00001-of-00002.safetensors", ns=(1, 1))
    other = Checkpoint(tmp_path / "checkpoint", model).rows(0)
    assert table.FileTable(model.engram, 0, "packed", folder, source=other).path != first.path


def test_a_rank_s_part_is_a_part_of_the_checkpoint(model, tmp_path):
    rows = written(model, tmp_path / "checkpoint")
    sources = [Checkpoint(tmp_path / "checkpoint", model).rows(layer) for layer in (0, 1)]
    shard = HeadShard(model.engram, 1, 3)
    for tier in ("dram", "nvme"):
        for layout in ("packed", "split"):
            for layer, part in enumerate(build_shard_tables(shard, tier, layout, CPU, tmp_path, sources=sources)):
                own = shard.rows(layer)
                ids = torch.tensor([[0, len(own) - 1]])
                path = CpuGatherPath([part], CPU) if tier == "dram" else DiskPath([part], CPU)
                staged = path.fetch(0, ids)
                found = staged.rows if staged.inverse is None else staged.rows[staged.inverse.reshape(-1)]
                assert np.array_equal(found.numpy(), rows[layer].octets[[own.start, own.stop - 1]])
                path.close()


def test_weights_are_the_dequantised_ones(model, tmp_path):
    written(model, tmp_path)
    given = some_projections(model)[1]
    weights = load_weights(Checkpoint(tmp_path, model), 1)
    inputs, outputs = model.engram.embedding_values, model.engram.projection_outputs(model.backbone)
    codes = torch.from_numpy(given["wkv.weight"]).view(torch.float8_e4m3fn).double().view(outputs, inputs).numpy()
    scales = given["wkv.scale"].astype(np.float64).reshape(outputs // 32, inputs // 32)
    expected = codes * np.exp2(np.kron(scales - 127, np.ones((32, 32))))
    assert np.array_equal(weights.projection.numpy(), expected.T)
    assert np.array_equal(weights.k_weight.bfloat16().view(torch.uint8).numpy().reshape(-1), given["k_weight"])


@pytest.mark.usefixtures("one_compute_thread")
def test_bench_serves_the_checkpoint_from_every_tier_alike(mini_scenario, tmp_path):
    placements = [{"tier": "dram"}, {"tier": "nvme"}, {"tier": "nvme", "row_layout": "split"}]
    scenarios = [mini_scenario(placement) for placement in placements]
    written(scenarios[0].model, tmp_path / "checkpoint")
    opened = Checkpoint(tmp_path / "checkpoint", scenarios[0].model)
    tokens = []
    for scenario in scenarios:
        with Engine(scenario, CPU, tmp_path, checkpoint=opened) as engine:
            tokens.append(engine.run().token_ids)
    assert all(served == tokens[0] for served in tokens)
    record = bench(scenarios[2], folder=tmp_path, checkpoint=tmp_path / "checkpoint")
    assert record.provenance.facts["checkpoint_sha256"] == opened.identity
    assert record.provenance.facts["rows_read_in_checkpoint"] is True
    with pytest.raises(BadInput, match="leave the checkpoint out"):
        bench(mini_scenario({"tier": "none"}), checkpoint=tmp_path / "checkpoint")


def _edit_index(change):
    def damage(folder):
        path = folder / "model.safetensors.index.json"
        data = json.loads(path.read_text())
        change(data["weight_map"])
        path.write_text(json.dumps(data))

    return damage


def _rename(old, new):
    """The same length, so that the header stays whole."""

    def damage(folder):
        for path in folder.iterdir():
            path.write_bytes(path.read_bytes().replace(old, new))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no checkpoint here; give a folder with model.safetensors.index.json"),
        (
            lambda folder: os.truncate(folder / "model-00002-of-00002.safetensors", 9000),
            r"00002-of-00002.safetensors: truncated: 9,000 bytes",
        ),
        (
            lambda folder: os.truncate(folder / "model-00001-of-00002.safetensors", 100),
            "not a safetensors file",
        ),
        (lambda folder: (folder / "model-00001-of-00002.safetensors").unlink(), "cannot be read"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), 'an object "weight_map"'),
        (_edit_index(lambda names: names.pop("layers.1.engram.q_weight")), "the index does not say so"),
        (
            _edit_index(lambda names: names.update({"layers.3.engram.q_weight": "model-00001-of-00002.safetensors"})),
            "tensor layers.3.engram.q_weight should be in model-00001",
        ),
        (_edit_index(lambda names: names.update({"layers.3.engram.q_weight": "../x"})), "is not a file name"),
        (_rename(b"layers.3.", b"layers.5."), r"layers.3.engram.embed.weight is missing.*\(and 11 more\)"),
        (_rename(b"q_weight", b"x_weight"), r"q_weight is missing; it must be BF16 \[2, 32\] \(and 3 more\)"),
        (_rename(b'"F8_E4M3"', b'"I8"     '), r"is I8 \[\d+, 32\]; it must be F8_E4M3 \[\d+, 32\]"),
    ],
)
def test_what_is_not_the_model_s_checkpoint_is_one_line(model, tmp_path, damage, message):
    folder = tmp_path / "checkpoint"
    written(model, folder)
    damage(folder)
    with pytest.raises(FileProblem, match=message) as caught:
        Checkpoint(folder, model)
    assert "\n" not in str(caught.value)


def test_another_model_and_another_dialect_are_refused(model, mini_model, tmp_path):
    written(model, tmp_path)
    larger = mini_model("v41", engram={"rows_per_head": [211] * 3})
    with pytest.raises(FileProblem, match=r"embed.scale is F8_E8M0 \[.*\]; it must be"):
        Checkpoint(tmp_path, larger)
    with pytest.raises(MissingCapability, match="its tensor names are not known here"):
        Checkpoint(tmp_path, mini_model("demo"))


def test_one_file_without_an_index_will_do(model, tmp_path):
    rows = written(model, tmp_path / "shards")
    tensors = {}
    for shard in (tmp_path / "shards").glob("*.safetensors"):
        tensors |= safetensors_torch.load_file(shard)
    safetensors_torch.save_file(tensors | {"layers.0.attn.x": torch.ones(3)}, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert np.array_equal(Checkpoint(path, model).rows(1).read(3, 9), rows[1].octets[3:12])


def test_a_shard_cut_after_it_was_opened_is_an_error(model, tmp_path):
    written(model, tmp_path)
    rows = Checkpoint(tmp_path, model).rows(0)
    os.truncate(rows.places[0].path, rows.places[0].offset + 40)
    with pytest.raises(FileProblem, match="ends too early"):
        rows.read(0, 10)


def test_a_writer_that_fails_leaves_no_half_file(model, tmp_path):
    rows = [SomeRows(model.engram, layer) for layer in (0, 1)]

    def broken(*_):
        raise OSError(28, "No space left on device")

    rows[1].read = broken
    with pytest.raises(FileProblem, match="No space left on device"):
        write_checkpoint(model, tmp_path, rows, some_projections(model))
    assert [path.name for path in tmp_path.iterdir()] == ["model-00001-of-00002.safetensors"]
    with pytest.raises(BadInput, match="must be"):
        write_checkpoint(model, tmp_path, rows, [{}, {}])
