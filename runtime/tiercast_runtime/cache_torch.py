"""The row cache of ``cache`` on a device: the same algorithm, never waiting for the device.

Every shape follows from the shapes of the arguments and every choice is a mask: what is not to be written goes to one
spare slot behind the others. Counters stay on the device until they are asked for. On a GPU with triton a lookup is one
kernel (``cache_kernel``), uses being counted apart; elsewhere it is tensor operations, as keeping rows is everywhere:
nothing waits for that.
"""

import importlib.util
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from tiercast_runtime.cache import (
    DEFAULT_WAYS,
    HASH_FACTOR,
    HASH_MASK,
    HASH_SHIFT,
    MAX_USES,
    ONE_USE,
    Int64Array,
    Policy,
    cache_geometry,
    hot_places,
)

SKIP_ROW = -(1 << 62)  # in place of a row id: this row is not to be gathered; no hash gives a negative id
_FILL_ROWS = 65_536


class TorchRowCache:
    """Rows of one table in the memory of a device; all calls on one stream.

    Args:
        num_slots: rows it may hold; rounded down to whole sets.
        row_bytes: bytes of a row.
        device: where rows and index live.
        policy: which row of a set makes room, as in ``cache.RowCache``.
        num_ways: rows per set.
    """

    def __init__(
        self,
        num_slots: int,
        row_bytes: int,
        device: torch.device,
        *,
        policy: Policy = "lru",
        num_ways: int = DEFAULT_WAYS,
    ) -> None:
        self.num_sets, self.num_ways = cache_geometry(num_slots, num_ways)
        self.policy: Policy = policy
        self.num_slots = self.num_sets * self.num_ways
        self.rows = torch.zeros((self.num_slots + 1, row_bytes), dtype=torch.uint8, device=device)
        self.tags = torch.zeros(self.num_slots + 1, dtype=torch.int64, device=device)  # row id + 1; 0 is empty
        self.stamps = torch.zeros(self.num_slots + 1, dtype=torch.int64, device=device)
        self.num_missing = torch.zeros(1, dtype=torch.int64, device=device)  # of all lookups together
        # Counting uses of an id that comes twice at once takes two passes, which one kernel cannot order.
        has_triton = importlib.util.find_spec("triton") is not None
        self.has_kernel = device.type == "cuda" and has_triton and policy != "lfu"
        self._ways = torch.arange(self.num_ways, device=device)
        self._num_evictions = torch.zeros(1, dtype=torch.int64, device=device)
        self._clock = 1
        self.num_lookups = 0

    @property
    def num_hits(self) -> int:
        """Lookups that found their row; waits for the device."""
        return self.num_lookups - int(self.num_missing)

    @property
    def num_evictions(self) -> int:
        """Rows that made room for others; waits for the device."""
        return int(self._num_evictions)

    def lookup(self, ids: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Copy the rows it has into ``out`` and say which are still to be gathered.

        Args:
            ids: ``[n] int64`` of the device, in any order; an id may come twice.
            out: ``[n, row_bytes] uint8``; rows of missing ids are left as they are.

        Returns:
            ``[n] int64``: the id where the row is missing, ``SKIP_ROW`` where it was copied.
        """
        if self.has_kernel:
            from tiercast_runtime.cache_kernel import launch_lookup

            missing = launch_lookup(self, ids, out, self._clock)
        else:
            missing = self._lookup(ids, out)
        self._clock += len(ids)
        self.num_lookups += len(ids)
        return missing

    def _lookup(self, ids: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        members = self._members(self._sets(ids))
        # An empty way's tag is 0, as that of id -1 would be.
        is_match = (self.tags[members] == (ids + 1)[:, None]) & (ids >= 0)[:, None]
        is_hit = is_match.any(dim=1)
        slots = members.gather(1, is_match.to(torch.int8).argmax(dim=1, keepdim=True))[:, 0]
        out.copy_(torch.where(is_hit[:, None], self.rows[slots], out))
        if self.policy != "static_hot":
            slots = torch.where(is_hit, slots, self.num_slots)
            now = self._clock + torch.arange(len(ids), device=ids.device)
            uses: torch.Tensor | int = 1
            if self.policy == "lfu":
                uses = torch.clamp(self.stamps[slots] // ONE_USE + 1, max=MAX_USES)
            # Of an id that comes twice the later use counts, whichever is written first.
            self.stamps.scatter_reduce_(0, slots, uses * ONE_USE + now, "amax")
        self.num_missing += len(ids) - is_hit.sum()
        return torch.where(is_hit, SKIP_ROW, ids)

    def insert(self, missing: torch.Tensor, rows: torch.Tensor) -> None:
        """Keep the rows that a lookup missed, in order of their ids; the last is the youngest.

        Args:
            missing: ``[n] int64``, what the lookup gave.
            rows: ``[n, row_bytes] uint8``, all of them gathered by now; only those of missing ids are read.
        """
        if self.policy == "static_hot" or not len(missing):
            return
        ids, by_id = torch.sort(missing, stable=True)
        is_new = ids >= 0
        is_new[1:] &= ids[1:] != ids[:-1]
        # The NumPy form numbers the distinct missing rows only; so do these stamps.
        number = torch.cumsum(is_new, dim=0) - 1
        sets, order = torch.sort(torch.where(is_new, self._sets(ids), self.num_sets), stable=True)
        position = torch.arange(len(ids), device=ids.device)
        first, end = torch.searchsorted(sets, sets), torch.searchsorted(sets, sets, right=True)
        members = self._members(torch.clamp(sets, max=self.num_sets - 1))
        stamps = self.stamps[members]
        num_given: torch.Tensor | int = self.num_ways
        if self.policy == "lfu":
            num_given = (stamps < 2 * ONE_USE).sum(dim=1).clamp_(min=1)
        rank = position - torch.maximum(first, end - num_given)
        is_kept = (rank >= 0) & (sets < self.num_sets)
        first_to_leave = torch.argsort(stamps, dim=1, stable=True)
        chosen = first_to_leave.gather(1, rank.clamp(0, self.num_ways - 1)[:, None])
        slots = torch.where(is_kept, members.gather(1, chosen)[:, 0], self.num_slots)
        self._num_evictions += (is_kept & (self.tags[slots] != 0)).sum()
        self.tags[slots] = ids[order] + 1
        self.stamps[slots] = ONE_USE + self._clock + number[order]
        self.rows[slots] = rows[by_id[order]]
        self._clock += len(ids)

    def fill(self, ids: Int64Array, read: Callable[[Int64Array], npt.NDArray[np.uint8]]) -> int:
        """Fill an empty cache, hottest row first, as ``cache.RowCache.fill`` does."""
        kept, slots = hot_places(ids, self.num_slots, self.num_ways)
        places = torch.from_numpy(slots).to(self.tags.device)
        for first in range(0, len(kept), _FILL_ROWS):
            part = slice(first, first + _FILL_ROWS)
            self.rows[places[part]] = torch.from_numpy(read(kept[part])).to(self.rows.device)
        self.tags[places] = torch.from_numpy(kept + 1).to(self.tags.device)
        self.stamps[places] = ONE_USE
        return len(kept)

    def clear(self) -> None:
        """Forget every row and every count."""
        for tensor in (self.tags, self.stamps, self.num_missing, self._num_evictions):
            tensor.zero_()
        self._clock = 1
        self.num_lookups = 0

    def _sets(self, ids: torch.Tensor) -> torch.Tensor:
        return ((ids * HASH_FACTOR >> HASH_SHIFT) & HASH_MASK) % self.num_sets

    def _members(self, sets: torch.Tensor) -> torch.Tensor:
        """Slots ``[n, ways]`` of sets ``[n]``."""
        return sets[:, None] * self.num_ways + self._ways
