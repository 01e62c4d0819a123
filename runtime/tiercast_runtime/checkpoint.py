"""Engram tensors of a published checkpoint: found by name, checked against the model file, read a piece at a time.

Names and types are those of DeepSeek-V4.1-Flash (SGLang 0.5.23, ``models/deepseek_v4.py`` and ``layers/engram.py``;
sizes of the published files, vLLM docs/features/engram.md). For Engram layer L, with rows N, values V, branches M:

====================================  ==================  ==========================================
``layers.L.engram.embed.weight``      ``[N, V]``          E4M3
``layers.L.engram.embed.scale``       ``[N, V / 32]``     E8M0, one per block of 32 values
``layers.L.engram.wkv.weight``        ``[out, in]``       E4M3; in = R·V, out = (M + 1)·hidden
``layers.L.engram.wkv.scale``         ``[out/32, in/32]`` E8M0, one per square of 32 (153,600 B published)
``layers.L.engram.q_weight``          ``[M, hidden]``     BF16, as is ``k_weight``
====================================  ==================  ==========================================

Assumption: a model file that keeps its rows in bf16 has them under the same name without a scale, one with int8 rows
has fp32 scales. Backbone tensors beside them are not read: the runtime's backbone has random weights.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tiercast_profiles.errors import FileProblem, MissingCapability
from tiercast_profiles.head_sizes import table_rows
from tiercast_profiles.model import SCALE_BLOCK_VALUES, Engram, ModelSpec
from tiercast_runtime.safetensors_file import TensorPlace, read_places

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_ROW_DTYPES: Mapping[str, tuple[str, str]] = {
    "fp8_block32": ("F8_E4M3", "F8_E8M0"),
    "int8_block32": ("I8", "F32"),
    "bf16": ("BF16", ""),
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Type (as safetensors names it) and shape that a tensor must have."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def layer_prefix(layer_id: int) -> str:
    """What the names of one Engram layer's tensors begin with."""
    return f"layers.{layer_id}.engram."


