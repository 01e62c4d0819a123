"""Probes in a process of their own that take turns with runs: who has the machine when, and how it ends."""

import os
import sys
import time
from pathlib import Path

import pytest

from tiercast_cli import probe_turns
from tiercast_cli.probe_process import Stretches
from tiercast_profiles.errors import FileProblem, TiercastError

pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_runtime.probes.timing import Effort, collect, pausing

SCRIPT = Path(__file__).with_name("stopping_probes.py")


@pytest.fixture
def begin(monkeypatch, tmp_path):
    """Starts the stand-in for the probes with a story."""

    def start(story="works", stretch_s=0.2):
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        monkeypatch.setenv("CASES", str(tmp_path / "cases"))
        monkeypatch.setattr(probe_turns, "COMMAND", (sys.executable, str(SCRIPT), story))
        plan = probe_turns.TurnPlan(stretch_s, is_awaited=story == "awaited")
        return probe_turns.ProbesInTurns(["tiny"], tmp_path / "profile.yaml", plan)

    return start


def cases(folder):
    lines = (folder / "cases").read_text().splitlines() if (folder / "cases").exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def test_probes_run_in_their_stretches_alone(begin, tmp_path):
    heard, stretches = [], []
    with begin() as probes:
        time.sleep(0.2)
        assert not cases(tmp_path), "nothing is probed before the first stretch"
        for _ in range(2):
            begun_ns = time.monotonic_ns()
            probes.turn()
            stretches.append((begun_ns, time.monotonic_ns()))
            time.sleep(0.1)
        assert 1 <= len(cases(tmp_path)) < 20
        assert not (tmp_path / "profile.yaml").exists()
        for begun_ns, ended_ns in cases(tmp_path):
            assert any(low <= begun_ns and ended_ns <= high for low, high in stretches)
        profile = probes.finish(lambda what, _ratio: heard.append(what))
        probes.turn()  # nothing is left to do
    assert profile.name == "this-intel-xeon"
    assert len(cases(tmp_path)) == 20
    assert not heard, "the stage began in the first stretch"


@pytest.mark.parametrize("story", ["works", "awaited"])
def test_probes_that_are_done_within_a_stretch_are_done(begin, tmp_path, story):
    with begin(story, stretch_s=60) as probes:
        probes.turn()
        assert (tmp_path / "profile.yaml").exists()
        probes.turn()
        assert probes.finish(lambda _what, _ratio: None).name == "this-intel-xeon"


def test_what_ends_the_probes_is_the_error_of_the_start_or_the_turn(begin, tmp_path):
    with pytest.raises(FileProblem, match=r"^/there: is full$"):
        begin("refuses")  # files are made before the first stretch
    with (
        begin("crashes") as probes,
        pytest.raises(
            TiercastError,
            match=r"^the process of the probes ended with code 1 during naps \(ZeroDivisionError: a bug\)$",
        ),
    ):
        probes.turn()
    assert not (tmp_path / "profile.yaml").exists()


def test_probes_end_when_their_turns_do(begin, tmp_path):
    probes = begin()
    probes.turn()
    probes.close()
    probes.close()
    num_cases = len(cases(tmp_path))
    time.sleep(0.2)
    assert len(cases(tmp_path)) == num_cases < 20
    assert not (tmp_path / "profile.yaml").exists()


def test_a_process_that_cannot_start_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(probe_turns, "COMMAND", (str(tmp_path / "no-such-python"),))
    with pytest.raises(TiercastError, match="the process of the probes could not be started"):
        probe_turns.ProbesInTurns(["tiny"], tmp_path / "profile.yaml")


@pytest.fixture
def pipe():
    """The descriptors of a pipe: what the probes read, and what the other side writes to."""
    ends = list(os.pipe())
    yield ends
    for end in ends:
        os.close(end)


def test_a_stretch_ends_between_two_cases_and_the_pause_is_in_no_budget(pipe):
    now, said = [0], []
    os.write(pipe[1], b'{"seconds": 1e-6}\n{"seconds": 2e-6}\n{"seconds": null}\n')

    def say(message):
        said.append((now[0], message))
        now[0] += 500  # the other side takes its time

    def warm_up():
        now[0] += 100

    stretches = Stretches(pipe[0], say, warm_up, lambda: now[0])

    def case():
        now[0] += 600
        return [("key", float(now[0]))]  # never stable

    with pausing(stretches.pause):
        collect([case], Effort(6000, num_warm_ups=0, min_rounds=2, max_rounds=99), lambda: now[0])
    # 600 ns a case: two in the first stretch of 1 µs, four in the second of 2 µs, and the rest in one go
    assert said == [(at, {"paused": True}) for at in (0, 1800, 4800)]
    assert now[0] == 3 * (500 + 100) + 10 * 600, "as many as fit in the budget without pauses"
    assert collect([case], Effort(0, num_warm_ups=0, min_rounds=2, max_rounds=2), lambda: now[0])
    assert len(said) == 3, "outside nothing pauses"


def test_probes_whose_other_side_is_gone_end(pipe):
    stretches = Stretches(pipe[0], lambda _message: None, lambda: None)
    os.write(pipe[1], b'{"seconds": null}\n')
    stretches.pause()
    stretches.pause()  # the other side is there and silent
    os.close(pipe[1])
    with pytest.raises(SystemExit):
        stretches.pause()
    with pytest.raises(SystemExit):
        Stretches(pipe[0], lambda _message: None, lambda: None).pause()
    pipe.pop()
