"""The record of a bench: what an engine's runs gave, as metrics, facts and warnings.

Nothing in a measured record is predicted, and nothing in it is corrected.
"""

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tiercast_profiles import __version__, stats
from tiercast_profiles.hardware import Tier as MemoryTier
from tiercast_profiles.quantiles import is_unstable
from tiercast_profiles.record import LayerWindow, Metric, Metrics, Percentiles, Provenance, RunRecord
from tiercast_profiles.repeats import UNSTABLE_THROUGHPUT
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.stats import SampleStatistics
from tiercast_profiles.units import NS_PER_S, NS_PER_US, bytes_per_s_to_gb_per_s
from tiercast_profiles.workload import workload_sha256
from tiercast_runtime.device import describe, num_cores
from tiercast_runtime.engine import Engine, EngineRun
from tiercast_runtime.recorder import LayerStep
from tiercast_runtime.table import FileTable, MemoryTable

OTHERS = "cores_used_by_others"
DRAFTS_ARE = "looked up and verified by the model; drafting takes no time, acceptance is drawn, not sampled"
FREE_DRAFTS = "speculative.draft_step_us is not stated: drafts take no time, throughput is an upper bound"
BUSY_CORES = 0.1  # a machine whose other processes use more than this was not quiet


def measured_record(
    resolved: ResolvedScenario,
    engine: Engine,
    runs: list[EngineRun],
    num_threads: int,
    circumstances: dict[str, float],
) -> RunRecord:
    """The record of a scenario's runs.

    Args:
        resolved: what was run.
        engine: what ran it.
        runs: one or more; samples and spans are those of the one with the median throughput.
        num_threads: compute threads.
        circumstances: further facts, of what was around the runs.
    """
    statistics = [SampleStatistics(run.samples) for run in runs]
    order = sorted(range(len(runs)), key=lambda i: statistics[i].output_tokens_per_s)
    middle = runs[order[len(runs) // 2]]
    scenario, model = resolved.scenario, resolved.model
    return RunRecord(
        kind="measured",
        scenario=scenario,
        placement=resolved.placement,
        scenario_sha256=resolved.sha256,
        workload_sha256=workload_sha256(scenario.workload, scenario.seed, engine.text.vocabulary, engine.text.sha256),
        provenance=Provenance(
            tool_version=__version__,
            git_commit=git_commit(Path(__file__).parent),
            hardware_name=resolved.hardware.name,
            hardware_sha256=resolved.hardware.sha256,
            hardware_calibration=resolved.hardware.calibration,
            model_name=model.name,
            model_sha256=model.sha256,
            prices_sha256=resolved.prices.sha256,
            vocabulary=engine.text.vocabulary,
            text_sha256=engine.text.sha256,
            facts=_facts(engine, middle, len(runs), num_threads) | circumstances,
            warnings=_warnings(engine, statistics, circumstances.get(OTHERS)),
        ),
        metrics=_metrics(resolved, engine, runs, statistics),
        samples=middle.samples,
        spans=middle.spans,
    )


def _metrics(
    resolved: ResolvedScenario, engine: Engine, runs: Sequence[EngineRun], statistics: Sequence[SampleStatistics]
) -> Metrics:
    # On path device the gather is compute: nothing was there to hide.
    is_hidden_defined = resolved.placement.path != "device"
    hidden = [s.hidden_ratio for s in statistics if s.hidden_ratio is not None and is_hidden_defined]
    tpot = [s.tpot_ms for s in statistics if s.tpot_ms is not None]
    unique = [s.unique_row_ratio for s in statistics if s.unique_row_ratio is not None]
    hits = [s.cache_hit_ratio for s in statistics if s.cache_hit_ratio is not None]
    engram = resolved.model.engram
    has_tables = resolved.placement.tier != "none"
    return Metrics(
        output_tokens_per_s=stats.spread_metric([s.output_tokens_per_s for s in statistics]),
        total_tokens_per_s=stats.spread_metric([s.total_tokens_per_s for s in statistics]),
        ttft_ms=_spread_percentiles([s.ttft_ms for s in statistics]),
        tpot_ms=_spread_percentiles(tpot) if tpot else None,
        step_ms=_spread_percentiles([s.step_ms for s in statistics]),
        stall_ms_per_step=stats.spread_metric([s.stall_ms_per_step for s in statistics]),
        lookup_ms_per_step=stats.spread_metric([s.lookup_ms_per_step for s in statistics]),
        hidden_ratio=stats.spread_metric(hidden) if hidden else None,
        kv_capacity_tokens=Metric(value=engine.kv.room_tokens),
        memory_bytes=memory_bytes(resolved, engine),
        rows_per_token=len(engram.layer_ids) * engram.num_rows_per_token if has_tables else 0,
        unique_row_ratio=stats.median(unique) if unique else None,
        cache_hit_ratio=stats.median(hits) if hits else None,
        wasted_row_ratio=stats.spread_metric([run.wasted_row_ratio for run in runs])
        if has_tables and resolved.scenario.speculative.draft_tokens
        else None,
        layers=_layer_windows(resolved, runs) if has_tables else (),
        runs_output_tokens_per_s=tuple(s.output_tokens_per_s for s in statistics) if len(runs) > 1 else (),
    )


def memory_bytes(resolved: ResolvedScenario, engine: Engine) -> dict[MemoryTier, int]:
    """Bytes this run allocated by tier: weights and buffers on the device, tables where they live.

    A row cache lies in host memory, or on the device where that moves the rows, and counts with its index.

    The KV cache takes what is left of the device's memory; its size is among the facts.
    """
    backbone, tier = engine.backbone, resolved.placement.tier
    device_bytes = backbone.weight_bytes + backbone.buffer_bytes + engine.engram_weight_bytes
    by_tier: dict[MemoryTier, int] = {"hbm": device_bytes}
    if tier != "none":
        by_tier[tier] = by_tier.get(tier, 0) + engine.table_bytes
    if engine.cache.size_bytes:
        place: MemoryTier = "hbm" if engine.cache.is_on_device else "dram"
        by_tier[place] = by_tier.get(place, 0) + engine.cache.size_bytes
    return by_tier


def _spread_percentiles(items: Sequence[Percentiles]) -> Percentiles:
    return Percentiles(
        p50=stats.spread_metric([item.p50.value for item in items]),
        p90=stats.spread_metric([item.p90.value for item in items]),
        p99=stats.spread_metric([item.p99.value for item in items]),
    )


def _layer_windows(resolved: ResolvedScenario, runs: Sequence[EngineRun]) -> tuple[LayerWindow, ...]:
    """Per Engram layer, the medians over the steps that only decode; empty when no step did."""
    engram = resolved.model.engram
    row_bytes = engram.stored_row_bytes(resolved.placement.row_layout)
    windows = []
    for index, layer_id in enumerate(engram.layer_ids):
        per_run = [run.layers[index] for run in runs]
        if not all(per_run):
            return ()
        rates = [
            step.num_rows_read * row_bytes * NS_PER_S / step.window_ns
            for steps in per_run
            for step in steps
            if step.window_ns > 0
        ]
        windows.append(
            LayerWindow(
                layer_id=layer_id,
                window_us=_median_us(per_run, lambda step: step.window_ns),
                lookup_us=_median_us(per_run, lambda step: step.lookup_ns),
                stall_us=_median_us(per_run, lambda step: step.stall_ns),
                required_gb_per_s=Metric(value=bytes_per_s_to_gb_per_s(stats.median(rates))) if rates else None,
            )
        )
    return tuple(windows)


def _median_us(per_run: Sequence[Sequence[LayerStep]], value_ns: Callable[[LayerStep], int]) -> Metric:
    return stats.spread_metric([stats.median([value_ns(step) for step in steps]) / NS_PER_US for steps in per_run])


def _facts(engine: Engine, run: EngineRun, repeats: int, num_threads: int) -> dict[str, str | int | float | bool]:
    resolved = engine.resolved
    facts: dict[str, str | int | float | bool] = {
        "device": describe(engine.device),
        "num_cores": num_cores(),
        "num_compute_threads": num_threads,
        "torch_version": str(torch.__version__),
        "python_version": platform.python_version(),
        "compute_type": str(engine.dtype).removeprefix("torch."),
        **engine.graph_facts,
        "repeats": repeats,
        "warm_up_steps": run.num_warm_up_steps,
        "steps": len(run.samples.steps.start_ns),
        "step_overhead_us_median": round(stats.median(run.overhead_ns) / NS_PER_US, 1),
        "kv_cache_bytes": engine.backbone.kv_bytes,
        "kv_slots": engine.kv.num_slots,
        "kv_slot_tokens": engine.kv.max_context_tokens,
        "page_size_bytes": os.sysconf("SC_PAGE_SIZE"),
        "text_is_stand_in": engine.text.is_stand_in,
        "measured_on": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    if engine.cache.size_bytes:
        facts["cache_rows_per_layer"] = engine.cache.num_slots_per_layer
        facts["cache_policy"] = resolved.placement.cache_policy
        facts["cache_start"] = (
            "hottest rows of a warm-up" if resolved.placement.cache_policy == "static_hot" else "empty"
        )
    if resolved.scenario.speculative.draft_tokens:
        facts["drafts"] = DRAFTS_ARE
    held = next((table.obtained for table in engine.tables if isinstance(table, MemoryTable)), None)
    if held is not None:
        facts.update(held.facts)
    if engine.compute_cores is not None:
        facts["compute_cores"] = ", ".join(map(str, sorted(engine.compute_cores)))
        facts["compute_cores_reason"] = "the drive's interrupts go to the others"
    if engine.checkpoint is not None:
        facts["checkpoint_sha256"] = engine.checkpoint.identity
        facts["rows_read_in_checkpoint"] = any(
            isinstance(table, FileTable) and table.is_in_checkpoint for table in engine.tables
        )
    facts.update({f"path_{key}": value for key, value in engine.path_facts.items()})
    return facts


def _warnings(engine: Engine, statistics: Sequence[SampleStatistics], others: float | None) -> tuple[str, ...]:
    warnings = []
    if others is not None and others > BUSY_CORES:
        warnings.append(
            f"other processes used {others:.2f} of {num_cores()} cores during the runs: the machine was slower than it "
            "is alone; repeat when it is quiet"
        )
    if engine.kv.num_slots < engine.kv.num_wanted_slots:
        warnings.append(
            f"the static KV cache has {engine.kv.num_slots} slots of {engine.kv.max_context_tokens} tokens; the "
            f"workload could use {engine.kv.num_wanted_slots}"
        )
    speculative = engine.resolved.scenario.speculative
    if speculative.draft_tokens > 0 and speculative.draft_step_us is None:
        warnings.append(FREE_DRAFTS)
    throughputs = [s.output_tokens_per_s for s in statistics]
    if len(throughputs) > 1 and is_unstable(throughputs):
        warnings.append(UNSTABLE_THROUGHPUT)
    return tuple(warnings)


def git_commit(start: Path) -> str | None:
    """Commit of the checkout or worktree that holds ``start``, read from git's files; None outside of one."""
    root = next((folder for folder in (start, *start.parents) if (folder / ".git").exists()), None)
    if root is None:
        return None
    try:
        own, shared = _git_folders(root / ".git")
        head = (own / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        loose = shared / name
        if loose.is_file():
            return loose.read_text(encoding="utf-8").strip()
        for line in (shared / "packed-refs").read_text(encoding="utf-8").splitlines():
            if line.endswith(f" {name}"):
                return line.split()[0]
    except OSError:
        return None
    return None


def _git_folders(place: Path) -> tuple[Path, Path]:
    """Where HEAD lies and where branches do: one folder, but for a worktree, whose ``.git`` is a file that names it."""
    if place.is_dir():
        return place, place
    own = place.parent / place.read_text(encoding="utf-8").strip().removeprefix("gitdir: ")
    common = own / "commondir"
    return own, own / common.read_text(encoding="utf-8").strip() if common.is_file() else own
