"""One profile out of several of the same machine: medians, bands that hold the drift, and nothing mixed up."""

from pathlib import Path

import pytest

from tiercast_cli.suite import scenarios
from tiercast_profiles import store
from tiercast_profiles.document import Quantity
from tiercast_profiles.errors import BadInput
from tiercast_profiles.hardware import HostCachePoint, LookupOverhead, ProbeResult, StepSpread, TimeSpread
from tiercast_profiles.pooling import UNSTABLE_OVER_TIME, pool
from tiercast_sim.simulate import simulate

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "validation" / "two-core-xeon" / "suite" / "profile.yaml"


@pytest.fixture(scope="module")
def profile():
    return store.load_hardware(str(COMMITTED))


def with_times(profile, factor: float):
    """The profile with layers and lookups that take ``factor`` times as long."""

    def point(one):
        names = ("time_us", "low_us", "high_us")
        return one.model_copy(update={name: factor * getattr(one, name) for name in names})

    compute = tuple(
        table.model_copy(
            update={"components": {name: tuple(map(point, points)) for name, points in table.components.items()}}
        )
        for table in profile.compute
    )
    lookups = tuple(curve.model_copy(update={"points": tuple(map(point, curve.points))}) for curve in profile.lookups)
    return profile.model_copy(update={"compute": compute, "lookups": lookups})


def test_every_time_is_the_median_and_its_band_reaches_over_all(profile):
    found = pool([with_times(profile, factor) for factor in (1.0, 3.0, 2.0)])
    for mine, own in zip(found.compute, profile.compute, strict=True):
        assert (mine.model_name, mine.engram_sha256) == (own.model_name, own.engram_sha256)
        for name, points in own.components.items():
            for after, before in zip(mine.components[name], points, strict=True):
                assert after.time_us == 2 * before.time_us
                assert (after.low_us, after.high_us) == (before.low_us, 3 * before.high_us)
    for curve, before in zip(found.lookups, profile.lookups, strict=True):
        assert [point.time_us for point in curve.points] == [2 * point.time_us for point in before.points]


def test_a_profile_pooled_with_itself_says_the_same(profile, tmp_path):
    found = pool([profile, profile])
    for name in ("device", "host", "nvme", "lookups", "compute", "efficiencies", "interference", "gather_sweeps"):
        assert getattr(found, name) == getattr(profile, name), name
    assert found.description.endswith("Pooled over 2 profiles of 2026-11-29: medians, and bands over all.")
    file = tmp_path / "pooled.yaml"
    store.write_text(file, store.to_yaml(found))
    assert store.load_hardware(str(file)) == found


def test_quantities_without_a_band_get_one_where_they_differ(profile):
    def sized(capacity_gb: float):
        device = profile.device.model_copy(update={"memory_capacity_gb": Quantity(value=capacity_gb)})
        return profile.model_copy(update={"device": device})

    assert pool([sized(25), sized(27), sized(26)]).device.memory_capacity_gb == Quantity(value=26, low=25, high=27)
    assert pool([sized(25), sized(25)]).device.memory_capacity_gb == Quantity(value=25)


def test_probes_keep_all_samples_and_are_judged_over_all_times(profile):
    def sampled(*samples: float, name: str = "copy"):
        probe = ProbeResult(name=name, unit="us", samples=samples, status="ok")
        lost = ProbeResult(name="gpu", unit="", status="not_supported", reason="no GPU answers")
        return profile.model_copy(update={"probes": (probe, lost)})

    copy, gpu = pool([sampled(10.0, 10.1), sampled(13.0, 13.1)]).probes
    assert copy.samples == (10.0, 10.1, 13.0, 13.1)
    assert (copy.status, copy.reason) == ("unstable", UNSTABLE_OVER_TIME)
    assert gpu.status == "not_supported"
    assert pool([sampled(10.0, 10.1), sampled(10.0, 10.1)]).probes[0].status == "ok"
    names = [probe.name for probe in pool([sampled(1.0, name="a"), sampled(1.0, name="b")]).probes]
    assert names == ["a", "gpu", "b"]


def test_times_of_the_mlp_are_pooled_by_their_number_of_tokens(profile):
    def timed(*samples_by_tokens: tuple[int, float]):
        probes = tuple(
            ProbeResult(
                name="layers.mlp", parameters={"model": "tiny", "tokens": count}, unit="us", samples=(us,), status="ok"
            )
            for count, us in samples_by_tokens
        )
        return profile.model_copy(update={"probes": probes})

    found = pool([timed((1, 30.0), (8, 50.0)), timed((1, 34.0), (8, 52.0))])
    assert [(probe.parameters["tokens"], probe.samples) for probe in found.probes] == [
        (1, (30.0, 34.0)),
        (8, (50.0, 52.0)),
    ]
    assert found.compute == profile.compute


def test_what_one_probe_missed_is_pooled_over_the_others(profile):
    assert profile.interference
    without = profile.model_copy(update={"interference": ()})
    assert pool([without, profile, profile]).interference == profile.interference


