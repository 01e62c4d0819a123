"""A cache of rows in the memory of the device, in front of a path whose gather runs on the device.

A lookup finds what the cache has, gathers the rest from the tier, and only then, behind the rows' use, keeps what was
missing. Nothing waits for the device; how many rows were missing is read once it has passed the lookup.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from tiercast_runtime.cache import Policy, hot_places
from tiercast_runtime.cache_torch import TorchRowCache
from tiercast_runtime.paths.base import CacheWork, LookupPath, StagedRows
from tiercast_runtime.table import MemoryTable


class CacheableGather(LookupPath, Protocol):
    """A path that can leave out rows that are there already."""

    def gather_missing(self, layer_index: int, row_ids: torch.Tensor, rows: torch.Tensor) -> None:
        """Gather rows ``row_ids [n] int64`` into ``rows [n, row_bytes] uint8``, but not where the id is ``SKIP_ROW``.

        Raises:
            BadInput: on the CPU, a row id outside the table.
        """
        ...


class CachedPath:
    """A path with a row cache per table in front of it.

    Args:
        path: gathers what the caches do not have.
        tables: those of the path, in the same order.
        cache_slots: rows each cache holds.
        policy: which rows it keeps.
    """

    is_host_driven = False

    def __init__(
        self, path: CacheableGather, tables: Sequence[MemoryTable], *, cache_slots: int, policy: Policy = "lru"
    ) -> None:
        self.name, self.device = path.name, path.device
        self._path, self._tables = path, tuple(tables)
        self._caches = [
            TorchRowCache(cache_slots, table.engram.row_bytes, path.device, policy=policy) for table in tables
        ]
        self._counts = [self._count(cache) for cache in self._caches]

    @property
    def facts(self) -> Mapping[str, str | int | float | bool]:
        """The inner path's facts, and how the cache looks rows up."""
        has_kernel = all(cache.has_kernel for cache in self._caches)
        return {**self._path.facts, "cache_lookup": "one kernel" if has_kernel else "tensor operations"}

    def fetch(self, layer_index: int, row_ids: torch.Tensor) -> StagedRows:
        """See ``LookupPath.fetch``; the caller calls ``keep`` of what this returns before it makes the next lookup."""
        cache = self._caches[layer_index]
        flat = row_ids.to(self.device).reshape(-1).contiguous()
        width = self._tables[layer_index].engram.row_bytes
        rows = torch.empty((flat.numel(), width), dtype=torch.uint8, device=self.device)
        missing = cache.lookup(flat, rows)
        self._path.gather_missing(layer_index, missing, rows)
        before, after = self._counts[layer_index], self._count(cache)
        self._counts[layer_index] = after
        work = CacheWork(lambda: cache.insert(missing, rows), before, after)
        return StagedRows(rows, None, num_rows=flat.numel(), num_rows_read=flat.numel(), cache_work=work)

    def _count(self, cache: TorchRowCache) -> torch.Tensor:
        """The cache's count of missing rows as it is at this point of the stream, in host memory once it is passed."""
        count = torch.empty(1, dtype=torch.int64, pin_memory=self.device.type == "cuda")
        return count.copy_(cache.num_missing, non_blocking=True)

    def clear_cache(self) -> None:
        """See ``LookupPath.clear_cache``; waits for the device."""
        self._synchronize()
        for cache in self._caches:
            cache.clear()
        self._counts = [self._count(cache) for cache in self._caches]
        self._synchronize()

    def fill_cache(self, layer_index: int, row_ids: npt.NDArray[np.int64]) -> None:
        """See ``LookupPath.fill_cache``; waits for the device."""
        cache, path = self._caches[layer_index], self._path
        row_ids, _ = hot_places(row_ids, cache.num_slots, cache.num_ways)

        def read(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
            staged = path.fetch(layer_index, torch.from_numpy(ids)[:, None])
            rows: npt.NDArray[np.uint8] = staged.rows.cpu().numpy()
            return rows

        cache.fill(row_ids, read)
        self._synchronize()
        path.check()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def check(self) -> None:
        """What the inner path has to say."""
        self._path.check()

    def close(self) -> None:
        """Drop the caches and close the inner path."""
        self._caches, self._tables = [], ()
        self._path.close()
