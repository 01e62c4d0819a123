"""Times of lookups: from parameters, between measured points, beyond them."""

import pytest

from tiercast_profiles.errors import BadInput
from tiercast_profiles.hardware import ComputeTable, LookupCurve, LookupPoint
from tiercast_sim.lookup import CurveTimes, bytes_moved, row_pieces
from tiercast_sim.tiers import LookupCosts


def point(num_rows, row_bytes, time_us, footprint=1000, low=None, high=None):
    return LookupPoint(
        num_rows=num_rows,
        row_bytes=row_bytes,
        footprint_bytes=footprint,
        time_us=time_us,
        low_us=low or time_us,
        high_us=high or time_us,
    )


def curve(points=(), **changes):
    fields = {
        "tier": "dram",
        "path": "uva",
        "is_calibrated": True,
        "fixed_us": 10,
        "row_ns": 5,
        "bandwidth_gb_per_s": 10,
        "read_granularity_bytes": 32,
        "removes_duplicates": False,
        "points": points,
    }
    return LookupCurve.model_validate({**fields, **changes})


def times(points=(), bound="nominal", footprint=1000, **changes):
    return CurveTimes(curve(points, **changes), bound, footprint)


def test_parameters_fixed_time_plus_the_slower_of_row_time_and_bytes():
    assert times().time_ns(100, (264,)) == 10_000 + 100 * 28.8  # 288 B at 10 B/ns
    assert times().time_ns(100, (32,)) == 10_000 + 100 * 5


def test_nothing_takes_no_time():
    assert times().time_ns(0, (264,)) == 0
    assert times((point(1, 64, 3.0),)).time_ns(0, (64,)) == 0


def test_reads_move_whole_units():
    assert [bytes_moved(size, 32) for size in (1, 32, 33, 264)] == [32, 32, 64, 288]
    assert bytes_moved(264, 4096) == 4096


def test_between_points_time_is_linear_in_rows_and_in_row_bytes():
    grid = (point(10, 100, 20.0), point(30, 100, 40.0), point(10, 300, 60.0), point(30, 300, 120.0))
    assert times(grid).time_ns(20, (100,)) == 30_000
    assert times(grid).time_ns(10, (200,)) == 40_000
    assert times(grid).time_ns(20, (200,)) == pytest.approx(60_000)


def test_beyond_the_points_the_parameters_extend():
    grid = (point(10, 64, 20.0), point(30, 64, 40.0))
    assert times(grid).time_ns(130, (64,)) == 40_000 + 100 * 6.4
    assert times(grid).time_ns(30, (128,)) == 40_000 + 30 * 6.4
    assert times(grid).time_ns(30, (32,)) == 40_000  # never faster than the smallest measured row
    assert times(grid).time_ns(5, (64,)) == 10_000 + 5_000  # half way from fixed_us to the first point


def test_the_points_of_the_nearest_footprint_serve():
    grid = (point(10, 64, 20.0, footprint=1000), point(10, 64, 90.0, footprint=100_000))
    assert times(grid, footprint=2000).time_ns(10, (64,)) == 20_000
    assert times(grid, footprint=60_000).time_ns(10, (64,)) == 90_000


def test_bounds_take_the_quartiles():
    grid = (point(10, 64, 20.0, low=18.0, high=27.0),)
    assert [times(grid, bound).time_ns(10, (64,)) for bound in ("optimistic", "nominal", "pessimistic")] == [
        18_000,
        20_000,
        27_000,
    ]


def test_split_rows_pay_for_two_reads_but_one_start(mini_model):
    engram = mini_model().engram
    pieces = row_pieces(engram, "split")
    assert pieces == (32, 1)
    assert row_pieces(engram, "packed") == (33,)
    assert row_pieces(engram, "padded") == (64,)
    assert times().time_ns(100, pieces) == 10_000 + 100 * 2 * 5
    assert row_pieces(mini_model("demo").engram, "split") == (64,)  # bf16 rows have no scales


@pytest.mark.parametrize(
    "change",
    [
        {"bandwidth_gb_per_s": 0},
        {"bandwidth_gb_per_s": -1},
        {"fixed_us": -1},
        {"row_ns": -0.5},
        {"bandwidth_gb_per_s": {"value": 1, "low": 0, "high": 2}},
    ],
)
def test_rates_that_cannot_be(change):
    with pytest.raises(BadInput, match="must be >"):
        times((), "pessimistic", **change)


def test_heads_are_sharded_and_the_slowest_rank_decides(sim_scenario):
    one = LookupCosts(sim_scenario({"tier": "cxl"}), "nominal", 0)
    four = LookupCosts(sim_scenario({"tier": "cxl"}, parallel={"tensor": 4}), "nominal", 0)
    # Six rows per token: one rank reads six, the slowest of four reads two.
    assert one.lookup(60, 0, 0).bytes_per_rank == 60 * 66
    assert four.lookup(60, 0, 0).bytes_per_rank == 20 * 66
    assert four.lookup(60, 0, 0).rows_read == 60


def test_host_driven_paths_pay_for_ids_and_copy(sim_scenario):
    costs = LookupCosts(sim_scenario({"tier": "pool"}), "nominal", 0)
    rows = 60
    gather = 60_000 + rows * 128 / 3  # 66 B in units of 64 at 3 B/ns
    copy = 2_000 + rows * 66 / 10
    ids = 2_000 + 10 * 4 / 10
    assert costs.lookup(rows, 0, 0).duration_ns == round(gather + copy)
    assert costs.lookup(rows, 0, 10).duration_ns == round(gather + copy + ids)


