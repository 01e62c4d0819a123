"""The header of a safetensors file: 8 bytes of length, then JSON (huggingface/safetensors); no tensor is touched."""

import json
from pathlib import Path

from tiercast_profiles.errors import FileProblem

MAX_HEADER_BYTES = 100 << 20  # the library refuses longer ones


def read_header(path: Path) -> tuple[dict[str, object], int]:
    """Entries of the header, ``__metadata__`` among them, and its size, length field included.

    Raises:
        FileProblem: unreadable, or not a whole safetensors header.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if 0 < length <= MAX_HEADER_BYTES else b""
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        entries = json.loads(text) if len(text) == length else None
    except ValueError:
        entries = None
    if not isinstance(entries, dict):
        raise FileProblem(f"{path}: not a safetensors file (no whole safetensors header)")
    return entries, 8 + length
