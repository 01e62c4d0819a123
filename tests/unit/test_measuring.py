"""Scenarios measured together: one that cannot run is named, and the others are measured all the same."""

import pytest

pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_cli.measuring import Measured, measure
from tiercast_profiles.errors import FileProblem, InfeasibleScenario, TiercastError


@pytest.fixture
def arms(mini_scenario):
    return {tier: mini_scenario({"tier": tier}) for tier in ("none", "hbm", "dram")}


class Machine:
    """Runs what it is given, unless that holds a tier it fails at or is more than it has room for."""

    def __init__(self, *, fails_at="", error=None, room=9):
        self.calls, self.fails_at, self.error, self.room = [], fails_at, error or InfeasibleScenario("no room"), room

    def __call__(self, scenarios):
        tiers = [scenario.placement.tier for scenario in scenarios]
        self.calls.append(tiers)
        if self.fails_at in tiers or len(tiers) > self.room:
            raise self.error
        return [f"record of {tier}" for tier in tiers]


def test_what_fits_is_run_in_rounds(arms):
    machine = Machine()
    assert measure(arms, machine) == Measured({tier: f"record of {tier}" for tier in arms})
    assert machine.calls == [["none", "hbm", "dram"]]


def test_what_does_not_fit_together_is_run_one_by_one(arms):
    machine = Machine(room=1)
    found = measure(arms, machine)
    assert (list(found.records), found.errors, found.apart) == (["none", "hbm", "dram"], {}, "no room")
    assert machine.calls[1:] == [["none"], ["hbm"], ["dram"]]


def test_what_cannot_run_is_named_with_its_error(arms, mini_scenario):
    machine = Machine(fails_at="hbm")
    found = measure(arms | {"two": mini_scenario({"tier": "hbm"}, parallel={"data": 2})}, machine)
    assert list(found.records) == ["none", "dram"]
    assert found.errors["hbm"] is machine.error
    assert "serves one replica" in str(found.errors["two"]), "refused by name before anything is run"
    assert all(len(call) <= 3 for call in machine.calls)


def test_other_errors_end_everything_unless_they_count_as_failures(arms):
    machine = Machine(fails_at="hbm", error=FileProblem("disk full"))
    with pytest.raises(FileProblem, match="disk full"):
        measure(arms, machine)
    found = measure(arms, machine, failing=(TiercastError,))
    assert (list(found.records), list(found.errors)) == (["none", "dram"], ["hbm"])


def test_what_is_left_of_two_ran_beside_nothing(arms):
    machine = Machine(fails_at="hbm")
    found = measure({name: arms[name] for name in ("none", "hbm")}, machine)
    assert (list(found.records), found.apart) == (["none"], "")
