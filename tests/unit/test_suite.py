"""The validation suite: its cases resolve, held-out ones are of it, and scores are what a hand gets."""

import pytest

from tiercast_cli import suite, suite_result, suite_views
from tiercast_cli.case_scores import Failure
from tiercast_cli.render import to_text
from tiercast_cli.suite_result import SuiteResult
from tiercast_cli.validation_case import Case
from tiercast_profiles import store
from tiercast_profiles.compare import compare
from tiercast_profiles.errors import CheckFailed
from tiercast_profiles.record import Metric
from tiercast_profiles.scores import Pair, score
from tiercast_profiles.suite import Suite
from tiercast_sim.simulate import simulate


@pytest.fixture(scope="module")
def record(mini_scenario):
    return simulate(mini_scenario({"tier": "nvme"}), with_baselines=False)


def made(record, name: str, measured: float, predicted: float) -> Case:
    def with_throughput(kind: str, value: float):
        throughput = Metric(value=value, low=0.9 * value, high=1.1 * value, basis="spread")
        metrics = record.metrics.model_copy(update={"output_tokens_per_s": throughput})
        return record.model_copy(update={"kind": kind, "metrics": metrics})

    real, guess = with_throughput("measured", measured), with_throughput("simulated", predicted)
    return Case(name, real, guess, compare(real, guess))


@pytest.fixture
def found(record):
    plan = Suite(
        schema_version=1,
        description="two works",
        base={},
        baseline="none",
        arms={"none": {}, "far": {}},
        works={"a": {"settings": {}, "arms": ["none", "far"]}, "b": {"settings": {}, "arms": ["none", "far"]}},
    )
    cases = [
        made(record, "a/none", 100, 110),
        made(record, "a/far", 80, 76),
        made(record, "b/none", 200, 200),
        made(record, "b/far", 150, 100),
    ]
    failures = [Failure(case="c/far", reason="the machine has no such tier")]
    rows = suite_result.suite_cases(plan, ["b/far"], cases)
    return SuiteResult(
        hardware_name="here",
        profile_sha256="0" * 64,
        predicted_from="here",
        predicted_from_sha256="0" * 64,
        held_out_declared="2026-01-01",
        repeats=3,
        cases=rows,
        failures=tuple(failures),
        scores=suite_result.grouped_scores(rows, failures, ["b/far"]),
        orders=suite_result.orders(rows),
    )


def test_the_shipped_suite_is_large_enough_and_holds_out_a_part():
    plan, held_out = store.load_suite()
    names = plan.case_names()
    assert len(names) == len(set(names)) >= 24
    assert 0.2 <= len(held_out.cases) / len(names) <= 0.5


def test_every_case_is_a_scenario(tmp_path, mini_scenario):
    plan, _ = store.load_suite()
    file = tmp_path / "profile.yaml"
    store.write_text(file, store.to_yaml(mini_scenario({"tier": "nvme"}).hardware))
    ready = suite.scenarios(plan, str(file))
    assert tuple(ready) == plan.case_names()
    assert ready["long/nvme-early"].placement.prefetch == "prev_step"
    assert ready["one/none"].placement.tier == "none"
    assert len({case.sha256 for case in ready.values()}) == len(ready), "two cases are the same"


def test_a_suite_names_arms_it_has():
    with pytest.raises(ValueError, match="work 'a' names unknown arms: far"):
        Suite(
            schema_version=1,
            description="x",
            base={},
            baseline="none",
            arms={"none": {}},
            works={"a": {"settings": {}, "arms": ["none", "far"]}},
        )


def test_scores_by_hand():
    pairs = [
        Pair(case="a", measured=100, predicted=110, is_inside_spread=True),
        Pair(case="b", measured=100, predicted=80, is_inside_spread=False),
        Pair(case="c", measured=200, predicted=208),
    ]
    got = score("x", "ratio", pairs, num_failed=1)
    assert (got.num_cases, got.num_failed, got.num_inside_spread) == (4, 1, 1)
    assert got.bias == pytest.approx((0.1 - 0.2 + 0.04) / 3)
    assert got.mean_absolute == pytest.approx(0.34 / 3)
    assert got.median_absolute == pytest.approx(0.1)
    assert got.p90_absolute == pytest.approx(0.18)
    assert (got.worst_absolute, got.worst_case) == (pytest.approx(0.2), "b")
    assert got.correlation == pytest.approx(7533.333 / (6666.667 * 8962.667) ** 0.5, abs=1e-6)
    assert score("x", "points", pairs).bias == pytest.approx((10 - 20 + 8) / 3)


