"""A table as a safetensors file: written whole or not at all, found again by what its header says.

The header is padded with spaces so that the rows start on a 4096-byte boundary, which direct I/O needs and the format
allows. Rows are read with :mod:`tiercast_runtime.aio`, never through a mapping.
"""

import contextlib
import fcntl
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tiercast_profiles.document import canonical_sha256
from tiercast_profiles.errors import FileProblem
from tiercast_profiles.model import Engram, RowLayout
from tiercast_profiles.safetensors_header import read_header
from tiercast_profiles.units import format_bytes
from tiercast_runtime.row_source import ComputedRows, RowSource
from tiercast_runtime.rows import part_widths, to_parts
from tiercast_runtime.safetensors_file import DATA_ALIGNMENT_BYTES, aligned_header

__all__ = ["DATA_ALIGNMENT_BYTES", "TableFile", "file_name", "open_or_write", "place_in_checkpoint"]

_CHUNK_ROWS = 32_768


@dataclass(frozen=True, slots=True)
class TableFile:
    """Where the rows are: byte offset of row 0 and row width of each array of the layout."""

    path: Path
    size_bytes: int
    part_offsets: tuple[int, ...]
    part_widths: tuple[int, ...]
    was_reused: bool


@dataclass(frozen=True, slots=True)
class _Content:
    """What belongs in one file."""

    engram: Engram
    source: RowSource
    layout: RowLayout
    num_rows: int
    first_row: int

    @property
    def size_bytes(self) -> int:
        return self.num_rows * sum(part_widths(self.engram, self.layout))

    def parts(self, first: int, count: int) -> tuple[npt.NDArray[np.uint8], ...]:
        return to_parts(self.engram, self.layout, self.source.read(self.first_row + first, count))


def file_name(
    engram: Engram, layer_index: int, layout: RowLayout, num_rows: int, first_row: int = 0, *, tag: str = ""
) -> str:
    """Name of the file of one table: two tables share a name only when they hold the same rows."""
    layer_id = engram.layer_ids[layer_index]
    start = (f"{tag}-" if tag else "") + (f"from{first_row}-" if first_row else "")
    return f"engram-{engram_sha256(engram)[:12]}-layer{layer_id}-{start}{num_rows}-{layout}.safetensors"


def engram_sha256(engram: Engram) -> str:
    """Identity of an Engram configuration."""
    return canonical_sha256(engram.model_dump(mode="json"))


def _metadata(content: _Content, layer_id: int) -> dict[str, str]:
    # only a part of a table says where it starts, so that files from before there were parts stay valid
    start = {"first_row": str(content.first_row)} if content.first_row else {}
    return start | {
        "format": "tiercast-table",
        **content.source.identity,
        "engram_sha256": engram_sha256(content.engram),
        "layer_id": str(layer_id),
        "layout": content.layout,
        "num_rows": str(content.num_rows),
    }


def _header(metadata: dict[str, str], num_rows: int, widths: tuple[int, ...]) -> bytes:
    names = ("rows",) if len(widths) == 1 else ("values", "scales")
    entries: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, width in zip(names, widths, strict=True):
        begin, end = end, end + num_rows * width
        entries[name] = {"dtype": "U8", "shape": [num_rows, width], "data_offsets": [begin, end]}
    return aligned_header(entries)


def open_or_write(
    engram: Engram,
    layer_index: int,
    layout: RowLayout,
    num_rows: int,
    folder: Path,
    *,
    first_row: int = 0,
    source: RowSource | None = None,
) -> TableFile:
    """The file of one table in ``folder``: the one that is there if it is the right one and whole, else a new one.

    It holds the rows ``first_row … first_row + num_rows − 1`` of the layer, by default those anyone can recompute.

    Raises:
        FileProblem: the file there is truncated or another's, the folder cannot be written, or the disk is full.
    """
    rows = ComputedRows(engram, layer_index) if source is None else source
    path = folder / file_name(engram, layer_index, layout, num_rows, first_row, tag=rows.tag)
    content = _Content(engram, rows, layout, num_rows, first_row)
    widths = part_widths(engram, layout)
    metadata = _metadata(content, engram.layer_ids[layer_index])
    header = _header(metadata, num_rows, widths)
    size_bytes = len(header) + num_rows * sum(widths)
    offsets = tuple(len(header) + num_rows * sum(widths[:index]) for index in range(len(widths)))
    found = path.exists()
    if found:
        _check_file(path, metadata, size_bytes)
    else:
        _write_file(path, header, offsets, content)
    file = TableFile(path, size_bytes, offsets, widths, was_reused=found)
    if found:
        _check_content(file, content)
    return file


