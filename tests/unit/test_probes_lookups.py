"""Copies, gathers and file reads on small blocks with clocks that the test moves: right bytes, right bookkeeping."""

import itertools
import shutil
from collections import namedtuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import FileProblem, InfeasibleScenario, MissingCapability  # noqa: E402
from tiercast_profiles.head_sizes import table_rows  # noqa: E402
from tiercast_profiles.units import MIB  # noqa: E402
from tiercast_runtime.aio import RowReader  # noqa: E402
from tiercast_runtime.paths.base import StagedRows  # noqa: E402
from tiercast_runtime.paths.device import DevicePath  # noqa: E402
from tiercast_runtime.probes import copies, gather, link_copies, numa, storage  # noqa: E402
from tiercast_runtime.probes.block_content import WrongRows  # noqa: E402
from tiercast_runtime.probes.host_gathers import HostGathers  # noqa: E402
from tiercast_runtime.probes.kept_memory import KeptMemory  # noqa: E402
from tiercast_runtime.probes.timing import Effort, Spread  # noqa: E402
from tiercast_runtime.table import FileTable  # noqa: E402

ONCE = Effort(0, num_warm_ups=0, min_rounds=3, max_rounds=3)
CPU = torch.device("cpu")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def engram(mini_model):
    return mini_model("v41").engram


def steady(step_ns):
    """A clock that moves by the same time with every reading, so that whatever is timed takes that long."""
    ticks = itertools.count(0, step_ns)
    return lambda: next(ticks)


def test_copies_are_rates_of_the_bytes_copied_once():
    found = copies.measure_host_copies(8_000_000, (1, 2), ONCE, steady(1_000_000))
    assert sorted(found.rates) == ["threads_1", "threads_2"]
    assert found.rates["threads_1"].samples == (8.0, 8.0, 8.0)
    assert found.latencies["small"].value == pytest.approx(1000 / copies.NUM_SMALL_COPIES)
    assert [probe.name for probe in found.probes] == ["copy.host", "copy.host", "copy.host.small"]


def test_threads_copy_every_byte():
    source, target = np.arange(1001), np.zeros(1001, dtype=np.int64)
    with copies._copier(source, target, 3) as copy:
        copy()
    assert np.array_equal(source, target)


def test_a_wrong_copy_is_an_error(monkeypatch):
    monkeypatch.setattr(np, "copyto", lambda *_: None)
    with pytest.raises(copies.CopyMismatch, match="memory of this machine"):
        copies.measure_host_copies(80, (1,), ONCE)


def test_copies_at_two_times_are_one_figure_whose_drift_is_flagged():
    early, late = (copies.measure_host_copies(8_000_000, (1,), ONCE, steady(step)) for step in (1_000_000, 2_000_000))
    both = copies.pooled(early, late)
    assert both.rates["threads_1"].samples == (8.0, 8.0, 8.0, 4.0, 4.0, 4.0)
    assert [probe.status for probe in early.probes] == ["ok", "ok"]
    assert both.probes[0].status == "unstable"
    assert copies.pooled(early, early).probes[0].status == "ok"
    judged = [probe.model_copy(update={"status": "invalid", "reason": "throttled"}) for probe in early.probes]
    kept = copies.pooled(copies.CopyRates(early.rates, early.latencies, tuple(judged)), early)
    assert {(probe.status, probe.reason) for probe in kept.probes} == {("invalid", "throttled")}


def test_a_copy_is_larger_than_the_last_cache():
    assert copies.copy_bytes(256 * MIB, None) == 256 * MIB
    assert copies.copy_bytes(256 * MIB, 480 * MIB) == 480 * MIB
    assert copies.copy_bytes(256 * MIB, 8192 * MIB) == copies.MAX_COPY_BYTES


def test_without_a_gpu_the_link_is_not_supported():
    assert {probe.status for probe in link_copies.device_copies_missing()} == {"not_supported"}


@pytest.mark.parametrize("row_bytes", [33, 64, 128, 264, 1024, 4096])
def test_any_row_size_has_an_engram(row_bytes):
    assert gather.engram_of_row_bytes(row_bytes).row_bytes == row_bytes


