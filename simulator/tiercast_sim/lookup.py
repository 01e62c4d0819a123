"""How long one device, alone on the machine, needs to fetch ``n`` rows: a measured curve, or its parameters."""

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

from tiercast_profiles.document import Bound
from tiercast_profiles.hardware import LookupCurve, LookupPoint
from tiercast_profiles.model import Engram, RowLayout
from tiercast_profiles.units import GB, NS_PER_S, NS_PER_US
from tiercast_sim.checked import non_negative, positive


def row_pieces(engram: Engram, layout: RowLayout) -> tuple[int, ...]:
    """Bytes of the separate reads one row takes: values and scales apart in the ``split`` layout, else one."""
    if layout == "split" and engram.scale_bytes > 0:
        return (engram.value_bytes, engram.scale_bytes)
    return (engram.stored_row_bytes(layout),)


def bytes_moved(piece_bytes: int, granularity_bytes: int) -> int:
    """Bytes a read of ``piece_bytes`` really moves: whole units of the tier's read granularity."""
    return -(-piece_bytes // granularity_bytes) * granularity_bytes


@dataclass(frozen=True, slots=True)
class _Series:
    """Points of one row size, ascending in rows."""

    row_bytes: int
    num_rows: tuple[int, ...]
    time_ns: tuple[float, ...]


class CurveTimes:
    """Times of one lookup curve at one bound, for tables of one footprint.

    Between measured points times are linear in rows and in row bytes. Beyond the last point they grow by the curve's
    parameters; below the first they fall linearly to ``fixed_us``; rows smaller than any measured take the time of
    the smallest measured (Assumption A19).
    """

    def __init__(self, curve: LookupCurve, bound: Bound, footprint_bytes: int) -> None:
        label = f"lookups {curve.tier}/{curve.path}"
        self.curve = curve
        self.fixed_ns = non_negative(curve.fixed_us, bound, f"{label} fixed_us") * NS_PER_US
        self._row_ns = non_negative(curve.row_ns, bound, f"{label} row_ns")
        self._bytes_per_ns = positive(curve.bandwidth_gb_per_s, bound, f"{label} bandwidth_gb_per_s") * GB / NS_PER_S
        self._series = _series(curve.points, bound, footprint_bytes)
        self.largest_rows = max((point.num_rows for point in curve.points), default=None)
        self.largest_footprint_bytes = max((point.footprint_bytes for point in curve.points), default=None)

    def per_row_ns(self, piece_bytes: int) -> float:
        """Time each further row takes by the parameters."""
        moved = bytes_moved(piece_bytes, self.curve.read_granularity_bytes)
        return max(self._row_ns, moved / self._bytes_per_ns)

    def time_ns(self, num_rows: float, pieces: tuple[int, ...]) -> float:
        """Time of a lookup of ``num_rows`` rows that take these separate reads; the fixed time is paid once."""
        if num_rows <= 0:
            return 0.0
        times = [self._piece_ns(num_rows, piece) for piece in pieces]
        return times[0] + sum(max(0.0, time - self.fixed_ns) for time in times[1:])

    def _piece_ns(self, num_rows: float, piece_bytes: int) -> float:
        if not self._series:
            return self.fixed_ns + num_rows * self.per_row_ns(piece_bytes)
        sizes = [series.row_bytes for series in self._series]
        above = bisect_left(sizes, piece_bytes)
        if above == len(sizes):
            last = self._series[-1]
            extra_ns = self.per_row_ns(piece_bytes) - self.per_row_ns(last.row_bytes)
            return self._series_ns(last, num_rows) + num_rows * extra_ns
        if above == 0 or sizes[above] == piece_bytes:
            return self._series_ns(self._series[above], num_rows)
        low, high = self._series[above - 1], self._series[above]
        share = (piece_bytes - low.row_bytes) / (high.row_bytes - low.row_bytes)
        below_ns = self._series_ns(low, num_rows)
        return below_ns + share * (self._series_ns(high, num_rows) - below_ns)

    def _series_ns(self, series: _Series, num_rows: float) -> float:
        rows, times = series.num_rows, series.time_ns
        above = bisect_left(rows, num_rows)
        if above == len(rows):
            return times[-1] + (num_rows - rows[-1]) * self.per_row_ns(series.row_bytes)
        if above == 0:
            start_ns = min(self.fixed_ns, times[0])
            return start_ns + (times[0] - start_ns) * num_rows / rows[0]
        share = (num_rows - rows[above - 1]) / (rows[above] - rows[above - 1])
        return times[above - 1] + share * (times[above] - times[above - 1])


@lru_cache(maxsize=64)
def _series(points: tuple[LookupPoint, ...], bound: Bound, footprint_bytes: int) -> tuple[_Series, ...]:
    # Of each row size the sweep over the nearest footprint: two sweeps mixed would bend the curve where they alternate.
    footprints: dict[int, int] = {}
    for point in sorted(points, key=lambda point: _distance(point, footprint_bytes)):
        footprints.setdefault(point.row_bytes, point.footprint_bytes)
    nearest = {
        (point.row_bytes, point.num_rows): point
        for point in points
        if point.footprint_bytes == footprints[point.row_bytes]
    }
    series = []
    for row_bytes in sorted({key[0] for key in nearest}):
        rows = sorted(key[1] for key in nearest if key[0] == row_bytes)
        times = tuple(_point_us(nearest[row_bytes, n], bound) * NS_PER_US for n in rows)
        series.append(_Series(row_bytes, tuple(rows), times))
    return tuple(series)


def _distance(point: LookupPoint, footprint_bytes: int) -> float:
    return abs(math.log(point.footprint_bytes / max(1, footprint_bytes)))


def _point_us(point: LookupPoint, bound: Bound) -> float:
    return {"nominal": point.time_us, "optimistic": point.low_us, "pessimistic": point.high_us}[bound]
