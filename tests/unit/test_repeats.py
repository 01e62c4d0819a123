"""Records of one run each, put together as a bench with as many repeats would have written them."""

import pytest

from tiercast_profiles.record import Metric
from tiercast_profiles.repeats import UNSTABLE_THROUGHPUT, together
from tiercast_sim.simulate import simulate


@pytest.fixture(scope="module")
def record(mini_scenario):
    return simulate(mini_scenario({"tier": "nvme"}), with_baselines=False)


def run_of(record, speed: float, *, warnings=(), **facts):
    metrics = record.metrics.model_copy(update={"output_tokens_per_s": Metric(value=speed), "cache_hit_ratio": None})
    provenance = record.provenance.model_copy(update={"facts": {"repeats": 1, **facts}, "warnings": warnings})
    return record.model_copy(update={"kind": "measured", "metrics": metrics, "provenance": provenance})


def test_metrics_are_medians_with_quartiles_and_the_rest_is_of_the_middle_run(record):
    runs = [
        run_of(record, 100, pace_decode_1=1.0, cores_used_by_others=0.1, steps=1),
        run_of(record, 104, pace_decode_1=1.2, cores_used_by_others=0.3, steps=2, warnings=("a",)),
        run_of(record, 101, pace_decode_1=1.1, cores_used_by_others=0.2, steps=3, warnings=("a", "b")),
    ]
    found = together(runs)
    speed = found.metrics.output_tokens_per_s
    assert (speed.value, speed.low, speed.high, speed.basis) == (101, 100.5, 102.5, "spread")
    assert found.metrics.runs_output_tokens_per_s == (100, 104, 101)
    assert found.metrics.cache_hit_ratio is None
    assert found.provenance.facts == {
        "repeats": 3,
        "pace_decode_1": pytest.approx(1.1),
        "cores_used_by_others": pytest.approx(0.2),
        "steps": 3,
    }
    assert found.provenance.warnings == ("a", "b")
    stall = record.metrics.stall_ms_per_step.value
    assert found.metrics.stall_ms_per_step == Metric(value=stall, low=stall, high=stall, basis="spread")
    assert found.metrics.ttft_ms.p90.value == record.metrics.ttft_ms.p90.value
    assert len(found.metrics.layers) == len(record.metrics.layers)
    assert found.metrics.layers[0].window_us.value == record.metrics.layers[0].window_us.value
    assert found.metrics.memory_bytes == record.metrics.memory_bytes
    assert found.metrics.kv_capacity_tokens == record.metrics.kv_capacity_tokens


def test_a_pace_that_was_not_timed_in_every_run_is_left_out(record):
    found = together([run_of(record, 100, pace_disk=1.0), run_of(record, 100), run_of(record, 100, pace_disk=2.0)])
    assert "pace_disk" not in found.provenance.facts


def test_a_warning_that_differs_in_its_numbers_only_is_said_once(record):
    busy = ("others used 0.41 of 2 cores", "others used 1.2 of 2 cores")
    runs = [run_of(record, 100, warnings=(warning, "a")) for warning in busy]
    assert together(runs).provenance.warnings == ("others used 0.41 of 2 cores", "a")


def test_runs_far_apart_say_so(record):
    assert UNSTABLE_THROUGHPUT in together([run_of(record, 100), run_of(record, 140)]).provenance.warnings


def test_one_run_stays_as_it_is(record):
    one = run_of(record, 100)
    assert together([one]) is one


def test_what_is_no_set_of_repeats_is_refused(record, mini_scenario):
    other = simulate(mini_scenario({"tier": "none"}), with_baselines=False)
    for records in ([], [run_of(record, 1), run_of(other, 1)]):
        with pytest.raises(ValueError, match="records of one scenario"):
            together(records)
    with pytest.raises(ValueError, match="several repeats holds medians"):
        together([run_of(record, 1), run_of(record, 1, repeats=3)])