def test_the_sweep_holds_what_the_models_need(engram):
    (plan,) = gather.gather_plans([engram], (64,), (1, 4), (1,))
    sizes = dict(plan.sizes)
    per_token = engram.num_rows_per_token
    assert set(sizes) == {64, engram.row_bytes}
    assert {per_token, 4 * per_token} <= set(sizes[engram.row_bytes])
    assert sizes[64] == gather.SWEEP_ROWS


def host_gathers(sizes, footprints, paths, **options):
    """Gathers timed at one moment."""
    found = HostGathers([gather.GatherPlan(sizes, footprints)], paths, 1, ONCE, **options)
    with found.opened():
        found.time()
    return found


def test_gathers_give_a_curve_with_every_point():
    sizes, footprints = ((64, (1, 8)), (264, (1, 8))), (MIB, 2 * MIB)
    spreads = host_gathers(sizes, footprints, ("device", "cpu_gather"), clock=steady(5_000)).spreads
    assert len(spreads) == 2 * 2 * 2 * 2
    mine = [spread for spread in spreads if spread.key[0] == "cpu_gather"]
    curve, probes = gather.curve_from(mine, "dram", 64, 10.0)
    assert {(p.row_bytes, p.num_rows, p.footprint_bytes) for p in curve.points} == {
        (size, count, total) for size in (64, 264) for count in (1, 8) for total in (MIB, 2 * MIB)
    }
    # a worker's lookup is two clock readings apart, or three when the compute thread reads the clock in between
    assert {point.time_us for point in curve.points} <= {5.0, 10.0}
    assert 0 < curve.fixed_us.value <= 10.0
    assert not curve.removes_duplicates
    assert curve.is_calibrated
    assert len(probes) == len(curve.points) + 1
    assert probes[-1].name == "lookup.dram.cpu_gather.fit"


def test_a_path_of_the_compute_thread_is_timed_there():
    found = host_gathers(((64, (1, 8)),), (MIB,), ("device",), clock=steady(5_000))
    assert [spread.samples for spread in found.spreads] == [(5.0, 5.0)] * 2, "half of the rounds at one moment"


def test_gathers_are_timed_at_several_moments_and_now_and_then_amid_another_probe():
    now = [0]
    with KeptMemory(2 * MIB) as memory:
        options = {"every_ns": 100, "memory": memory, "clock": lambda: now[0]}
        found = host_gathers(((64, (1, 8)),), (MIB,), ("device",), **options)
        with found.opened():
            found.time()
        with found.amid() as between:
            for now[0] in range(0, 1000, 50):
                between()
    counts = {len(spread.samples) for spread in found.spreads}
    assert counts == {3 + 3 + 3}, "the clock ends no moment; amid others no more rounds than a probe has at least"


def test_amid_another_probe_no_memory_is_taken():
    found = host_gathers(((64, (1,)),), (MIB,), ("device",))
    with found.amid() as between:
        assert between is None


def test_every_sample_draws_fresh_rows(monkeypatch):
    seen = []
    fetch = DevicePath.fetch
    monkeypatch.setattr(
        DevicePath, "fetch", lambda self, i, ids: seen.append(tuple(ids[0].tolist())) or fetch(self, i, ids)
    )
    found = host_gathers(((64, (16,)),), (MIB,), ("device",))
    with found.opened():
        found.time()
    assert len(set(seen)) == len(seen) == 6, "at another moment too"


def test_wrong_rows_stop_the_probe(monkeypatch):
    def fetch(self, index, ids):
        return StagedRows(torch.zeros(ids.numel(), 64, dtype=torch.uint8), None, ids.numel(), ids.numel())

    monkeypatch.setattr(DevicePath, "fetch", fetch)
    with pytest.raises(WrongRows, match="other rows"):
        host_gathers(((64, (16,)),), (MIB,), ("device",))


def test_a_table_that_does_not_fit_is_refused_before_it_is_made():
    with pytest.raises(InfeasibleScenario, match="gather probe"):
        host_gathers(((64, (1,)),), (1 << 60,), ("device",))


def test_the_probe_folder_is_gone_afterwards(tmp_path):
    with pytest.raises(KeyboardInterrupt), storage.probe_folder(tmp_path, 10) as folder:
        interrupt(folder)
    assert list(tmp_path.iterdir()) == []


def interrupt(folder):
    (folder / "half").write_bytes(b"x")
    raise KeyboardInterrupt


