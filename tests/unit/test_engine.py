"""The engine end to end on mini models: placement and prefetch change times, never tokens."""

import gc
import os
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import FileProblem, InfeasibleScenario, MissingCapability  # noqa: E402
from tiercast_profiles.workload import Request, draw_requests  # noqa: E402
from tiercast_runtime import engine as engine_module  # noqa: E402
from tiercast_runtime.batch import BatchBuilder  # noqa: E402
from tiercast_runtime.engine import Engine, serving, warm_up_outputs  # noqa: E402
from tiercast_runtime.network import Network  # noqa: E402
from tiercast_runtime.scheduler import Limits, Scheduler  # noqa: E402
from tiercast_runtime.step_runner import StepRunner  # noqa: E402
from tiercast_runtime.table import HostTable  # noqa: E402
from tiercast_runtime.turns import run_in_turns  # noqa: E402

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_compute_thread")
PLACEMENTS = {
    "resident": {"tier": "hbm"},
    "resident, no prefetch": {"tier": "hbm", "prefetch": "off"},
    "host": {"tier": "dram"},
    "file": {"tier": "nvme"},
    "file, no prefetch": {"tier": "nvme", "prefetch": "off"},
}


def run(resolved, folder, **options):
    with Engine(resolved, CPU, folder, **options) as engine:
        return engine.run()


@pytest.mark.parametrize("dialect", ["v41", "demo"])
def test_every_placement_computes_the_same_tokens(mini_scenario, mini_model, tmp_path, dialect):
    model = mini_model(dialect)
    runs = {name: run(mini_scenario(placement, model=model), tmp_path) for name, placement in PLACEMENTS.items()}
    expected = runs["resident"].token_ids
    assert {name: result.token_ids == expected for name, result in runs.items()} == dict.fromkeys(PLACEMENTS, True)
    without = run(mini_scenario({"tier": "none"}, model=model), tmp_path)
    assert without.token_ids != expected, "the tables must make a difference, or equality shows nothing"


@pytest.mark.parametrize("dialect", ["v41", "demo"])
@pytest.mark.parametrize("budget", [5, 16])
def test_looking_ahead_computes_the_same_tokens(mini_scenario, mini_model, tmp_path, monkeypatch, dialect, budget):
    """Threads and a process, rows with and without an inverse, prompts in many chunks beside decoding sequences."""
    model, engine = mini_model(dialect), {"max_num_batched_tokens": budget, "max_num_seqs": 3}

    def tokens(placement):
        result = run(mini_scenario(placement, model=model, engine=engine), tmp_path)
        steps, per_token = result.samples.steps, 2 * model.engram.num_rows_per_token
        num_tokens = [p + d for p, d in zip(steps.prefill_tokens, steps.decode_sequences, strict=True)]
        assert list(steps.rows) == [n * per_token for n in num_tokens]
        assert len(result.layers[0]) == sum(p == 0 for p in steps.prefill_tokens)
        if placement["tier"] == "dram":  # nothing is fetched twice, nothing in vain
            assert sum(steps.rows_read) == sum(steps.rows)
        if placement["prefetch"] == "prev_step" and placement["tier"] != "hbm":
            assert any(span.name.endswith("rows ahead") for span in result.spans)
        return result.token_ids

    expected = tokens({"tier": "nvme", "prefetch": "off"})
    for tier in ("hbm", "dram", "nvme"):
        for prefetch in ("step_entry", "prev_step"):
            assert tokens({"tier": tier, "prefetch": prefetch}) == expected
    monkeypatch.setattr("tiercast_runtime.prefetch.is_supported", lambda: False)  # files, read by a thread
    assert tokens({"tier": "nvme", "prefetch": "prev_step"}) == expected


@pytest.mark.parametrize("dialect", ["v41", "demo"])
def test_moving_sequences_together_changes_no_token(mini_scenario, mini_model, tmp_path, monkeypatch, dialect):
    """Keys, values and the inputs of the convolution go along; the demo dialect has one."""
    engine = {"max_num_batched_tokens": 40, "max_num_seqs": 6}
    resolved = mini_scenario({"tier": "hbm"}, model=mini_model(dialect), engine=engine)
    moved, move = [], Network.move
    monkeypatch.setattr(Network, "move", lambda self, moves: (moved.extend(moves), move(self, moves)))
    together = run(resolved, tmp_path).token_ids
    assert any(m.source > m.target for m in moved)
    monkeypatch.setattr(BatchBuilder, "reads_slots_in_place", False)
    apart = run(resolved, tmp_path).token_ids
    same = [a == b for one, other in zip(together, apart, strict=True) for a, b in zip(one, other, strict=True)]
    # Sums run in another order, so a near tie between two of 97 logits may fall the other way.
    assert sum(same) >= 0.95 * len(same)


