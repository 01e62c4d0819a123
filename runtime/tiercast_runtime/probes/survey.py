"""All probes of one machine in order: what they found, and what could not be measured and why."""

import datetime
import gc
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch

from tiercast_profiles.errors import InfeasibleScenario, MissingCapability, TiercastError
from tiercast_profiles.gather import GatherSweep
from tiercast_profiles.hardware import (
    ComputeTable,
    HostCachePoint,
    Interference,
    InterferencePoint,
    LookupCurve,
    LookupPath,
    ProbeResult,
    Reading,
    Storage,
    Tier,
)
from tiercast_profiles.model import Backbone, ModelSpec
from tiercast_profiles.store import load_model
from tiercast_runtime.backbone import check_runnable
from tiercast_runtime.decode_attention import has_kernels
from tiercast_runtime.device import num_cores, set_compute_threads
from tiercast_runtime.graph_backend import CudaGraphs
from tiercast_runtime.memory import available_host_bytes
from tiercast_runtime.paths.base import LookupPath as RuntimePath
from tiercast_runtime.paths.cpu_gather import CpuGatherPath
from tiercast_runtime.paths.disk import DiskPath
from tiercast_runtime.paths.uva import UvaPath, require_uva
from tiercast_runtime.probes import copies, gather, link_copies, numa
from tiercast_runtime.probes.copies import CopyRates
from tiercast_runtime.probes.drive import Drive, open_drive
from tiercast_runtime.probes.envelope import watched
from tiercast_runtime.probes.graph_layers import GraphKey, graph_tables, measure_graphs
from tiercast_runtime.probes.host import HostFacts, read_host
from tiercast_runtime.probes.host_cache import measure_host_cache
from tiercast_runtime.probes.host_gathers import HostGathers
from tiercast_runtime.probes.interference import (
    GRID_RATIOS,
    MAX_LOOKUPS,
    Contender,
    measure_interference,
    measure_sizes,
)
from tiercast_runtime.probes.kept_memory import KeptMemory
from tiercast_runtime.probes.layers import LayerGrid, LayerTimes, grids_that_fit, joined, measure_layers
from tiercast_runtime.probes.lookup_overhead import measure_overhead
from tiercast_runtime.probes.memory_idle import IdleMemory
from tiercast_runtime.probes.partial import PartialSweeps
from tiercast_runtime.probes.pci import slot_node
from tiercast_runtime.probes.plan import ProbePlan
from tiercast_runtime.probes.rates import DeviceRates, measure_rates
from tiercast_runtime.probes.step_bench import StepBench
from tiercast_runtime.probes.sweep_drift import with_drift
from tiercast_runtime.probes.sweep_stage import split_swept, sweep_arms
from tiercast_runtime.probes.telemetry import Telemetry, telemetry_of
from tiercast_runtime.probes.timing import Spread, not_measured
from tiercast_runtime.table import HostTable, Table

Progress = Callable[[str, float], None]
ResultT = TypeVar("ResultT")

REFERENCE_MODEL = "tiny"  # whose layers are timed where none of the models asked for can run
NUM_DISK_READERS = 8
MAX_ATTEMPTS = 2  # to time what goes over a link: one replayed packet or one dip of a clock spoils a stage


@dataclass(slots=True)
class Findings:
    """What the probes found. Absent things have a probe in ``probes`` that says why."""

    date: datetime.date
    host: HostFacts
    device: torch.device
    num_threads: int
    host_copies: CopyRates
    rates: DeviceRates
    device_copies: CopyRates | None = None
    gpu: dict[str, Reading] = field(default_factory=dict)
    remote_reads: Spread[str] | None = None
    curves: list[LookupCurve] = field(default_factory=list)
    gather_sweeps: list[GatherSweep] = field(default_factory=list)
    host_cache: list[HostCachePoint] = field(default_factory=list)
    storage: Storage | None = None
    layer_times: list[LayerTimes] = field(default_factory=list)
    backbones: dict[str, Backbone] = field(default_factory=dict)  # by shape
    graph_tables: list[ComputeTable] = field(default_factory=list)
    empty_layer: LayerTimes | None = None
    interference: list[Interference] = field(default_factory=list)
    probes: list[ProbeResult] = field(default_factory=list)

    @property
    def tables(self) -> tuple[ComputeTable, ...]:
        """Component tables of the models with their Engram layers."""
        graphs = (table for table in self.graph_tables if table.engram_sha256 is not None)
        return (*(times.table for times in self.layer_times), *graphs)

    @property
    def plain_tables(self) -> tuple[ComputeTable, ...]:
        """Component tables of the models without them."""
        graphs = (table for table in self.graph_tables if table.engram_sha256 is None)
        return (*(times.plain for times in self.layer_times), *graphs)

    @property
    def memory_gb_per_s(self) -> float:
        """Traffic of the device's memory: a copy reads and writes every byte."""
        if self.device_copies is not None:
            return 2 * self.device_copies.rates["device"].value
        return 2 * self.host_copies.rates[f"threads_{self.num_threads}"].value


