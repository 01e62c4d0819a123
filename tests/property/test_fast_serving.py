"""Arithmetic on columns gives the run of the event engine, to the nanosecond, wherever it is chosen (INV-7)."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercast_profiles.errors import BadInput
from tiercast_profiles.hardware import ComputeTable, Settling, SettlingPoint, StepSpread
from tiercast_profiles.scenario import Engine, Speculative
from tiercast_profiles.stats import SampleStatistics
from tiercast_profiles.workload import Workload
from tiercast_sim import schedule_columns
from tiercast_sim.count_prices import distinct_of
from tiercast_sim.fast_serving import needs_events
from tiercast_sim.memory import memory_plan
from tiercast_sim.run import run
from tiercast_sim.run_summary import median_decode_step
from tiercast_sim.schedule_columns import batches_of, longest_positions, schedule_of
from tiercast_sim.serving import Scheduler
from tiercast_sim.simulate import simulate
from tiercast_sim.source import requests_of

placements = st.sampled_from(
    [
        {"tier": "none"},
        {"tier": "hbm"},
        {"tier": "dram", "path": "uva"},
        {"tier": "dram", "path": "cpu_gather"},
        {"tier": "cxl"},
        {"tier": "pool"},
    ]
)
lengths = st.one_of(
    st.builds(lambda n: {"fixed": n}, st.integers(1, 60)),
    st.builds(lambda low, more: {"uniform": [low, low + more]}, st.integers(1, 20), st.integers(0, 60)),
)


def same_run(resolved, bound="nominal"):
    fast, events = run(resolved, bound, engine="arithmetic"), run(resolved, bound, engine="events")
    assert fast.samples == events.samples
    assert tuple(fast.steps) == events.steps
    ours, theirs = fast.summary, events.summary
    assert vars(ours.statistics) == vars(theirs.statistics)
    if not fast.compute.cases.are_known:
        assert vars(ours.statistics) == vars(SampleStatistics(events.samples))
    assert replace(ours, statistics=None) == replace(theirs, statistics=None)
    assert ours.median_decode == median_decode_step(events.steps)
    assert fast.compute.largest_step_tokens == events.compute.largest_step_tokens
    spent_ns, expected_ns = (found.compute.ledger._parts_ns for found in (fast, events))
    assert spent_ns == pytest.approx(expected_ns, rel=1e-9, abs=1)
    if fast.lookups is not None:
        assert fast.lookups.largest_rows_per_rank == events.lookups.largest_rows_per_rank


OVERHEAD = {
    "issue_us": {"value": 12.5, "low": 10, "high": 20},
    "beside_us": {"value": 7.25, "low": 0, "high": 9},
    "after_us": 31.5,
    "inline_us": {"value": 40, "low": 30, "high": 55},
}
WORKER = {
    "wake_us": {"value": 21.5, "low": 20, "high": 90},
    "turn_us": {"value": 3.125, "low": 0, "high": 4},
    "behind_us": {"value": 2.5, "low": 1, "high": 400},
}
OVERHEAD["points"] = [
    {**OVERHEAD, "num_rows": 12},
    {
        "num_rows": 96,
        "issue_us": 19,
        "beside_us": {"value": 11, "low": 3, "high": 12},
        "after_us": 2,
        "inline_us": 90.5,
    },
]
AWAKE = OVERHEAD | WORKER | {"points": [point | WORKER for point in OVERHEAD["points"]]}


@settings(max_examples=400, deadline=None)
@given(
    placement=placements,
    prefetch=st.sampled_from(["off", "step_entry"]),
    prompt=lengths,
    output=lengths,
    concurrency=st.integers(1, 12),
    count=st.integers(1, 40),
    budget=st.integers(8, 90),
    max_seqs=st.integers(1, 8),
    tensor=st.sampled_from([1, 2, 4]),
    window=st.sampled_from([None, 1, 16, 70]),
    host_gb_per_s=st.sampled_from([0.05, 40.0]),
    interference=st.sampled_from(
        [
            None,
            {"compute_speed_ratio": 0.7, "lookup_speed_ratio": 0.6},
            {"compute_speed_ratio": 0.333333333, "lookup_speed_ratio": 1.0},
            {"compute_speed_ratio": 1.0, "lookup_speed_ratio": 0.9, "overhead": OVERHEAD},
            {"compute_speed_ratio": 0.8, "lookup_speed_ratio": 1.0, "overhead": OVERHEAD},
            {"compute_speed_ratio": 0.8, "lookup_speed_ratio": 0.9, "overhead": AWAKE},
            {"compute_speed_ratio": 1.0, "lookup_speed_ratio": 1.0, "overhead": AWAKE},
        ]
    ),
    bound=st.sampled_from(["nominal", "optimistic", "pessimistic"]),
    seed=st.integers(0, 1000),
)
def test_random_closed_loops(
    sim_scenario,
    placement,
    prefetch,
    prompt,
    output,
    concurrency,
    count,
    budget,
    max_seqs,
    tensor,
    window,
    host_gb_per_s,
    interference,
    bound,
    seed,
):
    entries = [{"tier": "dram", "path": path, **(interference or {})} for path in ("uva", "cpu_gather")]
    hardware = {
        "host": {"memory_bandwidth_gb_per_s": host_gb_per_s},
        "interference": entries if interference else [],
    }
    resolved = sim_scenario(
        {**placement, "prefetch": prefetch},
        hardware=hardware,
        backbone={"attention_window_tokens": window},
        parallel={"tensor": tensor},
        workload={
            "kind": "closed_loop",
            "concurrency": concurrency,
            "num_requests": count,
            "prompt_tokens": prompt,
            "output_tokens": output,
        },
        engine={"max_num_batched_tokens": budget, "max_num_seqs": max_seqs, "kv_block_tokens": 4},
        seed=seed,
    )
    assert needs_events(resolved) is None
    same_run(resolved, bound)


@settings(max_examples=400, deadline=None)
@given(
    placement=placements,
    prefetch=st.sampled_from(["off", "step_entry"]),
    arrivals=st.sampled_from([{}, {"burstiness": 0.2}, {"on_off": {"mean_on_s": 0.01, "mean_off_s": 0.03}}]),
    requests_per_s=st.sampled_from([2.0, 200.0, 3000.0, 100_000.0]),
    prompt=lengths,
    output=lengths,
    count=st.integers(1, 40),
    budget=st.integers(8, 90),
    max_seqs=st.integers(1, 8),
    window=st.sampled_from([None, 1, 16, 70]),
    num_early=st.sampled_from([3, 6]),
    reservation=st.sampled_from(["full", "on_demand"]),
    interference=st.sampled_from(
        [
            None,
            {"compute_speed_ratio": 0.7, "lookup_speed_ratio": 0.6},
            {"compute_speed_ratio": 0.8, "lookup_speed_ratio": 0.9, "overhead": OVERHEAD},
            {"compute_speed_ratio": 0.8, "lookup_speed_ratio": 0.9, "overhead": AWAKE},
            {"compute_speed_ratio": 1.0, "lookup_speed_ratio": 1.0, "overhead": AWAKE},
        ]
    ),
    data=st.sampled_from([1, 1, 2, 3]),
    bound=st.sampled_from(["nominal", "optimistic", "pessimistic"]),
    seed=st.integers(0, 1000),
)
def test_random_arrivals_by_the_clock(
    sim_scenario,
    placement,
    prefetch,
    arrivals,
    requests_per_s,
    prompt,
    output,
    count,
    budget,
    max_seqs,
    window,
    num_early,
    reservation,
    interference,
    data,
    bound,
    seed,
):
    entries = [{"tier": "dram", "path": path, **(interference or {})} for path in ("uva", "cpu_gather")]
    resolved = sim_scenario(
        {**placement, "prefetch": prefetch},
        hardware={"interference": entries if interference else []},
        backbone={"attention_window_tokens": window, "num_prefill_layers": num_early},
        parallel={"data": data, "tensor": 4 if data > 1 else 1},  # a host has four devices: nothing is shared
        workload={
            "kind": "poisson",
            "requests_per_s": requests_per_s,
            "num_requests": count,
            "prompt_tokens": prompt,
            "output_tokens": output,
            **arrivals,
        },
        engine={
            "max_num_batched_tokens": budget,
            "max_num_seqs": max_seqs,
            "kv_block_tokens": 4,
            "kv_reservation": reservation,
        },
        seed=seed,
    )
    assert needs_events(resolved) is None
    same_run(resolved, bound)


def test_a_trace_by_the_clock(sim_scenario, tmp_path):
    trace = tmp_path / "trace.jsonl"
    lines = [(0, 30, 4), (0, 20, 1), (2, 50, 9), (2, 7, 3), (5000, 40, 6), (5001, 1, 1), (5001, 60, 12)]
    trace.write_text(
        "".join(f'{{"timestamp": {ms}, "input_length": {i}, "output_length": {o}}}\n' for ms, i, o in lines)
    )
    engine = {"max_num_batched_tokens": 40, "max_num_seqs": 4, "kv_block_tokens": 4}
    resolved = sim_scenario({"tier": "dram"}, workload={"kind": "trace", "file": str(trace)}, engine=engine)
    same_run(resolved)
    assert simulate(resolved).provenance.facts["engine"] == "arithmetic"
    table = table_of(resolved, "mean", np.random.default_rng(0))
    measured = resolved.hardware.model_copy(update={"compute": (table,)})
    same_run(resolved.model_copy(update={"hardware": measured}))
    padded = measured.model_copy(update={"compute": (table_of(resolved, "max", np.random.default_rng(0)),)})
    with pytest.raises(BadInput, match="longest context"):
        run(resolved.model_copy(update={"hardware": padded}), "nominal", engine="arithmetic")
    unsettled = measured.model_copy(update={"compute": (table.model_copy(update={"settling": SETTLINGS[1]}),)})
    with pytest.raises(BadInput, match="prompts before it"):
        run(resolved.model_copy(update={"hardware": unsettled}), "nominal", engine="arithmetic")


@settings(max_examples=60, deadline=None)
@given(spare_blocks=st.integers(0, 40), rate=st.sampled_from([50.0, 5000.0]), seed=st.integers(0, 1000))
def test_arrivals_by_the_clock_when_kv_is_scarce(sim_scenario, spare_blocks, rate, seed):
    workload = {
        "kind": "poisson",
        "requests_per_s": rate,
        "num_requests": 30,
        "prompt_tokens": {"uniform": [1, 60]},
        "output_tokens": {"uniform": [1, 20]},
    }
    engine = {"max_num_batched_tokens": 64, "max_num_seqs": 8, "kv_block_tokens": 4}
    resolved = sim_scenario({"tier": "dram"}, workload=workload, engine=engine, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        scarce = replace(memory_plan(resolved), kv_capacity_tokens=(20 + spare_blocks) * 4)
        patch.setattr("tiercast_sim.run.memory_plan", lambda *_: scarce)
        same_run(resolved)


@settings(max_examples=100, deadline=None)
@given(block=st.integers(1, 9), output=lengths, concurrency=st.integers(1, 12), seed=st.integers(0, 1000))
def test_a_run_is_the_same_in_blocks_of_any_size(sim_scenario, block, output, concurrency, seed):
    resolved = sim_scenario(
        {"tier": "dram", "path": "cpu_gather"},
        backbone={"attention_window_tokens": 16},
        workload={
            "kind": "closed_loop",
            "concurrency": concurrency,
            "num_requests": 25,
            "prompt_tokens": {"uniform": [1, 60]},
            "output_tokens": output,
        },
        engine={"max_num_batched_tokens": 40, "max_num_seqs": 8, "kv_block_tokens": 4},
        seed=seed,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule_columns, "BLOCK_STEPS", block)
        schedule_columns.forget()
        try:
            same_run(resolved)
        finally:
            schedule_columns.forget()
    steps = run(resolved, "nominal").steps
    assert (steps[-1], steps[2:9], steps[::3]) == (tuple(steps)[-1], tuple(steps)[2:9], tuple(steps)[::3])


def table_of(resolved, statistic, generator, *, mode="full", counts=(1, 7, 30, 100), host_us=0.0, settling=None):
    """A measured table with times that follow no law, so that an operation out of order shows.

    ``host_us`` is the most that the host takes a token to issue a component; every third point has none.
    """
    names = "embed linear attention_decode attention_prefill engram_module engram_chunk hash lookup_issue head"

    def points():
        for tokens in counts:
            for context in (1, 40, 200):
                us = float(generator.uniform(1, 50) * tokens)
                point = {
                    "num_tokens": tokens,
                    "context_tokens": context,
                    "time_us": us,
                    "low_us": us / 2,
                    "high_us": 2 * us,
                }
                if host_us and generator.uniform() > 0.33:
                    point["host_us"] = float(generator.uniform(0, host_us) * tokens)
                yield point

    return ComputeTable.model_validate(
        {
            "model_name": "mini",
            "shape_sha256": resolved.model.backbone.shape_sha256,
            "engram_sha256": resolved.model.engram.shape_sha256,
            "graph_mode": mode,
            "context_statistic": statistic,
            "components": {name: list(points()) for name in (*names.split(), "step_overhead")},
            "settling": settling,
        }
    )


APART = (
    StepSpread(num_tokens=2, time_ratios=(0.75,) * 4 + (1.0,) * 4 + (1.5,) * 2),
    StepSpread(num_tokens=40, time_ratios=(0.9,) * 5 + (1.1,) * 5),
)
SETTLINGS = [
    None,
    Settling(chunk_tokens=30, points=(SettlingPoint(num_sequences=1, first_ratio=0.3, decay_ratio=0.7),)),
    Settling(
        chunk_tokens=257,
        points=(
            SettlingPoint(num_sequences=2, first_ratio=1.7, decay_ratio=0.6),
            SettlingPoint(num_sequences=5, first_ratio=0.1, decay_ratio=0.93),
        ),
    ),
]


@pytest.mark.parametrize("statistic", ["mean", "max"])
@settings(max_examples=60, deadline=None)
@given(
    output=st.one_of(lengths, st.builds(lambda n: {"fixed": n}, st.integers(20, 90))),
    concurrency=st.integers(1, 12),
    settling=st.sampled_from(SETTLINGS),
    spreads=st.sampled_from([(), APART]),
    block=st.sampled_from([7, 32_768]),
    seed=st.integers(0, 1000),
)
def test_measured_tables(sim_scenario, statistic, output, concurrency, settling, spreads, block, seed):
    resolved = sim_scenario(
        {"tier": "dram", "path": "uva"},
        workload={
            "kind": "closed_loop",
            "concurrency": concurrency,
            "num_requests": 25,
            "prompt_tokens": {"uniform": [1, 60]},
            "output_tokens": output,
        },
        seed=seed,
    )
    changes = {"settling": settling, "spreads": spreads}
    table = table_of(resolved, statistic, np.random.default_rng(seed)).model_copy(update=changes)
    measured = resolved.model_copy(update={"hardware": resolved.hardware.model_copy(update={"compute": (table,)})})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule_columns, "BLOCK_STEPS", block)  # a batch settles across blocks
        schedule_columns.forget()
        try:
            same_run(measured)
        finally:
            schedule_columns.forget()


@settings(max_examples=150, deadline=None)
@given(
    placement=st.sampled_from([{"tier": "none"}, {"tier": "hbm"}, {"tier": "dram", "path": "uva"}]),
    prefetch=st.sampled_from(["off", "step_entry"]),
    mode=st.sampled_from(["eager", "piecewise", "full"]),
    statistics=st.sampled_from([("mean", "mean"), ("max", "mean"), ("mean", "max")]),
    largest=st.sampled_from([3, 5, 100]),
    has_single=st.booleans(),
    host_us=st.sampled_from([(0.0, 0.0), (60.0, 0.0), (100.0, 100.0)]),
    is_timed=st.booleans(),
    concurrency=st.integers(1, 12),
    max_seqs=st.integers(1, 11),
    num_early=st.sampled_from([3, 6]),
    settlings=st.tuples(st.sampled_from(SETTLINGS), st.sampled_from(SETTLINGS)),
    bound=st.sampled_from(["nominal", "optimistic", "pessimistic"]),
    seed=st.integers(0, 1000),
)
def test_tables_of_graphs_and_of_single_calls(
    sim_scenario,
    placement,
    prefetch,
    mode,
    statistics,
    largest,
    has_single,
    host_us,
    is_timed,
    concurrency,
    max_seqs,
    num_early,
    settlings,
    bound,
    seed,
):
    lengths_of = {"num_requests": 20, "prompt_tokens": {"uniform": [1, 60]}, "output_tokens": {"uniform": [1, 30]}}
    closed = {"kind": "closed_loop", "concurrency": concurrency, **lengths_of}
    timed = {"kind": "poisson", "requests_per_s": 200.0, **lengths_of}
    resolved = sim_scenario(
        {**placement, "prefetch": prefetch, "graph_mode": mode},
        backbone={"num_prefill_layers": num_early},
        workload=timed if is_timed else closed,
        engine={"max_num_batched_tokens": 48, "max_num_seqs": max_seqs, "kv_block_tokens": 4},
        seed=seed,
    )
    if is_timed:  # arrivals by the clock go step by step beside either
        statistics, settlings = ("mean", "mean"), (None, None)
    generator = np.random.default_rng(seed)
    single = table_of(resolved, statistics[0], generator, mode="eager", host_us=host_us[0], settling=settlings[0])
    graphs = table_of(
        resolved,
        statistics[1],
        generator,
        mode=mode,
        counts=(1, 2, largest),
        host_us=host_us[1],
        settling=settlings[1],
    )
    tables = (single,) if mode == "eager" else (single, graphs) if has_single else (graphs,)
    measured = resolved.model_copy(update={"hardware": resolved.hardware.model_copy(update={"compute": tables})})
    same_run(measured, bound)


@settings(max_examples=300, deadline=None)
@given(
    prompt=lengths,
    output=lengths,
    concurrency=st.integers(1, 12),
    count=st.integers(1, 30),
    spare_blocks=st.integers(0, 60),
    seed=st.integers(0, 1000),
)
def test_the_plan_is_that_of_the_scheduler_when_kv_is_scarce(prompt, output, concurrency, count, spare_blocks, seed):
    workload = Workload.model_validate(
        {
            "kind": "closed_loop",
            "concurrency": concurrency,
            "num_requests": count,
            "prompt_tokens": prompt,
            "output_tokens": output,
        }
    )
    engine = Engine(max_num_batched_tokens=32, max_num_seqs=6, kv_block_tokens=4)
    requests = requests_of(workload, seed)
    largest = max(request.prompt_tokens + request.output_tokens for request in requests)
    num_blocks = -(-largest // 4) + spare_blocks
    schedule = schedule_of(workload, seed, engine, num_blocks)
    batches, (longest, longest_ended) = batches_of(schedule, 9, 0, schedule.num_steps), longest_positions(schedule)
    scheduler = Scheduler(engine, num_blocks * 4, Speculative(), seed)
    waiting = list(requests[concurrency:])
    for request in requests[:concurrency]:
        scheduler.add(request)
    step = first_chunk = 0
    while scheduler.has_work:
        plan = scheduler.plan()
        last_chunk = first_chunk + len(plan.chunks)
        chunks = [(chunk.request.request_id, chunk.start, chunk.num_tokens) for chunk in plan.chunks]
        columns = (schedule.chunk_request, schedule.chunk_start, schedule.chunk_tokens)
        assert list(zip(*(column[first_chunk:last_chunk].tolist() for column in columns), strict=True)) == chunks
        assert all(schedule.chunk_step[first_chunk:last_chunk] == step)
        ended = [chunk.request.prompt_tokens - 1 for chunk in plan.chunks if chunk.is_last]
        assert batches.num_decodes[step] == plan.num_decodes
        assert batches.num_tokens[step] == plan.num_tokens
        assert (batches.num_chunks[step], batches.num_ended[step]) == (len(chunks), len(ended))
        assert (batches.position_sum[step], batches.ended_sum[step]) == (sum(plan.decode_positions), sum(ended))
        assert batches.window_sum[step] == sum(min(position, 8) for position in plan.decode_positions)
        assert batches.ended_window_sum[step] == sum(min(position, 8) for position in ended)
        assert longest[step] == max(plan.decode_positions, default=0)
        assert longest_ended[step] == max(ended, default=0)
        finished = scheduler.finish()
        assert all(schedule.first_step[request.request_id] == step for request in finished.first_tokens)
        for request in finished.done:
            assert schedule.last_step[request.request_id] == step
            if waiting:
                assert schedule.arrival_step[waiting[0].request_id] == step
                scheduler.add(waiting.pop(0))
        step, first_chunk = step + 1, last_chunk
    assert (step, first_chunk) == (schedule.num_steps, len(schedule.chunk_step))


def test_what_needs_events_gets_them(sim_scenario):
    poisson = {
        "kind": "poisson",
        "requests_per_s": 100.0,
        "num_requests": 5,
        "prompt_tokens": {"fixed": 5},
        "output_tokens": {"fixed": 5},
    }
    for resolved in (
        sim_scenario({"tier": "dram"}, parallel={"data": 2}),
        sim_scenario({"tier": "dram"}, workload=poisson, engine={"max_num_batched_tokens": 2}),
        sim_scenario({"tier": "dram"}, speculative={"draft_tokens": 2}),
        sim_scenario({"tier": "dram"}, engine={"max_num_batched_tokens": 2}),
        sim_scenario({"tier": "nvme"}),
        sim_scenario({"tier": "dram", "cache_gib": 0.001}),
        sim_scenario({"tier": "dram", "prefetch": "prev_step"}),
    ):
        reason = needs_events(resolved)
        assert reason is not None
        assert run(resolved, "nominal").engine == "events"
        with pytest.raises(BadInput, match=reason):
            run(resolved, "nominal", engine="arithmetic")


def test_replicas_that_share_a_host_need_events(sim_scenario):
    workload = {
        "kind": "poisson",
        "requests_per_s": 100.0,
        "num_requests": 9,
        "prompt_tokens": {"fixed": 5},
        "output_tokens": {"fixed": 5},
    }
    together = sim_scenario({"tier": "dram"}, workload=workload, parallel={"data": 2})
    assert run(together, "nominal").engine == "events"
    with pytest.raises(BadInput, match="replicas share dram of host 0"):
        run(together, "nominal", engine="arithmetic")
    apart = sim_scenario({"tier": "dram"}, workload=workload, parallel={"data": 2, "tensor": 4})
    steps = run(apart, "nominal", engine="arithmetic").steps
    assert {step.replica for step in steps} == {0, 1}
    assert (steps[-1], steps[1:4]) == (tuple(steps)[-1], tuple(steps)[1:4])
    few = sim_scenario({"tier": "hbm"}, workload={**workload, "num_requests": 1}, parallel={"data": 4})
    same_run(few)


def test_the_record_says_which_engine_ran(sim_scenario):
    assert simulate(sim_scenario({"tier": "dram"})).provenance.facts["engine"] == "arithmetic"
    assert simulate(sim_scenario({"tier": "nvme"})).provenance.facts["engine"] == "events"


def test_numbers_beyond_exact_columns_go_step_by_step(sim_scenario):
    heads = {"num_attention_heads": 4096, "head_dim": 4096, "num_kv_heads": 1}
    resolved = sim_scenario(
        {"tier": "none"},
        backbone=heads,
        engine={"max_num_batched_tokens": 200_000, "max_num_seqs": 8},
        workload={
            "kind": "closed_loop",
            "concurrency": 1,
            "num_requests": 1,
            "prompt_tokens": {"fixed": 150_000},
            "output_tokens": {"fixed": 2},
        },
    )
    assert run(resolved, "nominal").engine == "events"


@pytest.mark.parametrize("counts", [[0], [3, 3, 0, 7], [10**9, 5, 5], list(range(50, 0, -3))], ids=str)
def test_distinct_counts_are_those_of_a_sort(counts):
    column = np.array(counts, dtype=np.int64)
    distinct, where = distinct_of(column)
    expected, inverse = np.unique(column, return_inverse=True)
    assert distinct.tolist() == expected.tolist()
    assert where.tolist() == inverse.tolist()