def test_chunked_prefill_computes_the_same_tokens_as_whole_prompts(mini_scenario, mini_model, tmp_path):
    for dialect in ("v41", "demo"):
        results = [
            run(
                mini_scenario(
                    {"tier": "hbm"}, model=mini_model(dialect), engine={"max_num_batched_tokens": b, "max_num_seqs": 4}
                ),
                tmp_path,
            ).token_ids
            for b in (5, 200)
        ]
        same = [a == b for one, other in zip(*results, strict=True) for a, b in zip(one, other, strict=True)]
        # Sums run in another order, so a near tie between two of 97 logits may fall the other way.
        assert sum(same) >= 0.95 * len(same)


def test_every_request_ends_with_its_tokens_and_steps_are_back_to_back(mini_scenario, tmp_path):
    resolved = mini_scenario({"tier": "nvme"})
    requests = draw_requests(resolved.scenario.workload, 0)
    result = run(resolved, tmp_path)
    samples = result.samples
    assert [len(tokens) for tokens in result.token_ids] == [r.output_tokens for r in requests]
    assert list(samples.requests.output_tokens) == [r.output_tokens for r in requests]
    steps = samples.steps
    assert steps.start_ns[0] == 0
    assert [s + d for s, d in zip(steps.start_ns, steps.duration_ns, strict=True)][:-1] == list(steps.start_ns[1:])
    assert max(samples.requests.finish_ns) == steps.start_ns[-1] + steps.duration_ns[-1]
    assert sum(steps.prefill_tokens) == sum(r.prompt_tokens for r in requests)
    assert sum(steps.decode_sequences) == sum(r.output_tokens - 1 for r in requests)
    per_token = 2 * resolved.model.engram.num_rows_per_token
    num_tokens = [p + d for p, d in zip(steps.prefill_tokens, steps.decode_sequences, strict=True)]
    assert list(steps.rows) == [n * per_token for n in num_tokens]
    assert all(0 < read <= rows for read, rows in zip(steps.rows_read, steps.rows, strict=True))
    for arrival, first, finish in zip(
        samples.requests.arrival_ns, samples.requests.first_token_ns, samples.requests.finish_ns, strict=True
    ):
        assert 0 <= arrival < first <= finish


def test_the_steps_are_those_of_the_scheduler_alone(mini_scenario, tmp_path):
    resolved = mini_scenario({"tier": "none"})
    engine_limits = resolved.scenario.engine
    requests = list(draw_requests(resolved.scenario.workload, 0))
    scheduler = Scheduler(
        Limits(
            max_num_seqs=engine_limits.max_num_seqs,
            max_num_batched_tokens=engine_limits.max_num_batched_tokens,
            kv_block_tokens=engine_limits.kv_block_tokens,
            kv_capacity_tokens=1 << 30,
            kv_bytes_per_token=1,
        )
    )
    for _ in range(resolved.scenario.workload.concurrency):
        scheduler.submit(requests.pop(0))
    expected = []
    while not scheduler.is_idle:
        plan = scheduler.plan()
        expected.append((plan.num_prefill_tokens, len(plan.decodes)))
        for _ in scheduler.complete(plan).finished:
            if requests:
                scheduler.submit(requests.pop(0))
    steps = run(resolved, tmp_path).samples.steps
    assert list(zip(steps.prefill_tokens, steps.decode_sequences, strict=True)) == expected


def test_closed_loop_arrivals_are_the_ends_of_earlier_requests(mini_scenario, tmp_path):
    requests = run(mini_scenario({"tier": "none"}), tmp_path).samples.requests
    assert list(requests.arrival_ns[:3]) == [0, 0, 0]
    assert sorted(requests.arrival_ns[3:]) == sorted(requests.finish_ns)[: len(requests.arrival_ns) - 3]


def test_prefetch_off_stalls_for_the_whole_lookup_and_has_no_window(mini_scenario, tmp_path):
    result = run(mini_scenario({"tier": "nvme", "prefetch": "off"}), tmp_path)
    assert result.samples.steps.stall_ns == result.samples.steps.lookup_ns
    assert {step.window_ns for layer in result.layers for step in layer} == {0}


def test_prefetch_gives_later_layers_the_longer_window(mini_scenario, tmp_path):
    first, second = run(mini_scenario({"tier": "nvme"}), tmp_path).layers
    assert len(first) == len(second) > 0
    assert all(0 < a.window_ns < b.window_ns for a, b in zip(first, second, strict=True))


