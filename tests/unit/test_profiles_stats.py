"""Statistics against NumPy and against hand-worked samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercast_profiles.record import RequestSamples, Samples, StepSamples
from tiercast_profiles.stats import (
    SampleStatistics,
    is_unstable,
    percentiles,
    quantile,
    relative_error,
    spread_metric,
)

FINITE = st.floats(-1e12, 1e12, allow_nan=False)


@settings(deadline=None)
@given(st.lists(FINITE, min_size=1, max_size=40), st.floats(0, 1))
def test_quantile_is_numpys(values, ratio):
    expected = float(np.quantile(np.array(values), ratio))
    assert quantile(values, ratio) == pytest.approx(expected, rel=1e-9, abs=1e-3)
    assert min(values) <= quantile(values, ratio) <= max(values)


@pytest.mark.parametrize(("values", "ratio"), [([], 0.5), ([1.0], -0.1), ([1.0], 1.1)])
def test_quantile_refuses_nonsense(values, ratio):
    with pytest.raises(ValueError, match=r"no values|must lie in"):
        quantile(values, ratio)


def test_percentiles_are_in_ms():
    result = percentiles([1_000_000 * n for n in range(1, 102)])
    assert (result.p50.value, result.p90.value, result.p99.value) == pytest.approx((51, 91, 100))


def test_spread_is_the_quartiles_and_one_run_is_a_point():
    metric = spread_metric([1, 2, 3, 4, 5])
    assert (metric.value, metric.low, metric.high, metric.basis) == (3, 2, 4, "spread")
    point = spread_metric([7])
    assert (point.value, point.low, point.basis) == (7, None, "point")


def test_unstable_samples_are_flagged():
    assert not is_unstable([100, 101, 102, 103])
    assert is_unstable([100, 100, 150, 200])
    assert is_unstable([0, 0, 0])


def test_two_requests_by_hand():
    samples = Samples(
        requests=RequestSamples(
            arrival_ns=(0, 1_000_000),
            first_token_ns=(2_000_000, 5_000_000),
            finish_ns=(6_000_000, 10_000_000),
            prompt_tokens=(10, 20),
            output_tokens=(3, 1),
        ),
        steps=StepSamples(
            start_ns=(0, 2_000_000),
            duration_ns=(2_000_000, 8_000_000),
            prefill_tokens=(10, 20),
            decode_sequences=(0, 1),
            stall_ns=(500_000, 0),
            lookup_ns=(1_000_000, 1_000_000),
            rows=(240, 480),
            rows_read=(120, 240),
        ),
    )
    result = SampleStatistics(samples)
    assert result.output_tokens_per_s == 400  # 4 tokens in 10 ms
    assert result.total_tokens_per_s == 3400
    assert result.ttft_ms.p50.value == 3  # 2 ms and 4 ms
    assert result.tpot_ms is not None
    assert result.tpot_ms.p99.value == 2  # (6 - 2) / 2; one token has no time per further token
    assert result.stall_ms_per_step == 0.25
    assert result.lookup_ms_per_step == 1
    assert result.hidden_ratio == 0.75
    assert result.unique_row_ratio == 0.5


def test_relative_error_needs_something_to_relate_to():
    assert relative_error(11, 10) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="other than zero"):
        relative_error(1, 0)
