"""Rankings, ties, penalties and the error limit, on records made by the simulator."""

import dataclasses

import pytest

from tiercast_cli import demo_views, pricing, probing, validation, validation_views
from tiercast_cli.case_scores import Failure
from tiercast_cli.demo_job import DemoResult
from tiercast_cli.render import to_text
from tiercast_cli.run_pace import RunPace
from tiercast_cli.validation import Validation
from tiercast_cli.validation_case import Case, measured_penalty, penalty, predict
from tiercast_profiles import store
from tiercast_profiles.compare import compare
from tiercast_profiles.errors import CheckFailed, InfeasibleScenario, MissingCapability
from tiercast_profiles.record import Metric
from tiercast_profiles.stats import spread_metric
from tiercast_profiles.timeline import chrome_trace
from tiercast_sim.simulate import simulate


@pytest.fixture(scope="module")
def record(mini_scenario):
    return simulate(mini_scenario({"tier": "nvme"}), with_baselines=False)


def with_throughput(record, kind: str, throughput: Metric):
    metrics = record.metrics.model_copy(update={"output_tokens_per_s": throughput})
    return record.model_copy(update={"kind": kind, "metrics": metrics})


@pytest.fixture
def case(record):
    def make(
        name: str, measured: float, predicted: float, spread: float = 0.0, *, base=None, at_pace: float | None = None
    ) -> Case:
        def at(value: float, half: float) -> Metric:
            return (
                Metric(value=value, low=value - half, high=value + half, basis="spread")
                if half
                else Metric(value=value)
            )

        origin = base or record
        real, guess = (
            with_throughput(origin, kind, metric)
            for kind, metric in (("measured", at(measured, spread)), ("simulated", at(predicted, 0)))
        )
        again = None if at_pace is None else with_throughput(origin, "simulated", Metric(value=at_pace))
        pace = None if at_pace is None else RunPace({"decode_1": 1.25}, 1.5)
        return Case(name, real, guess, compare(real, guess), pace, again)

    return make


@pytest.fixture
def no_engram(mini_scenario):
    return simulate(mini_scenario({"tier": "none"}), with_baselines=False)


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
    found = penalty(Metric(value=80, low=70, high=90, basis="spread"), base)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 1 - 90 / 90, 1 - 70 / 110))
    assert penalty(Metric(value=80), base).low is None


def test_a_measured_penalty_is_that_of_runs_of_the_same_round(case):
    """The machine halves its speed in the second round and both sides with it: their medians are of no one round."""

    def measured(*speeds):
        record = case("a", 10, 10).measured
        update = {"output_tokens_per_s": spread_metric(speeds), "runs_output_tokens_per_s": speeds}
        return record.model_copy(update={"metrics": record.metrics.model_copy(update=update)})

    found = measured_penalty(measured(90.0, 40.0, 99.0), measured(100.0, 50.0, 110.0))
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.15))
    single = measured_penalty(case("a", 8, 8).measured, case("b", 10, 10).measured)
    assert single.value == pytest.approx(0.2)
    unequal = measured_penalty(measured(90.0, 40.0), measured(100.0, 50.0, 110.0))
    assert unequal.value == pytest.approx(1 - 65 / 100)


def test_the_error_is_shown_whatever_it_is(case):
    cases = [case("a", 10, 55), case("b", 20, 21)]
    text = to_text(lambda: validation_views.page(Validation(tuple(cases))), 80)
    assert "+450.0 %" in text
    assert "the predicted ranking differs from the measured one" in text


def test_the_json_of_a_validation_has_both_records_and_the_errors(case):
    data = validation.as_json(Validation((case("a", 10, 12), case("b", 20, 21))))
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


def test_several_cases_are_scored_and_failures_count(case):
    failure = Failure(case="c", reason="the machine has no such tier")
    found = Validation((case("a", 10, 12), case("b", 20, 19)), (failure,))
    score = next(one for one in found.scores["all"] if one.metric == "output_tokens_per_s")
    assert (score.num_cases, score.num_failed, score.worst_case) == (3, 1, "a")
    assert score.bias == pytest.approx((0.2 - 0.05) / 2)
    assert set(found.scores) == {"all"}, "no pace was timed"
    text = to_text(lambda: validation_views.page(found), 80)
    assert "failed: c: the machine has no such tier" in text
    assert any(line.split()[:2] == ["throughput", "2/3"] for line in text.splitlines())
    assert "resolved inputs that differ: none" in text
    with pytest.raises(CheckFailed, match="1 of 3 scenarios could not be run or predicted: c"):
        validation.check(found, None)