def test_without_tables_nothing_is_looked_up(mini_scenario, tmp_path):
    result = run(mini_scenario({"tier": "none"}), tmp_path)
    steps = result.samples.steps
    assert sum(steps.rows) == sum(steps.rows_read) == sum(steps.lookup_ns) == sum(steps.stall_ns) == 0
    assert result.layers == ()


@pytest.mark.parametrize("kind", ["poisson", "trace"])
def test_requests_arrive_when_drawn_and_an_idle_engine_waits(mini_scenario, tmp_path, kind):
    """A clock that moves 1 µs per reading and by what is slept: the run is exact and takes no real time."""
    lines = [f'{{"timestamp": {20 * i}, "input_length": 6, "output_length": 3}}' for i in range(5)]
    (tmp_path / "trace.jsonl").write_text("\n".join(lines))
    drawn_from_laws = {
        "kind": "poisson",
        "requests_per_s": 50,
        "num_requests": 5,
        "prompt_tokens": {"fixed": 6},
        "output_tokens": {"fixed": 3},
    }
    from_a_file = {"kind": "trace", "file": str(tmp_path / "trace.jsonl")}
    workload = drawn_from_laws if kind == "poisson" else from_a_file
    resolved = mini_scenario({"tier": "none"}, workload=workload)
    now, naps = SimpleNamespace(ns=0), []

    def clock():
        now.ns += 1000
        return now.ns

    def sleep(seconds):
        naps.append(seconds)
        now.ns += round(seconds * 1e9)

    samples = run(resolved, tmp_path, clock=clock, sleep=sleep).samples
    drawn = draw_requests(resolved.scenario.workload, 0)
    assert list(samples.requests.arrival_ns) == [r.arrival_ns for r in drawn]
    assert len([nap for nap in naps if nap > 0]) >= 1
    assert all(f - a < 20_000_000 for f, a in zip(samples.requests.finish_ns, samples.requests.arrival_ns, strict=True))
    starts, ends = (
        samples.steps.start_ns,
        [s + d for s, d in zip(samples.steps.start_ns, samples.steps.duration_ns, strict=True)],
    )
    assert all(later >= end for later, end in zip(starts[1:], ends, strict=False))
    assert starts[0] >= drawn[0].arrival_ns


@pytest.mark.parametrize("tier", ["hbm", "dram", "nvme"])
def test_the_time_an_engine_stands_still_is_in_nothing_it_records(mini_scenario, tmp_path, monkeypatch, tier):
    """Every pause takes a minute: a figure that held one would say so. Files are read by a thread, on this clock."""
    monkeypatch.setattr("tiercast_runtime.prefetch.is_supported", lambda: False)
    paused = SimpleNamespace(ns=0)
    resolved = mini_scenario({"tier": tier})
    with Engine(resolved, CPU, tmp_path, clock=lambda: time.perf_counter_ns() + paused.ns) as engine:
        expected = engine.run()
        with serving():
            steps, num_pauses = engine.steps(), 0
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    result = end.value
                    break
                num_pauses += 1
                paused.ns += 60_000_000_000
    assert num_pauses == len(result.samples.steps.start_ns) == len(expected.samples.steps.start_ns)
    assert result.token_ids == expected.token_ids
    steps, requests = result.samples.steps, result.samples.requests
    ends = [start + duration for start, duration in zip(steps.start_ns, steps.duration_ns, strict=True)]
    assert list(steps.start_ns[1:]) == ends[:-1], "a step starts where the one before it ended"
    assert max(requests.finish_ns) == ends[-1]
    assert max(*ends, *requests.first_token_ns, *(span.start_ns + span.duration_ns for span in result.spans)) < 3e10
    assert all(step.window_ns < 3e10 and step.lookup_ns < 3e10 for layer in result.layers for step in layer)


def test_only_reads_of_a_drive_beside_compute_keep_it_off_cores(mini_scenario, tmp_path, monkeypatch):
    asked, seen = [], []
    mine = frozenset(os.sched_getaffinity(0))
    chosen = frozenset({max(mine)})
    monkeypatch.setattr(engine_module, "clear_cores", lambda file, count: asked.append((file.suffix, count)) or chosen)
    run_step = StepRunner.run

    def noted(self, *arguments):
        seen.append(frozenset(os.sched_getaffinity(0)))
        return run_step(self, *arguments)

    monkeypatch.setattr(StepRunner, "run", noted)
    for placement in ({"tier": "none"}, {"tier": "hbm"}, {"tier": "dram"}, {"tier": "nvme", "prefetch": "off"}):
        run(mini_scenario(placement), tmp_path)
    assert asked == []
    assert set(seen) == {mine}
    seen.clear()
    run(mini_scenario({"tier": "nvme"}), tmp_path)
    assert asked == [(".safetensors", 1)]
    assert set(seen) == {chosen}
    assert os.sched_getaffinity(0) == mine


