"""Runs a scenario on this machine and writes what was measured as a record.

Table files are kept under the cache folder and used again when their header matches: delete the folder to free the
disk. Nothing in a measured record is predicted, and nothing in it is corrected.
"""

import os
import platform
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from tiercast_profiles import __version__, stats
from tiercast_profiles.errors import BadInput, FileProblem, InfeasibleScenario, MissingCapability, TiercastError
from tiercast_profiles.hardware import Tier as MemoryTier
from tiercast_profiles.quantiles import is_unstable
from tiercast_profiles.record import LayerWindow, Metric, Metrics, Percentiles, Provenance, RunRecord
from tiercast_profiles.repeats import UNSTABLE_THROUGHPUT
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.stats import SampleStatistics
from tiercast_profiles.units import NS_PER_S, NS_PER_US, bytes_per_s_to_gb_per_s
from tiercast_profiles.workload import workload_sha256
from tiercast_runtime.checkpoint import Checkpoint
from tiercast_runtime.device import describe, num_cores, set_compute_threads
from tiercast_runtime.engine import Engine, EngineRun, serving
from tiercast_runtime.host_pages import MemoryRequest
from tiercast_runtime.memory import available_host_bytes
from tiercast_runtime.other_load import OtherLoad
from tiercast_runtime.recorder import LayerStep
from tiercast_runtime.support import check_supported, device_of
from tiercast_runtime.table import FileTable, MemoryTable, Table
from tiercast_runtime.turns import RunInTurns, turns

MAX_REPEATS = 1000
NO_TABLES = "placement.tier is none: there are no tables to fill; leave the checkpoint out"
OTHERS = "cores_used_by_others"
DRAFTS_ARE = "looked up and verified by the model; drafting takes no time, acceptance is drawn, not sampled"
FREE_DRAFTS = "speculative.draft_step_us is not stated: drafts take no time, throughput is an upper bound"
BUSY_CORES = 0.1  # a machine whose other processes use more than this was not quiet


