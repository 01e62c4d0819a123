"""From runs at three bounds to one set of metrics with intervals, and to the spans of a timeline."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from tiercast_profiles.document import BOUNDS, Bound
from tiercast_profiles.record import LayerWindow, Metric, Metrics, Percentiles, Span
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.stats import SampleStatistics
from tiercast_profiles.units import GB, NS_PER_MS, NS_PER_S, NS_PER_US
from tiercast_sim.baselines import Baseline
from tiercast_sim.run import RunResult
from tiercast_sim.serving_counts import ServingCounts
from tiercast_sim.step import LayerTimes, StepLog

MAX_SPAN_STEPS = 64

Runs = Mapping[Bound, RunResult]

A = TypeVar("A")
B = TypeVar("B")


def at_each(values: Mapping[Bound, A], read: Callable[[A], B]) -> dict[Bound, B]:
    """What ``read`` gives at each bound that was run."""
    return {bound: read(values[bound]) for bound in BOUNDS if bound in values}


def band(values: Mapping[Bound, float]) -> Metric:
    """The nominal value with the extremes of all bounds; a point where only the nominal bound was run."""
    if len(values) == 1:
        return Metric(value=values["nominal"])
    return Metric(value=values["nominal"], low=min(values.values()), high=max(values.values()), basis="band")


def optional_band(values: Mapping[Bound, float | None]) -> Metric | None:
    """As :func:`band`, or None where the nominal value is not defined."""
    known: dict[Bound, float] = {}
    for bound in BOUNDS:
        value = values.get(bound)
        if value is not None:
            known[bound] = value
    return band(known) if "nominal" in known else None


def metrics(resolved: ResolvedScenario, runs: Runs, baselines: Mapping[Baseline, Mapping[Bound, float]]) -> Metrics:
    """All metrics of a scenario. ``baselines`` gives the output tokens per second of each baseline at each bound."""
    placement, engram = resolved.placement, resolved.model.engram
    statistics = at_each(runs, lambda result: result.summary.statistics)

    def of(read: Callable[[SampleStatistics], float]) -> Metric:
        return band(at_each(statistics, read))

    def percentiles(read: Callable[[SampleStatistics], Percentiles]) -> Percentiles:
        return Percentiles(
            p50=of(lambda known: read(known).p50.value),
            p90=of(lambda known: read(known).p90.value),
            p99=of(lambda known: read(known).p99.value),
        )

    def tpot(known: SampleStatistics) -> Percentiles:
        assert known.tpot_ms is not None, "every bound runs the same requests"
        return known.tpot_ms

    has_tpot = statistics["nominal"].tpot_ms is not None
    # On the device path the gather is compute (A9): nothing was there to hide.
    is_hidden_defined = placement.path != "device"
    has_tables, has_drafts = placement.tier != "none", resolved.scenario.speculative.draft_tokens > 0
    num_requests = runs["nominal"].summary.num_requests
    penalty: dict[Baseline, Metric] = {}
    for name, throughput in baselines.items():
        ratios: dict[Bound, float] = {}
        for bound in BOUNDS:
            if bound in statistics and bound in throughput:
                ratios[bound] = 1 - statistics[bound].output_tokens_per_s / throughput[bound]
        if "nominal" in ratios:
            penalty[name] = band(ratios)
    return Metrics(
        output_tokens_per_s=of(lambda known: known.output_tokens_per_s),
        total_tokens_per_s=of(lambda known: known.total_tokens_per_s),
        ttft_ms=percentiles(lambda known: known.ttft_ms),
        tpot_ms=percentiles(tpot) if has_tpot else None,
        step_ms=percentiles(lambda known: known.step_ms),
        stall_ms_per_step=of(lambda known: known.stall_ms_per_step),
        lookup_ms_per_step=of(lambda known: known.lookup_ms_per_step),
        hidden_ratio=optional_band(at_each(statistics, lambda known: known.hidden_ratio))
        if is_hidden_defined
        else None,
        penalty_ratio=penalty,
        kv_capacity_tokens=band(at_each(runs, lambda result: float(result.memory.total_kv_capacity_tokens))),
        memory_bytes=runs["nominal"].memory.total_bytes(),
        rows_per_token=float(engram.num_rows_per_token * len(engram.layer_ids)) if has_tables else 0.0,
        unique_row_ratio=statistics["nominal"].unique_row_ratio,
        cache_hit_ratio=statistics["nominal"].cache_hit_ratio,
        wasted_row_ratio=_counted(runs, lambda counts: counts.wasted_ratio) if has_tables and has_drafts else None,
        preemptions_per_request=_counted(runs, lambda counts: counts.preemptions / num_requests)
        if resolved.scenario.engine.kv_reservation == "on_demand"
        else None,
        prefix_hit_ratio=_counted(runs, lambda counts: counts.prefix_hit_ratio)
        if resolved.scenario.engine.prefix_caching
        else None,
        kv_transfer_ms=optional_band(at_each(runs, _kv_transfer_ms)),
        layers=layer_windows(resolved, runs),
    )


def _kv_transfer_ms(result: RunResult) -> float | None:
    """Mean over requests whose KV moved between replicas."""
    times_ns = result.kv_transfer_ns
    return sum(times_ns) / len(times_ns) / NS_PER_MS if times_ns else None


def _counted(runs: Runs, read: Callable[[ServingCounts], float]) -> Metric:
    return band(at_each(runs, lambda result: read(result.counts)))


def layer_windows(resolved: ResolvedScenario, runs: Runs) -> tuple[LayerWindow, ...]:
    """What each Engram layer needs and gets in a median decode step."""
    steps = at_each(runs, lambda result: result.summary.median_decode)
    if not steps["nominal"].layers:
        return ()
    # On the device path the gather is part of the module (A9): no lookup is on its way that could come too late.
    is_fetched = resolved.placement.path != "device"
    windows = []
    for index, layer_id in enumerate(resolved.model.engram.layer_ids):
        times = at_each(steps, partial(_layer, index=index))
        windows.append(
            LayerWindow(
                layer_id=layer_id,
                window_us=band(at_each(times, lambda layer: layer.window_ns / NS_PER_US)),
                lookup_us=band(at_each(times, lambda layer: (layer.ready_ns - layer.issued_ns) / NS_PER_US)),
                stall_us=band(at_each(times, lambda layer: layer.stall_ns / NS_PER_US)),
                required_gb_per_s=optional_band(at_each(times, _required_gb_per_s)),
                required_latency_us=band(at_each(times, lambda layer: layer.required_ns / NS_PER_US))
                if is_fetched
                else None,
                service_us=band(at_each(times, lambda layer: layer.service_ns / NS_PER_US)),
                given_gb_per_s=optional_band(at_each(times, _given_gb_per_s)),
            )
        )
    return tuple(windows)


def _layer(step: StepLog, index: int) -> LayerTimes:
    return step.layers[index]


def _required_gb_per_s(layer: LayerTimes) -> float | None:
    """Rate that brings the rows just in time, or None where the layer wants them at once."""
    return layer.bytes_per_rank * NS_PER_S / layer.window_ns / GB if layer.window_ns > 0 else None


def _given_gb_per_s(layer: LayerTimes) -> float | None:
    """Rate the rows came at, waiting apart, or None where none came."""
    return layer.bytes_per_rank * NS_PER_S / layer.service_ns / GB if layer.service_ns > 0 else None


def spans(resolved: ResolvedScenario, steps: Sequence[StepLog]) -> tuple[Span, ...]:
    """Bars of the first steps, on the lanes the runtime writes too; each replica of many has its own lanes."""
    layer_ids = resolved.model.engram.layer_ids
    bars: list[Span] = []
    for number, step in enumerate(steps[:MAX_SPAN_STEPS]):
        replica = f"replica {step.replica} " if resolved.scenario.parallel.num_replicas > 1 else ""
        name = f"step {number}: {step.decode_sequences} decode + {step.prefill_tokens} prefill"
        known_ns, end_ns = step.start_ns + step.pre_ns, step.start_ns + step.duration_ns
        rows = [
            (name, "step", step.start_ns, end_ns),
            (f"compute {number}", "compute", known_ns, end_ns),
        ]
        for layer_id, layer in zip(layer_ids, step.layers, strict=False):
            start_ns = layer.ready_ns - layer.service_ns
            rows.append((f"{layer.rows_read} rows", f"lookup layer {layer_id}", start_ns, layer.ready_ns))
            if layer.stall_ns:
                stall_end_ns = layer.wanted_ns + layer.stall_ns
                rows.append(("stall", f"stall layer {layer_id}", layer.wanted_ns, stall_end_ns))
        bars.extend(
            Span(name=label, lane=replica + lane, start_ns=start, duration_ns=end - start)
            for label, lane, start, end in rows
        )
    return tuple(sorted(bars, key=lambda bar: (bar.start_ns, bar.lane)))
