"""The pace between the runs of any scenarios: timed where it can be, and never a reason for a run to fail."""

import contextlib

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_cli import probing  # noqa: E402
from tiercast_cli.probing import PaceBetweenRuns  # noqa: E402
from tiercast_profiles.errors import BadInput, InfeasibleScenario  # noqa: E402


class Steps:
    """Reference steps that take what the test says."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def measure(self):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def opened(monkeypatch):
    """What was opened and closed; ``steps`` are those of a model by its name, or the reason why it has none."""
    events, steps = [], {}

    @contextlib.contextmanager
    def pace_of(_profile, model, *, folder, with_drive):
        events.append(("open", model.name, folder, with_drive))
        if isinstance(steps[model.name], Exception):
            raise steps[model.name]
        yield steps[model.name]
        events.append(("close", model.name))

    monkeypatch.setattr(probing, "pace_of", pace_of)
    return events, steps


def test_it_is_opened_at_the_first_call_and_once(opened, mini_scenario, tmp_path):
    events, steps = opened
    steps["mini-v41"] = Steps({"pace_decode_1": 1.1}, {"pace_decode_1": 1.2}, {"pace_decode_1": 1.3})
    pace = PaceBetweenRuns([mini_scenario({"tier": "hbm"}), mini_scenario({"tier": "nvme"})], tmp_path)
    assert events == []
    assert [pace.measure(), pace.measure()] == [{"pace_decode_1": 1.1}, {"pace_decode_1": 1.2}]
    pace.close()
    assert events == [("open", "mini-v41", tmp_path, True), ("close", "mini-v41")]
    assert pace.measure() == {"pace_decode_1": 1.3}, "ready again for the next scenarios"
    assert pace.untimed == ""


def test_without_tables_on_a_drive_none_is_timed(opened, mini_scenario):
    events, steps = opened
    steps["mini-v41"] = Steps({"pace_decode_1": 1.0})
    PaceBetweenRuns([mini_scenario({"tier": "dram"})], None).measure()
    assert events == [("open", "mini-v41", None, False)]


def test_the_first_model_that_can_be_timed_is(opened, mini_scenario, mini_model):
    events, steps = opened
    other = mini_scenario({"tier": "nvme"}, model=mini_model("demo"))
    steps["mini-v41"], steps["mini-demo"] = BadInput("no layer times"), Steps({"pace_decode_1": 0.9})
    pace = PaceBetweenRuns([mini_scenario({"tier": "hbm"}), other], None)
    assert pace.measure() == {"pace_decode_1": 0.9}
    assert [event[1] for event in events] == ["mini-v41", "mini-demo"]
    assert pace.untimed == ""


def test_where_no_model_can_be_timed_the_reason_is_kept_and_nothing_tried_again(opened, mini_scenario):
    events, steps = opened
    steps["mini-v41"] = BadInput("no layer times")
    pace = PaceBetweenRuns([mini_scenario({"tier": "hbm"})], None)
    assert [pace.measure(), pace.measure()] == [{}, {}]
    assert len(events) == 1
    assert pace.untimed == "no layer times"


@pytest.mark.parametrize("error", [InfeasibleScenario("too large"), torch.OutOfMemoryError("too large")])
def test_timing_that_fails_midway_ends_and_the_runs_go_on(opened, mini_scenario, error):
    events, steps = opened
    steps["mini-v41"] = Steps({"pace_decode_1": 1.1}, error)
    pace = PaceBetweenRuns([mini_scenario({"tier": "hbm"})], None)
    assert [pace.measure(), pace.measure(), pace.measure()] == [{"pace_decode_1": 1.1}, {}, {}]
    assert pace.untimed == "too large"
    assert events[-1] == ("close", "mini-v41")


def test_a_profile_without_the_reference_sizes_gives_no_pace(opened, mini_scenario):
    _, steps = opened
    steps["mini-v41"] = Steps({})
    pace = PaceBetweenRuns([mini_scenario({"tier": "hbm"})], None)
    assert pace.measure() == {}
    assert pace.untimed == "the profile holds none of the reference steps"


def test_several_profiles_and_captured_graphs_are_not_timed(opened, mini_scenario, cpu_hardware):
    events, _ = opened
    ours = mini_scenario({"tier": "hbm"})
    other = mini_scenario({"tier": "hbm"}, hardware=cpu_hardware.model_copy(update={"name": "another"}))
    captured = ours.model_copy(update={"placement": ours.placement.model_copy(update={"graph_mode": "full"})})
    for scenarios, words in (([ours, other], "several profiles"), ([captured], "captured graphs")):
        pace = PaceBetweenRuns(scenarios, None)
        assert pace.measure() == {}
        assert words in pace.untimed
    assert events == []


def test_a_datasheet_profile_says_how_to_get_layer_times(mini_scenario, tmp_path):
    pace = PaceBetweenRuns([mini_scenario({"tier": "nvme"})], tmp_path / "tables")
    assert pace.measure() == {}
    assert "holds no layer times of mini-v41 by single calls" in pace.untimed
