"""What was changed between two runs and what it did: pairing of intervals, verdicts, inputs, money."""

import pytest

from tiercast_plan.cost import cost_per_mtok
from tiercast_plan.difference import Side, difference
from tiercast_profiles.record import Metric
from tiercast_profiles.scenario import Scenario
from tiercast_profiles.store import resolve
from tiercast_sim.simulate import simulate


@pytest.fixture
def side(small_v41):
    """One side of a comparison: the small scenario with some of its parts changed, predicted and priced."""

    def make(name="a", **changes) -> Side:
        resolved = resolve(Scenario.model_validate(small_v41.model_dump(exclude_unset=True) | changes))
        record = simulate(resolved, keep_samples=False)
        return Side(name, record, cost_per_mtok(resolved, record), resolved)

    return make


def with_throughput(one: Side, metric: Metric, kind: str = "simulated") -> Side:
    metrics = one.record.metrics.model_copy(update={"output_tokens_per_s": metric})
    record = one.record.model_copy(update={"metrics": metrics, "kind": kind})
    return Side("b", record, None, one.resolved)


def throughput(found):
    return next(metric for metric in found.metrics if metric.name == "output_tokens_per_s")


def test_nothing_differs_from_itself(side):
    one = side()
    found = difference(one, one)
    assert found.inputs == ()
    assert {metric.verdict for metric in found.metrics} == {"same"}
    assert all(change.change == 0 for change in found.money)


def test_ends_are_paired_on_one_machine_and_not_across_kinds(side):
    one = with_throughput(side(), Metric(value=100, low=50, high=200, basis="band"))
    other = with_throughput(one, Metric(value=101, low=51, high=202, basis="band"))
    paired = throughput(difference(one, other))
    assert (paired.is_paired, paired.verdict, paired.low, paired.high) == (True, "higher", 1, 2)
    assert paired.change_ratio == pytest.approx(0.01)
    measured = with_throughput(one, Metric(value=101, low=51, high=202, basis="spread"), "measured")
    loose = throughput(difference(one, measured))
    assert (loose.is_paired, loose.verdict, loose.low, loose.high) == (False, "undecided", -149, 152)
    apart = with_throughput(one, Metric(value=20, low=10, high=30, basis="spread"), "measured")
    assert throughput(difference(one, apart)).verdict == "lower"
    point = throughput(difference(one, with_throughput(one, Metric(value=90))))
    assert (point.low, point.verdict) == (None, "lower")


def test_a_change_that_the_bands_turn_over_is_undecided(side):
    one = with_throughput(side(), Metric(value=100, low=50, high=200, basis="band"))
    other = with_throughput(one, Metric(value=101, low=49, high=202, basis="band"))
    assert throughput(difference(one, other)).verdict == "undecided"


def test_inputs_and_money_of_another_tier(side):
    found = difference(side("dram"), side("hbm", placement={"tier": "hbm"}))
    changed = {change.path: (change.before, change.after) for change in found.inputs}
    assert changed["placement.tier"] == ("dram", "hbm")
    assert changed["placement.path"] == ("uva", "device"), "natural choices are inputs too"
    hourly = next(change for change in found.money if change.name == "usd_per_hour")
    assert hourly.change == hourly.after - hourly.before < 0, "tables in HBM need no DRAM bought"


def test_money_is_missing_with_its_reason(side):
    one = side()
    found = difference(one, Side("b", one.record, None, None, "no price: lost"))
    assert found.money == ()
    assert found.cost_problem == "no price: lost"
