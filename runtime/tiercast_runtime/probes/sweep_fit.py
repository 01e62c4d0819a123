"""The physical model of a sweep, fitted in the logarithm of time with a robust loss: own Levenberg-Marquardt.

An error of a tenth counts as much at ten microseconds as at ten milliseconds, and a point that a neighbour of this
machine disturbed pulls with a bounded force (Huber). Parameters are fitted as logarithms, so that none turns negative,
and held weakly to where they start, so that one the points say nothing of stays there instead of running away. SciPy
would do the same; a dozen parameters do not need it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiercast_profiles.gather import (
    FILL_ROWS,
    LINE_BYTES,
    WINDOW_BYTES,
    GatherModel,
    GatherPoint,
    GatherScore,
    is_unaligned,
    pages_of,
    requests_of,
    spilled,
)
from tiercast_profiles.quantiles import quantile
from tiercast_profiles.units import MIB
from tiercast_runtime.probes.timing import rounded

FloatArray = npt.NDArray[np.float64]

REQUEST_BYTES = (32, 64, 128, 256)  # a GPU's, whose requests are not known to be lines
HUBER_RATIO = 0.05
OVERLAP_POWER = 3.0  # between the sum and the longer one: held, since the footprints cannot tell it from the reaches
ANCHOR = 0.003  # pull towards the start, per factor e
MIN_POINTS = 16
NUM_STEPS = 200
LEAST_GAIN = 1e-6  # of the loss, by one step; below it points tell nothing more apart
STARTS = {
    "call_us": 1.0,
    "row_ns": 4.0,
    "request_ns": 15.0,
    "byte_ns": 0.05,
    "num_run_requests": 8.0,
    "memory_ratio": 0.4,
    "cache_reach_bytes": 128.0 * MIB,
    "walk_ns": 15.0,
    "translation_reach_bytes": 512.0 * MIB,
}
DEVICE_STARTS = {"last_read_ns": 200.0}
HOST_STARTS, SPILL_STARTS = {"num_first_walks": 7.0}, {"spilled_row_ns": 20.0}
EXTRA_STARTS = {"unaligned_row_ns": 10.0, "piece_row_ns": 20.0, "piece_call_us": 1.0, "num_workers_max": 256.0}


@dataclass(frozen=True, slots=True)
class FittedSweep:
    """Points with their residuals, the model and its score."""

    points: tuple[GatherPoint, ...]
    model: GatherModel | None
    score: GatherScore | None


def fit_sweep(
    points: Sequence[GatherPoint],
    num_distinct_rows: int | None = None,
    *,
    is_host: bool = False,
    core_cache_bytes: int | None = None,
) -> FittedSweep:
    """Fit the points that are not held out and score those that are.

    ``core_cache_bytes`` is a host's cache that each core has for itself, of which half holds what is written and half
    what is read; where it is not known no row waits for its place. A host's requests are lines: other sizes fitted no
    better.

    Errors are of stable points, or where most are unstable of all, and the score says so. Unstable points are fitted
    too: they are most where rows come from memory, and a median of samples that scatter is worth more than no point
    (left out, held-out errors at the 90th percentile were 13.8 % instead of 12.0, cross-validated on fitted points of
    sixteen sweeps). Too few points give no model.
    """
    stable = [point for point in points if not point.is_unstable]
    is_unsteady = 2 * len(stable) < len(points)
    scored = list(points) if is_unsteady else stable
    fitted = [point for point in points if not point.is_held_out]
    held = [point for point in scored if point.is_held_out]
    if len(fitted) < MIN_POINTS:
        return FittedSweep(tuple(points), None, None)
    write_reach = None if core_cache_bytes is None else core_cache_bytes / 2
    sizes = (LINE_BYTES,) if is_host else REQUEST_BYTES
    starts = STARTS | _starts_of(is_host=is_host, write_reach_bytes=write_reach) | _extra_starts(fitted)
    models = [_fit(fitted, size, num_distinct_rows, starts, write_reach) for size in sizes]
    model = min(models, key=lambda one: _loss(one, fitted))
    told = [point for point in scored if not point.is_held_out] or fitted
    inside = [abs(_residual(model, point)) for point in told]
    outside = [abs(_residual(model, point)) for point in held]
    score = GatherScore(
        num_fitted=len(fitted),
        num_held_out=len(held),
        num_unused=len(points) - len(fitted) - len(held),
        fitted_median_ratio=rounded(quantile(inside, 0.5)),
        fitted_p90_ratio=rounded(quantile(inside, 0.9)),
        held_out_median_ratio=rounded(quantile(outside, 0.5)) if outside else None,
        held_out_p90_ratio=rounded(quantile(outside, 0.9)) if outside else None,
        is_unstable=is_unsteady,
    )
    marked = tuple(p.model_copy(update={"residual_ratio": rounded(_residual(model, p))}) for p in points)
    return FittedSweep(marked, model, score)


def least_squares(
    residuals: Callable[[FloatArray], FloatArray], start: FloatArray, num_steps: int = NUM_STEPS
) -> FloatArray:
    """The ``x`` near ``start`` with the least Huber loss of ``residuals(x)``; derivatives by differences."""
    x, damping = start, 1e-2
    now = residuals(x)
    loss = _huber(now)
    for _ in range(num_steps):
        step_size = 1e-5
        columns = [(residuals(x + step_size * unit) - now) / step_size for unit in np.eye(len(x))]
        jacobian = np.stack(columns, axis=1)
        weights = np.minimum(1.0, HUBER_RATIO / np.maximum(np.abs(now), 1e-12))
        normal = jacobian.T @ (weights[:, None] * jacobian)
        slope = jacobian.T @ (weights * now)
        before = loss
        while damping < 1e9:
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-9), -slope)
            tried = residuals(x + np.clip(step, -2, 2))
            if _huber(tried) < loss:
                x, now, loss, damping = x + np.clip(step, -2, 2), tried, _huber(tried), max(damping / 3, 1e-9)
                break
            damping *= 4
        if before - loss <= LEAST_GAIN * before:
            break
    return x


def _huber(residuals: FloatArray) -> float:
    size = np.abs(residuals)
    return float(np.sum(np.where(size <= HUBER_RATIO, size**2, HUBER_RATIO * (2 * size - HUBER_RATIO))))


def _fit(
    points: Sequence[GatherPoint],
    request_bytes: int,
    num_distinct_rows: int | None,
    starts: Mapping[str, float],
    write_reach_bytes: float | None,
) -> GatherModel:
    """The best model with requests of this size, its parameters near ``starts``."""
    names = list(starts)
    start = np.log(np.array([starts[name] for name in names]))
    columns = _Columns.of(points, request_bytes, num_distinct_rows, write_reach_bytes)
    measured = np.log(np.array([point.time_us for point in points]))

    def residuals(x: FloatArray) -> FloatArray:
        predicted = columns.time_us(dict(zip(names, np.exp(x), strict=True)))
        return np.concatenate([np.log(predicted) - measured, ANCHOR * (x - start)])

    found = np.exp(least_squares(residuals, start))
    values = {name: rounded(float(value)) for name, value in zip(names, found, strict=True)}
    held = {"overlap_power": OVERLAP_POWER, "write_reach_bytes": write_reach_bytes}
    return GatherModel(request_bytes=request_bytes, num_distinct_rows=num_distinct_rows, **held, **values)


def _starts_of(*, is_host: bool, write_reach_bytes: float | None) -> dict[str, float]:
    """The parameters that hosts and GPUs do not share."""
    if not is_host:
        return DEVICE_STARTS
    return HOST_STARTS if write_reach_bytes is None else HOST_STARTS | SPILL_STARTS


def _extra_starts(points: Sequence[GatherPoint]) -> dict[str, float]:
    """The parameters that only some points can tell: left out where none does."""
    told = set()
    if any(is_unaligned(size) for point in points for size in point.piece_bytes):
        told.add("unaligned_row_ns")
    if any(len(point.piece_bytes) > 1 for point in points):
        told |= {"piece_row_ns", "piece_call_us"}
    if len({point.num_workers for point in points}) > 1:
        told.add("num_workers_max")
    return {name: value for name, value in EXTRA_STARTS.items() if name in told}


def _residual(model: GatherModel, point: GatherPoint) -> float:
    where = (point.piece_bytes, point.footprint_bytes, point.num_rows, point.num_workers)
    return model.time_us(*where, point.unique_row_ratio) / point.time_us - 1


def _loss(model: GatherModel, points: Sequence[GatherPoint]) -> float:
    return _huber(np.log1p(np.array([_residual(model, point) for point in points])))


@dataclass(frozen=True, slots=True)
class _Columns:
    """The points as arrays: the model of one point, ``GatherModel.time_us``, for all of them at once.

    ``[points, pieces]``, padded with pieces of no bytes, or ``[points]``. ``footprint`` and ``cached`` are those of
    each piece's own table.
    """

    sizes: FloatArray
    requests: FloatArray
    pages: FloatArray
    footprint: FloatArray
    cached: FloatArray
    unaligned: FloatArray
    extra_pieces: FloatArray
    rows: FloatArray
    unique: FloatArray
    workers: FloatArray
    spilled: FloatArray

    @classmethod
    def of(
        cls,
        points: Sequence[GatherPoint],
        request_bytes: int,
        num_distinct_rows: int | None,
        write_reach_bytes: float | None,
    ) -> "_Columns":
        width = max(len(point.piece_bytes) for point in points)

        def padded(value: Callable[[int], float]) -> FloatArray:
            rows = [[value(size) for size in p.piece_bytes] + [0.0] * (width - len(p.piece_bytes)) for p in points]
            return np.array(rows)

        requests, pages = padded(lambda size: requests_of(size, request_bytes)), padded(pages_of)
        footprint = np.array([[float(point.footprint_bytes)] for point in points])
        footprint = footprint * padded(float) / np.array([[float(sum(point.piece_bytes))] for point in points])
        most = np.inf if num_distinct_rows is None else num_distinct_rows
        reach = np.inf if write_reach_bytes is None else write_reach_bytes
        return cls(
            sizes=padded(float),
            requests=requests,
            pages=pages,
            footprint=footprint,
            cached=np.minimum(footprint, most * np.maximum(requests, 1) * request_bytes),
            unaligned=padded(lambda size: float(is_unaligned(size))).sum(axis=1),
            extra_pieces=np.array([len(point.piece_bytes) - 1.0 for point in points]),
            rows=np.array([float(point.num_rows) for point in points]),
            unique=np.array([point.unique_row_ratio for point in points]),
            workers=np.array([float(point.num_workers) for point in points]),
            spilled=np.array([spilled(p.num_rows * sum(p.piece_bytes) / p.num_workers, reach) for p in points]),
        )

    def time_us(self, p: dict[str, float]) -> FloatArray:
        far = self.cached / (self.cached + p["cache_reach_bytes"])
        walk = p["walk_ns"] * self.footprint / (self.footprint + p["translation_reach_bytes"])
        first = p.get("num_first_walks", 0.0) * (walk * (1 + self.sizes / WINDOW_BYTES)).sum(axis=1)
        row = self.unique * self._row_ns(p, walk, far) + (1 - self.unique) * self._row_ns(p, 0.0 * walk, 0.0 * far)
        row = row + p.get("unaligned_row_ns", 0.0) * self.unaligned + p.get("piece_row_ns", 0.0) * self.extra_pieces
        row = row + p.get("spilled_row_ns", 0.0) * self.spilled
        speedup = 1.0 if "num_workers_max" not in p else 1 / np.hypot(1 / self.workers, 1 / p["num_workers_max"])
        calls = p["call_us"] + p.get("piece_call_us", 0.0) * self.extra_pieces
        waiting = p.get("last_read_ns", 0.0) * far[:, 0] + first * self.rows / (self.rows + FILL_ROWS)
        return np.asarray(calls + (waiting + self.rows * row / speedup) / 1e3)

    def _row_ns(self, p: dict[str, float], walk: FloatArray, far: FloatArray) -> FloatArray:
        """A row where a walk takes ``walk`` ns and ``far`` of its requests go to memory, ``[points, 1]`` each."""
        run = p["num_run_requests"] * np.tanh(self.requests / p["num_run_requests"])
        finding = (p["row_ns"] + walk * self.pages) * (self.sizes > 0)
        moving = (run * p["request_ns"] + self.sizes * p["byte_ns"]) * (1 + p["memory_ratio"] * far)
        both = (finding**OVERLAP_POWER + moving**OVERLAP_POWER) ** (1 / OVERLAP_POWER)
        return np.asarray(both.sum(axis=1))
