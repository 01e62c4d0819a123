"""What a cache of rows in host memory takes of a lookup that the host makes, beside reading the rows it lacks."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from tiercast_profiles.document import Bound, Quantity
from tiercast_profiles.hardware import HOST_DRIVEN_PATHS, HostCachePoint
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import NS_PER_US
from tiercast_sim.checked import non_negative


@dataclass(frozen=True, slots=True)
class HostCacheTimes:
    """Times at one bound, of rows of the size nearest to the scenario's.

    Assumption A108: of a lookup of n rows those that are missing take their share of looking for n rows none of which
    is there, and those that are there their share of a lookup of n that all are; the missing ones are then kept, but
    not by a cache that keeps what it was given (``static_hot``). The host asks for each row once, and the size of the
    cache does not matter. Linear between the sizes that were timed, held below the first, and
    beyond the last with the slope of the last two.
    """

    num_rows: tuple[int, ...]
    find_points_ns: tuple[float, ...]
    keep_points_ns: tuple[float, ...]
    hit_points_ns: tuple[float, ...]
    keeps: bool

    @classmethod
    def of(cls, resolved: ResolvedScenario, bound: Bound) -> Self | None:
        """Those of the scenario's cache; None where it has none that the host keeps, or the profile has no times."""
        placement, known = resolved.placement, resolved.hardware.host_cache
        if placement.cache_gib <= 0 or placement.path not in HOST_DRIVEN_PATHS or not known:
            return None
        wanted = resolved.model.engram.row_bytes
        nearest = min({point.row_bytes for point in known}, key=lambda size: (abs(size - wanted), size))
        by_rows = {point.num_rows: point for point in known if point.row_bytes == nearest}
        points: list[HostCachePoint] = [by_rows[num_rows] for num_rows in sorted(by_rows)]

        def times_ns(name: str, found: list[Quantity]) -> tuple[float, ...]:
            return tuple(non_negative(each, bound, f"host_cache {name}") * NS_PER_US for each in found)

        return cls(
            tuple(point.num_rows for point in points),
            times_ns("find_us", [point.find_us for point in points]),
            times_ns("keep_us", [point.keep_us for point in points]),
            times_ns("hit_us", [point.hit_us for point in points]),
            placement.cache_policy != "static_hot",
        )

    def time_ns(self, num_missing: int, num_hits: int) -> float:
        """What it takes of a lookup of so many rows."""
        num_rows = num_missing + num_hits
        if num_rows == 0:
            return 0.0
        find_ns, hit_ns = self._at(num_rows, self.find_points_ns), self._at(num_rows, self.hit_points_ns)
        keep_ns = self._at(num_missing, self.keep_points_ns) if num_missing and self.keeps else 0.0
        return (num_missing * find_ns + num_hits * hit_ns) / num_rows + keep_ns

    def _at(self, num_rows: int, times_ns: tuple[float, ...]) -> float:
        rows = self.num_rows
        beyond = num_rows - rows[-1]
        if beyond <= 0 or len(rows) == 1:
            return float(np.interp(num_rows, rows, times_ns))
        slope = (times_ns[-1] - times_ns[-2]) / (rows[-1] - rows[-2])
        return times_ns[-1] + beyond * max(0.0, slope)  # more rows take no less, whatever noise says
