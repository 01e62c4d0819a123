"""The row cache of ``cache`` on a device: the same algorithm in tensor operations that never wait for the device.

Every shape follows from the shapes of the arguments and every choice is a mask: what is not to be written goes to one
spare slot behind the others. Counters stay on the device until they are asked for.
"""

import torch

from tiercast_runtime.cache import DEFAULT_WAYS, HASH_FACTOR, HASH_MASK, HASH_SHIFT, cache_geometry


class TorchRowCache:
    """Least recently used rows of one table in the memory of a device; all calls on one stream.

    Args:
        num_slots: rows it may hold; rounded down to whole sets.
        row_bytes: bytes of a row.
        device: where rows and index live.
        num_ways: rows per set.
    """

    def __init__(self, num_slots: int, row_bytes: int, device: torch.device, *, num_ways: int = DEFAULT_WAYS) -> None:
        self.num_sets, self.num_ways = cache_geometry(num_slots, num_ways)
        self.num_slots = self.num_sets * self.num_ways
        spare = self.num_slots + 1
        self._rows = torch.zeros((spare, row_bytes), dtype=torch.uint8, device=device)
        self._tags = torch.zeros(spare, dtype=torch.int64, device=device)  # row id + 1; 0 is empty
        self._stamps = torch.zeros(spare, dtype=torch.int64, device=device)  # when last used; 0 is never
        self._ways = torch.arange(self.num_ways, device=device)
        self._counters = torch.zeros(2, dtype=torch.int64, device=device)
        self._clock = 1
        self.num_lookups = 0

    @property
    def num_hits(self) -> int:
        """Lookups that found their row; waits for the device."""
        return int(self._counters[0])

    @property
    def num_evictions(self) -> int:
        """Rows that made room for others; waits for the device."""
        return int(self._counters[1])

    def lookup(self, ids: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Copy the rows it has into ``out [n, row_bytes] uint8``; true in ``[n] bool`` where a row is missing.

        ``ids`` is ``[n] int64``.
        """
        members = self._members(self._sets(ids))
        is_match = self._tags[members] == (ids + 1)[:, None]
        is_hit = is_match.any(dim=1)
        slots = members.gather(1, is_match.to(torch.int8).argmax(dim=1, keepdim=True))[:, 0]
        out.copy_(torch.where(is_hit[:, None], self._rows[slots], out))
        stamps = self._clock + torch.arange(len(ids), device=ids.device)
        self._stamps[torch.where(is_hit, slots, self.num_slots)] = stamps
        self._clock += len(ids)
        self.num_lookups += len(ids)
        self._counters[0] += is_hit.sum()
        return ~is_hit

    def insert(self, ids: torch.Tensor, rows: torch.Tensor, is_missing: torch.Tensor) -> None:
        """Keep the rows that a lookup missed, the last of them as the youngest.

        Args:
            ids: ``[n] int64``, ascending and distinct: those of the lookup.
            rows: ``[n, row_bytes] uint8``; only those of missing ids are read.
            is_missing: ``[n] bool``, what the lookup gave.
        """
        # The NumPy form numbers missing rows only; so do these stamps.
        number = torch.cumsum(is_missing, dim=0) - 1
        sets, order = torch.sort(torch.where(is_missing, self._sets(ids), self.num_sets), stable=True)
        position = torch.arange(len(ids), device=ids.device)
        first, end = torch.searchsorted(sets, sets), torch.searchsorted(sets, sets, right=True)
        rank = position - torch.maximum(first, end - self.num_ways)
        is_kept = (rank >= 0) & (sets < self.num_sets)
        members = self._members(torch.clamp(sets, max=self.num_sets - 1))
        oldest_first = torch.argsort(self._stamps[members], dim=1, stable=True)
        chosen = oldest_first.gather(1, rank.clamp(0, self.num_ways - 1)[:, None])
        slots = torch.where(is_kept, members.gather(1, chosen)[:, 0], self.num_slots)
        self._counters[1] += (is_kept & (self._tags[slots] != 0)).sum()
        self._tags[slots] = ids[order] + 1
        self._stamps[slots] = self._clock + number[order]
        self._rows[slots] = rows[order]
        self._clock += len(ids)

    def _sets(self, ids: torch.Tensor) -> torch.Tensor:
        return ((ids * HASH_FACTOR >> HASH_SHIFT) & HASH_MASK) % self.num_sets

    def _members(self, sets: torch.Tensor) -> torch.Tensor:
        """Slots ``[n, ways]`` of sets ``[n]``."""
        return sets[:, None] * self.num_ways + self._ways