def test_a_single_case_has_errors_and_no_scores(case):
    found = Validation((case("a", 10, 12),))
    assert found.scores == {}
    assert "bias" not in to_text(lambda: validation_views.page(found), 80)
    validation.check(found, 0.25)
    with pytest.raises(CheckFailed, match=r"exceeds the allowed 10\.0 %"):
        validation.check(found, 0.1)


def test_the_penalty_is_against_a_case_without_engram_that_did_the_same_work(case, record, no_engram, mini_scenario):
    far, none = case("far", 80, 76), case("none", 100, 110, base=no_engram)
    assert validation.baseline_of(none, [far, none]) is None
    assert validation.baseline_of(far, [far, none]) is none
    scored = {one.name: one for one in Validation((far, none)).scored}
    lost = scored["far"].metrics["penalty"]
    assert (lost.measured.value, lost.predicted.value) == pytest.approx((0.2, 1 - 76 / 110))
    assert "penalty" not in scored["none"].metrics
    other_work = simulate(mini_scenario({"tier": "none"}, seed=5), with_baselines=False)
    other_limits = simulate(mini_scenario({"tier": "none"}, engine={"max_num_seqs": 2}), with_baselines=False)
    for base in (other_work, other_limits):
        assert validation.baseline_of(far, [far, case("none", 100, 110, base=base)]) is None


def test_of_several_baselines_that_in_the_same_graph_mode_is_taken(case, no_engram):
    captured = no_engram.model_copy(update={"placement": no_engram.placement.model_copy(update={"graph_mode": "full"})})
    far, none, full = case("far", 8, 8), case("none", 9, 9, base=no_engram), case("full", 9, 9, base=captured)
    assert validation.baseline_of(far, [far, full, none]) is none
    assert validation.baseline_of(far, [far, full]) is full


def test_the_error_at_pace_stands_beside_the_plain_one(case):
    found = Validation((case("a", 100, 120, at_pace=102), case("b", 50, 60, at_pace=50)))
    text = to_text(lambda: validation_views.page(found), 80)
    lines = [line.split() for line in text.splitlines()]
    assert ["arm", "measured", "predicted", "error", "at", "pace"] in lines
    assert ["a", "100", "120", "+20.0", "%", "+2.0", "%"] in lines
    assert "all cases, at the pace of the machine around each run" in text
    assert "pace: around the runs reference steps took 1.25 times as long" in " ".join(text.split())
    data = validation.as_json(found)
    first = data["cases"][0]
    assert first["at_pace"]["output_tokens_per_s"] == {
        "predicted": 102,
        "difference": 2,
        "error_ratio": pytest.approx(0.02),
    }
    assert first["pace"] == RunPace({"decode_1": 1.25}, 1.5)
    by_group = {group: scores[0] for group, scores in data["scores"].items()}
    assert by_group["all"].bias == pytest.approx(0.2)
    assert by_group["at pace"].bias == pytest.approx(0.01)


def test_the_demo_says_what_it_predicted_from_and_has_a_table_for_a_readme(case, cpu_hardware):
    result = DemoResult(profile=cpu_hardware, validated=Validation((case("demo-no-engram", 100, 120),)))
    head, _, first, *_ = demo_views.error_table_markdown(result).splitlines()
    assert head == "| arm | metric | measured | predicted | error |"
    assert first == "| demo-no-engram | output tokens/s | 100 | 120 | +20.0 % |"
    assert "profile.yaml, probed in turns with the runs" in to_text(lambda: demo_views.validation(result), 110)
    result.profile = store.load_hardware("h200-sxm")
    assert "profile.yaml, probed right before the runs;" in to_text(lambda: demo_views.validation(result), 110)


def test_without_a_pace_runs_stop_for_what_is_between_and_find_nothing(monkeypatch):
    called = []
    monkeypatch.setattr(probing, "warm_up", called.append)
    assert probing.standing_still(lambda: called.append("between"))() == {}
    assert called == ["between", probing.BEHIND_A_STRETCH_S]


