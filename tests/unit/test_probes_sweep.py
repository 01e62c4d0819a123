"""The gather sweep: which points, which are held out, that a known machine is found again, and small real gathers."""

import itertools
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import BadInput, FileProblem, InfeasibleScenario, MissingCapability
from tiercast_profiles.gather import GatherModel, GatherPoint, is_unaligned, pages_of, requests_of
from tiercast_profiles.units import MIB
from tiercast_runtime.host_pages import MemoryRequest
from tiercast_runtime.memory import HostBlock
from tiercast_runtime.probes import numa, sweep_drift, sweep_host, sweep_stage
from tiercast_runtime.probes.block_content import WrongRows
from tiercast_runtime.probes.partial import PartialSweeps, side_file
from tiercast_runtime.probes.round_trip import lay_ring, round_trip_ns
from tiercast_runtime.probes.sweep_drift import drift_ratio, points_again, with_drift
from tiercast_runtime.probes.sweep_fit import MIN_POINTS, OVERLAP_POWER, fit_sweep
from tiercast_runtime.probes.sweep_grid import HELD_OUT_OF, Arm, Spot, SweepPlan, is_held_out, refine
from tiercast_runtime.probes.sweep_ids import RowSource, scattered, text_rows
from tiercast_runtime.probes.timing import Effort

ONCE = Effort(0, num_warm_ups=0, min_rounds=1, max_rounds=1)
TINY = SweepPlan(((64,), (256, 8)), ((64,),), (16, 64), MIB, 2 * MIB, num_refined_ratio=0)
TRUTH = GatherModel(
    call_us=1.5,
    row_ns=5.0,
    request_bytes=128,
    request_ns=20.0,
    byte_ns=0.02,
    num_run_requests=12.0,
    memory_ratio=0.5,
    cache_reach_bytes=256.0 * MIB,
    walk_ns=30.0,
    translation_reach_bytes=1024.0 * MIB,
    overlap_power=OVERLAP_POWER,
    last_read_ns=300.0,
    unaligned_row_ns=12.0,
)
GRID = SweepPlan(max_footprint_bytes=16384 * MIB, max_row_total_bytes=1 << 40)


def steady(step_ns):
    ticks = itertools.count(0, step_ns)
    return lambda: next(ticks)


def points_of(model, spots, noise=0.0):
    generator = np.random.default_rng(0)
    return [
        GatherPoint(
            piece_bytes=spot.piece_bytes,
            footprint_bytes=spot.footprint_bytes,
            num_rows=spot.num_rows,
            num_workers=spot.num_workers,
            samples_us=tuple(
                model.time_us(spot.piece_bytes, spot.footprint_bytes, spot.num_rows, spot.num_workers)
                * np.exp(noise * generator.normal(size=5))
            ),
            is_held_out=is_held_out("test", spot),
        )
        for spot in spots
    ]


def test_rows_touch_the_blocks_their_layout_makes_them():
    assert [requests_of(size, 64) for size in (64, 128, 256, 264, 8)] == [1, 2, 4, 5, 1]
    assert requests_of(264, 128) == 3.0
    assert pages_of(4096) == 1
    assert [is_unaligned(size) for size in (8, 64, 264, 320)] == [False, False, True, False]


def test_the_coarse_grid_spans_what_memory_allows():
    assert SweepPlan(max_footprint_bytes=1024 * MIB).footprints(1 << 40) == (64 * MIB, 256 * MIB, 1024 * MIB)
    assert GRID.footprints(600 * MIB) == (64 * MIB, 256 * MIB, 600 * MIB)
    assert GRID.footprints(63 * MIB) == ()
    spots = SweepPlan().coarse((64 * MIB,), (1,), is_full=True)
    assert {spot.piece_bytes for spot in spots} == set(SweepPlan().payloads)
    assert all(spot.num_rows * spot.row_bytes <= 4 * MIB for spot in spots)
    workers = {spot.num_workers for spot in SweepPlan().coarse((64 * MIB,), (64, 1024), is_full=False)}
    assert workers == {16, 64, 96, 768, 1024}


