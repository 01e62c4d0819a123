"""Work is timed behind a buffer that the device is still going through; where it was done too early, again."""

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_runtime.probes import device_timer  # noqa: E402
from tiercast_runtime.probes.device_timer import MOST_PASSES, DeviceTimer  # noqa: E402


@pytest.fixture
def timer(monkeypatch):
    """Says whether the device is still busy when all is enqueued, time after time; the last answer stays."""
    answers = []

    class Event:
        def record(self):
            pass

        def query(self):
            return not (answers.pop(0) if len(answers) > 1 else answers[0])

        def synchronize(self):
            pass

        def elapsed_time(self, _other):
            return 2.0

    monkeypatch.setattr(device_timer, "FILL_BYTES", 64)
    monkeypatch.setattr(device_timer, "cuda_event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    return DeviceTimer(torch.device("cpu")), answers


def test_work_behind_a_busy_device_is_timed_once(timer):
    timed, answers = timer
    answers.append(True)
    calls = []
    assert timed(lambda: calls.append(1)) == 2_000_000.0
    assert calls == [1]


def test_a_late_host_is_given_more_and_more_time_which_stays(timer):
    timed, answers = timer
    answers += [False, False, True]
    calls = []
    timed(lambda: calls.append(1))
    assert len(calls) == 3
    timed(lambda: calls.append(1))
    assert len(calls) == 4


def test_work_that_waits_for_the_device_is_timed_as_it_is(timer):
    timed, answers = timer
    answers.append(False)
    calls = []
    timed(lambda: calls.append(1))
    assert 2 ** (len(calls) - 1) == MOST_PASSES
    timed(lambda: calls.append(1))
    assert 2 ** (len(calls) - 2) == MOST_PASSES, "once more, and no longer tried"