def test_a_disk_without_room_is_not_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10 << 30, 9 << 30, 1 << 30))
    with pytest.raises(MissingCapability, match="larger disk"), storage.probe_folder(tmp_path, 1 << 30):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_one_clear_line(tmp_path):
    with pytest.raises(FileProblem, match="give another folder"), storage.probe_folder(tmp_path / "no" / "where", 10):
        pass


def test_reads_give_the_drive_as_a_tier(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(4 * MIB))
    facts = storage.storage_facts(file, storage.measure_reads(file, (1, 4), (512, 4096), ONCE, steady(1_000_000)))
    assert facts.storage.latency_us.value == pytest.approx(1000 / 32)
    assert facts.storage.max_reads_per_s.value >= 8000
    assert facts.storage.capacity_gb.value > 0
    assert {probe.parameters["depth"] for probe in facts.probes} == {1, 4}
    *bulk, single = facts.probes
    assert all(probe.unit == "reads/s" for probe in bulk)
    assert single.name == "storage.single_read"
    assert single.samples == (1000.0,) * storage.NUM_SINGLE_READS
    assert single.parameters["p99_us"] == 1000.0
    assert single.parameters["read_bytes"] == storage.SINGLE_READ_BYTES


@pytest.mark.parametrize("depth", [1, 4])
def test_blocks_are_read_into_memory_of_the_reader(tmp_path, depth):
    file = tmp_path / "file"
    file.write_bytes(b"".join(bytes([number]) * 4096 for number in range(8)))
    reader = RowReader(file, depth=depth)
    reader.read_blocks(np.array([5, 2, 3], dtype=np.int64) * 4096, 4096)
    held = reader._memory((1 if depth == 1 else 3) * 4096).reshape(-1, 4096)
    assert [set(block.tolist()) for block in held] == ([{3}] if depth == 1 else [{5}, {2}, {3}])
    assert (reader.num_reads, reader.num_bytes_read) == (3, 3 * 4096)
    for first in (8, 1 << 20):
        with pytest.raises(FileProblem, match=f"ends too early: offset {first * 4096:,}"):
            reader.read_blocks(np.array([first], dtype=np.int64) * 4096, 4096)
    reader.close()


def test_reads_at_two_times_are_one_figure_whose_drift_is_flagged(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(MIB))
    early, late = (storage.measure_reads(file, (1,), (4096,), ONCE, steady(step)) for step in (1_000_000, 2_000_000))
    drifted, steadily = (storage.storage_facts(file, times).probes for times in (early + late, early + early))
    assert drifted[0].samples == (*drifted[0].samples[:3], *(sample / 2 for sample in drifted[0].samples[:3]))
    assert {probe.status for probe in drifted[:-1]} == {"unstable"}
    assert {probe.status for probe in steadily[:-1]} == {"ok"}
    assert len(drifted[-1].samples) == 2 * len(early.single_us)


def test_disk_lookups_ask_for_distinct_rows_and_leave_only_the_table(engram, tmp_path):
    table = FileTable(engram, 0, "packed", tmp_path, num_rows=2000)
    spreads, granularity, said = storage.measure_disk_lookups(table, (1, 8, 300), ONCE, steady(3_000))
    assert [spread.key[1:3] for spread in spreads] == [(engram.row_bytes, count) for count in (1, 8, 300)]
    assert {spread.value for spread in spreads} <= {3.0, 6.0}
    assert granularity >= 1
    assert "disk_read_mode" in said
    assert len(list(tmp_path.iterdir())) == 1
    ids = storage.random_ids(np.random.default_rng(0), 300, 300, distinct=True)
    assert sorted(ids[0].tolist()) == list(range(300))


def test_a_large_file_stands_for_a_small_table_too(engram, tmp_path, monkeypatch):
    asked = {}
    small_bytes = 64 * engram.row_bytes
    monkeypatch.setattr(storage, "SMALL_TABLE_BYTES", small_bytes)
    monkeypatch.setattr(storage, "SMALL_TABLE_ROWS", (4, 64, 65))
    monkeypatch.setattr(
        storage.LookupTimer, "time_ns", lambda _, ids: asked.setdefault(ids.shape[1], []).append(int(ids.max())) or 1.0
    )
    table = FileTable(engram, 0, "packed", tmp_path, num_rows=64 * storage.MIN_TIMES_SMALL)
    assert storage.small_table_rows(table) == (), "it is no larger than so many small ones"
    table = FileTable(engram, 0, "packed", tmp_path, num_rows=64 * storage.MIN_TIMES_SMALL + 1)
    spreads, *_ = storage.measure_disk_lookups(table, (300,), ONCE)
    assert [spread.key[2:] for spread in spreads] == [(300, table.size_bytes), (4, small_bytes), (64, small_bytes)]
    assert max(asked[4]) < 64
    assert set(asked[64]) == {63}, "all rows of the small table"
    assert max(asked[300]) > 64


