"""What share of its peaks a device reaches in decoder layers, and what each layer costs beside: fitted to layer times.

Three numbers say how a measured machine computes: the share of peak arithmetic, the share of memory bandwidth, and the
fixed time of a layer. They carry over to a machine of which only the datasheet is known
(:func:`tiercast_profiles.transfer.transfer`), where times in microseconds do not.

Assumption A90: one layer takes ``max(F ÷ aP, B ÷ bW)`` for its products, the same for its attention, and a fixed time:
Assumption A1 with the shares a and b as unknowns. The fit is by search and not by slopes, because a maximum has kinks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiercast_profiles.document import Bound, Quantity
from tiercast_profiles.hardware import ComputeTable, Efficiency
from tiercast_profiles.model import BYTES_PER_VALUE, Backbone, Precision
from tiercast_profiles.quantiles import median
from tiercast_profiles.units import GB, TERA

FloatArray = npt.NDArray[np.float64]

MIN_POINTS = 4
LEAST_SHARE = 0.005
GRID_STEPS, NUM_ZOOMS, ZOOM = 17, 9, 0.4
SIGNIFICANT_DIGITS = 4


@dataclass(frozen=True, slots=True)
class _Peaks:
    """What the shares are of: operations and bytes per µs."""

    flop_per_us: float
    byte_per_us: float


@dataclass(frozen=True, slots=True)
class LayerWork:
    """One decoder layer in one step: operations and bytes of its products and of its attention."""

    linear_flops: float
    linear_bytes: float
    attention_flops: float
    attention_bytes: float


def layer_work(
    backbone: Backbone, precision: Precision, num_tokens: int, num_pairs: float, kv_tokens: float
) -> LayerWork:
    """Work of a layer of a dense backbone for ``num_tokens``.

    Args:
        backbone: without experts.
        precision: of weights and activations as they were computed.
        num_tokens: tokens in the step.
        num_pairs: (query, key) pairs of its attention.
        kv_tokens: cached tokens that its attention reads.
    """
    value_bytes = BYTES_PER_VALUE[precision]
    params = backbone.active_params_prefill / backbone.num_prefill_layers
    stream = 4 * num_tokens * backbone.hidden_size * backbone.num_branches * value_bytes
    return LayerWork(
        linear_flops=2 * params * num_tokens,
        linear_bytes=params * value_bytes + stream,
        attention_flops=4 * backbone.num_attention_heads * backbone.head_dim * num_pairs,
        attention_bytes=kv_tokens * 2 * backbone.num_kv_heads * backbone.head_dim * value_bytes,
    )


def layer_points(
    table: ComputeTable, backbone: Backbone, precision: Precision, bound: Bound
) -> list[tuple[LayerWork, float]]:
    """Every layer that the table tells whole: work and time in µs, of its products and its attention together."""
    linear = {point.num_tokens: point.alone_us(bound) for point in table.components.get("linear", ())}
    found = []
    for point in table.components.get("attention_decode", ()):
        count, seen = point.num_tokens, point.num_tokens * max(1, point.context_tokens)
        if count in linear:
            work = layer_work(backbone, precision, count, seen, seen)
            found.append((work, linear[count] + point.alone_us(bound)))
    for point in table.components.get("attention_prefill", ()):
        count, end = point.num_tokens, point.context_tokens + point.num_tokens
        if count in linear:
            pairs = (end * (end + 1) - point.context_tokens * (point.context_tokens + 1)) / 2
            work = layer_work(backbone, precision, count, pairs, end)
            found.append((work, linear[count] + point.alone_us(bound)))
    return found


def fit_efficiency(
    table: ComputeTable,
    backbone: Backbone,
    precision: Precision,
    peak_tflops: float,
    memory_gb_per_s: float,
) -> Efficiency | None:
    """Shares of these peaks and the fixed time of a layer, with bands; None where too few layers were measured whole.

    A band spans the fits to medians and to both quartiles, widened by the median miss of the fit.
    """
    bounds: tuple[Bound, ...] = ("nominal", "optimistic", "pessimistic")
    points = [layer_points(table, backbone, precision, bound) for bound in bounds]
    if len(points[0]) < MIN_POINTS or any(time_us <= 0 for side in points for _, time_us in side):
        return None
    peaks = _Peaks(peak_tflops * TERA / 1e6, memory_gb_per_s * GB / 1e6)
    fits = [_fit(side, peaks) for side in points]
    miss = median([abs(ratio - 1) for ratio in _fitted_over_measured(fits[0], points[0], peaks)])
    overheads = table.components.get("step_overhead", ())
    if not overheads:
        return None
    middle = overheads[len(overheads) // 2]
    return Efficiency(
        model_name=table.model_name,
        graph_mode=table.graph_mode,
        precision=precision,
        num_points=len(points[0]),
        residual_ratio=_rounded(miss),
        arithmetic_ratio=_band([fit[0] for fit in fits], miss, most=1.0),
        memory_ratio=_band([fit[1] for fit in fits], miss, most=1.0),
        layer_overhead_us=_band([fit[2] for fit in fits], miss),
        step_overhead_us=Quantity(
            value=middle.time_us,
            low=min(point.low_us for point in overheads),
            high=max(point.high_us for point in overheads),
        ),
    )


def _fit(points: Sequence[tuple[LayerWork, float]], peaks: _Peaks) -> tuple[float, float, float]:
    """Share of arithmetic, share of bandwidth, overhead in µs: least mean |log error|, on a grid that is zoomed into.

    An overhead lies between nothing and the fastest layer.
    """
    measured = np.array([time_us for _, time_us in points])
    low = np.array([np.log(LEAST_SHARE), np.log(LEAST_SHARE), 0.0])
    high = np.array([0.0, 0.0, float(measured.min())])
    first_low, first_high = low.copy(), high.copy()
    best = high
    for _ in range(NUM_ZOOMS):
        axes = [np.linspace(a, b, GRID_STEPS) for a, b in zip(low, high, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        times = _times_us(points, np.exp(grid[:, :2]), grid[:, 2], peaks)
        losses = np.abs(np.log(times / measured)).mean(axis=1)
        best = grid[int(np.argmin(losses))]
        half = (high - low) * ZOOM / 2
        low, high = np.maximum(first_low, best - half), np.minimum(first_high, best + half)
    return float(np.exp(best[0])), float(np.exp(best[1])), float(best[2])


def _times_us(
    points: Sequence[tuple[LayerWork, float]], shares: FloatArray, overhead_us: FloatArray, peaks: _Peaks
) -> FloatArray:
    """Times ``[candidates, points]`` at ``shares [candidates, 2]`` and ``overhead_us [candidates]``."""
    flop_per_us, byte_per_us = (shares[:, :1] * peaks.flop_per_us), (shares[:, 1:] * peaks.byte_per_us)
    work = np.array([[w.linear_flops, w.linear_bytes, w.attention_flops, w.attention_bytes] for w, _ in points])
    linear = np.maximum(work[:, 0] / flop_per_us, work[:, 1] / byte_per_us)
    attention = np.maximum(work[:, 2] / flop_per_us, work[:, 3] / byte_per_us)
    total: FloatArray = linear + attention + overhead_us[:, None]
    return total


def _fitted_over_measured(
    fit: tuple[float, float, float], points: Sequence[tuple[LayerWork, float]], peaks: _Peaks
) -> list[float]:
    times = _times_us(points, np.array([fit[:2]]), np.array([fit[2]]), peaks)[0]
    return [float(time / measured) for time, (_, measured) in zip(times, points, strict=True)]


def _band(values: Sequence[float], miss: float, most: float = np.inf) -> Quantity:
    low, high = min(values) / (1 + miss), min(most, max(values) * (1 + miss))
    return Quantity(
        value=_rounded(values[0]),
        low=min(_rounded(low), _rounded(values[0])),
        high=max(_rounded(high), _rounded(values[0])),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