def place_in_checkpoint(engram: Engram, layout: RowLayout, first_row: int, source: RowSource) -> TableFile | None:
    """The rows where the checkpoint has them, if it stores this layout and all of a row in one file; else None."""
    widths = part_widths(engram, layout)
    places = source.places
    if len(places) != len(widths) or len({place.path for place in places}) != 1:
        return None
    offsets = tuple(place.offset + first_row * width for place, width in zip(places, widths, strict=True))
    return TableFile(places[0].path, places[0].path.stat().st_size, offsets, widths, was_reused=True)


def _check_file(path: Path, wanted: dict[str, str], size_bytes: int) -> None:
    try:
        stored = read_header(path)[0].get("__metadata__")
    except FileProblem as problem:
        raise FileProblem(f"{problem}; delete it to have it written anew") from None
    metadata = {str(key): str(value) for key, value in stored.items()} if isinstance(stored, dict) else {}
    different = sorted(key for key in wanted | metadata if metadata.get(key) != wanted.get(key))
    if different:
        raise FileProblem(
            f"{path}: holds another table ({different[0]} is {metadata.get(different[0])!r}, "
            f"wanted {wanted.get(different[0])!r}); delete it or use another folder"
        )
    actual = path.stat().st_size
    if actual != size_bytes:
        state = "truncated" if actual < size_bytes else "too long"
        raise FileProblem(
            f"{path}: {state}: {actual:,} bytes, must be {size_bytes:,}; delete it to have it written anew"
        )


def _check_content(file: TableFile, content: _Content) -> None:
    """Compare first, middle and last row with what they must hold: a right header does not prove written rows."""
    try:
        with file.path.open("rb", buffering=0) as stream:
            for row in sorted({0, content.num_rows // 2, content.num_rows - 1}):
                parts = content.parts(row, 1)
                for part, offset, width in zip(parts, file.part_offsets, file.part_widths, strict=True):
                    if os.pread(stream.fileno(), width, offset + row * width) != part.tobytes():
                        raise FileProblem(f"{file.path}: row {row} is damaged; delete the file to have it written anew")
    except OSError as error:
        raise FileProblem(f"{file.path}: cannot be read ({error.strerror or error})") from None


def _require_space(folder: Path, size_bytes: int) -> None:
    stats = os.statvfs(folder)
    free_bytes = stats.f_bavail * stats.f_frsize
    if size_bytes > free_bytes:
        raise FileProblem(
            f"{folder}: a table file needs {format_bytes(size_bytes)}, {format_bytes(free_bytes)} is free; "
            f"free {format_bytes(size_bytes - free_bytes)} or use another folder"
        )


def _write_file(path: Path, header: bytes, offsets: tuple[int, ...], content: _Content) -> None:
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        _require_space(path.parent, len(header) + content.size_bytes)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # held until the file has its name: see _remove_leftovers
            _write_at(descriptor, header, 0)
            for first in range(0, content.num_rows, _CHUNK_ROWS):
                parts = content.parts(first, min(_CHUNK_ROWS, content.num_rows - first))
                for part, offset in zip(parts, offsets, strict=True):
                    _write_at(descriptor, np.ascontiguousarray(part).data.cast("B"), offset + first * part.shape[1])
            os.fsync(descriptor)
            if hasattr(os, "posix_fadvise"):
                # what was just written is not left in the page cache: reads must come from the drive
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.fchmod(descriptor, 0o644)
            temporary.replace(path)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FileProblem(f"{path}: cannot be written ({error.strerror or error}); nothing was left behind") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove what a killed writer of the same table left; a writer that lives holds a lock on its file."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError), leftover.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # a file made a moment ago is locked an instant later: an empty one may be a writer's that just began
            if os.fstat(stream.fileno()).st_size:
                leftover.unlink()


def _write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data``: the system may take it in pieces."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
