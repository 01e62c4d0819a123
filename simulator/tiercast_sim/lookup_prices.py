"""Lookups that depend on token counts alone, as columns: each distinct count is priced once a run."""

from dataclasses import dataclass, fields

import numpy as np

from tiercast_profiles.units import NS_PER_S
from tiercast_sim.count_prices import distinct_of
from tiercast_sim.links import lone_speed
from tiercast_sim.schedule_columns import Column
from tiercast_sim.tiers import LookupCosts
from tiercast_sim.work import SPEED_ONE, LookupWork


@dataclass(frozen=True, slots=True)
class PricedLookups:
    """Lookups of every step, ``[num_layers, num_steps] int64``; ``service_ns`` is their time with nobody beside.

    ``wait_ns`` is how long the worker takes to begin one.
    """

    duration_ns: Column
    speed_alone: Column
    speed_beside: Column
    service_ns: Column
    rows_read: Column
    bytes_per_rank: Column
    taken_ns: Column
    wait_ns: Column


NUM_NUMBERS = len(fields(PricedLookups))


class LookupPrices:
    """Lookups by token count: the first of a step, which waits for its ids, and the others."""

    def __init__(self, lookups: LookupCosts, speed_beside_compute: int) -> None:
        self._lookups = lookups
        self._beside = speed_beside_compute
        self._capacities = lookups.capacities()
        self._works: dict[int, tuple[LookupWork, LookupWork]] = {}
        self._known: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._how_often: dict[int, int] = {}

    def columns(self, num_tokens: Column, num_layers: int) -> PricedLookups:
        """The lookups of steps of so many tokens."""
        distinct, where = distinct_of(num_tokens)
        prices = np.array([self.prices(count) for count in distinct.tolist()], dtype=np.int64)
        found = prices[where]  # [num_steps, first or other, number]
        index = np.minimum(np.arange(num_layers), 1)
        return PricedLookups(*(np.ascontiguousarray(found[:, index, number].T) for number in range(NUM_NUMBERS)))

    def prices(self, num_tokens: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The numbers of :class:`PricedLookups`, of the first lookup and of the others."""
        known = self._known.get(num_tokens)
        if known is None:
            num_rows = num_tokens * self._lookups.rows_per_token
            first = self._lookups.lookup(num_rows, 0, num_tokens)
            rest = self._lookups.lookup(num_rows, 0, 0, is_behind=True)
            self._works[num_tokens] = (first, rest)
            known = self._known[num_tokens] = (self._numbers(first), self._numbers(rest))
        return known

    def count(self, num_tokens: Column) -> None:
        """Note that steps of so many tokens are part of the run."""
        distinct, where = distinct_of(num_tokens)
        for count, times in zip(distinct.tolist(), np.bincount(where).tolist(), strict=True):
            self._how_often[count] = self._how_often.get(count, 0) + times

    def used_units(self, num_layers: int) -> dict[str, float]:
        """Units the lookups of all noted steps take of each shared resource."""
        used = dict.fromkeys(self._capacities, 0.0)
        for count, times in sorted(self._how_often.items()):
            first, rest = self._works[count]
            for work, num_lookups in ((first, times), (rest, times * (num_layers - 1))):
                for resource, units in work.usage:
                    used[resource] += units * work.duration_ns / NS_PER_S * num_lookups
        return used

    def _numbers(self, work: LookupWork) -> tuple[int, ...]:
        # Nobody else on the shared things: a lookup keeps the speed that its own ranks leave each other.
        alone = lone_speed(work.usage, work.rate_bytes_per_s, self._capacities)
        beside = alone
        if alone == SPEED_ONE:  # what it takes from has room for it at full speed, so at a lower one too
            beside = self._beside
        elif self._beside != SPEED_ONE:
            beside = lone_speed(work.usage, work.rate_bytes_per_s, self._capacities, self._beside)
        service_ns = -(-work.duration_ns * SPEED_ONE // alone)
        of_rows = (work.rows_read, work.bytes_per_rank, work.taken_ns, work.wait_ns)
        return (work.duration_ns, alone, beside, service_ns, *of_rows)