def test_buffered_reads_drop_the_page_cache(tmp_path, monkeypatch):
    dropped = []
    monkeypatch.setattr(storage, "drop_page_cache", lambda path: dropped.append(path) or 0.0)
    monkeypatch.setattr(storage, "RowReader", lambda path, depth: RowReader(path, depth=depth, mode="pread_buffered"))
    file = tmp_path / "file"
    file.write_bytes(bytes(MIB))
    facts = storage.storage_facts(file, storage.measure_reads(file, (1,), (4096,), ONCE))
    assert facts.probes[0].parameters["page_cache"] == "dropped before every sample"
    assert len(dropped) == 1 + 3 * 2 + 1
    assert len(facts.probes[-1].samples) == MIB // storage.SINGLE_READ_BYTES


def test_a_file_that_stays_in_memory_is_no_drive(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "drop_page_cache", lambda _: 1.0)
    with pytest.raises(MissingCapability, match="no drive would be measured"):
        storage.exclude_page_cache(tmp_path / "x", is_direct=False)
    assert storage.exclude_page_cache(tmp_path / "x", is_direct=True) == "bypassed"


def test_residency_is_what_the_kernel_says(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(MIB))
    with file.open("r+b") as opened:
        assert storage.resident_ratio(opened.fileno()) == 1.0
    assert 0.0 <= storage.drop_page_cache(file) <= 1.0
    (tmp_path / "empty").write_bytes(b"")
    with (tmp_path / "empty").open("r+b") as opened:
        assert storage.resident_ratio(opened.fileno()) == 0.0


def test_nodes_and_their_cores(tmp_path):
    for node, cores in ((0, "0-2,8"), (1, "3")):
        folder = tmp_path / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cores + "\n")
    memory_only = tmp_path / "sys/devices/system/node/node2"
    memory_only.mkdir()
    (memory_only / "cpulist").write_text("\n")
    assert numa.node_cores(tmp_path) == {0: {0, 1, 2, 8}, 1: {3}}


def test_a_node_without_usable_cores_is_not_measured():
    with pytest.raises(MissingCapability, match="may not run"):
        numa.measure_remote_reads(0, 1, set(), ONCE, block_bytes=MIB)


def test_spreads_scale_with_their_samples():
    assert Spread("a", (1.0, 2.0)).scaled(1000).samples == (1000.0, 2000.0)


def test_a_small_model_is_swept_at_its_own_size(engram):
    own_bytes = max(table_rows(engram)) * engram.row_bytes
    far, small = gather.gather_plans([engram, engram], (64,), (1, 4), (4 * own_bytes,))
    assert dict(far.sizes) == {64: gather.SWEEP_ROWS, engram.row_bytes: gather.SWEEP_ROWS}
    per_token = engram.num_rows_per_token
    counts = tuple(sorted({*gather.SWEEP_ROWS, per_token, 4 * per_token}))
    assert small == gather.GatherPlan(((engram.row_bytes, counts),), (own_bytes,))
    assert len(gather.gather_plans([engram], (64,), (1,), (4 * own_bytes - 1,))) == 1


def test_what_a_cache_holds_stays_out_of_the_fit():
    def spread(footprint, time_us):
        return Spread(("cpu_gather", 256, 100, footprint), (time_us,) * 3)

    alone, _ = gather.curve_from([spread(4 * MIB, 50.0)], "dram", 64, 10.0)
    curve, probes = gather.curve_from([spread(4 * MIB, 50.0), spread(MIB - 1, 5.0)], "dram", 64, 10.0)
    assert [point.time_us for point in curve.points] == [50.0, 5.0]
    assert (curve.fixed_us, curve.row_ns) == (alone.fixed_us, alone.row_ns)
    assert probes[-1].parameters["points"] == 1
