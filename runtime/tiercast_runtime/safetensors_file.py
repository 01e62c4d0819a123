"""The safetensors container by hand: where each tensor lies, and headers that start the data on a block.

The format (8 bytes of header length, JSON, data; huggingface/safetensors) is read here and not through its library
because a table is read by byte offset, with direct I/O and in chunks, and never mapped or loaded whole.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tiercast_profiles.errors import FileProblem
from tiercast_profiles.safetensors_header import read_header

DATA_ALIGNMENT_BYTES = 4096

DTYPE_BYTES: Mapping[str, int] = {"F8_E4M3": 1, "F8_E8M0": 1, "BF16": 2, "I8": 1, "U8": 1, "F32": 4}
"""Bytes of one number of the types that Engram tensors have."""


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where one tensor's bytes lie. ``size_bytes`` is what the header gives it."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def aligned_header(entries: Mapping[str, object]) -> bytes:
    """Length field and JSON, padded with spaces: the data then start on a 4096-byte boundary, as direct I/O needs."""
    text = json.dumps(entries, separators=(",", ":")).encode()
    padding = -(8 + len(text)) % DATA_ALIGNMENT_BYTES
    return (len(text) + padding).to_bytes(8, "little") + text + b" " * padding


def read_places(path: Path) -> dict[str, TensorPlace]:
    """Every tensor of a file by name; checked to lie inside the file.

    Raises:
        FileProblem: unreadable, not a safetensors file, or cut short.
    """
    entries, start = read_header(path)
    places = {}
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        try:
            place = _place(path, entry, start)
        except (TypeError, KeyError, ValueError):
            raise FileProblem(f"{path}: the header's entry of tensor {name!r} is not valid") from None
        places[name] = place
    end = max((place.offset + place.size_bytes for place in places.values()), default=start)
    actual = path.stat().st_size
    if actual < end:
        raise FileProblem(f"{path}: truncated: {actual:,} bytes, its header needs {end:,}; fetch the file again")
    return places


def _place(path: Path, entry: object, start: int) -> TensorPlace:
    if not isinstance(entry, dict):
        raise TypeError
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(isinstance(number, int) and number >= 0 for number in (begin, end, *shape)) or end < begin:
        raise ValueError
    dtype = str(entry["dtype"])
    width = DTYPE_BYTES.get(dtype)
    if width is not None and math.prod(shape) * width != end - begin:
        raise ValueError
    return TensorPlace(path, dtype, shape, start + begin, end - begin)