def test_looking_ahead_does_not_stop_for_lookups_would_go_on(mini_scenario, tmp_path):
    with Engine(mini_scenario({"tier": "dram", "prefetch": "prev_step"}), CPU, tmp_path) as engine, serving():
        with pytest.raises(StopIteration) as end:
            next(engine.steps())
        assert len(end.value.value.samples.steps.start_ns) > 1


@pytest.mark.parametrize("dialect", ["v41", "demo"])
def test_engines_of_the_same_weights_share_them_and_compute_as_if_alone(mini_scenario, mini_model, tmp_path, dialect):
    """Two that serve at once: what a sequence leaves behind (keys, convolutions, history) is each one's own."""
    model = mini_model(dialect)
    scenarios = [mini_scenario({"tier": tier}, model=model) for tier in ("none", "hbm", "dram")]
    expected = [run(resolved, tmp_path).token_ids for resolved in scenarios]
    with ExitStack() as stack:
        engines = []
        for resolved in scenarios:
            engines.append(stack.enter_context(Engine(resolved, CPU, tmp_path, others=engines)))
        assert {id(engine.backbone.weights) for engine in engines} == {id(engines[0].backbone.weights)}
        own, others = engines[2].engram_layers, engines[1].engram_layers
        assert [layer.weights is other.weights for layer, other in zip(own, others, strict=True)] == [True] * 2
        assert [each.run.token_ids for each in run_in_turns(engines, turn_ns=0)] == expected
        differing = mini_scenario({"tier": "none"}, model=model, seed=7)
        with Engine(differing, CPU, tmp_path, others=engines) as other:
            assert other.backbone.weights is not engines[0].backbone.weights


def test_spans_lie_inside_their_steps_and_stop_after_the_first_steps(mini_scenario, tmp_path):
    workload = {
        "kind": "closed_loop",
        "concurrency": 1,
        "num_requests": 4,
        "prompt_tokens": {"fixed": 3},
        "output_tokens": {"fixed": 30},
        "text": "random",
    }
    result = run(mini_scenario({"tier": "nvme"}, workload=workload), tmp_path)
    lanes = {}
    for span in result.spans:
        lanes.setdefault(span.lane, []).append(span)
    assert {"step", "compute", "lookup layer 1", "lookup layer 3"} <= set(lanes)
    assert len(lanes["step"]) == 64
    steps = result.samples.steps
    for number, (step, compute) in enumerate(zip(lanes["step"], lanes["compute"], strict=True)):
        assert (step.start_ns, step.duration_ns) == (steps.start_ns[number], steps.duration_ns[number])
        assert step.start_ns <= compute.start_ns
        assert compute.start_ns + compute.duration_ns <= step.start_ns + step.duration_ns


def test_warm_up_is_not_counted_and_the_collector_is_given_back(mini_scenario, tmp_path):
    assert gc.isenabled()
    result = run(mini_scenario({"tier": "hbm"}), tmp_path)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    assert result.num_warm_up_steps >= 2
    assert len(result.overhead_ns) == len(result.samples.steps.start_ns)


def test_a_warm_up_decodes_batches_of_all_orders_of_size():
    def sizes(num_sequences, most=99):
        outputs = warm_up_outputs(num_sequences, most)
        found = [sum(output > step for output in outputs) for step in range(max(outputs))]
        return found[engine_module.WARM_UP_OUTPUT_TOKENS - 1 :]

    assert sizes(1) == [1]
    assert sizes(6) == [6, 3, 1]
    assert sizes(8) == [8, 4, 2, 1]
    assert warm_up_outputs(8, 3) == (3,) * 8, "no more than there is room for"


@pytest.mark.parametrize("draft_tokens", [0, 3])
def test_the_warm_up_fits_where_the_workload_just_fits(mini_scenario, tmp_path, monkeypatch, draft_tokens):
    """A slot is longer than the one block that the request takes and the cache has."""
    plan = engine_module.plan_kv

    def tight(*arguments, **options):
        return replace(plan(*arguments, **options), room_tokens=24, num_slots=1)

    monkeypatch.setattr(engine_module, "plan_kv", tight)
    resolved = mini_scenario(
        {"tier": "none"}, engine={"kv_block_tokens": 24}, speculative={"draft_tokens": draft_tokens}
    )
    (tokens,) = run(resolved, tmp_path, requests=(Request(0, 0, 22, 2),)).token_ids
    assert len(tokens) == 2


