"""The probe of a cache in host memory: the cache is full, rows are missing or there as said, each part is timed."""

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.quantiles import capped_mean  # noqa: E402
from tiercast_runtime.cache import RowCache  # noqa: E402
from tiercast_runtime.probes import host_cache  # noqa: E402
from tiercast_runtime.probes.host_cache import measure_host_cache  # noqa: E402
from tiercast_runtime.probes.timing import Effort  # noqa: E402

THREE = Effort(0, num_warm_ups=0, min_rounds=3, max_rounds=3)


class Work:
    """A clock that only moves with what the cache does: a ns per row looked for, 10 per hit, 100 per row kept."""

    def __init__(self, monkeypatch):
        self.now, self.lookups, self.kept, self.evicted = 1, [], [], []
        lookup, insert = RowCache.lookup, RowCache.insert

        def timed_lookup(cache, ids, out):
            missing = lookup(cache, ids, out)
            self.now += len(ids) + 10 * int((~missing).sum())
            self.lookups.append((len(ids), int(missing.sum())))
            return missing

        def timed_insert(cache, ids, rows):
            before = cache.num_evictions
            insert(cache, ids, rows)
            self.now += 100 * len(ids)
            self.evicted.append((len(ids), cache.num_evictions - before))

        monkeypatch.setattr(RowCache, "lookup", timed_lookup)
        monkeypatch.setattr(RowCache, "insert", timed_insert)

    def __call__(self):
        return self.now


@pytest.fixture
def work(monkeypatch):
    monkeypatch.setattr(host_cache, "disturber", lambda: lambda: None)
    return Work(monkeypatch)


def test_each_part_of_a_lookup_has_its_time(work):
    points, probes = measure_host_cache([32, 16, 32], 100, THREE, work, num_slots=512)
    assert [(point.row_bytes, point.num_rows) for point in points] == [
        (size, count) for size in (16, 32) for count in (1, 32, 100, 256)
    ]
    for point in points:
        count = point.num_rows
        times_us = point.find_us.value, point.keep_us.value, point.hit_us.value
        assert times_us == pytest.approx((count / 1e3, count / 10, 11 * count / 1e3))
    assert {(probe.name, len(probe.samples), probe.unit) for probe in probes} == {
        (f"cache.host.{part}", 3, "us") for part in ("find", "keep", "hit")
    }
    assert len(probes) == 3 * len(points)
    assert probes[0].parameters == {"row_bytes": 16, "num_rows": 1, "num_slots": 512}


def test_all_rows_are_missing_or_there_and_each_that_comes_makes_another_leave(work):
    measure_host_cache([16], 256, THREE, work, num_slots=512)
    assert sorted(set(work.lookups)) == [(count, missing) for count in (1, 32, 256) for missing in (0, count)]
    assert work.evicted
    assert all(num_kept == num_gone for num_kept, num_gone in work.evicted)


def test_lookups_the_cache_has_no_room_for_twice_are_left_out(work):
    points, _ = measure_host_cache([16], 65, THREE, work, num_slots=128)
    assert [point.num_rows for point in points] == [1, 32]


def test_a_time_is_the_mean_and_its_band_holds_the_quartiles(monkeypatch):
    monkeypatch.setattr(host_cache, "disturber", lambda: lambda: None)
    kept = {}
    collect = host_cache.collect

    def keeping(*args):
        found = collect(*args)
        kept.update({spread.key: spread.samples for spread in found})
        return found

    monkeypatch.setattr(host_cache, "collect", keeping)
    points, _ = measure_host_cache([16], 1, THREE, num_slots=64)
    for point in points:
        for part in ("find", "keep", "hit"):
            quantity, samples = getattr(point, f"{part}_us"), kept[part, 16, point.num_rows]
            assert quantity.value == pytest.approx(capped_mean(samples) / 1e3, rel=1e-4)
            assert 0 < quantity.low <= quantity.value <= quantity.high


def test_caches_of_the_core_are_disturbed_before_each_lookup(work, monkeypatch):
    events = []
    monkeypatch.setattr(host_cache, "disturber", lambda: lambda: events.append("disturbed"))
    fetch = RowCache.fetch
    monkeypatch.setattr(RowCache, "fetch", lambda *args: events.append("lookup") or fetch(*args))
    measure_host_cache([16], 1, THREE, work, num_slots=64)
    assert events == ["disturbed", "lookup"] * (len(events) // 2)
    assert len(events) == 2 * 3 * 4  # three rounds of two sizes, missing and there
