"""What a checkpoint weighs, from its safetensors headers and config alone: no tensor is read.

A folder with ``config.json`` gives a model whose weight bytes are those of the headers; without one only bytes are
known, and what fits is a lower bound.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tiercast_profiles.document import canonical_sha256
from tiercast_profiles.errors import FileProblem
from tiercast_profiles.head_sizes import table_rows
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.safetensors_header import read_header
from tiercast_profiles.store import load_model, parse

# Published names of V4.1 tables (SGLang 0.5.23 models/deepseek_v4.py): layers.L.engram.embed.weight and .scale.
_TABLE = re.compile(r"(^|\.)layers\.(\d+)\.engram\.embed\.(weight|scale)$")


@dataclass(frozen=True, slots=True)
class CheckpointSizes:
    """Bytes of a checkpoint's tensors: the Engram tables by layer, and everything else."""

    path: str
    num_files: int
    num_tensors: int
    table_bytes_by_layer: dict[int, int]
    weight_bytes: int

    @property
    def table_bytes(self) -> int:
        """One copy of all tables."""
        return sum(self.table_bytes_by_layer.values())


def is_checkpoint(path: Path) -> bool:
    """True for a safetensors file, or a folder that holds one."""
    return path.suffix == ".safetensors" or (path.is_dir() and any(path.glob("*.safetensors")))


def read_sizes(path: Path) -> CheckpointSizes:
    """Add up what the headers of all shards declare; a file that ends behind its header is enough.

    Raises:
        FileProblem: no shard there, or a header that cannot be read; a tensor that two shards have.
    """
    files = [path] if path.suffix == ".safetensors" else sorted(path.glob("*.safetensors"))
    if not files:
        raise FileProblem(f"{path}: holds no *.safetensors file; give a checkpoint folder or one of its files")
    tables: dict[int, int] = {}
    seen: set[str] = set()
    weights = 0
    for file in files:
        for name, size in _tensors(file):
            if name in seen:
                raise FileProblem(f"{file}: tensor {name!r} is in another shard too; the folder mixes two checkpoints")
            seen.add(name)
            found = _TABLE.search(name)
            if found is None:
                weights += size
            else:
                layer = int(found.group(2))
                tables[layer] = tables.get(layer, 0) + size
    return CheckpointSizes(str(path), len(files), len(seen), dict(sorted(tables.items())), weights)


def model_of(path: Path, sizes: CheckpointSizes) -> ModelSpec | None:
    """The model of the folder's ``config.json`` with the weight bytes of the headers, or None without a config.

    Raises:
        BadInput: the config is not understood.
        FileProblem: the headers' tables are not those of the config.
    """
    config = (path if path.is_dir() else path.parent) / "config.json"
    if not config.is_file():
        return None
    model = load_model(str(config))
    expected = sum(table_rows(model.engram)) * model.engram.row_bytes
    if sizes.table_bytes and sizes.table_bytes != expected:
        raise FileProblem(
            f"{path}: the headers hold tables of {sizes.table_bytes} bytes, {config.name} describes {expected}; "
            "shards are missing, or the two are not of one model"
        )
    data = model.model_dump(mode="json")
    data["backbone"]["weight_bytes"] = sizes.weight_bytes
    data["sources"]["headers"] = {
        "kind": "published",
        "mark": "V",
        # A header carries no date; the epoch says "not dated", as for a config.
        "source": f"safetensors headers of {sizes.num_files} files, {sizes.num_tensors} tensors (undated)",
        "date": "1970-01-01",
    }
    data["evidence"]["backbone.weight_bytes"] = "headers"
    return parse(ModelSpec, data, f"{config} with headers {canonical_sha256(sizes.table_bytes_by_layer)[:8]}")


def _tensors(file: Path) -> Iterator[tuple[str, int]]:
    entries, _ = read_header(file)
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        match offsets:
            case [int(begin), int(end)] if 0 <= begin <= end:
                yield name, end - begin
            case _:
                raise FileProblem(f"{file}: the header's entry of tensor {name!r} is not valid")
