"""Path ``cpu_gather``: host threads gather rows into a staging slot, one copy takes them to the device."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from tiercast_runtime.cache import Policy, RowCache
from tiercast_runtime.device import num_cores
from tiercast_runtime.distinct import distinct_rows
from tiercast_runtime.host_loops import RowGather
from tiercast_runtime.paths.base import StagedRows, check_row_ids
from tiercast_runtime.paths.staging import StagingRing, host_ids
from tiercast_runtime.table import MemoryTable
from tiercast_runtime.threads import submit_all

_MAX_GATHER_THREADS = 8
_MIN_ROWS_PER_THREAD = 512


def default_gather_threads(device: torch.device) -> int:
    """One thread where the CPU is the device (the other cores compute), up to eight beside a GPU."""
    return 1 if device.type == "cpu" else max(1, min(_MAX_GATHER_THREADS, num_cores() - 1))


class CpuGatherPath:
    """Gather by host threads. Where the CPU is the device the copy is left out: staging is what it reads.

    With ``cache_slots`` above 0 that many rows of each table are kept as ``cache_policy`` says, and duplicates are
    removed: a cache is asked once for each row.
    """

    name = "cpu_gather"
    is_host_driven = True

    def __init__(
        self,
        tables: Sequence[MemoryTable],
        device: torch.device,
        num_threads: int | None = None,
        *,
        cache_slots: int = 0,
        cache_policy: Policy = "lru",
    ) -> None:
        self.device = device
        self._tables = tuple(tables)
        self._gathers = tuple(
            RowGather([part.numpy() for part in table.parts], table.engram.row_bytes, table.label) for table in tables
        )
        self._num_threads = default_gather_threads(device) if num_threads is None else num_threads
        self._pool: ThreadPoolExecutor | None = None
        if self._num_threads > 1:
            # the thread that fetches takes a share itself
            self._pool = ThreadPoolExecutor(self._num_threads - 1, thread_name_prefix="tiercast-gather")
        row_bytes = self._tables[0].engram.row_bytes if self._tables else 0
        widths = [row_bytes] * len(self._tables) if cache_slots else []
        self._caches = [RowCache(cache_slots, width, policy=cache_policy) for width in widths]
        self._ring = StagingRing(len(self._tables), row_bytes, device)
        self._copies = device.type != "cpu"

    @property
    def facts(self) -> Mapping[str, str | int | float | bool]:
        """Gather threads, whether the loop is compiled, and whether a copy follows."""
        return {
            "gather_threads": self._num_threads,
            "gather_is_compiled": any(gather.is_compiled for gather in self._gathers),
            "gather_copies_to_device": self._copies,
        }

    def fetch(self, layer_index: int, row_ids: torch.Tensor) -> StagedRows:
        """See ``LookupPath.fetch``."""
        if row_ids.dtype is not torch.int64 or row_ids.ndim != 2:
            check_row_ids(row_ids, self._tables[layer_index].num_rows)
        if self._caches:
            return self._fetch_cached(layer_index, host_ids(row_ids), tuple(row_ids.shape))
        ids = row_ids if row_ids.is_cpu and row_ids.is_contiguous() else row_ids.to("cpu").contiguous()
        count = ids.numel()
        slot = self._ring.next_slot(layer_index)
        rows = slot.rows(count)
        gather = self._gathers[layer_index]
        if gather.is_compiled and (self._pool is None or count <= _MIN_ROWS_PER_THREAD):
            gather.at_addresses(ids.data_ptr(), count, slot.address)
        else:
            self._gather(gather, ids.reshape(-1).numpy(), rows.numpy())
        if self._copies:
            return StagedRows(self._ring.to_device(slot, rows), None, num_rows=count, num_rows_read=count)
        if slot.handed is None or slot.handed.rows is not rows:
            slot.handed = StagedRows(rows, None, num_rows=count, num_rows_read=count)
        return slot.handed

    def _fetch_cached(self, layer_index: int, ids: npt.NDArray[np.int64], shape: tuple[int, ...]) -> StagedRows:
        gather, cache = self._gathers[layer_index], self._caches[layer_index]
        unique, inverse = distinct_rows(ids, gather.num_rows, gather.label)
        slot = self._ring.next_slot(layer_index)
        staged = slot.rows(len(unique))
        missing = cache.fetch(unique, staged.numpy(), partial(self._gather, gather))
        rows = self._ring.to_device(slot, staged)
        return StagedRows(
            rows,
            torch.from_numpy(inverse).view(shape).to(self.device),
            num_rows=len(ids),
            num_rows_read=int(np.count_nonzero(missing)),
            num_rows_hit=len(ids) - int(np.count_nonzero(missing[inverse])),
        )

    def _gather(self, gather: RowGather, ids: npt.NDArray[np.int64], target: npt.NDArray[np.uint8]) -> None:
        share = max(_MIN_ROWS_PER_THREAD, -(-len(ids) // self._num_threads))
        pending: list[Future[None]] = []
        if self._pool is not None:
            shares = [slice(first, first + share) for first in range(share, len(ids), share)]
            pending = submit_all(
                self._pool, [partial(gather.gather, ids[part], target[part]) for part in shares], "a gather thread"
            )
        try:
            gather.gather(ids[:share], target[:share])
        finally:
            wait(pending)  # no thread writes into the slot once this has returned or raised
        for done in pending:
            done.result()

    def clear_cache(self) -> None:
        """See ``LookupPath.clear_cache``."""
        for cache in self._caches:
            cache.clear()

    def fill_cache(self, layer_index: int, row_ids: npt.NDArray[np.int64]) -> None:
        """See ``LookupPath.fill_cache``."""
        if not self._caches:
            return
        gather, row_bytes = self._gathers[layer_index], self._tables[layer_index].engram.row_bytes

        def read(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
            rows = np.empty((len(ids), row_bytes), dtype=np.uint8)
            self._gather(gather, ids, rows)
            return rows

        self._caches[layer_index].fill(row_ids, read)

    def check(self) -> None:
        """A gather on the host raises where it happens."""

    def close(self) -> None:
        """Stop the threads and free staging."""
        if self._pool is not None:
            self._pool.shutdown()
        self._ring.close()
        self._tables, self._gathers, self._caches = (), (), []
