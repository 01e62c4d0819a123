"""Path ``disk``: duplicates removed, rows read past the page cache at depth, one copy takes them to the device."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from tiercast_profiles.errors import BadInput
from tiercast_runtime.aio import DEFAULT_DEPTH, ReadMode, RowReader
from tiercast_runtime.cache import Policy
from tiercast_runtime.disk_reads import DiskReader, DiskTable
from tiercast_runtime.paths.base import StagedRows
from tiercast_runtime.paths.staging import StagingRing, host_ids
from tiercast_runtime.table import FileTable


class DiskPath:
    """Rows from table files. ``mode`` forces a way to read; by default the best this machine has.

    ``cache_slots`` rows of each table are kept in host memory, as ``cache_policy`` says. ``polls`` has ``fetch`` keep
    its core while the drive reads, which is right in a thread that has nothing to do meanwhile and wrong in one beside
    it (:mod:`tiercast_runtime.polling`).
    """

    name = "disk"
    is_host_driven = True

    def __init__(
        self,
        tables: Sequence[FileTable],
        device: torch.device,
        *,
        depth: int = DEFAULT_DEPTH,
        mode: ReadMode | None = None,
        cache_slots: int = 0,
        cache_policy: Policy = "lru",
        polls: bool = False,
    ) -> None:
        self.device = device
        self.depth, self.mode = depth, mode
        self.cache_slots: int = cache_slots
        self.cache_policy: Policy = cache_policy
        self.disk_tables = tuple(_disk_table(table) for table in tables)
        self._disks = tuple(
            DiskReader(table, depth=depth, mode=mode, cache_slots=cache_slots, cache_policy=cache_policy, polls=polls)
            for table in self.disk_tables
        )
        self._ring = StagingRing(len(tables), tables[0].engram.row_bytes if tables else 0, device)

    @property
    def readers(self) -> tuple[RowReader, ...]:
        """The file readers, one per table."""
        return tuple(disk.rows for disk in self._disks)

    @property
    def facts(self) -> Mapping[str, str | int | float | bool]:
        """Read mode, depth and block size."""
        if not self._disks:
            return {}
        reader = self._disks[0].rows
        return {
            "disk_read_mode": reader.mode,
            "disk_depth": reader.depth,
            "disk_block_bytes": reader.granularity_bytes,
            "disk_bypasses_page_cache": reader.bypasses_page_cache,
        }

    def fetch(self, layer_index: int, row_ids: torch.Tensor) -> StagedRows:
        """See ``LookupPath.fetch``."""
        if row_ids.dtype != torch.int64 or row_ids.ndim != 2:
            raise BadInput(f"row_ids is {row_ids.dtype} with {row_ids.ndim} dimensions; must be int64 [tokens, rows]")
        ids = host_ids(row_ids)
        unique, inverse = self._disks[layer_index].unique(ids)
        slot = self._ring.next_slot(layer_index)
        staged = slot.rows(len(unique))
        missing = self._disks[layer_index].fetch(unique, staged.numpy())
        rows = self._ring.to_device(slot, staged)
        places = torch.from_numpy(inverse).view(row_ids.shape).to(self.device)
        return StagedRows(
            rows,
            places,
            num_rows=len(ids),
            num_rows_read=int(np.count_nonzero(missing)),
            num_rows_hit=len(ids) - int(np.count_nonzero(missing[inverse])),
        )

    def clear_cache(self) -> None:
        """See ``LookupPath.clear_cache``."""
        for disk in self._disks:
            if disk.cache is not None:
                disk.cache.clear()

    def fill_cache(self, layer_index: int, row_ids: npt.NDArray[np.int64]) -> None:
        """See ``LookupPath.fill_cache``."""
        self._disks[layer_index].fill_cache(row_ids)

    def check(self) -> None:
        """A read raises where it happens."""

    def close(self) -> None:
        """Close the files and free staging."""
        for disk in self._disks:
            disk.close()
        self._ring.close()


def _disk_table(table: FileTable) -> DiskTable:
    return DiskTable(
        path=str(table.path),
        label=table.label,
        num_rows=table.num_rows,
        row_bytes=table.engram.row_bytes,
        part_offsets=tuple(table.file.part_offsets),
        part_widths=tuple(table.file.part_widths),
    )
