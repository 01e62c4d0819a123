"""Rankings, ties, penalties and the error limit, on records made by the simulator."""

import dataclasses

import pytest

from tiercast_cli import pricing, validation, validation_views
from tiercast_cli.render import to_text
from tiercast_profiles.compare import compare
from tiercast_profiles.errors import CheckFailed, InfeasibleScenario
from tiercast_profiles.record import Metric
from tiercast_profiles.timeline import chrome_trace
from tiercast_sim.simulate import simulate


@pytest.fixture(scope="module")
def record(mini_scenario):
    return simulate(mini_scenario({"tier": "nvme"}), with_baselines=False)


@pytest.fixture
def case(record):
    def make(name: str, measured: float, predicted: float, spread: float = 0.0) -> validation.Case:
        def at(value: float, half: float) -> Metric:
            return (
                Metric(value=value, low=value - half, high=value + half, basis="spread")
                if half
                else Metric(value=value)
            )

        def changed(kind: str, throughput: Metric):
            metrics = record.metrics.model_copy(update={"output_tokens_per_s": throughput})
            return record.model_copy(update={"kind": kind, "metrics": metrics})

        real, guess = changed("measured", at(measured, spread)), changed("simulated", at(predicted, 0))
        return validation.Case(name, real, guess, compare(real, guess))

    return make


def test_the_same_order_agrees(case):
    order = validation.rank([case("slow", 10, 12), case("fast", 20, 21)])
    assert order is not None
    assert order.measured == order.predicted == ("fast", "slow")
    assert order.agrees
    assert order.agrees_up_to_ties


def test_a_swap_inside_a_measured_tie_is_told_apart_from_a_wrong_order(case):
    tied = validation.rank([case("a", 10, 12, spread=2), case("b", 11, 11, spread=2), case("c", 30, 31, spread=2)])
    assert tied is not None
    assert tied.measured_ties == (("b", "a"),)
    assert not tied.agrees
    assert tied.agrees_up_to_ties
    wrong = validation.rank([case("a", 10, 40, spread=2), case("b", 11, 11, spread=2), case("c", 30, 31, spread=2)])
    assert wrong is not None
    assert not wrong.agrees_up_to_ties


def test_one_case_has_no_ranking(case):
    assert validation.rank([case("a", 10, 12)]) is None


def test_the_error_limit_names_the_worst_error(case):
    cases = [case("a", 10, 12), case("b", 20, 21)]
    validation.check_error(cases, None)
    validation.check_error(cases, 0.25)
    with pytest.raises(CheckFailed, match=r"worst output_tokens_per_s error 20\.0 % exceeds the allowed 10\.0 %"):
        validation.check_error(cases, 0.1)


def test_a_penalty_carries_the_interval_of_both():
    base = Metric(value=100, low=90, high=110, basis="spread")
    found = validation.penalty(Metric(value=80, low=70, high=90, basis="spread"), base)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 1 - 90 / 90, 1 - 70 / 110))
    assert validation.penalty(Metric(value=80), base).low is None


def test_the_error_is_shown_whatever_it_is(case):
    cases = [case("a", 10, 55), case("b", 20, 21)]
    text = to_text(lambda: validation_views.cases(cases), 80)
    assert "+450.0 %" in text
    assert "the predicted ranking differs from the measured one" in text


def test_the_json_of_a_validation_has_both_records_and_the_errors(case):
    data = validation.as_json([case("a", 10, 12), case("b", 20, 21)])
    assert data["ranking"]["agrees"] is True
    assert data["worst_error_ratio"]["output_tokens_per_s"] == pytest.approx(0.2)


def test_nothing_fits_is_an_error_that_names_the_nearest(record, mini_scenario):
    row = pricing.PricedRow("a", record.placement, None, "datasheet", None, None, "too large", 10)
    with pytest.raises(InfeasibleScenario, match="the nearest is b: far too large") as caught:
        pricing.check_any_fits(
            [row, dataclasses.replace(row, name="b", infeasible_reason="far too large", shortfall_bytes=5)]
        )
    assert caught.value.shortfall_bytes == 5


def test_a_case_keeps_measured_and_predicted_apart_in_the_trace(case):
    both = case("a", 10, 12)
    trace = chrome_trace([both.measured, both.predicted])
    assert '"pid":1' in trace
    assert '"pid":2' in trace