def test_a_score_without_cases_knows_nothing():
    got = score("x", "ratio", [], num_failed=2)
    assert (got.num_cases, got.num_failed, got.median_absolute, got.correlation) == (2, 2, None, None)


def test_a_relative_error_needs_something_to_relate_to():
    with pytest.raises(ValueError, match="case a: a relative error needs"):
        score("x", "ratio", [Pair(case="a", measured=0, predicted=1)])


def test_held_out_cases_are_scored_apart_and_failures_stay_in_the_denominator(found):
    by_group = {group: scores[0] for group, scores in found.scores.items()}
    assert [by_group[group].num_cases for group in ("all", "open", "held out")] == [5, 4, 1]
    assert [by_group[group].num_failed for group in ("all", "open", "held out")] == [1, 1, 0]
    assert by_group["held out"].worst_absolute == pytest.approx(1 / 3)


def test_penalties_are_against_the_baseline_of_the_same_work(found):
    far = next(case for case in found.cases if case.name == "a/far")
    assert far.metrics["penalty"].measured.value == pytest.approx(0.2)
    assert far.metrics["penalty"].predicted.value == pytest.approx(1 - 76 / 110)
    assert "penalty" not in next(case for case in found.cases if case.name == "a/none").metrics


def test_the_page_and_the_limit(found):
    page = to_text(lambda: suite_views.page(found), 110)
    assert "b/far (held out)" in page
    assert "failed: c/far: the machine has no such tier" in page
    assert "output_tokens_per_s, arms of a work: 2 of 2 pairs in the measured order (0 undecided" in page
    assert "resolved inputs that differ" in page
    suite_views.check(found, None)
    with pytest.raises(CheckFailed, match="1 of 5 cases could not be run"):
        suite_views.check(found, 0.5)


def test_pairs_too_close_to_matter_are_counted_apart(record):
    def stalling(name: str, measured_ms: float, predicted_ms: float) -> Case:
        whole = made(record, name, 100, 100)
        stalls = {
            side: one.metrics.model_copy(update={"stall_ms_per_step": Metric(value=ms, low=ms, high=ms)})
            for side, one, ms in (("real", whole.measured, measured_ms), ("guess", whole.predicted, predicted_ms))
        }
        real = whole.measured.model_copy(update={"metrics": stalls["real"]})
        guess = whole.predicted.model_copy(update={"metrics": stalls["guess"]})
        return Case(name, real, guess, compare(real, guess))

    hundredth = record.metrics.step_ms.p50.value / 100
    plan = Suite(
        schema_version=1,
        description="one work",
        base={},
        baseline="none",
        arms={"none": {}, "near": {}, "far": {}},
        works={"a": {"settings": {}, "arms": ["none", "near", "far"]}},
    )
    cases = [
        stalling("a/none", 0, 0),
        stalling("a/near", hundredth / 2, 0),
        stalling("a/far", 3 * hundredth, 0),
    ]
    rows = suite_result.suite_cases(plan, [], cases)
    order = next(
        order for order in suite_result.orders(rows) if (order.metric, order.group) == ("stall_ms_per_step", "work a")
    )
    assert (order.num_pairs, order.num_decided, order.num_apart) == (3, 3, 2)
    assert set(order.wrong) == {("a/near", "a/none"), ("a/far", "a/none"), ("a/far", "a/near")}
    assert set(order.wrong_apart) == {("a/far", "a/none"), ("a/far", "a/near")}
    lines = suite_views.order_lines(rows)
    line = next(line for line in lines if line.startswith("stall_ms_per_step, arms"))
    assert "0 of 3 pairs in the measured order (0 undecided by the measurement), 0 of 2 of those that differ" in line
    assert "a/near > a/none" not in line


def test_the_page_says_how_often_the_interval_held(found):
    page = " ".join(to_text(lambda: suite_views.page(found), 110).split())
    assert "measured median inside the predicted interval (half its width): throughput 3 of 4 (±10.0 %)" in page


def test_the_limit_names_the_worst_case(found):
    whole = found.model_copy(
        update={"scores": {"all": tuple(one.model_copy(update={"num_failed": 0}) for one in found.scores["all"])}}
    )
    with pytest.raises(CheckFailed, match=r"worst output_tokens_per_s error 33.3 % \(b/far\)"):
        suite_views.check(whole, 0.3)
    suite_views.check(whole, 0.4)
