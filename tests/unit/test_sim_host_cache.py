"""What a cache in host memory takes of a lookup, in the simulator: by hand, by policy, bound and size."""

import pytest

from tiercast_profiles.errors import BadInput
from tiercast_sim.host_cache import HostCacheTimes
from tiercast_sim.simulate import simulate
from tiercast_sim.tiers import LookupCosts

US = 1_000
ROW_BYTES = 66  # those of the model


def point(num_rows, find_us, keep_us, hit_us, row_bytes=64):
    return {"num_rows": num_rows, "row_bytes": row_bytes, "find_us": find_us, "keep_us": keep_us, "hit_us": hit_us}


# find grows by 0.5, keep by 1 and hit by 2 us a row; in any order
POINTS = [point(110, 60, 120, 240), point(10, 10, 20, 40)]


@pytest.fixture
def lookup_ns(sim_scenario):
    """Time of one lookup of rows read and rows hit, with and without times of the cache in the profile."""

    def duration(read, hit, *, points=POINTS, path="disk", bound="nominal", parallel=None, **placement):
        tier = {"disk": "nvme", "cpu_gather": "dram", "uva": "dram"}[path]
        placed = {"tier": tier, "path": path, "cache_gib": 0.001} | placement
        sections = {} if parallel is None else {"parallel": parallel}
        resolved = sim_scenario(placed, hardware={"host_cache": points}, **sections)
        return LookupCosts(resolved, bound, 0).lookup(read, hit, 0).duration_ns

    return duration


@pytest.mark.parametrize("path", ["disk", "cpu_gather"])
def test_missing_rows_are_looked_for_and_kept(lookup_ns, path):
    bare = lookup_ns(60, 0, points=[], path=path)
    assert lookup_ns(60, 0, path=path) == bare + (35 + 70) * US


def test_rows_that_are_there_take_their_time_and_the_way_up_instead_of_a_gather(lookup_ns):
    copy_up_ns = 2_000 + 60 * ROW_BYTES / 10
    assert lookup_ns(0, 60) == round(140 * US + copy_up_ns)


def test_of_a_lookup_of_both_each_takes_its_share_of_the_whole(lookup_ns):
    tier_ns = lookup_ns(15, 0, points=[]) + 45 * ROW_BYTES / 10  # the hits go up beside
    whole_ns = 0.25 * 35 * US + 0.75 * 140 * US
    kept_ns = (20 + 5) * US
    assert lookup_ns(15, 45) == pytest.approx(tier_ns + whole_ns + kept_ns, abs=1)
    assert lookup_ns(15, 45, cache_policy="lfu") == lookup_ns(15, 45)
    assert lookup_ns(15, 45, cache_policy="static_hot") == pytest.approx(tier_ns + whole_ns, abs=1)


def test_few_rows_take_what_the_first_point_says_and_more_grow_by_the_last_slope(lookup_ns):
    grown = {count: lookup_ns(count, 0) - lookup_ns(count, 0, points=[]) for count in (1, 110, 210)}
    assert grown == {1: 30 * US, 110: 180 * US, 210: (110 + 220) * US}
    falling = [*POINTS[:1], point(10, 70, 130, 250)]
    assert lookup_ns(210, 0, points=falling) - lookup_ns(210, 0, points=[]) == 180 * US
    assert lookup_ns(210, 0, points=POINTS[:1]) - lookup_ns(210, 0, points=[]) == 180 * US


def test_the_nearest_row_size_serves(lookup_ns):
    others = [point(10, 1, 1, 1, row_bytes=1), point(10, 1_000, 1_000, 1_000, row_bytes=97)]
    assert lookup_ns(60, 0, points=[*others, *POINTS]) == lookup_ns(60, 0)


def test_bounds_take_the_ends_of_the_bands(lookup_ns):
    banded = [point(*(1, *({"value": us, "low": us - 1, "high": us + 2} for us in (10, 20, 40))))]
    for bound, each_us in (("optimistic", -1), ("nominal", 0), ("pessimistic", 2)):
        bare = lookup_ns(8, 0, points=[], bound=bound)
        assert lookup_ns(8, 0, points=banded, bound=bound) == bare + (10 + 20 + 2 * each_us) * US


def test_the_slowest_rank_counts(lookup_ns):
    two = {"tensor": 2}
    assert lookup_ns(120, 0, parallel=two) == lookup_ns(120, 0, points=[], parallel=two) + (35 + 70) * US


@pytest.mark.parametrize("case", [{"path": "uva"}, {"path": "disk", "cache_gib": 0}, {"path": "disk", "points": []}])
def test_elsewhere_nothing_changes(sim_scenario, case):
    tier = "dram" if case["path"] == "uva" else "nvme"
    placement = {"tier": tier, "path": case["path"], "cache_gib": case.get("cache_gib", 0.001)}
    with_points, bare = (
        sim_scenario(placement, hardware={"host_cache": points}) for points in (case.get("points", POINTS), [])
    )
    assert HostCacheTimes.of(with_points, "nominal") is None
    costs = [LookupCosts(one, "nominal", 0).lookup(60, 60, 0) for one in (with_points, bare)]
    assert costs[0] == costs[1]


def test_a_profile_without_times_keeps_its_hash(sim_scenario):
    bare, timed = (sim_scenario({"tier": "nvme"}, hardware={"host_cache": points}).hardware for points in ([], POINTS))
    assert "host_cache" not in bare.model_dump(mode="json")
    assert len(timed.model_dump(mode="json")["host_cache"]) == 2
    assert bare.sha256 != timed.sha256


def test_no_gather_by_the_device_is_needed_where_the_cache_was_timed(sim_scenario):
    placed = sim_scenario({"tier": "nvme", "path": "disk", "cache_gib": 0.001}, hardware={"host_cache": POINTS})
    curves = tuple(curve for curve in placed.hardware.lookups if curve.path != "device")
    hardware = placed.hardware.model_copy(update={"lookups": curves})
    found = LookupCosts(placed.model_copy(update={"hardware": hardware}), "nominal", 0).lookup(0, 60, 0)
    assert found == LookupCosts(placed, "nominal", 0).lookup(0, 60, 0)


def test_a_time_below_nothing_names_the_field(sim_scenario):
    resolved = sim_scenario(
        {"tier": "nvme", "path": "disk", "cache_gib": 0.001}, hardware={"host_cache": [point(1, 1, -1, 1)]}
    )
    with pytest.raises(BadInput, match="host_cache keep_us=-1"):
        LookupCosts(resolved, "nominal", 0)


def test_a_run_past_a_cache_stalls_longer_by_it(sim_scenario):
    placement = {"tier": "nvme", "path": "disk", "cache_gib": 0.001, "prefetch": "off"}
    slow = [point(1, 500, 500, 500)]
    timed, bare = (
        simulate(sim_scenario(placement, hardware={"host_cache": points}), with_baselines=False, with_bounds=False)
        for points in (slow, [])
    )
    num_layers = len(sim_scenario(placement).model.engram.layer_ids)
    least, most = 500 * US * num_layers * 0.9, 1_000 * US * num_layers
    steps = zip(timed.samples.steps.duration_ns, bare.samples.steps.duration_ns, strict=True)
    assert all(least <= longer - shorter <= most for longer, shorter in steps)