def default_table_folder() -> Path:
    """Where table files are kept: ``$XDG_CACHE_HOME/tiercast/tables``, or ``~/.cache/tiercast/tables``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "tiercast" / "tables"


def bench(
    resolved: ResolvedScenario,
    *,
    repeats: int = 1,
    folder: Path | None = None,
    tables: Sequence[Table] | None = None,
    progress: Callable[[float], None] | None = None,
    checkpoint: Path | None = None,
    memory: MemoryRequest | None = None,
) -> RunRecord:
    """Serve the scenario's workload ``repeats`` times with the real runtime.

    Each metric is the median over the repeats, with quartiles as its interval where there are several. Samples and
    spans are those of the repeat with the median throughput.

    Args:
        resolved: what to run; its hardware profile must be of this kind of machine.
        repeats: timed runs, each after its own warm-up.
        folder: where table files are kept; by default :func:`default_table_folder`.
        tables: the scenario's tables, made before and kept by the caller; by default each run makes its own.
        progress: called with the share done, 0 … 1, at most ten times per repeat.
        checkpoint: safetensors with the Engram's rows and weights (:mod:`tiercast_runtime.checkpoint`); without one
            the rows are computed and the weights random.
        memory: pages and NUMA node of tables in host memory; the record says what was obtained.

    Raises:
        BadInput: ``repeats`` out of range, or a checkpoint for a scenario without tables.
        MissingCapability: this machine, or the runtime, lacks something the scenario asks for.
        InfeasibleScenario: it does not fit this machine's memory.
        FileProblem: the table folder cannot be written, or the checkpoint is not this model's.
    """
    if resolved.scenario.parallel.tensor > 1:
        check_repeats(repeats)
        check_supported(resolved, has_ranks=True)
        if tables is not None:
            raise BadInput("tables made before serve one process; leave them out, or set parallel.tensor to 1")
        if checkpoint is not None and resolved.placement.tier == "none":
            raise BadInput(NO_TABLES)
        device_of(resolved)
        from tiercast_runtime.ranks import bench_ranks

        place = _prepared(folder, resolved)
        return bench_ranks(
            resolved, repeats=repeats, folder=place, progress=progress, checkpoint=checkpoint, memory=memory
        )
    return bench_in_rounds(
        [resolved],
        repeats=repeats,
        folder=folder,
        tables=tables,
        progress=progress,
        checkpoint=checkpoint,
        memory=memory,
    )[0]


def check_repeats(repeats: int) -> None:
    """Refuse a number of repeats out of range.

    Raises:
        BadInput: saying what is allowed.
    """
    if not 1 <= repeats <= MAX_REPEATS:
        raise BadInput(f"repeats={repeats}; must be between 1 and {MAX_REPEATS}")


def bench_engine(
    engine: Engine, repeats: int, num_threads: int, progress: Callable[[float], None]
) -> tuple[RunRecord, list[EngineRun]]:
    """The record of an engine that runs ``repeats`` times, and the runs."""
    runs: list[EngineRun] = []
    for done in range(repeats):

        def report(share: float, done: int = done) -> None:
            progress((done + share) / repeats)

        runs.append(engine.run(report))
    return _record(engine.resolved, engine, runs, num_threads, {}), runs  # others: the other ranks would count


def bench_in_rounds(
    scenarios: Sequence[ResolvedScenario],
    *,
    repeats: int = 1,
    folder: Path | None = None,
    tables: Sequence[Table] | None = None,
    progress: Callable[[float], None] | None = None,
    checkpoint: Path | None = None,
    memory: MemoryRequest | None = None,
    between: Callable[[], Mapping[str, float]] | None = None,
) -> tuple[RunRecord, ...]:
    """Serve several scenarios, each once per round, in turns of a fraction of a second: all meet the same machine.

    What the others take is in no scenario's time (:mod:`tiercast_runtime.turns`). Every other round goes backwards. All
    of them are in memory at once. Arguments and errors are those of :func:`bench`, which alone runs several ranks;
    ``between`` is called before every round, between turns every two seconds, and at the end, and what it returned is
    averaged into the facts of all records.
    """
    check_repeats(repeats)
    with ExitStack() as stack:
        num_threads = stack.enter_context(_compute_threads())
        sources = Sources(folder=folder, tables=tables, checkpoint=checkpoint, memory=memory)
        together = stack.enter_context(_Together(scenarios, sources, between))

        def report(share: float) -> None:
            if progress is not None:
                progress((together.num_rounds + share) / repeats)

        with serving():
            for _ in range(repeats):
                for _ in together.round(report):
                    pass
        return together.records(num_threads)


def bench_groups(
    groups: Mapping[str, Sequence[ResolvedScenario]],
    *,
    folder: Path | None = None,
    progress: Callable[[float], None] | None = None,
    between: Callable[[], Mapping[str, float]] | None = None,
) -> dict[str, tuple[RunRecord, ...] | TiercastError]:
    """Serve several groups of scenarios once each, a few seconds of one group after those of another.

    Within a group scenarios are compared and take turns as in :func:`bench_in_rounds`. Groups differ in their work and
    are only to meet the same machine in the long run: one after the other, each would meet its own half minute. As many
    are in memory at once as leave half of it free; on a GPU, whose memory engines take whole, one.

    Returns:
        By group its records, or why it cannot be run.
    """
    found: dict[str, tuple[RunRecord, ...] | TiercastError] = {}
    shares = dict.fromkeys(groups, 0.0)
    left = deque(groups.items())
    spare_bytes = available_host_bytes() // 2

    def report_of(name: str) -> Callable[[float], None]:
        def report(share: float) -> None:
            shares[name] = share
            if progress is not None:
                progress(sum(shares.values()) / len(shares))

        return report

    with _compute_threads() as num_threads:
        while left:
            with ExitStack() as stack:
                opened: dict[str, _Together] = {}
                while left and (not opened or _has_room(opened, spare_bytes)):
                    name, scenarios = left.popleft()
                    try:
                        others = [engine for each in opened.values() for engine in each.engines]
                        together = _Together(scenarios, Sources(folder=folder), between, others)
                        opened[name] = stack.enter_context(together)
                    except (InfeasibleScenario, MissingCapability) as error:
                        found[name] = error
                going = {name: together.round(report_of(name)) for name, together in opened.items()}
                with serving():
                    while going:
                        for name in list(going):
                            try:
                                next(going[name])
                            except StopIteration:
                                del going[name]
                                found[name] = opened[name].records(num_threads)
                            except (InfeasibleScenario, MissingCapability) as error:
                                del going[name]
                                found[name] = error
    return found


def _has_room(opened: "Mapping[str, _Together]", spare_bytes: int) -> bool:
    """Whether another group may be in memory beside those that are."""
    is_on_gpu = any(engine.device.type == "cuda" for each in opened.values() for engine in each.engines)
    return not is_on_gpu and available_host_bytes() >= spare_bytes


@contextmanager
def _compute_threads() -> Iterator[int]:
    """Compute with the threads of this machine, and with those of before afterwards."""
    previous = torch.get_num_threads()
    try:
        yield set_compute_threads()
    finally:
        torch.set_num_threads(previous)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the tables of a bench come from: see :func:`bench`."""

    folder: Path | None = None
    tables: Sequence[Table] | None = None
    checkpoint: Path | None = None
    memory: MemoryRequest | None = None


