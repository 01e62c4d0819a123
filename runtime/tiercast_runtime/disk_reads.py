"""Rows of one table file by id: duplicates removed, what a cache has left out, the rest read at depth.

NumPy only, so that a worker process that knows nothing of torch can do it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tiercast_runtime.aio import ReadMode, RowReader
from tiercast_runtime.cache import Policy, RowCache
from tiercast_runtime.distinct import distinct_rows


@dataclass(frozen=True, slots=True)
class DiskTable:
    """Where the rows of one table lie in its file: parts of a row one array after the other."""

    path: str
    label: str
    num_rows: int
    row_bytes: int
    part_offsets: tuple[int, ...]
    part_widths: tuple[int, ...]


class DiskReader:
    """Reads lookups of one table, past a cache of ``cache_slots`` rows if that is not 0; one thread at a time.

    ``polls`` has that thread keep its core while the drive reads (:mod:`tiercast_runtime.polling`).
    """

    def __init__(
        self,
        table: DiskTable,
        *,
        depth: int,
        mode: ReadMode | None = None,
        cache_slots: int = 0,
        cache_policy: Policy = "lru",
        polls: bool = False,
    ) -> None:
        self.table = table
        self.cache = RowCache(cache_slots, table.row_bytes, policy=cache_policy) if cache_slots else None
        self.rows = RowReader(Path(table.path), depth=depth, mode=mode, polls=polls)

    def unique(self, ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Distinct ids, ascending, and the place of each id among them.

        Raises:
            BadInput: an id outside the table.
        """
        return distinct_rows(ids, self.table.num_rows, self.table.label)

    def read(self, unique: npt.NDArray[np.int64], target: npt.NDArray[np.uint8]) -> None:
        """The rows of ascending ids into ``target`` ``[len(unique), row_bytes] uint8``, packed.

        Raises:
            FileProblem: a read failed or the file ends too early; ``target`` is void.
        """
        first = 0
        for offset, width in zip(self.table.part_offsets, self.table.part_widths, strict=True):
            useful = min(width, self.table.row_bytes - first)  # padding is not worth reading
            self.rows.read_rows(offset + unique * width, target[:, first : first + useful])
            first += useful

    def fetch(self, unique: npt.NDArray[np.int64], target: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """As ``read``, from the cache where it has the row.

        Returns:
            ``[len(unique)] bool``, true where the row was read from the file.
        """
        if self.cache is None:
            self.read(unique, target)
            return np.ones(len(unique), dtype=bool)
        return self.cache.fetch(unique, target, self.read)

    def fill_cache(self, ids: npt.NDArray[np.int64]) -> None:
        """Fill the empty cache, if there is one, with the rows of ``ids [n]``, hottest first.

        Raises:
            FileProblem: a read failed or the file ends too early.
        """
        if self.cache is None:
            return

        def read(ascending: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
            rows = np.empty((len(ascending), self.table.row_bytes), dtype=np.uint8)
            self.read(ascending, rows)
            return rows

        self.cache.fill(ids, read)

    def close(self) -> None:
        """Close the file."""
        self.rows.close()
