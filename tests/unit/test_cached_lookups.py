"""A row cache in front of the tiers: same tokens, fewer reads, and hits that can be counted without it."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.units import gib_to_bytes  # noqa: E402
from tiercast_runtime.bench import bench  # noqa: E402
from tiercast_runtime.cache_plan import plan_cache  # noqa: E402
from tiercast_runtime.engine import Engine  # noqa: E402
from tiercast_runtime.prefetch import Prefetcher  # noqa: E402
from tiercast_runtime.prefetch_process import ProcessLane  # noqa: E402
from tiercast_sim.simulate import simulate  # noqa: E402

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_compute_thread")
WORKLOAD = {
    "kind": "closed_loop",
    "concurrency": 3,
    "num_requests": 9,
    "prompt_tokens": {"uniform": [3, 25]},
    "output_tokens": {"uniform": [1, 9]},
}
LARGE_GIB, SMALL_GIB = 0.001, 3e-6  # every row of the mini tables, or a few dozen of each
PLACEMENTS = (
    {"tier": "nvme"},
    {"tier": "nvme", "prefetch": "off"},
    {"tier": "dram"},
    {"tier": "dram", "prefetch": "off"},
    {"tier": "dram", "row_layout": "padded"},
)


LOOKING_AHEAD = ({"tier": "nvme", "prefetch": "prev_step"}, {"tier": "dram", "prefetch": "prev_step"})


class Asked(Prefetcher):
    """Notes the row ids of every step."""

    seen: list[list[np.ndarray]]

    def begin_step(self, row_ids):
        self.seen.append([layer.reshape(-1).numpy().copy() for layer in row_ids])
        super().begin_step(row_ids)


@pytest.mark.parametrize("cache_gib", [LARGE_GIB, SMALL_GIB])
@pytest.mark.parametrize("placement", PLACEMENTS + LOOKING_AHEAD, ids=lambda placement: "-".join(placement.values()))
def test_a_cache_changes_reads_and_never_tokens(mini_scenario, tmp_path, placement, cache_gib):
    results = []
    for size in (0, cache_gib):
        with Engine(mini_scenario({**placement, "cache_gib": size}), CPU, tmp_path) as engine:
            results.append(engine.run())
    plain, cached = results
    assert cached.token_ids == plain.token_ids
    assert cached.samples.steps.rows == plain.samples.steps.rows
    assert sum(cached.samples.steps.rows_read) < sum(plain.samples.steps.rows_read)
    assert sum(cached.samples.steps.rows_hit) > 0
    assert plain.samples.steps.rows_hit == ()


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda placement: "-".join(placement.values()))
def test_hits_are_those_the_row_ids_foretell(mini_scenario, tmp_path, placement, monkeypatch):
    """A cache that holds every row: a hit is a row that an earlier step of the run asked for."""
    monkeypatch.setattr("tiercast_runtime.engine.Prefetcher", Asked)
    monkeypatch.setattr(Asked, "seen", [], raising=False)
    with Engine(mini_scenario({**placement, "cache_gib": LARGE_GIB}), CPU, tmp_path) as engine:
        result = engine.run()
        if placement == {"tier": "nvme"}:
            assert isinstance(engine.prefetcher._lane, ProcessLane)
    steps = result.samples.steps
    known, hits, reads = [set(), set()], [], []
    for layers in Asked.seen[result.num_warm_up_steps :]:
        hits.append(sum(int(row_id) in had for ids, had in zip(layers, known, strict=True) for row_id in ids))
        reads.append(sum(len(set(ids.tolist()) - had) for ids, had in zip(layers, known, strict=True)))
        for ids, had in zip(layers, known, strict=True):
            had.update(ids.tolist())
    assert list(steps.rows_hit) == hits
    assert list(steps.rows_read) == reads


@pytest.mark.parametrize("placement", PLACEMENTS[:3], ids=lambda placement: "-".join(placement.values()))
def test_a_second_run_starts_empty_unless_it_keeps_the_cache(mini_scenario, tmp_path, placement):
    with Engine(mini_scenario({**placement, "cache_gib": LARGE_GIB}), CPU, tmp_path) as engine:
        first, again, warm = engine.run(), engine.run(), engine.run(keeps_cache=True)
    # Steps of a closed loop do not depend on time, so two cold runs agree to the row.
    assert again.samples.steps.rows_hit == first.samples.steps.rows_hit
    assert again.samples.steps.rows_read == first.samples.steps.rows_read
    assert warm.token_ids == first.token_ids
    assert sum(warm.samples.steps.rows_read) == 0
    assert warm.samples.steps.rows_hit == warm.samples.steps.rows


def test_a_record_reports_hits_and_memory_under_the_simulators_names(mini_scenario, tmp_path):
    resolved = mini_scenario({"tier": "nvme", "cache_gib": LARGE_GIB})
    measured, predicted = bench(resolved, folder=tmp_path), simulate(resolved)
    plan = plan_cache(resolved)
    assert plan.size_bytes > gib_to_bytes(LARGE_GIB)  # the index comes on top of the rows
    assert measured.metrics.memory_bytes["dram"] == plan.size_bytes
    assert predicted.metrics.memory_bytes["dram"] >= gib_to_bytes(LARGE_GIB)
    steps = measured.samples.steps
    assert measured.metrics.cache_hit_ratio == sum(steps.rows_hit) / sum(steps.rows)
    assert 0 < predicted.metrics.cache_hit_ratio < 1
    assert measured.provenance.facts["cache_rows_per_layer"] == plan.num_slots_per_layer
    without = mini_scenario({"tier": "nvme"})
    assert bench(without, folder=tmp_path).metrics.cache_hit_ratio is None
    assert simulate(without).metrics.cache_hit_ratio is None


def test_both_sides_remove_duplicates_in_front_of_a_cache(mini_scenario, tmp_path):
    """Tables so large that hashes do not collide: then counting n-grams and counting rows must agree to a percent."""
    sections = {"workload": {**WORKLOAD, "text": "random"}}
    for tier in ("dram", "nvme"):
        resolved = mini_scenario({"tier": tier, "cache_gib": 0.01}, **sections)
        engram = resolved.model.engram.model_copy(update={"rows_per_head": (40_009,) * 3})
        resolved = resolved.model_copy(update={"model": resolved.model.model_copy(update={"engram": engram})})
        measured, predicted = bench(resolved, folder=tmp_path).metrics, simulate(resolved).metrics
        assert predicted.cache_hit_ratio == pytest.approx(measured.cache_hit_ratio, abs=0.01)
        assert predicted.unique_row_ratio == pytest.approx(measured.unique_row_ratio, abs=0.01)


def test_a_cache_takes_room_from_key_values_where_the_cpu_is_the_device(mini_scenario, tmp_path):
    rooms = []
    for size in (0, 0.5):
        with Engine(mini_scenario({"tier": "nvme", "cache_gib": size}), CPU, tmp_path) as engine:
            rooms.append((engine.kv.room_tokens * engine.kv.bytes_per_token, engine.cache.size_bytes))
    (without, nothing), (with_cache, size_bytes) = rooms
    assert nothing == 0
    assert abs(without - with_cache - size_bytes) < 64 * 1024