def test_one_shared_copy_makes_half_of_the_reads_remote(sim_scenario):
    shared = LookupCosts(sim_scenario({"tier": "dram", "replication": "per_node"}), "nominal", 0)
    local = LookupCosts(sim_scenario({"tier": "dram", "replication": "per_numa"}), "nominal", 0)
    assert local.lookup(100, 0, 0).duration_ns == (10_000 + 100 * 16)
    assert shared.lookup(100, 0, 0).duration_ns == round(10_000 + 100 * 16 * (0.5 + 0.5 / 0.5))


def test_cache_hits_are_gathered_from_device_memory(sim_scenario):
    costs = LookupCosts(sim_scenario({"tier": "cxl", "cache_gib": 0.001}), "nominal", 0)
    assert costs.lookup(0, 60, 0).duration_ns == round(3_000 + 60 * 96 / 50)
    assert costs.lookup(60, 60, 0).duration_ns == round(15_000 + 60 * 32 + 3_000 + 60 * 96 / 50)


def test_hits_in_host_memory_are_copied_up(sim_scenario):
    costs = LookupCosts(sim_scenario({"tier": "nvme", "cache_gib": 0.001}), "nominal", 0)
    copied_ns = 2_000 + 60 * costs.row_bytes / 10
    assert costs.lookup(0, 60, 0).duration_ns == round(copied_ns + 3_000 + 60 * 96 / 50)
    assert costs.lookup(60, 60, 0).rows_hit == 60


def test_ranks_share_what_the_profile_says_they_share(sim_scenario):
    hardware = {"host_to_device": {"num_sharing": 2}}
    resolved = sim_scenario({"tier": "dram", "path": "uva"}, hardware=hardware, parallel={"tensor": 2, "data": 2})
    first, second = (LookupCosts(resolved, "nominal", replica) for replica in (0, 1))
    assert sorted(first.capacities()) == ["dram of host 0", "link 0 of host 0"]
    assert sorted(second.capacities()) == ["dram of host 0", "link 1 of host 0"]
    usage = dict(first.lookup(600, 0, 0).usage)
    assert usage["dram of host 0"] == pytest.approx(usage["link 0 of host 0"])


def test_replicas_on_different_hosts_share_nothing(sim_scenario):
    resolved = sim_scenario({"tier": "nvme"}, parallel={"tensor": 4, "data": 2})
    first, second = (LookupCosts(resolved, "nominal", replica) for replica in (0, 1))
    assert not set(first.capacities()) & set(second.capacities())


def with_way(resolved, *points, **changes):
    """The scenario on a machine that timed lookups without their gather, by sequences, in µs."""
    table = ComputeTable.model_validate(
        {
            "model_name": "mini",
            "shape_sha256": resolved.model.backbone.shape_sha256,
            "engram_sha256": resolved.model.engram.shape_sha256,
            "graph_mode": "piecewise",
            "context_statistic": "mean",
            "components": {
                "lookup_way": [
                    {"num_tokens": count, "context_tokens": 0, "time_us": us, "low_us": us, "high_us": us}
                    for count, us in points
                ]
            },
            **changes,
        }
    )
    hardware = resolved.hardware.model_copy(update={"compute": (table,)})
    return resolved.model_copy(update={"hardware": hardware})


def test_the_first_lookup_of_a_step_has_its_whole_way(sim_scenario):
    placement = {"tier": "dram", "path": "cpu_gather", "prefetch": "step_entry"}
    resolved = sim_scenario(placement)
    per_token = resolved.model.engram.num_rows_per_token
    hops, timed = (
        LookupCosts(resolved, "nominal", 0),
        LookupCosts(with_way(resolved, (1, 400.0), (5, 800.0)), "nominal", 0),
    )

    def first_ns(costs, count):
        return costs.lookup(count * per_token, 0, count).duration_ns

    def hops_ns(count):
        """Both hops alone: the first lookup without its gather, which a later one has with the copy of its rows."""
        copy = timed._rows_up_ns(count * per_token)
        return first_ns(hops, count) - hops.lookup(count * per_token, 0, 0).duration_ns + copy

    for count, way_ns in ((1, 400_000), (3, 600_000), (5, 800_000)):
        assert first_ns(timed, count) - first_ns(hops, count) == pytest.approx(way_ns - hops_ns(count), abs=2)
    beyond = first_ns(timed, 50) - first_ns(hops, 50)
    assert beyond == pytest.approx(first_ns(timed, 5) - first_ns(hops, 5), abs=2), "hops grow alone"
    later = [costs.lookup(3 * per_token, 0, 0) for costs in (hops, timed)]
    assert later[0] == later[1], "the worker is awake"


def test_a_way_shorter_than_the_hops_takes_nothing_off(sim_scenario):
    resolved = sim_scenario({"tier": "dram", "path": "cpu_gather"})
    hops, timed = LookupCosts(resolved, "nominal", 0), LookupCosts(with_way(resolved, (1, 0.001)), "nominal", 0)
    assert timed.lookup(20, 0, 1) == hops.lookup(20, 0, 1)


@pytest.mark.parametrize(
    ("placement", "changes"),
    [
        ({"path": "uva"}, {}),
        ({"path": "cpu_gather", "prefetch": "off"}, {}),
        ({"path": "cpu_gather"}, {"engram_sha256": None}),
        ({"path": "cpu_gather"}, {"shape_sha256": "0" * 64}),
    ],
)
def test_who_wakes_no_worker_and_whom_nothing_was_timed_for_has_the_hops(sim_scenario, placement, changes):
    resolved = sim_scenario({"tier": "dram", **placement})
    hops = LookupCosts(resolved, "nominal", 0)
    timed = LookupCosts(with_way(resolved, (1, 9_000.0), **changes), "nominal", 0)
    assert timed.lookup(20, 0, 1) == hops.lookup(20, 0, 1)