def test_what_lookups_take_is_pooled_over_the_profiles_that_say_it(profile):
    def taking(us):
        overhead = LookupOverhead(
            issue_us=us, beside_us={"value": us, "low": us - 1, "high": us}, after_us=0, inline_us=us
        )
        entry = profile.interference[0].model_copy(update={"overhead": overhead})
        return profile.model_copy(update={"interference": (entry,)})

    found = pool([taking(10), taking(40), profile, taking(20)]).interference[0].overhead
    assert found.beside_us == Quantity(value=20, low=9, high=40)
    assert found.issue_us == Quantity(value=20, low=10, high=40)
    assert found.after_us == Quantity(value=0)


def test_how_far_lookups_lie_apart_is_pooled_case_by_case(profile):
    def apart(last):
        spread = TimeSpread(num_rows=96, time_ratios=(0.9,) * 9 + (last,))
        curves = (profile.lookups[0].model_copy(update={"spreads": (spread,)}), *profile.lookups[1:])
        return profile.model_copy(update={"lookups": curves})

    (found,) = pool([apart(1.5), apart(2.5), apart(1.9)]).lookups[0].spreads
    assert found == TimeSpread(num_rows=96, time_ratios=(0.9,) * 9 + (1.9,))


def test_how_far_steps_lie_apart_is_pooled_case_by_case(profile):
    def apart(last):
        spread = StepSpread(num_tokens=8, time_ratios=(0.9,) * 9 + (last,))
        tables = (profile.compute[0].model_copy(update={"spreads": (spread,)}), *profile.compute[1:])
        return profile.model_copy(update={"compute": tables})

    (found,) = pool([apart(1.5), apart(2.5), apart(1.9)]).compute[0].spreads
    assert found == StepSpread(num_tokens=8, time_ratios=(0.9,) * 9 + (1.9,))


def test_what_a_cache_takes_is_pooled_by_rows_and_row_size(profile):
    def taking(us, *sizes):
        points = tuple(
            HostCachePoint(num_rows=rows, row_bytes=size, find_us=us, keep_us=rows * us, hit_us=size * us)
            for rows, size in sizes
        )
        return profile.model_copy(update={"host_cache": points})

    first = taking(3, (1, 64), (8, 64), (8, 264))
    found = pool([first, taking(1, (8, 264), (1, 64)), profile, taking(2, (8, 264))]).host_cache
    assert [(point.num_rows, point.row_bytes) for point in found] == [(1, 64), (8, 64), (8, 264)]
    assert found[2].find_us == Quantity(value=2, low=1, high=3)
    assert found[2].keep_us == Quantity(value=16, low=8, high=24)
    assert found[0].hit_us == Quantity(value=128, low=64, high=192)
    assert found[1] == first.host_cache[1]


def test_of_the_gather_sweeps_the_one_with_the_middle_error_stands(profile):
    def scored(ratio: float):
        sweeps = tuple(
            sweep.model_copy(update={"score": sweep.score.model_copy(update={"held_out_median_ratio": ratio})})
            for sweep in profile.gather_sweeps
        )
        return profile.model_copy(update={"gather_sweeps": sweeps})

    found = pool([scored(0.02), scored(0.09), scored(0.04)])
    assert [sweep.score.held_out_median_ratio for sweep in found.gather_sweeps if sweep.score] == [0.04] * len(
        profile.gather_sweeps
    )


def test_predictions_from_a_pooled_profile_carry_the_drift(profile):
    pooled = pool([with_times(profile, factor) for factor in (1.0, 1.2, 1.1)])
    resolved = scenarios(store.load_suite()[0], str(COMMITTED))["one/none"]

    def predicted(hardware):
        found = simulate(resolved.model_copy(update={"hardware": hardware})).metrics.output_tokens_per_s
        assert found.low is not None
        assert found.high is not None
        return found.value, found.low, found.high

    own, found = predicted(with_times(profile, 1.1)), predicted(pooled)
    assert found[0] == pytest.approx(own[0])
    assert found[1] < own[1]
    assert found[2] > own[2]


def test_what_cannot_be_pooled_is_refused_in_one_line(profile):
    with pytest.raises(BadInput, match="1 profile given; pool two or more"):
        pool([profile])
    with pytest.raises(BadInput, match="h200-sxm is a datasheet"):
        pool([profile, store.load_hardware("h200-sxm")])
    other = profile.model_copy(update={"device": profile.device.model_copy(update={"product_name": "another"})})
    with pytest.raises(BadInput, match=r"device\.product_name is .*, another; pool profiles of one machine"):
        pool([profile, other])
    with pytest.raises(BadInput, match=r"profile 2 \(this-intel-xeon\) has no layer times of tiny"):
        pool([profile, profile.model_copy(update={"compute": profile.compute[1:]})])
    with pytest.raises(BadInput, match="has no lookups of nvme by disk, which another one has"):
        pool([profile, profile.model_copy(update={"lookups": profile.lookups[:-1]})])
