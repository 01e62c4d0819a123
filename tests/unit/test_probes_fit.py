"""Curve parameters from points: known curves are found again, and what points cannot tell is bounded."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.hardware import LookupPoint
from tiercast_runtime.probes.fit import (
    CurveParameters,
    as_quantities,
    fit_curve,
    non_negative_least_squares,
)


def points_of(truth, sizes, rows=(1, 16, 256, 4096), granularity=64, spread=0.0):
    points = []
    for row_bytes in sizes:
        for count in rows:
            time_us = truth.time_us(count, -(-row_bytes // granularity) * granularity)
            points.append(
                LookupPoint(
                    num_rows=count,
                    row_bytes=row_bytes,
                    footprint_bytes=1 << 28,
                    time_us=time_us,
                    low_us=time_us * (1 - spread),
                    high_us=time_us * (1 + spread),
                )
            )
    return points


def test_no_solution_below_zero():
    matrix = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert non_negative_least_squares(matrix, np.array([3.0, 2.0, 1.0])) == pytest.approx([2.0, 0.0])
    assert non_negative_least_squares(matrix, np.array([3.0, 5.0, 7.0])) == pytest.approx([1.0, 2.0])
    assert non_negative_least_squares(matrix, np.array([-1.0, -1.0, -1.0])) == pytest.approx([0.0, 0.0])


def test_a_curve_with_both_regimes_is_found_again():
    truth = CurveParameters(fixed_us=12.0, row_ns=40.0, bandwidth_gb_per_s=8.0, residual_ratio=0.0)
    fit = fit_curve(points_of(truth, (64, 128, 256, 1024, 4096)), 64, 20.0)
    assert (fit.fixed_us, fit.row_ns, fit.bandwidth_gb_per_s) == pytest.approx((12.0, 40.0, 8.0), rel=1e-6)
    assert fit.residual_ratio < 1e-9


def test_one_row_size_leaves_the_bandwidth_to_the_large_reads():
    truth = CurveParameters(fixed_us=500.0, row_ns=20_000.0, bandwidth_gb_per_s=2.0, residual_ratio=0.0)
    fit = fit_curve(points_of(truth, (264,), granularity=512), 512, 2.0)
    assert (fit.fixed_us, fit.row_ns, fit.bandwidth_gb_per_s) == pytest.approx((500.0, 20_000.0, 2.0))


def test_a_single_point_is_a_fixed_time_or_a_row_time():
    truth = CurveParameters(10.0, 0.0, 5.0, 0.0)
    fit = fit_curve(points_of(truth, (64,), rows=(1,)), 64, 5.0)
    assert fit.time_us(1, 64) == pytest.approx(truth.time_us(1, 64), rel=0.01)


def test_bands_span_the_fits_to_the_quartiles():
    truth = CurveParameters(fixed_us=10.0, row_ns=50.0, bandwidth_gb_per_s=5.0, residual_ratio=0.0)
    fit, quantities = as_quantities(points_of(truth, (64, 4096), spread=0.1), 64, 20.0)
    assert quantities["fixed_us"].value == pytest.approx(10.0)
    assert (quantities["fixed_us"].low, quantities["fixed_us"].high) == pytest.approx((9.0, 11.0))
    assert (quantities["row_ns"].low, quantities["row_ns"].high) == pytest.approx((45.0, 55.0))
    assert quantities["bandwidth_gb_per_s"].low < 5.0 < quantities["bandwidth_gb_per_s"].high
    assert fit.residual_ratio < 1e-9


def test_points_that_no_curve_goes_through_leave_a_residual():
    points = points_of(CurveParameters(10.0, 50.0, 5.0, 0.0), (64,))
    bent = [
        point.model_copy(update={"time_us": point.time_us * (2 if index % 2 else 1)})
        for index, point in enumerate(points)
    ]
    assert fit_curve(bent, 64, 5.0).residual_ratio > 0.1