def test_a_narrow_page_leaves_out_predicted_intervals_before_it_cuts_a_number(record):
    def at(kind: str, value: float):
        stall = Metric(value=value, low=value * 0.98765, high=value * 1.01234, basis="spread")
        metrics = record.metrics.model_copy(update={"stall_ms_per_step": stall})
        return record.model_copy(update={"kind": kind, "metrics": metrics})

    sides = [at(kind, value) for kind, value in (("measured", 0.071), ("simulated", 0.00698), ("simulated", 0.223))]
    found = [
        Case("demo-no-prefetch", sides[0], sides[1], compare(*sides[:2]), RunPace({"decode_1": 1.25}, None), sides[2])
    ]
    narrow, wide = (" ".join(to_text(lambda: validation_views.summary(found), width).split()) for width in (80, 110))
    assert "0.0710 [0.0701 .. 0.0719] 0.00698 -0.064 ms +0.152 ms" in narrow
    assert "0.00698 [0.00689 .. 0.00707] -0.064 ms +0.152 ms" in wide


def test_where_no_pace_was_timed_the_page_says_why_and_has_no_such_column(case):
    found = Validation((case("a", 10, 12),), pace_untimed="the profile holds no layer times")
    text = to_text(lambda: validation_views.page(found), 80)
    assert "at pace" not in text
    assert "was not timed: the profile holds no layer times" in " ".join(text.split())
    assert validation.as_json(found)["cases"][0]["at_pace"] is None
    assert validation.as_json(found)["pace_untimed"] == "the profile holds no layer times"


def test_scenarios_that_ran_one_by_one_are_said_to_have(case):
    found = Validation((case("a", 10, 12), case("b", 10, 12)), apart="12 GiB short")
    text = " ".join(to_text(lambda: validation_views.page(found), 80).split())
    assert "the scenarios ran one by one, not in turns: 12 GiB short" in text
    assert validation.as_json(found)["ran_apart"] == "12 GiB short"


class TestRunning:
    """``run_cases`` on a machine that does what its profile predicts."""

    @pytest.fixture(autouse=True)
    def _machine(self, monkeypatch):
        pytest.importorskip("torch", reason="the runtime extra is not installed")

        def bench_in_rounds(scenarios, *, repeats, folder, progress, between):
            assert between() == {}, "profiles of these tests hold no layer times"
            if any(scenario.scenario.seed == 13 for scenario in scenarios):
                raise MissingCapability("13 brings bad luck")
            return tuple(
                simulate(scenario, with_baselines=False).model_copy(update={"kind": "measured"})
                for scenario in scenarios
            )

        monkeypatch.setattr("tiercast_runtime.bench.bench_in_rounds", bench_in_rounds)

    def run(self, scenarios, **options) -> Validation:
        return validation.run_cases(scenarios, repeats=1, folder=None, report=lambda _what, _ratio: None, **options)

    def test_one_that_cannot_run_does_not_stop_the_others(self, mini_scenario):
        arms = {"bad": mini_scenario({"tier": "hbm"}, seed=13), "good": mini_scenario({"tier": "hbm"})}
        found = self.run(arms)
        assert [case.name for case in found.cases] == ["good"]
        assert found.failures == (Failure(case="bad", reason="13 brings bad luck"),)
        assert found.scores["all"][0].num_failed == 1
        assert "holds no layer times" in found.pace_untimed
        with pytest.raises(MissingCapability, match="13 brings bad luck"):
            self.run(arms, needs_all=True)

    def test_where_none_can_run_the_first_reason_is_the_error(self, mini_scenario):
        with pytest.raises(MissingCapability, match="13 brings bad luck"):
            self.run({"bad": mini_scenario({"tier": "hbm"}, seed=13)})

    def test_one_that_cannot_be_predicted_is_named_too(self, mini_scenario, monkeypatch):
        def refuse(name, resolved, measured, *, with_baselines):
            if name == "a":
                raise InfeasibleScenario("it does not fit")
            return predict(name, resolved, measured, with_baselines=with_baselines)

        monkeypatch.setattr(validation, "predict", refuse)
        found = self.run({name: mini_scenario({"tier": "hbm"}) for name in ("a", "b")})
        assert found.failures == (Failure(case="a", reason="not predicted: it does not fit"),)
        assert [case.name for case in found.cases] == ["b"]
