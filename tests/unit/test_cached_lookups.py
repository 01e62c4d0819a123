"""A row cache in front of the tiers: same tokens, fewer reads, and hits that can be counted without it."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.text import load_text  # noqa: E402
from tiercast_profiles.units import gib_to_bytes  # noqa: E402
from tiercast_profiles.workload import draw_requests  # noqa: E402
from tiercast_runtime.bench import bench  # noqa: E402
from tiercast_runtime.cache import hot_places  # noqa: E402
from tiercast_runtime.cache_plan import plan_cache  # noqa: E402
from tiercast_runtime.engine import Engine  # noqa: E402
from tiercast_runtime.hashing import numpy_row_ids  # noqa: E402
from tiercast_runtime.hot_rows import hot_row_ids  # noqa: E402
from tiercast_runtime.measured_record import memory_bytes  # noqa: E402
from tiercast_runtime.paths.cached import CachedPath  # noqa: E402
from tiercast_runtime.paths.device import DevicePath  # noqa: E402
from tiercast_runtime.prefetch import Prefetcher  # noqa: E402
from tiercast_runtime.prefetch_process import ProcessLane  # noqa: E402
from tiercast_runtime.table import build_tables  # noqa: E402
from tiercast_runtime.tokens import prepare_tokens  # noqa: E402
from tiercast_sim.reuse import RequestNgrams  # noqa: E402
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


class UvaStandIn(DevicePath):
    """What path ``uva`` does with a cache, where there is no GPU: a gather by the device that never waits."""

    name = "uva"


def open_uva(resolved, tables, device):
    slots = plan_cache(resolved).num_slots_per_layer
    path = UvaStandIn(tables, device)
    return CachedPath(path, tables, cache_slots=slots, policy=resolved.placement.cache_policy) if slots else path


def as_uva(resolved):
    """The scenario with a path that the CPU does not have, as a GPU machine would resolve it."""
    return resolved.model_copy(update={"placement": resolved.placement.model_copy(update={"path": "uva"})})


@pytest.mark.parametrize("prefetch", ["off", "step_entry", "prev_step"])
@pytest.mark.parametrize("policy", ["lru", "lfu", "static_hot"])
def test_a_cache_of_the_device_changes_reads_and_never_tokens(mini_scenario, tmp_path, monkeypatch, policy, prefetch):
    monkeypatch.setattr("tiercast_runtime.engine.open_path", open_uva)
    results = []
    for fields in ({}, {"cache_gib": SMALL_GIB, "cache_policy": policy}, {"cache_gib": LARGE_GIB}):
        resolved = mini_scenario({"tier": "dram", "prefetch": prefetch, **fields})
        tables = build_tables(resolved, CPU, tmp_path)  # not pinned, which takes a GPU
        with Engine(as_uva(resolved), CPU, tmp_path, tables=tables) as engine:
            results.append(engine.run())
            assert engine.cache.is_on_device or not fields
            if fields:
                assert memory_bytes(engine.resolved, engine)["hbm"] > engine.cache.size_bytes
    plain, small, large = results
    assert small.token_ids == large.token_ids == plain.token_ids
    for result in (small, large):
        steps = result.samples.steps
        assert 0 < sum(steps.rows_hit) < sum(steps.rows)
        if prefetch != "prev_step":  # there a lookup is counted in the step that waits for it
            assert [read + hit for read, hit in zip(steps.rows_read, steps.rows_hit, strict=True)] == list(steps.rows)
        assert sum(steps.rows_read) + sum(steps.rows_hit) == sum(steps.rows)
    assert sum(large.samples.steps.rows_hit) > sum(small.samples.steps.rows_hit)


def test_hits_on_the_device_are_those_the_row_ids_foretell(mini_scenario, tmp_path, monkeypatch):
    """Duplicates are looked up and read each: that is what a gather by the device does, and the simulator counts."""
    monkeypatch.setattr("tiercast_runtime.engine.open_path", open_uva)
    monkeypatch.setattr("tiercast_runtime.engine.Prefetcher", Asked)
    monkeypatch.setattr(Asked, "seen", [], raising=False)
    resolved = mini_scenario({"tier": "dram", "cache_gib": LARGE_GIB})
    with Engine(as_uva(resolved), CPU, tmp_path, tables=build_tables(resolved, CPU, tmp_path)) as engine:
        result = engine.run()
    known, hits = [set(), set()], []
    for layers in Asked.seen[result.num_warm_up_steps :]:
        hits.append(sum(int(row_id) in had for ids, had in zip(layers, known, strict=True) for row_id in ids))
        for ids, had in zip(layers, known, strict=True):
            had.update(ids.tolist())
    assert list(result.samples.steps.rows_hit) == hits


@pytest.mark.parametrize(
    "placement", [{"tier": "nvme"}, {"tier": "nvme", "prefetch": "off"}, {"tier": "dram"}], ids=str
)
def test_a_static_cache_holds_the_hottest_rows_of_the_warm_up_and_stays(mini_scenario, tmp_path, placement):
    resolved = mini_scenario({**placement, "cache_gib": SMALL_GIB, "cache_policy": "static_hot"})
    with Engine(resolved, CPU, tmp_path) as engine:
        if placement == {"tier": "nvme"}:
            assert isinstance(engine.prefetcher._lane, ProcessLane)
        first, again = engine.run(), engine.run()
        hottest = hot_row_ids(engine.requests, engine.text, resolved.model, resolved.scenario.seed)
    assert first.samples.steps.rows_hit == again.samples.steps.rows_hit
    slots, tokens = (
        plan_cache(resolved).num_slots_per_layer,
        prepare_tokens(engine.requests, engine.text, resolved.model, resolved.scenario.seed),
    )
    engram = resolved.model.engram
    windows = [
        tokens.windows(r, 0, r.prompt_tokens + r.output_tokens, engram.ngram_orders[-1]) for r in engine.requests
    ]
    asked = numpy_row_ids(engram, np.concatenate(windows))
    held = [hot_places(ids, slots)[0] for ids in hottest]
    every = sum(np.isin(ids, kept).sum() for ids, kept in zip(asked, held, strict=True))
    # A request's last token is generated and never fed.
    fed = sum(first.samples.steps.rows)
    assert every * fed / asked.size == pytest.approx(sum(first.samples.steps.rows_hit), rel=0.1)


def test_the_warm_up_is_the_simulators(mini_scenario, tmp_path):
    """Assumption A80 on both sides: the hottest n-grams there are the hottest rows here."""
    resolved = mini_scenario({"tier": "nvme"}, workload={**WORKLOAD, "text": "random"})
    engram = resolved.model.engram.model_copy(update={"rows_per_head": (40_009,) * 3})
    model = resolved.model.model_copy(update={"engram": engram})
    requests = draw_requests(resolved.scenario.workload, 0)
    text = load_text("random", model)
    ngrams = RequestNgrams(text, model, requests, 0, has_warm_up=True)
    for row_ids in hot_row_ids(requests, text, model, 0):
        # a collision or two make one row of two
        assert len(row_ids) == pytest.approx(len(ngrams.hottest) * engram.num_heads_per_order, rel=0.01)


@pytest.mark.parametrize("policy", ["lru", "lfu", "static_hot"])
def test_both_sides_find_the_same_share_of_rows_by_every_policy(mini_scenario, tmp_path, policy):
    """Tables without collisions and a cache of a few hundred rows: measured and predicted agree to three points."""
    workload = {**WORKLOAD, "num_requests": 60, "text": "random"}
    resolved = mini_scenario({"tier": "nvme", "cache_gib": 8e-5, "cache_policy": policy}, workload=workload)
    engram = resolved.model.engram.model_copy(update={"rows_per_head": (40_009,) * 3, "compressed_vocab_size": 17})
    resolved = resolved.model_copy(update={"model": resolved.model.model_copy(update={"engram": engram})})
    measured, predicted = bench(resolved, folder=tmp_path).metrics, simulate(resolved).metrics
    assert 0.1 < measured.cache_hit_ratio < 0.9
    assert predicted.cache_hit_ratio == pytest.approx(measured.cache_hit_ratio, abs=0.03)


def test_right_drafts_are_looked_up_as_the_tokens_they_are(mini_scenario, tmp_path):
    """Nearly all drafts right, over text whose n-grams repeat: their rows are found again on both sides."""
    sections = {"workload": {**WORKLOAD, "num_requests": 60, "text": "random"}}
    sections["speculative"] = {"draft_tokens": 3, "acceptance_ratio": 1.0}
    for tier, cache_gib in (("nvme", 0.0), ("nvme", 8e-5), ("dram", 0.01)):
        resolved = mini_scenario({"tier": tier, "cache_gib": cache_gib}, **sections)
        engram = resolved.model.engram.model_copy(update={"rows_per_head": (40_009,) * 3, "compressed_vocab_size": 17})
        resolved = resolved.model_copy(update={"model": resolved.model.model_copy(update={"engram": engram})})
        measured, predicted = bench(resolved, folder=tmp_path).metrics, simulate(resolved).metrics
        assert predicted.unique_row_ratio == pytest.approx(measured.unique_row_ratio, abs=0.04)
        if cache_gib:
            assert measured.cache_hit_ratio > 0.1
            assert predicted.cache_hit_ratio == pytest.approx(measured.cache_hit_ratio, abs=0.04)


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
