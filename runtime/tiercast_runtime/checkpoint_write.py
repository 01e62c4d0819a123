"""Writes Engram tensors as safetensors shards with an index, under the names :mod:`tiercast_runtime.checkpoint` reads.

For tests and for measuring with rows of one's own; the backbone is not written.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tiercast_profiles.errors import BadInput, FileProblem
from tiercast_profiles.model import ModelSpec
from tiercast_runtime.checkpoint import INDEX_NAME, TensorSpec, expected_tensors, layer_prefix
from tiercast_runtime.row_source import RowSource
from tiercast_runtime.safetensors_file import DTYPE_BYTES, aligned_header

_CHUNK_ROWS = 32_768

Octets = npt.NDArray[np.uint8]


def write_checkpoint(
    model: ModelSpec, folder: Path, rows: Sequence[RowSource], projections: Sequence[Mapping[str, Octets]]
) -> Path:
    """Write one shard per Engram layer and the index; returns the index.

    Args:
        model: gives names, types and shapes.
        folder: made if need be; files of the same names are replaced, the index last.
        rows: the rows of each layer; read in chunks, never held whole.
        projections: for each layer the bytes of ``wkv.weight``, ``wkv.scale``, ``q_weight`` and ``k_weight``, each
            flat ``[size_bytes] uint8``.

    Raises:
        BadInput: tensors missing or of another size.
        FileProblem: the folder cannot be written; no half-written file stays.
        MissingCapability: the dialect has no published tensor names.
    """
    specs, layer_ids = expected_tensors(model), model.engram.layer_ids
    if not len(rows) == len(projections) == len(layer_ids):
        raise BadInput(f"{len(rows)} tables and {len(projections)} projections given; must be {len(layer_ids)} of each")
    for layer_id, given in zip(layer_ids, projections, strict=True):
        _check_sizes(layer_prefix(layer_id), specs, given)
    weight_map: dict[str, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (layer_id, source, given) in enumerate(zip(layer_ids, rows, projections, strict=True), 1):
            prefix = layer_prefix(layer_id)
            own = {name: spec for name, spec in specs.items() if name.startswith(prefix)}
            shard = f"model-{number:05}-of-{len(layer_ids):05}.safetensors"
            _write(folder / shard, _shard(model, own, source, {prefix + name: data for name, data in given.items()}))
            weight_map |= dict.fromkeys(own, shard)
        total = sum(_size_bytes(spec) for spec in specs.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write(folder / INDEX_NAME, iter([(json.dumps(index, indent=2) + "\n").encode()]))
    except OSError as error:
        raise FileProblem(f"{folder}: cannot be written ({error.strerror or error}); free room there") from None
    return folder / INDEX_NAME


def _size_bytes(spec: TensorSpec) -> int:
    count = DTYPE_BYTES[spec.dtype]
    for extent in spec.shape:
        count *= extent
    return count


def _check_sizes(prefix: str, specs: Mapping[str, TensorSpec], given: Mapping[str, Octets]) -> None:
    wanted = {
        name.removeprefix(prefix): _size_bytes(spec)
        for name, spec in specs.items()
        if name.startswith(prefix) and ".embed." not in name
    }
    found = {name: data.nbytes for name, data in given.items()}
    if found != wanted:
        raise BadInput(f"bytes of the projections of {prefix}* are {found}; must be {wanted}")


def _shard(
    model: ModelSpec, specs: Mapping[str, TensorSpec], source: RowSource, given: Mapping[str, Octets]
) -> Iterator[bytes | memoryview]:
    """Header, then every tensor of one layer; values and scales each take one pass over the rows."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        begin, end = end, end + _size_bytes(spec)
        entries[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [begin, end]}
    yield aligned_header(entries)
    values = model.engram.value_bytes
    for name, spec in specs.items():
        if ".embed." not in name:
            yield np.ascontiguousarray(given[name]).data
            continue
        columns = slice(0, values) if name.endswith(".weight") else slice(values, None)
        for first in range(0, spec.shape[0], _CHUNK_ROWS):
            chunk = source.read(first, min(_CHUNK_ROWS, spec.shape[0] - first))
            yield np.ascontiguousarray(chunk[:, columns]).data.cast("B")


def _write(path: Path, pieces: Iterator[bytes | memoryview]) -> None:
    """A whole file or none."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
