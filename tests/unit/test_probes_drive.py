"""A drive timed at several moments: samples are pooled, each moment asks for other rows, and no file stays."""

import dataclasses

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import MissingCapability  # noqa: E402
from tiercast_profiles.units import MIB  # noqa: E402
from tiercast_runtime.probes import alike, drive, gather, storage  # noqa: E402
from tiercast_runtime.probes.plan import QUICK  # noqa: E402
from tiercast_runtime.probes.timing import Effort, Spread  # noqa: E402
from tiercast_runtime.read_through import THROUGH_DEPTH  # noqa: E402

BRIEF = Effort(0, num_warm_ups=0, min_rounds=3, max_rounds=3)
PLAN = dataclasses.replace(QUICK, file_bytes=2 * MIB, tokens=(1, 8), reads=BRIEF, disk=BRIEF)


@pytest.fixture(autouse=True)
def no_spare(monkeypatch):
    monkeypatch.setattr(storage, "SPARE_BYTES", 0)
    monkeypatch.setattr(storage, "READ_DEPTHS", (1, 2))
    monkeypatch.setattr(storage, "NUM_SINGLE_READS", 4)


def test_samples_of_all_moments_are_pooled_and_the_files_go(mini_model, tmp_path, monkeypatch):
    moments = []

    def lookups(file, counts, effort, *, moment):
        moments.append((file.engram.row_bytes, moment, effort.min_rounds))
        key = ("disk", file.engram.row_bytes, counts[-1], file.size_bytes)
        return [Spread(key, (100.0 + moment,))], 512, {"is_direct": True}

    monkeypatch.setattr(storage, "measure_disk_lookups", lookups)
    model = mini_model("v41")
    wide = model.engram.model_copy(update={"row_values": 2 * model.engram.row_values})
    with drive.open_drive(tmp_path, [model.engram, wide, model.engram], PLAN) as found:
        sizes = sorted({model.engram.row_bytes, wide.row_bytes})
        assert sorted(found.files) == sizes
        for _ in range(drive.NUM_MOMENTS):
            found.time()
        assert moments == [(size, moment, 1) for moment in range(drive.NUM_MOMENTS) for size in sizes]
        assert [(spread.key[1], spread.samples) for spread in found.lookups] == [
            (size, (100.0, 101.0, 102.0)) for size in sizes
        ]
        facts = found.facts
        reads = [probe for probe in facts.probes if probe.name == "storage.random_read"]
        assert {len(probe.samples) for probe in reads} == {3 * drive.NUM_MOMENTS}
        said = [probe.parameters for probe in facts.probes if probe.name == "lookup.nvme.disk.path"]
        assert said == [{"is_direct": "yes"}] * len(sizes), "of the last moment alone"
    assert list(tmp_path.iterdir()) == []


def test_files_are_read_from_end_to_end_before_anything_is_timed(mini_model, tmp_path, monkeypatch):
    read = []
    whole = storage.RowReader.read_blocks
    monkeypatch.setattr(
        storage.RowReader,
        "read_blocks",
        lambda self, offsets, size: (
            read.extend((self.path, offset, size) for offset in offsets.tolist()) or whole(self, offsets, size)
        ),
    )
    plan = dataclasses.replace(PLAN, file_bytes=11 * MIB)
    with drive.open_drive(tmp_path, [mini_model("v41").engram], plan) as found:
        (file,) = found.files.values()
        assert read == [(file.path, number * MIB, MIB) for number in range(file.path.stat().st_size // MIB)]
        assert len(read) > THROUGH_DEPTH, "in more than one call"


def test_another_moment_asks_for_other_rows(mini_model, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(storage.LookupTimer, "time_ns", lambda _, ids: asked.append(tuple(ids[0].tolist())) or 1.0)
    monkeypatch.setattr(storage, "DISK_ROWS", (64,))
    with drive.open_drive(tmp_path, [mini_model("v41").engram], PLAN) as found:
        found.time()
        early, num_early = set(asked), len(asked)
        found.time()
    assert len(asked) == 2 * num_early
    assert early.isdisjoint(asked[num_early:])


def test_a_full_disk_is_said_before_anything_is_written(mini_model, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SPARE_BYTES", 1 << 62)
    with (
        pytest.raises(MissingCapability, match="larger disk"),
        drive.open_drive(tmp_path, [mini_model("v41").engram], PLAN),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_holds_a_lookup_up_now_and_then_is_shared_by_those_that_take_as_long():
    def spread(count, samples):
        return Spread(("disk", 264, count, 1 << 28), samples)

    held_up, short, long = (
        spread(96, (10.0, 10.0, 10.0, 25.0)),
        spread(32, (5.0, 5.0, 5.0, 5.0)),
        spread(3072, (300.0,) * 4),
    )
    means = alike.means_of_alike([held_up, short, long])
    ratio = (7 + 2.5) / 8
    assert means[held_up.key] == pytest.approx(10 * ratio)
    assert means[short.key] == pytest.approx(5 * ratio)
    assert means[long.key] == 300.0, "what takes so much longer was not seen to be held up"


def test_spreads_are_tenths_of_all_samples_that_take_about_as_long():
    near = Spread(("disk", 264, 32, 1 << 28), tuple(10.0 * x for x in (0.8, 0.9, 1.0, 1.0, 1.0, 1.1, 1.2)))
    also = Spread(("disk", 264, 96, 1 << 28), tuple(20.0 * x for x in (0.8, 0.9, 1.0, 1.0, 1.0, 1.1, 9.0)))  # held up
    few = Spread(("disk", 264, 3072, 1 << 28), (900.0, 901.0, 902.0))
    both = alike.cases_of_alike([near, also, few], lambda key: key[2])
    assert list(both) == [32, 96], "three samples are no ten cases"
    # fourteen ratios: four cases of two, ten numbers in all, the last 3 of 9; over their mean
    cases = [0.8, 0.9, 1.0, 1.0, 1.0, 1.0, 1.1, 1.1, 1.2, 3.0]
    assert both[32] == pytest.approx([case / (sum(cases) / 10) for case in cases], rel=1e-4)
    assert both[32] == both[96]


def test_the_curve_of_a_drive_has_these_means():
    key = ("disk", 264, 96, 1 << 28)
    curve, _ = gather.curve_from([Spread(key, (10.0, 11.0, 12.0))], "nvme", 512, 1.0, {key: 14.0})
    (point,) = curve.points
    assert (point.low_us, point.time_us, point.high_us) == (10.5, 14.0, 14.0)