def expected_tensors(model: ModelSpec) -> dict[str, TensorSpec]:
    """Every Engram tensor a checkpoint of this model has, by name.

    Raises:
        MissingCapability: only the v41 dialect has published tensor names.
    """
    engram, backbone = model.engram, model.backbone
    if engram.dialect != "v41":
        raise MissingCapability(
            f"a checkpoint of the {engram.dialect} dialect cannot be read: its tensor names are not known here; "
            "use a v41 model, or leave the checkpoint out and let the rows be computed"
        )
    value_dtype, scale_dtype = _ROW_DTYPES[engram.row_format]
    inputs, outputs = engram.embedding_values, engram.projection_outputs(backbone)
    blocks = (-(-outputs // SCALE_BLOCK_VALUES), -(-inputs // SCALE_BLOCK_VALUES))
    specs = {}
    for layer_id, num_rows in zip(engram.layer_ids, table_rows(engram), strict=True):
        prefix = layer_prefix(layer_id)
        specs[prefix + "embed.weight"] = TensorSpec(value_dtype, (num_rows, engram.row_values))
        if scale_dtype:
            scales = engram.row_values // SCALE_BLOCK_VALUES
            specs[prefix + "embed.scale"] = TensorSpec(scale_dtype, (num_rows, scales))
        specs[prefix + "wkv.weight"] = TensorSpec("F8_E4M3", (outputs, inputs))
        specs[prefix + "wkv.scale"] = TensorSpec("F8_E8M0", blocks)
        for name in ("q_weight", "k_weight"):
            specs[prefix + name] = TensorSpec("BF16", (backbone.num_branches, backbone.hidden_size))
    return specs


class Checkpoint:
    """The Engram tensors of one model in safetensors shards.

    ``path`` is a folder with ``model.safetensors.index.json`` (or a lone ``model.safetensors``), an index file, or one
    safetensors file.

    Raises:
        FileProblem: files that are missing, cut short or not safetensors, or tensors that are not the model's: the
            first problem and the number of others; ``problems`` gives all.
        MissingCapability: the dialect has no published tensor names.
    """

    def __init__(self, path: Path, model: ModelSpec) -> None:
        self.path, self.model = path, model
        specs = expected_tensors(model)
        self.places = _engram_places(path)
        problems = tensor_problems(model, specs, self.places)
        if problems:
            others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise FileProblem(f"{path}: {problems[0]}{others}; the checkpoint must be of model {model.name!r}")

    @cached_property
    def identity(self) -> str:
        """Changes when a tensor, or a file that holds one, does: names, types, places, file sizes and change times."""
        digest = hashlib.sha256()
        for name, place in sorted(self.places.items()):
            stat = place.path.stat()
            entry = (name, place.dtype, place.shape, place.path.name, place.offset, stat.st_size, stat.st_mtime_ns)
            digest.update(repr(entry).encode())
        return digest.hexdigest()

    def rows(self, layer_index: int) -> "CheckpointRows":
        """The rows of one layer's table."""
        prefix = layer_prefix(self.model.engram.layer_ids[layer_index])
        names = [prefix + "embed.weight", prefix + "embed.scale"]
        places = tuple(self.places[name] for name in names if name in self.places)
        return CheckpointRows(self.model.engram, places, self.identity)

    def tensor(self, layer_index: int, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of a small tensor of one layer, such as ``wkv.weight``: ``[size_bytes] uint8``.

        Raises:
            FileProblem: the file cannot be read or ends too early.
        """
        place = self.places[layer_prefix(self.model.engram.layer_ids[layer_index]) + name]
        octets = np.empty(place.size_bytes, dtype=np.uint8)
        _read_into(place, 0, octets)
        return octets


class CheckpointRows:
    """A :class:`tiercast_runtime.row_source.RowSource` over values and scales in files; reads leave no page cache."""

    def __init__(self, engram: Engram, places: tuple[TensorPlace, ...], identity: str) -> None:
        self._engram = engram
        self.places = places
        self.identity = {"checkpoint": identity}
        self.tag = f"checkpoint{identity[:12]}"

    def read(self, first_row: int, count: int) -> npt.NDArray[np.uint8]:
        """See ``RowSource.read``."""
        rows = np.empty((count, self._engram.row_bytes), dtype=np.uint8)
        column = 0
        for place, width in zip(self.places, (self._engram.value_bytes, self._engram.scale_bytes), strict=False):
            if len(self.places) == 1:
                _read_into(place, first_row * width, rows.reshape(-1))
            else:
                part = np.empty((count, width), dtype=np.uint8)
                _read_into(place, first_row * width, part.reshape(-1))
                rows[:, column : column + width] = part
            column += width
        return rows


def tensor_problems(model: ModelSpec, specs: Mapping[str, TensorSpec], places: Mapping[str, TensorPlace]) -> list[str]:
    """What is wrong with the Engram tensors of a checkpoint, one line each; empty when it is this model's."""
    problems = [f"tensor {name} is missing; it must be {spec}" for name, spec in specs.items() if name not in places]
    for name, place in sorted(places.items()):
        found, spec = TensorSpec(place.dtype, place.shape), specs.get(name)
        if spec is None:
            layers = ", ".join(map(str, model.engram.layer_ids))
            problems.append(f"tensor {name} ({found}) is none of the Engram tensors of layers {layers}")
        elif found != spec:
            problems.append(f"tensor {name} is {found}; it must be {spec}")
    return problems


def _engram_places(path: Path) -> dict[str, TensorPlace]:
    """The Engram tensors of a checkpoint, wherever they lie; other tensors are left aside."""
    index = path / INDEX_NAME if path.is_dir() else path
    if path.is_dir() and not index.is_file():
        index = path / SINGLE_NAME
    if not index.is_file():
        raise FileProblem(
            f"{path}: no checkpoint here; give a folder with {INDEX_NAME} or {SINGLE_NAME}, or one of those files"
        )
    if index.suffix == ".json":
        return _indexed_places(index)
    return {name: place for name, place in read_places(index).items() if ".engram." in name}


def _indexed_places(index: Path) -> dict[str, TensorPlace]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shard_of = {str(name): str(shard) for name, shard in dict(weight_map).items() if ".engram." in name}
    except OSError as error:
        raise FileProblem(f"{index}: cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError):
        raise FileProblem(f'{index}: not a checkpoint index; it must be JSON with an object "weight_map"') from None
    places: dict[str, TensorPlace] = {}
    for shard in sorted(set(shard_of.values())):
        if Path(shard).name != shard:
            raise FileProblem(f"{index}: shard {shard!r} is not a file name; shards lie beside their index")
        in_shard = read_places(index.parent / shard)
        wanted = {name for name, place in shard_of.items() if place == shard}
        lost = sorted(wanted - in_shard.keys())
        if lost:
            raise FileProblem(f"{index}: tensor {lost[0]} should be in {shard}, which does not have it")
        # a tensor the index does not name is one that readers of the index would never see
        stray = sorted(name for name in in_shard.keys() - wanted if ".engram." in name)
        if stray:
            raise FileProblem(f"{index}: tensor {stray[0]} is in {shard}, but the index does not say so")
        places |= {name: in_shard[name] for name in wanted}
    return places


def _read_into(place: TensorPlace, offset: int, target: npt.NDArray[np.uint8]) -> None:
    """Fill flat ``target`` with the tensor's bytes from ``offset`` on, leaving no page cache behind."""
    assert 0 <= offset <= offset + target.nbytes <= place.size_bytes, "a read stays inside its tensor"
    first, done, view = place.offset + offset, 0, target.data
    try:
        descriptor = os.open(place.path, os.O_RDONLY)
        try:
            while done < target.nbytes:
                count = os.preadv(descriptor, [view[done:]], first + done)
                if count == 0:
                    raise FileProblem(f"{place.path}: ends too early at offset {first + done:,}; fetch the file again")
                done += count
            if hasattr(os, "posix_fadvise"):
                # the table takes as much memory as the file: a cached copy would be a second one
                os.posix_fadvise(descriptor, first, target.nbytes, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FileProblem(f"{place.path}: cannot be read ({error.strerror or error})") from None