def test_refinement_asks_where_the_curve_bends():
    sizes = (64, 256, 1024, 4096)
    bent = {Spot((64,), size * MIB, 16): time for size, time in zip(sizes, (10, 10, 20, 20), strict=True)}
    wanted = refine(bent, 10)
    assert [spot.footprint_bytes // MIB for spot in wanted] == [128, 512, 2048]
    assert refine(bent, 1)[0].footprint_bytes == 512 * MIB
    flat = dict.fromkeys(bent, 10.0)
    assert refine(flat, 10) == []


def test_a_fifth_is_held_out_by_coordinates_alone():
    spots = [Spot((size,), step * MIB, rows) for size in range(64, 576, 8) for step in (64, 256) for rows in (1, 2, 3)]
    held = [spot for spot in spots if is_held_out("a", spot)]
    assert len(held) == pytest.approx(len(spots) / HELD_OUT_OF, rel=0.2)
    always = [5, 23, 26, 32, 34, 37]  # in every process and every version: the salt changes when this does
    assert [count for count in range(1, 41) if is_held_out("a", Spot((264,), 1 << 26, count))] == always
    assert held != [spot for spot in spots if is_held_out("b", spot)]


def test_a_known_machine_is_found_again_and_scored_on_points_it_was_not_fitted_to():
    spots = GRID.coarse(GRID.footprints(16384 * MIB), (1,), is_full=False)
    fitted = fit_sweep(points_of(TRUTH, spots))
    assert fitted.model.request_bytes == 128
    assert fitted.score.held_out_p90_ratio < 0.01
    assert fitted.score.num_fitted + fitted.score.num_held_out == len(spots)
    assert all(abs(point.residual_ratio) < 0.02 for point in fitted.points)
    assert fitted.model.call_us == pytest.approx(1.5, rel=0.05)
    unseen = ((384,), 700 * MIB, 1000, 1)
    assert fitted.model.time_us(*unseen) == pytest.approx(TRUTH.time_us(*unseen), rel=0.03)


def test_a_host_waits_for_first_reads_and_for_places_to_write():
    alike = {"request_bytes": 64, "last_read_ns": 0.0, "num_first_walks": 30.0, "spilled_row_ns": 25.0}
    host = TRUTH.model_copy(update=alike | {"write_reach_bytes": 1.0 * MIB})
    bare = host.model_copy(update={"num_first_walks": 0.0, "spilled_row_ns": 0.0})

    def extra_ns(pieces, num_rows, footprint_bytes=1 << 50, num_workers=1):
        where = (pieces, footprint_bytes, num_rows, num_workers)
        return 1e3 * (host.time_us(*where) - bare.time_us(*where))

    assert extra_ns((64,), 32) == pytest.approx(30 * 30 * (1 + 64 / 1024) / 2, rel=1e-2)
    assert extra_ns((64,), 32, footprint_bytes=1) == pytest.approx(0, abs=0.1)
    assert extra_ns((64, 64), 32) == pytest.approx(2 * extra_ns((64,), 32), rel=1e-2)  # each piece is a loop of its own
    assert extra_ns((1024,), 1024, footprint_bytes=1) == pytest.approx(1024 * 25 / 2, rel=1e-2)
    assert extra_ns((1024,), 4096, footprint_bytes=1) == pytest.approx(4096 * 25, rel=1e-2)
    halves = extra_ns((1024,), 2048, footprint_bytes=1, num_workers=2)  # each worker writes into a cache of its own
    assert halves == pytest.approx(2048 * 25 / 2, rel=1e-2)
    spots = GRID.coarse(GRID.footprints(16384 * MIB), (1,), is_full=False)
    fitted = fit_sweep(points_of(host, spots), is_host=True, core_cache_bytes=2 * MIB)
    assert fitted.score.held_out_p90_ratio < 0.01
    assert fitted.model.write_reach_bytes == 1 * MIB
    assert fitted.model.spilled_row_ns == pytest.approx(25.0, rel=0.1)
    assert fitted.model.num_first_walks * fitted.model.walk_ns == pytest.approx(900, rel=0.1)
    assert fit_sweep(points_of(host, spots)).score.held_out_p90_ratio > fitted.score.held_out_p90_ratio
    untold = fit_sweep(points_of(host, spots), is_host=True)  # of a host that does not say what caches it has
    assert (untold.model.write_reach_bytes, untold.model.spilled_row_ns) == (None, 0.0)
    assert untold.model.num_first_walks > 0


def test_workers_and_distinct_rows_are_terms_of_the_model():
    truth = TRUTH.model_copy(update={"num_workers_max": 300.0, "unaligned_row_ns": 0.0})
    spots = GRID.coarse(GRID.footprints(16384 * MIB), (1, 16, 256, 2048), is_full=False)
    fitted = fit_sweep(points_of(truth, spots))
    assert fitted.model.num_workers_max == pytest.approx(300.0, rel=0.1)
    assert truth.speedup(1) == pytest.approx(1.0, rel=1e-4)
    few = TRUTH.model_copy(update={"num_distinct_rows": 1000})
    cached = {"walk_ns": 0.0}  # few rows lie in few lines, but in as many pages as many rows do
    near, far = (model.model_copy(update=cached) for model in (few, TRUTH))
    assert near.per_row_ns((64,), 1 << 34) == near.per_row_ns((64,), 1 << 40) < far.per_row_ns((64,), 1 << 34)
    assert few.per_row_ns((64,), 1 << 40) > few.per_row_ns((64,), 1 << 34)
    known = fit_sweep(points_of(few, GRID.coarse(GRID.footprints(16384 * MIB), (1,), is_full=False)), 1000)
    assert known.score.held_out_p90_ratio < 0.01


def test_finding_hides_behind_moving_but_not_behind_nothing():
    alone = TRUTH.model_copy(update={"request_ns": 0.0, "byte_ns": 0.0})
    bare = TRUTH.model_copy(update={"row_ns": 0.0, "walk_ns": 0.0})
    finding, moving = (model.per_row_ns((256,), 1 << 34) for model in (alone, bare))
    squares = TRUTH.model_copy(update={"overlap_power": 2.0})
    assert squares.per_row_ns((256,), 1 << 34) == pytest.approx(np.hypot(finding, moving))
    assert max(finding, moving) < TRUTH.per_row_ns((256,), 1 << 34) < np.hypot(finding, moving)
    old = TRUTH.model_copy(update={"overlap_power": 1.0, "last_read_ns": 0.0})  # models of before read as a sum
    assert old.per_row_ns((256,), 1 << 34) == pytest.approx(finding + moving)
    assert GatherModel(**old.model_dump(exclude={"overlap_power", "last_read_ns"})) == old


def test_a_call_waits_for_its_last_reads_and_rows_asked_for_again_are_near():
    near, far = (TRUTH.time_us((64,), footprint, 0, 1) for footprint in (1, 1 << 50))
    assert far - near == pytest.approx(TRUTH.last_read_ns / 1e3, rel=1e-3)
    half = TRUTH.time_us((64,), 1 << 34, 1000, 1, 0.5) - TRUTH.time_us((64,), 1 << 34, 0, 1)
    assert half == pytest.approx(500 * (TRUTH.per_row_ns((64,), 1 << 34) + TRUTH.per_row_ns((64,), 0)) / 1e3)


def test_pieces_lie_in_tables_of_their_own_share():
    split = TRUTH.per_row_ns((256, 8), 1 << 34)
    own = [TRUTH.per_row_ns((size,), (1 << 34) * size / 264) for size in (256, 8)]
    assert split == pytest.approx(sum(own))
    assert split < TRUTH.per_row_ns((256,), 1 << 34) + TRUTH.per_row_ns((8,), 1 << 34)
    spots = GRID.coarse(GRID.footprints(16384 * MIB), (1,), is_full=True)
    fitted = fit_sweep(points_of(TRUTH.model_copy(update={"piece_row_ns": 15.0, "piece_call_us": 0.5}), spots))
    assert fitted.model.piece_row_ns == pytest.approx(15.0, rel=0.1)
    assert fitted.score.held_out_p90_ratio < 0.01


def test_outliers_pull_with_a_bounded_force_and_errors_are_those_of_stable_points():
    spots = GRID.coarse(GRID.footprints(16384 * MIB), (1,), is_full=False)
    points = points_of(TRUTH, spots)
    wild = points[3].model_copy(update={"samples_us": tuple(5 * time for time in points[3].samples_us)})
    scattered_us = {"samples_us": (1.0, 9.0, 90.0)}
    shaky = {next(i for i in range(8, len(points)) if points[i].is_held_out == is_out) for is_out in (False, True)}
    points = [point.model_copy(update=scattered_us) if i in shaky else point for i, point in enumerate(points)]
    fitted = fit_sweep([*points[:3], wild, *points[4:]])
    assert fitted.score.num_unused == 1
    assert fitted.score.num_fitted == sum(not point.is_held_out for point in points)
    assert fitted.score.held_out_p90_ratio < 0.05
    assert not fitted.score.is_unstable
    assert fitted.score.fitted_median_ratio < 0.02
    assert fit_sweep(points_of(TRUTH, spots, noise=0.2)).score.is_unstable


def test_too_few_points_give_no_model():
    spots = [Spot((64,), MIB, count) for count in range(1, MIN_POINTS)]
    assert fit_sweep(points_of(TRUTH, spots)).model is None


def test_a_sweep_of_real_gathers_keeps_every_sample():
    with sweep_host.placed_block(2 * MIB, Arm("thp")) as block:
        found = sweep_host.sweep_host(block, Arm("thp"), TINY, ONCE, RowSource("random"), clock=steady(4096_000))
    assert {point.piece_bytes for point in found.points} == {(64,), (256, 8)}
    assert {point.time_us for point in found.points if point.num_rows == 64} <= {64.0, 66.065}
    assert found.place == "local"
    assert found.round_trip_ns > 0
    assert found.model is None
    assert block.array.size == 0, "the block was given back"


def test_unstable_points_are_measured_again():
    looks = [5e3] * sweep_host.NUM_LOOKS  # that decide where to refine, and are no samples
    times = iter([*looks, 1e3, 9e3, 2e3, 7e3])
    effort = Effort(0, num_warm_ups=0, min_rounds=2, max_rounds=2)
    spot = Spot((64,), MIB, 16)
    found = sweep_host.measure_spots([spot], TINY, effort, lambda _: lambda: [(spot, next(times))])
    assert found == {spot: (1.0, 9.0, 2.0, 7.0)}


def test_threads_share_a_gather_and_wrong_rows_are_an_error(monkeypatch):
    with sweep_host.placed_block(MIB, Arm("4k", num_threads=3)) as block, sweep_host._gatherer(3) as gather:
        parts = sweep_host.parts_of(block.array, Spot((256, 8), MIB, 10))
        assert [part.shape[1] for part in parts] == [256, 8]
        ids, out = np.arange(10) * 7, np.zeros((10, 264), dtype=np.uint8)
        gather(sweep_host.RowGather(parts, 264), ids, out)
        assert np.array_equal(out, np.concatenate([part[ids] for part in parts], axis=1))
        monkeypatch.setattr(sweep_host.RowGather, "gather", lambda *_: None)
        with pytest.raises(WrongRows):
            sweep_host.sweep_host(block, Arm("4k"), TINY, ONCE, RowSource("random"))


def test_rows_come_in_the_order_asked_for(mini_model):
    spot = Spot((64,), MIB, 50)
    assert np.all(np.diff(RowSource("sorted").draw(spot, 1000)) >= 0)
    assert RowSource("random").draw(spot, 7).max() < 7
    assert not np.array_equal(*(source.draw(spot, 1 << 40) for source in [RowSource("random")] * 2))
    ids = np.arange(100) * 3
    text = RowSource("text", ids)
    assert set(text.draw(spot, 1 << 20)) <= set(scattered(ids, 1 << 20))  # the same place for the same row
    assert np.ptp(text.draw(spot, 1 << 20)) > 1 << 19  # all over the table, though the ids are small
    repeated = RowSource("text", np.repeat(ids, 2))
    assert repeated.unique_ratio(spot) == pytest.approx(0.5, abs=0.02)
    assert text.unique_ratio(spot) == 1.0
    assert RowSource("text", np.zeros(100, dtype=np.int64)).unique_ratio(spot) == 1 / 50
    assert RowSource("text", ids).num_distinct_rows == 100
    for source in (RowSource("sorted"), RowSource("random"), text):
        several = source.draws(spot, 1 << 20, 3)
        assert several.shape == (3, 50)
        assert len({tuple(rows) for rows in several}) == 3
        assert source.order != "sorted" or np.all(np.diff(several, axis=1) >= 0)
    assert RowSource("random").num_distinct_rows is None
    pytest.importorskip("tiktoken", reason="the text extra is not installed")
    rows = text_rows(mini_model("v41"))
    assert 0 < len(np.unique(rows)) < len(rows)


def test_a_ring_visits_every_place_once():
    words = np.zeros(4096, dtype=np.int64)
    place, seen = lay_ring(words, 100), set()
    while place not in seen:
        seen.add(place)
        place = int(words[place])
    assert len(seen) == 100
    assert max(seen) > 3900
    assert round_trip_ns(np.zeros(MIB, dtype=np.uint8), steady(1000)) > 0


def test_what_cannot_be_swept_has_a_reason(mini_model, monkeypatch):
    stage = sweep_stage.SweepStage(TINY, ONCE, is_quick=False)
    monkeypatch.setattr(sweep_stage, "num_cores", lambda: 2)
    sweeps, reasons = sweep_stage.split_swept(list(sweep_stage.sweep_arms(stage, mini_model("v41"), 4 * MIB, print)))
    assert {sweep.label for sweep in sweeps} >= {
        "cpu_gather/thp/random/local/1 threads",
        "cpu_gather/thp/sorted/local/1 threads",
        "cpu_gather/thp/random/local/2 threads",
        "cpu_gather/4k/random/local/1 threads",
    }
    assert all(probe.status == "not_supported" and probe.reason for probe in reasons)
    ((nothing,)) = sweep_stage.sweep_arms(stage, mini_model("v41"), MIB - 1, print)
    assert "allowed" in nothing.reason


def test_an_interrupted_sweep_goes_on_where_it_stopped(mini_model, monkeypatch, tmp_path):
    stage = sweep_stage.SweepStage(TINY, ONCE, is_quick=True)
    monkeypatch.setattr(sweep_stage.SweepStage, "arms", lambda _: [Arm("thp"), Arm("thp", "sorted"), Arm("4k")])
    path, machine, started = side_file(tmp_path / "p.yaml"), {"cpu": "x", "cores": 2}, []
    real = sweep_stage.sweep_host

    def sweep(block, arm, *rest, **options):
        started.append(arm.label)
        if len(started) == 2:
            raise KeyboardInterrupt
        return real(block, arm, *rest, **options)

    monkeypatch.setattr(sweep_stage, "sweep_host", sweep)
    model = mini_model("v41")
    with pytest.raises(KeyboardInterrupt):
        list(sweep_stage.sweep_arms(stage, model, 4 * MIB, print, PartialSweeps(path, machine, is_resumed=False)))
    assert [file.name for file in tmp_path.iterdir()] == ["p.yaml.partial"]
    resumed = PartialSweeps(path, machine, is_resumed=True)
    found = [one.label for one in sweep_stage.sweep_arms(stage, model, 4 * MIB, print, resumed)]
    assert found == [arm.label for arm in stage.arms()]
    assert started == [found[0], found[1], found[1], found[2]]
    assert resumed.get(found[0]) == PartialSweeps(path, machine, is_resumed=True).get(found[0])


def test_partial_results_of_another_machine_or_none_are_one_line(tmp_path):
    path = tmp_path / "p.yaml.partial"
    with pytest.raises(FileProblem, match="no partial results"):
        PartialSweeps(path, {"cores": 2}, is_resumed=True)
    path.write_text('{"machine": {"cores": 4}, "sweeps": []}')
    with pytest.raises(BadInput, match=r"cores 4 \(now 2\)"):
        PartialSweeps(path, {"cores": 2}, is_resumed=True)
    path.write_text('{"machine": ')
    with pytest.raises(FileProblem, match="damaged"):
        PartialSweeps(path, {"cores": 2}, is_resumed=True)


def test_memory_of_another_node_needs_another_node(tmp_path):
    (tmp_path / "sys/devices/system/node/node0").mkdir(parents=True)
    (tmp_path / "sys/devices/system/node/node0/cpulist").write_text("0-1\n")
    with pytest.raises(MissingCapability, match="one NUMA node"), numa.own_and_remote(is_remote=True, root=tmp_path):
        pass
    with numa.own_and_remote(is_remote=False, root=tmp_path):
        pass


@pytest.fixture
def two_nodes(tmp_path, monkeypatch):
    """A host of two nodes with two cores each, and what was bound to: cores, and nodes of memory."""
    for node, cores in enumerate(("0-1", "2-3")):
        folder = tmp_path / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{cores}\n")
    bound = []

    @contextmanager
    def memory_on(node):
        bound.append(("memory", node))
        yield

    monkeypatch.setattr(numa, "_memory_on", memory_on)
    monkeypatch.setattr(numa.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(numa.os, "sched_setaffinity", lambda _, cores: bound.append(("cores", cores)))
    return tmp_path, bound


@pytest.mark.parametrize(("near", "own", "other"), [(None, 0, 1), (0, 0, 1), (1, 1, 0), (7, 0, 1)])
@pytest.mark.parametrize("is_remote", [False, True])
def test_the_own_node_is_the_devices_where_there_is_one(two_nodes, near, own, other, is_remote):
    root, bound = two_nodes
    with numa.own_and_remote(is_remote=is_remote, near=near, root=root):
        assert bound == [("cores", ({0, 1}, {2, 3})[own]), ("memory", other if is_remote else own)]
    assert bound[-1] == ("cores", {0, 1, 2, 3})


def test_near_a_device_cores_and_memory_are_those_of_its_node(two_nodes):
    root, bound = two_nodes
    with numa.near_device(1, root) as said:
        assert said == "1"
        assert bound == [("cores", {2, 3}), ("memory", 1)]
    assert bound[-1] == ("cores", {0, 1, 2, 3})


def test_what_is_not_bound_says_why(two_nodes, monkeypatch, tmp_path):
    root, bound = two_nodes
    for node, why in ((None, "not known"), (5, "may not run on node 5")):
        with numa.near_device(node, root) as said:
            assert said.startswith("not bound")
            assert why in said
    assert bound == []

    @contextmanager
    def refused(node):
        raise MissingCapability(f"memory cannot be bound to NUMA node {node} (Operation not permitted)")
        yield

    monkeypatch.setattr(numa, "_memory_on", refused)
    with numa.near_device(0, root) as said:
        assert said == "not bound: memory cannot be bound to NUMA node 0 (Operation not permitted)"
    assert bound == [("cores", {0, 1}), ("cores", {0, 1, 2, 3})], "a thread is not left bound either"
    with numa.near_device(0, tmp_path / "elsewhere") as said:
        assert said == "the only one"


def test_pages_that_are_not_reserved_are_one_line(monkeypatch):
    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("tiercast_runtime.memory.mmap.mmap", refuse)
    with pytest.raises(MissingCapability, match="hugepages-1048576kB/nr_hugepages"):
        HostBlock(1, MemoryRequest("1g"))


def test_the_kernel_says_what_pages_a_block_got(tmp_path):
    block = HostBlock(4 * MIB, MemoryRequest("4k"))
    block.array[:] = 1
    address = block.array.ctypes.data
    smaps = tmp_path / "smaps"
    span = f"{address:x}-{address + 4 * MIB:x} rw-p 00000000 00:00 0\n"
    smaps.write_text(f"{span}Rss:                4096 kB\nAnonHugePages:      2048 kB\n")
    assert block.huge_page_ratio(tmp_path) == 0.5
    assert block.huge_page_ratio(tmp_path / "missing") is None
    assert block.huge_page_ratio() in (0.0, None)
    block.close()


def test_a_sweep_that_did_not_hold_until_the_end_says_so(mini_model, monkeypatch):
    monkeypatch.setattr(sweep_stage.SweepStage, "arms", lambda _: [Arm("thp"), Arm("4k", num_threads=2)])
    stage = sweep_stage.SweepStage(TINY, ONCE, is_quick=True)
    sweeps = list(sweep_stage.sweep_arms(stage, mini_model("v41"), 2 * MIB, lambda _: None))
    later = [*with_drift(sweeps, mini_model("v41"), ONCE)]
    assert [sweep.label for sweep in later] == [sweep.label for sweep in sweeps]
    assert all(sweep.drift_ratio is not None for sweep in later)
    first = sweeps[0]
    times = {spot: 1.06 * point.time_us for spot, point in zip(points_again(first), first.points, strict=True)}
    moved = first.model_copy(update={"drift_ratio": drift_ratio(first, times)})
    assert moved.drift_ratio == pytest.approx(0.06)
    assert moved.has_drifted
    assert not first.has_drifted
    on_gpu = first.model_copy(update={"path": "uva"})
    assert list(with_drift([on_gpu], mini_model("v41"), ONCE)) == [on_gpu]


def test_a_sweep_without_one_stable_point_states_no_drift(mini_model, monkeypatch):
    monkeypatch.setattr(sweep_stage.SweepStage, "arms", lambda _: [Arm("thp"), Arm("thp", num_threads=2)])
    stage = sweep_stage.SweepStage(TINY, ONCE, is_quick=True)
    steady, shaky = sweep_stage.sweep_arms(stage, mini_model("v41"), 2 * MIB, lambda _: None)
    points = tuple(point.model_copy(update={"samples_us": (1.0, 2.0, 4.0)}) for point in shaky.points)
    shaky = shaky.model_copy(update={"points": points})
    first, second = with_drift([steady, shaky], mini_model("v41"), ONCE)
    assert first.drift_ratio is not None
    assert second == shaky


def test_memory_that_is_gone_at_the_end_leaves_the_drift_unknown(mini_model, monkeypatch):
    stage = sweep_stage.SweepStage(TINY, ONCE, is_quick=True)
    monkeypatch.setattr(sweep_stage.SweepStage, "arms", lambda _: [Arm("thp")])
    sweeps = list(sweep_stage.sweep_arms(stage, mini_model("v41"), 2 * MIB, lambda _: None))

    def gone(*_):
        raise InfeasibleScenario("no memory")

    monkeypatch.setattr(sweep_drift, "placed_block", gone)
    assert list(with_drift(sweeps, mini_model("v41"), ONCE)) == sweeps