def survey(
    *,
    plan: ProbePlan,
    models: Sequence[ModelSpec],
    folder: Path,
    device: torch.device,
    date: datetime.date,
    progress: Progress,
    memory_bytes: int | None = None,
    partial: PartialSweeps | None = None,
) -> Findings:
    """Run every probe. Files, threads and pinned memory are given back whatever happens.

    ``memory_bytes`` is the most host memory that tables of the sweeps may take: half of what is free by default.
    ``partial`` takes each finished sweep and gives those of an interrupted run.

    Raises:
        CopyMismatch: memory delivers wrong bytes.
        WrongRows: a lookup path delivers wrong rows.
        FileProblem: ``folder`` cannot be written.
    """
    previous_threads = torch.get_num_threads()
    try:
        cap = available_host_bytes() // 2 if memory_bytes is None else min(memory_bytes, available_host_bytes())
        return _Survey(plan, models, folder, device, progress, memory_bytes=cap, partial=partial).run(date)
    finally:
        torch.set_num_threads(previous_threads)


def runnable(models: Sequence[ModelSpec]) -> tuple[list[ModelSpec], list[ProbeResult]]:
    """The models whose layers the runtime can compute, and for each other one the reason why not."""
    kept, refused = [], []
    for model in models:
        try:
            check_runnable(model)
            kept.append(model)
        except MissingCapability as error:
            refused.append(not_measured(f"layers.{model.name}", str(error)))
    return kept, refused


def empty_model(model: ModelSpec) -> ModelSpec:
    """The same layers with hardly any arithmetic in them: what their calls cost by themselves."""
    small = {
        "hidden_size": 32,
        "num_branches": 1,
        "vocab_size": 64,
        "num_attention_heads": 1,
        "num_kv_heads": 1,
        "head_dim": 32,
        "intermediate_size": 32,
    }
    return model.model_copy(update={"backbone": model.backbone.model_copy(update=small)})


