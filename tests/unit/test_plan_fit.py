"""The fit matrix against the memory model, and a checkpoint known by its headers alone."""

import json
from pathlib import Path

import pytest

from tiercast_plan.checkpoint_sizes import is_checkpoint, model_of, read_sizes
from tiercast_plan.fit import REPLICATIONS, FitRow, fit_lower_bound, fit_matrix
from tiercast_profiles import store
from tiercast_profiles.errors import FileProblem
from tiercast_profiles.hardware import TIERS
from tiercast_profiles.head_sizes import table_rows
from tiercast_profiles.scenario import Engine

ENGINE = Engine()
H200 = store.load_hardware("h200-sxm")
V41 = store.load_model("deepseek-v4.1-flash")
TABLE_BYTES = 768_022_850 * 264


def _rows(context_tokens: int = 8192, hardware=(H200,), model=V41) -> dict[tuple[int, str, str], FitRow]:
    rows = fit_matrix(
        model,
        hardware,
        store.load_prices("default"),
        tiers=TIERS,
        replications=REPLICATIONS,
        context_tokens=context_tokens,
        engine=ENGINE,
    )
    return {(row.tensor, row.tier, row.replication): row for row in rows}


def _write(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> None:
    """A safetensors header whose data are not there."""
    entries, offset = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def test_every_combination_has_a_row():
    rows = _rows()
    assert len(rows) == 4 * (2 + 3 * 4)
    assert {row.data * row.tensor for row in rows.values()} == {8}


def test_tables_are_split_over_ranks_or_copied_to_hosts():
    rows = _rows()
    assert rows[8, "hbm", "none"].hbm_bytes_per_rank["tables"] == -(-TABLE_BYTES // 8)
    copies = {name: rows[4, "dram", name].host_bytes["dram"]["tables"] // TABLE_BYTES for name in REPLICATIONS}
    assert copies == {"none": 2, "per_rank": 8, "per_numa": 2, "per_node": 1}


def test_the_shortfall_is_the_bytes_that_are_missing():
    row = _rows()[4, "hbm", "none"]
    assert not row.fits
    assert row.short_tier == "hbm"
    over = sum(row.hbm_bytes_per_rank.values()) - row.hbm_usable_bytes_per_rank
    block = int(ENGINE.kv_block_tokens * 26_760)
    assert row.shortfall_bytes == over + block


def test_a_long_request_may_be_what_does_not_fit():
    row = _rows(context_tokens=5_000_000)[4, "dram", "per_node"]
    assert not row.fits
    assert "a request needs 5000016" in row.reason
    assert _rows()[4, "dram", "per_node"].fits


def test_headers_and_config_give_the_whole_matrix(tmp_path):
    config = Path(__file__).parent / "data" / "deepseek-v4.1-flash" / "config.json"
    (tmp_path / "config.json").write_text(config.read_text(encoding="utf-8"), encoding="utf-8")
    model = store.load_model(str(config))
    rows = table_rows(model.engram)
    tensors = {"embed.weight": ("BF16", [8, 4], 64), "layers.0.mlp.weight": ("F8_E4M3", [1000], 1000)}
    _write(tmp_path / "model-00001-of-00002.safetensors", tensors)
    tables = {}
    for layer, count in zip(model.engram.layer_ids, rows, strict=True):
        tables[f"model.layers.{layer}.engram.embed.weight"] = ("F8_E4M3", [count, 256], count * 256)
        tables[f"model.layers.{layer}.engram.embed.scale"] = ("F8_E8M0", [count, 8], count * 8)
    _write(tmp_path / "model-00002-of-00002.safetensors", tables)
    assert is_checkpoint(tmp_path)
    sizes = read_sizes(tmp_path)
    assert (sizes.weight_bytes, sizes.table_bytes, sizes.num_tensors) == (1064, sum(rows) * 264, 6)
    found = model_of(tmp_path, sizes)
    assert found is not None
    assert found.backbone.weight_bytes == 1064
    assert found.source_of("backbone.weight_bytes").source.startswith("safetensors headers of 2 files, 6 tensors")
    row = _rows(model=found)[8, "dram", "per_node"]
    assert row.hbm_bytes_per_rank["weights"] == 133


def test_headers_alone_give_a_lower_bound(tmp_path):
    path = tmp_path / "model.safetensors"
    _write(path, {"layers.1.engram.embed.weight": ("F8_E4M3", [10, 256], 2560), "w": ("BF16", [5], 10)})
    sizes = read_sizes(path)
    assert model_of(path, sizes) is None
    rows = fit_lower_bound(
        sizes, [H200], tiers=("hbm", "dram"), replications=("per_node",), memory_utilization_ratio=0.9
    )
    assert all(row.fits and row.is_lower_bound and row.kv_room_tokens is None for row in rows)
    by = {(row.tensor, row.tier): row for row in rows}
    assert by[4, "hbm"].hbm_bytes_per_rank["tables"] == 640
    assert by[4, "dram"].host_bytes == {"dram": {"tables": 2560}}


def test_a_lower_bound_can_be_short():
    sizes = read_sizes_of(weight_bytes=10**13)
    rows = fit_lower_bound(sizes, [H200], tiers=("hbm",), replications=(), memory_utilization_ratio=0.9)
    assert [row.fits for row in rows] == [False] * 4
    assert rows[3].shortfall_bytes > 10**12


def read_sizes_of(weight_bytes: int):
    from tiercast_plan.checkpoint_sizes import CheckpointSizes

    return CheckpointSizes("made-up", 1, 1, {}, weight_bytes)


def test_checkpoints_that_are_not_one(tmp_path):
    with pytest.raises(FileProblem, match=r"holds no \*.safetensors"):
        read_sizes(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"not a header")
    with pytest.raises(FileProblem, match="not a safetensors file"):
        read_sizes(tmp_path)
    _write(tmp_path / "a.safetensors", {"w": ("BF16", [5], 10)})
    _write(tmp_path / "b.safetensors", {"w": ("BF16", [5], 10)})
    with pytest.raises(FileProblem, match="'w' is in another shard too"):
        read_sizes(tmp_path)
    entry = json.dumps({"w": {"dtype": "BF16", "shape": [1], "data_offsets": [4, 2]}}).encode()
    (tmp_path / "b.safetensors").unlink()
    (tmp_path / "a.safetensors").write_bytes(len(entry).to_bytes(8, "little") + entry)
    with pytest.raises(FileProblem, match="entry of tensor 'w' is not valid"):
        read_sizes(tmp_path)
