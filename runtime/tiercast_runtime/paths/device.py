"""Path ``device``: the rows are already in the memory of the device; one gather picks them."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from tiercast_runtime.cache_torch import SKIP_ROW
from tiercast_runtime.paths.base import StagedRows, check_row_ids
from tiercast_runtime.paths.uva import as_words
from tiercast_runtime.rows import from_parts
from tiercast_runtime.table import MemoryTable


class DevicePath:
    """``index_select`` over resident tables.

    On a GPU an id outside the table trips the device assertion of the gather; on the CPU it is refused before.
    """

    name = "device"
    is_host_driven = False

    def __init__(self, tables: Sequence[MemoryTable], device: torch.device) -> None:
        self.device = device
        self._tables = tuple(tables)

    @property
    def facts(self) -> Mapping[str, str | int | float | bool]:
        """Nothing to choose on this path."""
        return {}

    def fetch(self, layer_index: int, row_ids: torch.Tensor) -> StagedRows:
        """See ``LookupPath.fetch``."""
        table = self._tables[layer_index]
        if self.device.type == "cpu":
            check_row_ids(row_ids, table.num_rows)
        flat = row_ids.to(self.device).reshape(-1)
        rows = from_parts(table.engram, tuple(self._pick(part, flat) for part in table.parts))
        return StagedRows(rows, None, num_rows=flat.numel(), num_rows_read=flat.numel())

    def gather_missing(self, layer_index: int, row_ids: torch.Tensor, rows: torch.Tensor) -> None:
        """See ``CacheableGather.gather_missing``; rows that are skipped are gathered all the same and left out."""
        table, is_skipped = self._tables[layer_index], row_ids == SKIP_ROW
        picked = row_ids.masked_fill(is_skipped, 0)
        if self.device.type == "cpu":
            check_row_ids(picked[None], table.num_rows)
        found = from_parts(table.engram, tuple(self._pick(part, picked) for part in table.parts))
        rows.copy_(torch.where(is_skipped[:, None], rows, found))

    def _pick(self, part: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Rows ``[n, width] uint8`` of a part; a thread of a GPU's gather moves one element, so it is given words."""
        if self.device.type == "cpu":
            return torch.index_select(part, 0, ids)
        return torch.index_select(as_words(part), 0, ids).view(torch.uint8)

    def clear_cache(self) -> None:
        """This path has no cache."""

    def fill_cache(self, layer_index: int, row_ids: npt.NDArray[np.int64]) -> None:
        """This path has no cache."""

    def check(self) -> None:
        """The device assertion has spoken already."""

    def close(self) -> None:
        """Drop the tables; their owner closes them."""
        self._tables = ()