class _Survey:
    """The stages; each adds to ``found``."""

    def __init__(
        self,
        plan: ProbePlan,
        models: Sequence[ModelSpec],
        folder: Path,
        device: torch.device,
        progress: Progress,
        *,
        memory_bytes: int,
        partial: PartialSweeps | None,
    ) -> None:
        self._memory_bytes, self._partial = memory_bytes, partial
        self._plan, self._folder, self._device, self._progress = plan, folder, device, progress
        self._models, self._refused = runnable(models)
        reference = [] if self._models else [load_model(REFERENCE_MODEL)]
        self._models += reference
        self._shapes = list(models) or reference
        self._telemetry = Telemetry()
        self._kept = ExitStack()
        self._memory = KeptMemory()
        self._files: Drive | None = None
        self._no_files: MissingCapability | None = None
        self._drive: Drive | None = None  # once it could be timed
        self._host_gathers: HostGathers | None = None

    def run(self, date: datetime.date) -> Findings:
        """Every stage in turn, in one telemetry session."""
        with telemetry_of(self._device) as self._telemetry, ExitStack() as self._kept:
            self._memory = self._kept.enter_context(KeptMemory.of_this_host())
            return self._stages(date)

    def _stages(self, date: datetime.date) -> Findings:
        is_gpu = self._device.type == "cuda"
        self._progress("table files", 0.0)
        self._make_files()
        self._progress("host", 0.01)
        idle = IdleMemory()
        host = read_host()
        threads = set_compute_threads()
        gather_threads = gather.default_threads(self._device)
        self._progress("copies", 0.02)
        counts = tuple(sorted({threads, gather_threads, num_cores()}))
        size = copies.copy_bytes(self._plan.copy_bytes, host.last_level_cache_bytes)
        self._memory.reserve(max(2 * size, self._gather_bytes(host)))
        early: list[ProbeResult] = []
        with watched(self._telemetry, "copy.host", early):
            host_copies = copies.measure_host_copies(size, counts, self._plan.copies, memory=self._memory)
            early += host_copies.probes
        torch.set_num_threads(threads)
        with watched(self._telemetry, "copy.device", early, is_link_loaded=is_gpu):
            device_copies, gpu = self._device_copies(size)
            early += link_copies.device_copies_missing() if device_copies is None else device_copies.probes
        memory = host_copies.rates[f"threads_{threads}"] if device_copies is None else device_copies.rates["device"]
        self._progress("matrix products", 0.1)
        with watched(self._telemetry, "rates", early, is_device_loaded=is_gpu):
            rates = measure_rates(self._device, 2 * memory.value, self._plan.rates)
            early += rates.probes
        found = Findings(date, host, self._device, threads, host_copies, rates, device_copies, gpu)
        found.probes += [host.probe_result(), *early, *self._refused]
        found.probes.append(_gpu_probe(gpu, self._device))
        self._remote_memory(found)
        self._progress("row gathers", 0.14)
        self._gathers(found, gather_threads)
        self._sweeps(found)
        self._progress("cache in host memory", 0.355)
        self._host_cache(found)
        self._progress("storage", 0.36)
        self._attempt(found, "lookup.nvme.disk", self._first_drive_times, "disk")
        self._layers(found)
        self._progress("what drifted", 0.97)
        self._gathers_at_last(found)
        found.gather_sweeps[:] = with_drift(found.gather_sweeps, self._shapes[0], self._plan.sweep.effort, self._memory)
        self._copies_again(found, size, counts)
        self._drive_at_last(found)
        found.probes += idle.look()
        for name, reason in (
            ("lookup.cxl", "no probe for CXL memory yet"),
            ("lookup.pool", "no probe for a remote pool yet"),
            ("collective", "no probe for traffic between devices yet"),
        ):
            found.probes.append(not_measured(name, reason))
        self._progress("", 1.0)
        return found

    def _attempt(self, found: Findings, name: str, stage: Callable[[], None], path: LookupPath | None = None) -> None:
        """Run a stage that this machine may not be able to; what it lacks becomes a probe with the reason.

        Telemetry is read around it. A stage whose link was slow or made errors is run once more; if it was again, its
        curve is not used and its probes stay, flagged.
        """
        is_gpu = self._device.type == "cuda"
        num_curves, num_pairs, num_probes = len(found.curves), len(found.interference), len(found.probes)
        is_link_loaded = is_gpu and path == "uva"
        is_device_loaded = is_gpu and path in ("uva", "device", None)
        try:
            for _ in range(MAX_ATTEMPTS if is_link_loaded else 1):
                del found.curves[num_curves:], found.interference[num_pairs:], found.probes[num_probes:]
                with watched(
                    self._telemetry,
                    name,
                    found.probes,
                    is_link_loaded=is_link_loaded,
                    is_device_loaded=is_device_loaded,
                ) as envelope:
                    stage()
                if envelope.judgement()[0] != "invalid":
                    break
            else:
                if is_link_loaded:
                    del found.curves[num_curves:]
        except (MissingCapability, InfeasibleScenario) as error:
            found.probes.append(not_measured(name, str(error)))
        except RuntimeError as error:
            # What was planned to fit did not, or a GPU's library refused a call: one stage less, and the rest goes on.
            if not is_gpu and not isinstance(error, torch.OutOfMemoryError):
                raise
            first = (str(error).splitlines() or [type(error).__name__])[0]
            found.probes.append(not_measured(name, first, is_failure=True))
            self._free()

    def _copies_again(self, found: Findings, size: int, counts: tuple[int, ...]) -> None:
        """Copy once more at the end: whatever drifted while everything else was timed is then no secret."""
        names = {probe.name for probe in found.host_copies.probes}
        at_first = tuple(probe for probe in found.probes if probe.name in names)
        kept = replace(found.host_copies, probes=at_first)
        again = copies.measure_host_copies(size, counts, self._plan.copies, memory=self._memory)
        found.host_copies = copies.pooled(kept, again)
        place = min(found.probes.index(probe) for probe in at_first)
        others = [probe for probe in found.probes if probe.name not in names]
        found.probes[:] = [*others[:place], *found.host_copies.probes, *others[place:]]
        torch.set_num_threads(found.num_threads)

    def _device_copies(self, size: int) -> tuple[CopyRates | None, dict[str, Reading]]:
        if self._device.type != "cuda":
            return None, self._telemetry.read()
        with numa.near_device(slot_node(self._telemetry.read())) as bound:
            measured = link_copies.measure_device_copies(self._device, size, self._plan.copies, self._telemetry)
        where: dict[str, str | int | float] = {"memory_node": bound}
        probes = tuple(each.model_copy(update={"parameters": {**each.parameters, **where}}) for each in measured.probes)
        return replace(measured, probes=probes), self._telemetry.read()

    def _remote_memory(self, found: Findings) -> None:
        nodes = numa.node_cores()
        if len(nodes) < 2:
            found.probes.append(not_measured("memory.remote_numa", "this host has one NUMA node, so nothing is remote"))
            return
        own, other = min(nodes), max(nodes)

        def stage() -> None:
            found.remote_reads = numa.measure_remote_reads(own, other, nodes[own], self._plan.numa)

        self._attempt(found, "memory.remote_numa", stage, "cpu_gather")

    def _gather_bytes(self, host: HostFacts) -> int:
        """The smallest table of the lookup curves, which copies and sweeps fit into on most hosts."""
        return gather.footprint_bytes(self._plan.footprint_bytes, host.last_level_cache_bytes, self._plan.num_caches)

    def _gathers(self, found: Findings, gather_threads: int) -> None:
        host = found.host
        engrams = [model.engram for model in self._shapes]
        base = self._gather_bytes(host)
        is_gpu = self._device.type == "cuda"
        sizes: tuple[int, ...] = tuple(base * 4**number for number in range(self._plan.num_footprints))
        sizes = tuple(size for size in sizes if size <= max(base, available_host_bytes() // 4))
        plans = gather.gather_plans(engrams, self._plan.row_bytes, self._plan.tokens, sizes)
        on_host: list[LookupPath] = ["cpu_gather"] if is_gpu else ["device", "cpu_gather"]
        self._host_gathers = HostGathers(
            plans,
            on_host,
            gather_threads,
            self._plan.gather,
            every_ns=self._plan.layers.budget_ns // self._plan.gather.min_rounds,
            memory=self._memory,
        )
        with watched(self._telemetry, "lookup.host", found.probes), self._host_gathers.opened():
            self._host_gathers.time()
        if not is_gpu:
            self._attempt(found, "lookup.dram.uva", lambda: require_uva(self._device))
            return
        link = found.device_copies.rates["host_to_device"].value if found.device_copies is not None else _memory(found)
        free = int(torch.cuda.mem_get_info(self._device)[0])
        on_device: tuple[tuple[LookupPath, Tier, float, int], ...] = (
            ("device", "hbm", found.memory_gb_per_s, free),
            ("uva", "dram", link, available_host_bytes()),
        )
        for path, tier, fastest, room in on_device:
            sizes = tuple(size for size in self._plan.gpu_footprints_bytes if size <= room // 4) or (base,)
            plans = gather.gather_plans(engrams, self._plan.row_bytes, self._plan.tokens, sizes)

            def stage(
                path: LookupPath = path,
                tier: Tier = tier,
                fastest: float = fastest,
                plans: Sequence[gather.GatherPlan] = plans,
            ) -> None:
                measured: list[Spread[gather.GatherKey]] = []
                for plan in plans:
                    measured += gather.measure_device_gather(plan, path, self._device, self._plan.gather)
                self._add_curve(found, measured, tier, gather.GPU_SECTOR_BYTES, fastest)

            self._attempt(found, f"lookup.{tier}.{path}", stage, path)

    def _gathers_at_last(self, found: Findings) -> None:
        """Time the host's gathers a last time, and say what all times together say."""
        gathers = self._host_gathers
        assert gathers is not None, "they come before"
        with watched(self._telemetry, "lookup.host.last", found.probes):
            with gathers.opened():
                gathers.time()
            tiers: dict[LookupPath, Tier] = {"device": "hbm", "cpu_gather": "dram"}
            for name, tier in tiers.items():
                mine = [spread for spread in gathers.spreads if spread.key[0] == name]
                if mine:
                    self._add_curve(found, mine, tier, gather.CPU_LINE_BYTES, _memory(found))

    def _sweeps(self, found: Findings) -> None:
        def progress(done_ratio: float) -> None:
            self._progress("gather sweep", 0.2 + 0.16 * done_ratio)

        stage, model = self._plan.sweep, self._shapes[0]
        swept = list(sweep_arms(stage, model, self._memory_bytes, progress, self._partial, memory=self._memory))
        sweeps, reasons = split_swept(swept)
        found.gather_sweeps += sweeps
        found.probes += reasons

    def _add_curve(
        self, found: Findings, spreads: Sequence[Spread[gather.GatherKey]], tier: Tier, granularity: int, fastest: float
    ) -> None:
        curve, probes = gather.curve_from(spreads, tier, granularity, fastest)
        found.curves.append(curve)
        found.probes += probes

    def _host_cache(self, found: Findings) -> None:
        """What a cache in front of a tier takes of lookups by the host, for the rows of every model."""

        def stage() -> None:
            sizes = [model.engram.row_bytes for model in (*self._models, *self._shapes)]
            most = max(model.engram.num_rows_per_token for model in self._shapes) * self._plan.tokens[-1]
            found.host_cache[:], probes = measure_host_cache(sizes, most, self._plan.host_cache)
            found.probes += probes

        self._attempt(found, "cache.host", stage, "cpu_gather")

    def _make_files(self) -> None:
        """Make table files on the drive, which stay until the survey ends.

        First of all: writing and reading them through would hold up whoever takes turns with the probes.
        """
        engrams = [model.engram for model in (*self._models, *self._shapes)]
        try:
            self._files = self._kept.enter_context(open_drive(self._folder, engrams, self._plan))
        except MissingCapability as error:
            self._no_files = error

    def _first_drive_times(self) -> None:
        if self._files is None:
            assert self._no_files is not None, "files come first"
            raise self._no_files
        self._files.time()
        self._drive = self._files

    def _drive_again(self, found: Findings) -> None:
        if self._drive is not None:
            self._attempt(found, "lookup.nvme.disk.again", self._drive.time, "disk")

    def _drive_at_last(self, found: Findings) -> None:
        """Time the drive a last time, and say what all times together say."""
        drive = self._drive
        if drive is None:
            return

        def stage() -> None:
            drive.time()
            facts = drive.facts
            found.storage = facts.storage
            found.probes += facts.probes
            fastest = facts.storage.read_bandwidth_gb_per_s.value
            curve, probes = gather.curve_from(drive.lookups, "nvme", drive.granularity_bytes, fastest, drive.means)
            found.curves.append(curve.model_copy(update={"spreads": drive.spreads}))
            found.probes += probes

        self._attempt(found, "lookup.nvme.disk.last", stage, "disk")

    def _layers(self, found: Findings) -> None:
        share = 0.58 / len(self._models)
        for number, model in enumerate(self._models):
            done = 0.42 + number * share

            def stage(model: ModelSpec = model, done: float = done, is_first: bool = number == 0) -> None:
                self._progress(f"layers of {model.name}", done)
                self._free()  # what earlier stages left with torch would count as taken
                parts = grids_that_fit(self._plan.grid, model, self._device)
                eager, graphs = [], []
                for place, part in enumerate(parts):
                    with StepBench(model, self._device, part.geometry) as bench:
                        effort = self._plan.layers.shared(len(parts))
                        gathers = None if self._device.type == "cuda" else self._host_gathers
                        with nullcontext() if gathers is None else gathers.amid() as between:
                            times = measure_layers(bench, part, found.num_threads, effort, between=between)
                        eager.append(times)
                        if part.sequences:
                            graphs += self._graphs(found, bench, part, len(parts))
                        if is_first and place == 0:
                            self._drive_again(found)
                            self._progress("interference", done + 0.8 * share)
                            self._interference(found, bench)
                    del bench  # its cache goes before the next part's comes
                    self._free()
                times = joined(eager)
                found.layer_times.append(times)
                found.backbones[model.backbone.shape_sha256] = model.backbone
                found.probes += times.probes
                found.probes.append(not_measured(f"layers.moe.{model.name}", "this backbone has no experts to time"))
                if graphs:
                    found.graph_tables += graph_tables(graphs, times.table, times.plain)

            self._attempt(found, f"layers.{model.name}", stage)
        single = LayerGrid((1,), (16,), (1,), (0,))
        with StepBench(empty_model(self._models[0]), self._device, single.geometry) as bench:
            found.empty_layer = measure_layers(bench, single, found.num_threads, self._plan.overhead)

    def _graphs(self, found: Findings, bench: StepBench, grid: LayerGrid, num_parts: int) -> list[Spread[GraphKey]]:
        """Times of the same batches as captured graphs, where the device captures; a refusal costs no other probe."""
        name = f"layers.graph.{bench.model.name}"
        if not has_kernels(self._device):
            found.probes.append(not_measured(name, "graphs need a CUDA device and triton"))
            return []
        try:
            backend = CudaGraphs(self._device, time.perf_counter_ns)
            graphs = measure_graphs(bench, grid, self._plan.layers.shared(num_parts), backend)
        except (RuntimeError, TiercastError) as error:  # what torch raises for a refused capture
            first = (str(error).splitlines() or [type(error).__name__])[0]
            found.probes.append(not_measured(name, first, is_failure=True))
            return []
        found.probes += graphs.probes
        return list(graphs.spreads)

    def _free(self) -> None:
        """Give device memory back before the next model takes its own."""
        if self._device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def _sizes(self, found: Findings, bench: StepBench, contender: Contender) -> list[InterferencePoint]:
        """Interference by size of step and lookup: of ``uva`` by its grid too, of ``cpu_gather`` as it is."""
        contenders = [contender]
        if contender.name == "disk":
            return []
        if isinstance(contender.path, UvaPath):
            units = torch.cuda.get_device_properties(self._device).multi_processor_count
            grids = [max(1, round(units * ratio)) for ratio in GRID_RATIOS]
            paths = [UvaPath(contender.path.tables, self._device, num_programs=grid) for grid in grids]
            contenders = [
                replace(contender, path=path, num_programs=grid) for path, grid in zip(paths, grids, strict=True)
            ]
        elif contender.name == "cpu_gather":
            contenders = [replace(contender, num_threads=gather.default_threads(self._device))]
        points: list[InterferencePoint] = []
        for one in contenders:
            measured, probes = measure_sizes(bench, one, self._plan.mixes, self._plan.interference)
            points += measured
            found.probes += probes
        return points

    def _was_measured(self, found: Findings, tier: Tier, path: LookupPath) -> bool:
        """Whether lookups of a path could be timed; curves of the host and of the drive come last of all."""
        if path == "disk":
            return self._drive is not None
        return path == "cpu_gather" or any((curve.tier, curve.path) == (tier, path) for curve in found.curves)

    def _interference(self, found: Findings, bench: StepBench) -> None:
        """Every path of this machine beside the first model's layers; path device is itself compute, beside nothing."""
        engram, device = bench.model.engram, self._device
        is_gpu = device.type == "cuda"
        pairs: list[tuple[Tier, LookupPath]] = [("dram", "cpu_gather"), ("nvme", "disk")]
        if is_gpu:
            pairs.insert(0, ("dram", "uva"))
        for tier, name in pairs:
            if not self._was_measured(found, tier, name):
                continue

            def stage(tier: Tier = tier, name: LookupPath = name) -> None:
                with ExitStack() as stack:
                    num_tables = NUM_DISK_READERS if name == "disk" else MAX_LOOKUPS
                    table: Table = bench.table
                    path: RuntimePath
                    if name == "disk":
                        assert self._drive is not None, "asked above"
                        file = self._drive.files[engram.row_bytes]
                        table, path = file, DiskPath([file] * num_tables, device, polls=not is_gpu)
                    elif name == "cpu_gather":
                        path = CpuGatherPath([bench.table] * num_tables, device)
                    else:
                        # larger than a server's last cache: from there rows would come as no large table's do
                        num_rows = self._plan.gpu_footprints_bytes[0] // engram.row_bytes
                        pinned = HostTable(engram, 0, "packed", is_pinned=True, num_rows=num_rows)
                        stack.callback(pinned.close)
                        table, path = pinned, UvaPath([pinned] * num_tables, device)
                    stack.callback(path.close)
                    contender = Contender(tier, name, path, num_tables, table.num_rows)
                    if not is_gpu:
                        overheads, probes = measure_overhead(bench, contender, self._plan.interference)
                        found.probes += probes
                        found.interference.append(overheads)
                        return
                    entry, probes = measure_interference(bench, contender, self._plan.interference)
                    found.probes += probes
                    if entry is None:
                        return
                    points = self._sizes(found, bench, contender) if self._plan.mixes else []
                    found.interference.append(entry.model_copy(update={"points": tuple(points)}))

            self._attempt(found, f"interference.{tier}.{name}", stage, "uva" if name == "uva" else None)


def _memory(found: Findings) -> float:
    """What all cores copy, GB/s."""
    return found.host_copies.rates[f"threads_{num_cores()}"].value


def _gpu_probe(readings: dict[str, Reading], device: torch.device) -> ProbeResult:
    if device.type == "cuda":
        return ProbeResult(name="gpu", unit="", status="ok", telemetry=readings)
    return ProbeResult(
        name="gpu", unit="", status="not_supported", reason="no GPU answers; the CPU is the device", telemetry=readings
    )