class _Together:
    """Scenarios that are compared: their engines, all in memory, and what their rounds have given so far.

    ``others`` are open engines whose weights may be shared.

    Raises:
        As :func:`bench`.
    """

    def __init__(
        self,
        scenarios: Sequence[ResolvedScenario],
        sources: Sources,
        between: Callable[[], Mapping[str, float]] | None,
        others: Sequence[Engine] = (),
    ) -> None:
        for resolved in scenarios:
            check_supported(resolved)
            if sources.checkpoint is not None and resolved.placement.tier == "none":
                raise BadInput(NO_TABLES)
        opened = [None if sources.checkpoint is None else Checkpoint(sources.checkpoint, s.model) for s in scenarios]
        devices = [device_of(resolved) for resolved in scenarios]
        self.engines: list[Engine] = []
        self.num_rounds = 0
        self._scenarios, self._load, self._around = scenarios, OtherLoad(), _Around(between)
        self._runs: list[list[RunInTurns]] = [[] for _ in scenarios]
        with ExitStack() as stack:
            for resolved, device, rows in zip(scenarios, devices, opened, strict=True):
                place = _prepared(sources.folder, resolved)
                engine = Engine(
                    resolved,
                    device,
                    place,
                    tables=sources.tables,
                    checkpoint=rows,
                    memory=sources.memory,
                    others=[*others, *self.engines],
                )
                self.engines.append(stack.enter_context(engine))
            self._opened = stack.pop_all()  # from here on they are this object's to close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def round(self, report: Callable[[float], None]) -> Generator[None, None, None]:
        """Serve each once, in turns, every other round backwards; stops where ``between`` was called meanwhile."""
        order = list(range(len(self.engines)))[:: 1 if self.num_rounds % 2 == 0 else -1]
        going = turns([self.engines[place] for place in order], report)
        self._around.begin()
        try:
            while True:
                try:
                    with self._load:
                        next(going)
                except StopIteration as end:
                    found: list[RunInTurns] = end.value
                    break
                self._around.look()
                yield
        finally:
            going.close()
        self._around.look()
        for place, run in zip(order, found, strict=True):
            self._runs[place].append(run)
        self.num_rounds += 1

    def records(self, num_threads: int) -> tuple[RunRecord, ...]:
        """One record per scenario over all rounds."""
        facts = self._around.facts() | _others(self._load.num_cores)
        return tuple(
            _record(resolved, engine, [each.run for each in done], num_threads, facts | _turns(done, self.engines))
            for resolved, engine, done in zip(self._scenarios, self.engines, self._runs, strict=True)
        )


class _Around:
    """Figures taken around and amid rounds, averaged."""

    def __init__(self, take: Callable[[], Mapping[str, float]] | None) -> None:
        self._take = take
        self._found: list[Mapping[str, float]] = []

    def begin(self) -> None:
        """A round begins: the end of one is the begin of the next."""
        if not self._found:
            self.look()

    def look(self) -> None:
        """Take them now."""
        if self._take is not None:
            self._found.append(self._take())

    def facts(self) -> dict[str, float]:
        """The averages of those that were there every time."""
        found = self._found
        return {
            name: round(sum(each[name] for each in found) / len(found), 4)
            for name in (found[0] if found else ())
            if all(name in each for each in found)
        }


def table_folder(folder: Path | None) -> Path:
    """The folder for table files, the default one without a name, made where it is not there.

    Raises:
        FileProblem: it cannot be made.
    """
    chosen = default_table_folder() if folder is None else folder
    try:
        chosen.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileProblem(f"{chosen}: cannot be made ({error.strerror or error}); give another folder") from None
    return chosen


def _prepared(folder: Path | None, resolved: ResolvedScenario) -> Path:
    """The folder for table files, made if the tier needs it."""
    if resolved.placement.tier == "nvme":
        return table_folder(folder)
    return default_table_folder() if folder is None else folder


def _others(num_cores_used: float | None) -> dict[str, float]:
    """What other processes used of the machine, as a fact; none where the kernel does not say."""
    return {} if num_cores_used is None else {OTHERS: round(num_cores_used, 3)}


def _turns(runs: Sequence[RunInTurns], engines: Sequence[Engine]) -> dict[str, float]:
    """In how many turns with others a scenario was served, as a fact; none where it ran alone."""
    return {"turns": min(each.num_turns for each in runs)} if len(engines) > 1 else {}


def _record(
    resolved: ResolvedScenario,
    engine: Engine,
    runs: list[EngineRun],
    num_threads: int,
    circumstances: dict[str, float],
) -> RunRecord:
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
