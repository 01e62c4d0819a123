"""From measured points to the parameters of a lookup curve.

The curve is ``fixed + n × max(row, moved bytes ÷ bandwidth)``. Small rows cost a time each, large rows their bytes; the
size between the two is searched, and on either side the curve is linear, so non-negative least squares fit it. Errors
count relative to the measured time: a microsecond matters at ten and not at ten thousand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from tiercast_profiles.document import Bound, Quantity
from tiercast_profiles.hardware import LookupPoint
from tiercast_profiles.units import GB, NS_PER_S, NS_PER_US
from tiercast_runtime.probes.timing import rounded

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CurveParameters:
    """The fitted curve; ``residual_ratio`` is the root mean square of (fitted − measured) ÷ measured."""

    fixed_us: float
    row_ns: float
    bandwidth_gb_per_s: float
    residual_ratio: float

    def time_us(self, num_rows: float, moved_bytes: float) -> float:
        """Time of a lookup by the curve."""
        per_row_ns = max(self.row_ns, moved_bytes / (self.bandwidth_gb_per_s * GB) * NS_PER_S)
        return self.fixed_us + num_rows * per_row_ns / NS_PER_US


def non_negative_least_squares(matrix: FloatArray, target: FloatArray) -> FloatArray:
    """The ``x ≥ 0`` that minimises ``|matrix · x − target|``, for a few columns: every set of columns is tried."""
    num_columns = matrix.shape[1]
    best, best_error = np.zeros(num_columns), float(target @ target)
    for size in range(1, num_columns + 1):
        for columns in combinations(range(num_columns), size):
            part, *_ = np.linalg.lstsq(matrix[:, columns], target, rcond=None)
            if np.any(part < 0):
                continue
            error = float(np.sum((matrix[:, columns] @ part - target) ** 2))
            if error < best_error:
                best, best_error = np.zeros(num_columns), error
                best[list(columns)] = part
    return best


def fit_curve(
    points: Sequence[LookupPoint], granularity_bytes: int, fastest_gb_per_s: float, bound: Bound = "nominal"
) -> CurveParameters:
    """The curve nearest to the points.

    Args:
        points: at least one.
        granularity_bytes: rows are moved in whole blocks of it.
        fastest_gb_per_s: the bandwidth where the points show none, because no row was large enough: what the tier
            reaches with large reads.
        bound: fit the medians (``nominal``) or the lower or upper quartiles.
    """
    rows = np.array([point.num_rows for point in points], dtype=np.float64)
    moved = np.array([-(-p.row_bytes // granularity_bytes) * granularity_bytes for p in points], dtype=np.float64)
    times = np.array([_time_us(point, bound) for point in points])
    sizes = sorted(set(moved.tolist()))
    fits = []
    for largest_small in [*reversed(sizes), 0.0]:  # where sizes cannot tell the two apart, the time is the row's
        is_small = moved <= largest_small
        columns = [np.ones_like(rows), rows * is_small, rows * moved * ~is_small]
        matrix = np.stack(columns, axis=1) / times[:, None]
        fixed, row_us, byte_us = non_negative_least_squares(matrix, np.ones_like(times))
        bandwidth = min(fastest_gb_per_s, 1 / byte_us * NS_PER_S / NS_PER_US / GB) if byte_us > 0 else fastest_gb_per_s
        fits.append(_scored(fixed, row_us * NS_PER_US, bandwidth, rows=rows, moved=moved, times=times))
    best = min(fit.residual_ratio for fit in fits)
    return next(fit for fit in fits if fit.residual_ratio <= best * (1 + 1e-6) + 1e-12)


def as_quantities(
    points: Sequence[LookupPoint], granularity_bytes: int, fastest_gb_per_s: float
) -> tuple[CurveParameters, dict[str, Quantity]]:
    """The fit to the medians, and each parameter with the band that the fits to the quartiles span."""
    bounds: tuple[Bound, ...] = ("nominal", "optimistic", "pessimistic")
    fits = [fit_curve(points, granularity_bytes, fastest_gb_per_s, bound) for bound in bounds]
    quantities = {}
    for name in ("fixed_us", "row_ns", "bandwidth_gb_per_s"):
        values = [rounded(getattr(fit, name)) for fit in fits]
        quantities[name] = Quantity(value=values[0], low=min(values), high=max(values))
    return fits[0], quantities


def _scored(
    fixed_us: float, row_ns: float, bandwidth: float, *, rows: FloatArray, moved: FloatArray, times: FloatArray
) -> CurveParameters:
    per_row_us = np.maximum(row_ns, moved / (bandwidth * GB) * NS_PER_S) / NS_PER_US
    errors = (fixed_us + rows * per_row_us) / times - 1
    return CurveParameters(float(fixed_us), float(row_ns), float(bandwidth), float(np.sqrt(np.mean(errors**2))))


def _time_us(point: LookupPoint, bound: Bound) -> float:
    return {"nominal": point.time_us, "optimistic": point.low_us, "pessimistic": point.high_us}[bound]