def test_progress_ends_at_one(mini_scenario, tmp_path):
    seen = []
    with Engine(mini_scenario({"tier": "none"}), CPU, tmp_path) as engine:
        engine.run(seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) <= 10


def test_a_run_can_be_repeated_and_gives_the_same_tokens(mini_scenario, mini_model, tmp_path):
    with Engine(mini_scenario({"tier": "nvme"}, model=mini_model("demo")), CPU, tmp_path) as engine:
        assert engine.run().token_ids == engine.run().token_ids


def test_a_cache_too_small_for_one_request_is_infeasible_and_says_by_how_much(mini_scenario, cpu_hardware, tmp_path):
    device = cpu_hardware.device.model_copy(update={"memory_capacity_gb": cpu_hardware.device.memory_reserve_gb})
    small = cpu_hardware.model_copy(update={"device": device})
    with pytest.raises(InfeasibleScenario, match="the KV cache of one request") as caught:
        Engine(mini_scenario({"tier": "none"}, hardware=small), CPU, tmp_path)
    assert caught.value.shortfall_bytes > 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
@pytest.mark.parametrize("part", ["plan_kv", "Prefetcher", "StepRunner"])
def test_what_was_open_is_closed_when_a_later_part_fails(mini_scenario, tmp_path, monkeypatch, part):
    """Files and the lookup process of tier nvme, and the tables of tier dram, which a GPU driver may have pinned."""

    def fail(*_, **__):
        raise MissingCapability("not here")

    def num_open():
        return len(list(Path("/proc/self/fd").iterdir()))

    with Engine(mini_scenario({"tier": "nvme"}), CPU, tmp_path):
        pass  # the table files are there now
    monkeypatch.setattr(f"tiercast_runtime.engine.{part}", fail)
    before = num_open()
    with pytest.raises(MissingCapability, match="not here"):
        Engine(mini_scenario({"tier": "nvme"}), CPU, tmp_path)
    assert num_open() == before
    closed, close = [], HostTable.close
    monkeypatch.setattr(HostTable, "close", lambda table: (closed.append(table.layer_index), close(table)))
    with pytest.raises(MissingCapability, match="not here"):
        Engine(mini_scenario({"tier": "dram"}), CPU, tmp_path)
    assert sorted(closed) == [0, 1]


@pytest.mark.parametrize("prefetch", ["off", "step_entry"])
def test_a_lookup_that_fails_stops_the_run_with_its_own_error(mini_scenario, tmp_path, prefetch):
    with Engine(mini_scenario({"tier": "nvme", "prefetch": prefetch}), CPU, tmp_path) as engine:
        for table in engine.tables:
            os.truncate(table.path, 4096)
        with pytest.raises(FileProblem, match="ends too early"):
            engine.run()
    assert gc.isenabled()


def test_requests_can_be_given_instead_of_drawn(mini_scenario, tmp_path):
    requests = (Request(0, 0, 4, 2), Request(1, 0, 7, 3))
    result = run(mini_scenario({"tier": "hbm"}), tmp_path, requests=requests)
    assert [len(tokens) for tokens in result.token_ids] == [2, 3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dialect", ["v41", "demo"])
def test_every_placement_computes_the_same_tokens_on_a_gpu(mini_scenario, mini_model, cpu_hardware, tmp_path, dialect):
    device = cpu_hardware.device.model_copy(update={"kind": "cuda"})
    curves = (*cpu_hardware.lookups, cpu_hardware.lookups[1].model_copy(update={"path": "uva"}))
    hardware = cpu_hardware.model_copy(update={"device": device, "lookups": curves})
    placements = [
        {"tier": "hbm", "prefetch": "off"},
        {"tier": "hbm"},
        {"tier": "dram", "path": "uva"},
        {"tier": "dram", "path": "uva", "prefetch": "off"},
        {"tier": "dram", "path": "cpu_gather"},
        {"tier": "nvme"},
    ]
    results = []
    for placement in placements:
        resolved = mini_scenario(placement | {"graph_mode": "eager"}, model=mini_model(dialect), hardware=hardware)
        with Engine(resolved, torch.device("cuda", 0), tmp_path) as engine:
            results.append(engine.run())
    assert {result.token_ids for result in results} == {results[0].token_ids}
    assert all(window >= 0 for result in results for layer in result.layers for window in (layer[0].window_ns,))
