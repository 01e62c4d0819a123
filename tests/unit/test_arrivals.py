"""Arrivals by chance: the mean, the spread and the bursts are those of the stated law."""

import numpy as np
import pytest
from pydantic import ValidationError

from tiercast_profiles.arrivals import gaps_ns, switched
from tiercast_profiles.rng import stream
from tiercast_profiles.workload import Workload, draw_requests

POISSON = {
    "kind": "poisson",
    "requests_per_s": 50.0,
    "num_requests": 4000,
    "prompt_tokens": {"fixed": 1},
    "output_tokens": {"fixed": 1},
}


def arrivals(**change):
    return [request.arrival_ns for request in draw_requests(Workload.model_validate({**POISSON, **change}), 3)]


@pytest.mark.parametrize("burstiness", [0.1, 0.5, 1.0, 4.0])
def test_gaps_have_the_mean_of_the_rate_and_the_spread_of_the_burstiness(burstiness):
    gaps = gaps_ns(200_000, 100.0, burstiness, seed=1)
    assert gaps.mean() == pytest.approx(1e7, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.03)


def test_burstiness_one_is_the_poisson_process_of_before():
    drawn = stream(3, "arrivals").exponential(1e9 / 50.0, size=4000)
    assert arrivals() == arrivals(burstiness=1.0) == [int(t) for t in np.cumsum(drawn)]


def test_a_clock_that_stands_still_while_the_source_is_off():
    busy = np.array([1.0, 5e8, 2e9, 9e9])
    wall = switched(busy, mean_on_s=1.0, mean_off_s=2.0, seed=0)
    pauses = wall - busy
    assert np.all(pauses >= 0)
    assert np.all(np.diff(pauses) >= 0)
    assert np.all(np.diff(wall) >= np.diff(busy))


def test_on_off_keeps_the_mean_rate_and_leaves_gaps_as_long_as_its_pauses():
    times = np.array(arrivals(num_requests=40_000, on_off={"mean_on_s": 0.5, "mean_off_s": 1.5}))
    assert 40_000 / (times[-1] / 1e9) == pytest.approx(50, rel=0.1)  # the rate over all time
    gaps = np.diff(times) / 1e9
    assert np.median(gaps) == pytest.approx(np.log(2) / 200, rel=0.05)  # four times the rate while on
    pauses = gaps[gaps > 0.1]  # longer than any gap at 200/s
    assert pauses.mean() == pytest.approx(1.6, rel=0.15)  # memoryless: 0.1 s gone, 1.5 s more to go


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"requests_per_s": 1e7}, "less than or equal to 1000000"),
        ({"requests_per_s": 1e-300}, "greater than or equal to"),
        ({"requests_per_s": 1e-6, "num_requests": 10_000}, "take 1e\\+10 s to arrive"),
        ({"burstiness": 0}, "greater than or equal to 0.001"),
        ({"on_off": {"mean_on_s": 1e-9, "mean_off_s": 1e-9}}, "switches more than"),
        ({"kind": "closed_loop", "requests_per_s": None, "concurrency": 2, "burstiness": 2.0}, "no burstiness"),
        ({"prompt_tokens": None}, "poisson needs prompt_tokens"),
        ({"file": "x.jsonl"}, "and no file"),
        ({"kind": "trace", "file": "x.jsonl"}, "and no output_tokens or prompt_tokens or requests_per_s"),
    ],
    ids=str,
)
def test_absurd_arrivals_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        Workload.model_validate({**POISSON, **change})
