"""A model's components, called one by one in the order of a step, with a lap after each.

The functions are those the engine calls. Interleaving them keeps caches as warm, or as cold, as a real step leaves
them: a layer timed in a loop by itself would find its weights where it left them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, Self

import torch

from tiercast_profiles.errors import MissingCapability
from tiercast_profiles.hardware import VERIFY_TOKENS, Component
from tiercast_profiles.head_sizes import table_rows
from tiercast_profiles.model import Engram, ModelSpec
from tiercast_profiles.quantiles import capped_mean
from tiercast_profiles.units import MIB
from tiercast_profiles.workload import Request
from tiercast_runtime.backbone import Backbone, compute_dtype
from tiercast_runtime.batch import CONTEXT_ALIGNMENT_TOKENS, BatchBuilder, BatchPlan, IndexedDecode
from tiercast_runtime.hashing import EngramHasher
from tiercast_runtime.layer import EngramLayer
from tiercast_runtime.marks import Mark
from tiercast_runtime.memory import require_bytes
from tiercast_runtime.paths.base import LookupPath, StagedRows
from tiercast_runtime.paths.cpu_gather import CpuGatherPath
from tiercast_runtime.paths.uva import UvaPath, require_uva
from tiercast_runtime.prefetch import LookupTiming, Prefetcher
from tiercast_runtime.probes.lanes import Holds, LaneWatch
from tiercast_runtime.probes.timing import Stopwatch
from tiercast_runtime.recorder import Recorder, StepTimes
from tiercast_runtime.scheduler import Limits, Scheduler, StepPlan
from tiercast_runtime.synthetic import synthetic_step
from tiercast_runtime.table import HostTable
from tiercast_runtime.tokens import TokenStore

STAGING_TABLE_BYTES = 64 * MIB  # rows are staged from a table this large: more than most caches, quick to fill
ENDLESS_TOKENS = 1 << 40

ComponentKey = tuple[Component, int, int]  # component, tokens or sequences, context
Part = Component | Literal["mlp"]  # the MLP is a part of ``linear``: whoever adds up a step counts it there
PartKey = tuple[Part, int, int]
HostKey = tuple[Literal["host"], Part, int, int]  # the host's time of a part that a GPU computes beside it


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sequences, tokens per sequence and tokens per step that a bench has room for."""

    num_slots: int
    max_context_tokens: int
    max_step_tokens: int


class StepBench:
    """Weights, cache and lookups of one model, and a walk through the components of a step.

    Args:
        model: must be runnable.
        device: where it computes.
        geometry: room for sequences and tokens.
        clock: ns.

    Raises:
        MissingCapability: the runtime cannot compute this model.
        InfeasibleScenario: weights, cache and rows do not fit in memory.
    """

    def __init__(
        self,
        model: ModelSpec,
        device: torch.device,
        geometry: Geometry,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.model, self.device, self.geometry = model, device, geometry
        self.clock = clock
        dtype = compute_dtype(device)
        spec = model.backbone
        kv_bytes = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * dtype.itemsize
        kv_bytes *= geometry.num_slots * geometry.max_context_tokens
        require_bytes(kv_bytes + spec.weight_bytes, device, f"the layer probe of {model.name!r}")
        self.backbone = Backbone(
            model,
            device,
            dtype,
            num_slots=geometry.num_slots,
            max_context_tokens=geometry.max_context_tokens,
            max_step_tokens=geometry.max_step_tokens,
        )
        self.builder = BatchBuilder(model, device, dtype, max_context_tokens=geometry.max_context_tokens)
        generator = torch.Generator(device=device).manual_seed(1)
        layers = range(len(model.engram.layer_ids))
        self.engram_layers = [
            EngramLayer(
                model,
                layer,
                device,
                dtype,
                generator,
                num_slots=geometry.num_slots,
                num_draft_tokens=VERIFY_TOKENS - 1,
            )
            for layer in layers
        ]
        self.hasher = EngramHasher(model.engram, device)
        self._engram_at = {layer.layer_id: index for index, layer in enumerate(self.engram_layers)}
        self._recorder = Recorder(clock(), model.engram.layer_ids, model.engram.num_rows_per_token)
        num_rows = min(*table_rows(model.engram), max(1, STAGING_TABLE_BYTES // model.engram.row_bytes))
        self._path: LookupPath
        self.table, self._path = _offloaded(model.engram, num_rows, len(layers), device)
        self._prefetcher = Prefetcher(self._path, "step_entry", clock)
        self._num_walks = 0
        self._holds = Holds()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the lookup worker and let go of the memory."""
        self._prefetcher.close()
        self._path.close()
        self.table.close()

    def step(self, decode_contexts: list[int], chunks: list[tuple[int, int]]) -> "BenchStep":
        """A step made up of these parts, and a scheduler that runs as many sequences."""
        plan, tokens = synthetic_step(self.model, decode_contexts, chunks)
        scheduler = _endless_scheduler(len(decode_contexts)) if decode_contexts else None
        return BenchStep(plan, tokens, scheduler)

    def verifying_step(self, num_sequences: int, context_tokens: int) -> "BenchStep":
        """A step in which sequences feed ``VERIFY_TOKENS`` tokens each, the last of which sees the context."""
        num_drafts = VERIFY_TOKENS - 1
        contexts = [max(2, context_tokens - num_drafts)] * num_sequences
        plan, tokens = synthetic_step(self.model, contexts, [], num_draft_tokens=num_drafts)
        return BenchStep(plan, tokens, None)

    def times_a_step(self, part: Part) -> int:
        """How often a step runs a component, or the MLP in one."""
        if part in ("linear", "mlp", "attention_decode", "attention_prefill", "attention_verify"):
            return self.model.backbone.num_layers
        return len(self.engram_layers) if part == "engram_module" else 1

    def batch(self, step: "BenchStep") -> BatchPlan:
        """The step's tensors."""
        return self.builder.build(step.plan, step.tokens)

    def row_ids(self, batch: BatchPlan) -> torch.Tensor:
        """Row ids of the step, folded onto the rows the staging table has."""
        return self.hasher.row_ids(batch.windows).remainder_(self.table.num_rows)

    def walk(self, step: "BenchStep", *, has_engram: bool = True) -> list[tuple[PartKey, float]]:
        """As :meth:`walk_lanes`, the device's times alone."""
        return self.walk_lanes(step, has_engram=has_engram)[0]

    def walk_lanes(
        self, step: "BenchStep", *, has_engram: bool = True
    ) -> tuple[list[tuple[PartKey, float]], list[tuple[HostKey, float]]]:
        """Run the step once and time each component, in ns; a layer's components are means over all layers.

        On a GPU what is behind the lookups runs in a stream that is held until the host has issued it, and the host's
        own time of each of these parts comes beside the device's; of what is in front the host's is all there is. Where
        more is issued than the driver takes ahead, the last calls wait for the device: no layer counts for more than
        three median ones.

        The key ``mlp`` has the MLP's share of ``linear``: a step is the sum of its components, without that.

        Without Engram (``has_engram`` false) nothing is looked up and its layers do not run.

        Assumption A39: the time of a decode batch moves with its longest context in steps of the alignment the
        runtime pads to. A point is placed in the middle of the contexts that one padded length serves. Where a kernel
        reads each sequence's own tokens nothing is padded, and the point lies at the context itself.
        """
        watch, device, clock = LaneWatch(self.device, self.clock), self.device, self.clock
        start_ns = clock()
        planned = step.scheduler.plan() if step.scheduler is not None else step.plan
        batch = self.batch(step)
        built_ns = clock()
        watch.lap()
        names: list[Part | None] = []
        staged: list[StagedRows] = []
        if has_engram:
            row_ids = self.hasher.row_ids(batch.windows)
            watch.lap()
            row_ids = row_ids.remainder_(self.table.num_rows)
            watch.lap()
            self._prefetcher.begin_step(row_ids)
            watch.lap()
            staged = self._staged()
            watch.lap()
            names += ("hash", None, "lookup_issue", None)
        num_before = len(names)
        kind = bool(step.plan.decodes), len(step.plan.chunks), step.plan.num_draft_tokens > 0, has_engram
        watch.shut(self._holds.of(kind))
        hidden = self.backbone.embed(batch)
        watch.lap()
        names.append("embed")
        names += self._walk_layers(hidden, batch, staged, _attention_of(planned), watch)
        choices = self.backbone.head(hidden, batch)
        watch.issued()
        self._holds.learn(kind, watch.since_shut_ns)
        sampled = choices.tolist()
        watch.lap()
        names.append("head")
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        computed_ns = clock()
        timings = self._take_timings()
        if step.scheduler is not None:
            step.scheduler.complete(planned)
        outputs = list(zip(batch.sampling, sampled, strict=True))
        end_ns = clock()
        windows = (0,) * len(self.engram_layers)
        self._recorder.step(planned, StepTimes(start_ns, built_ns, built_ns, computed_ns, end_ns, windows), timings)
        recorded_ns = clock()
        laps_ns, host_laps_ns = watch.laps_ns()
        means = _by_part(names, laps_ns, fmean)
        if step.scheduler is not None:
            means["step_overhead"] = float(built_ns - start_ns + recorded_ns - computed_ns)
        keys = {part: self._key(part, step, batch, len(outputs)) for part in means}
        hosts = {} if host_laps_ns is None else self._host_times(names, num_before, host_laps_ns)
        of_host: list[tuple[HostKey, float]] = [(("host", *keys[part]), value) for part, value in hosts.items()]
        return [(keys[part], value) for part, value in means.items()], of_host

    def _host_times(self, names: list[Part | None], first: int, laps_ns: list[float]) -> dict[Part, float]:
        """The host's time of each part from the ``first`` on, which comes behind the rows' being taken."""
        times = _by_part(names[first:], laps_ns[first:], capped_mean)
        if first and not self._path.is_host_driven:
            times["engram_module"] += laps_ns[first - 1] / len(self.engram_layers)
        return times

    def _walk_layers(
        self, hidden: torch.Tensor, batch: BatchPlan, staged: list[StagedRows], attention: Component, watch: LaneWatch
    ) -> list[Part]:
        """Run all layers, which update ``hidden`` in place, with a lap after each part; the parts in order.

        Engram layers run where their rows are ``staged``. The attention of a layer comes behind its MLP.
        """
        names: list[Part] = []
        for index in range(self.model.backbone.num_layers):
            engram_index = self._engram_at.get(index)
            if engram_index is not None and staged:
                hidden = self.engram_layers[engram_index].forward(hidden, staged[engram_index], batch)
                watch.lap()
                names.append("engram_module")
            self.backbone.projections_only(index, hidden, batch)
            watch.lap()
            hidden = self.backbone.mlp_only(index, hidden)
            watch.lap()
            self.backbone.attention_only(index, batch)
            watch.lap()
            names += ("linear", "mlp", attention)
        return names

    def whole(self, step: "BenchStep") -> float:
        """Time in ns of the same step without laps in between: what the sum of the parts should be."""
        watch = Stopwatch(self.device, self.clock)
        batch = self.batch(step)
        self._prefetcher.begin_step(self.row_ids(batch))
        staged = self._staged()
        watch.lap()
        hidden = self.backbone.embed(batch)
        for index in range(self.model.backbone.num_layers):
            engram_index = self._engram_at.get(index)
            if engram_index is not None:
                hidden = self.engram_layers[engram_index].forward(hidden, staged[engram_index], batch)
            hidden = self.backbone.layer(index, hidden, batch)
        self.backbone.head(hidden, batch).tolist()
        watch.lap()
        self._take_timings()
        return watch.laps_ns()[0]

    def staged(self, batch: BatchPlan) -> list[StagedRows]:
        """The rows of all layers of a step, looked up and left where they are: in token order, as a graph gets them."""
        self._prefetcher.begin_step(self.row_ids(batch))
        rows = [self._prefetcher.rows_for(index) for index in range(len(self.engram_layers))]
        self._take_timings()
        return rows

    def layers_pass(self, hidden: torch.Tensor, batch: BatchPlan) -> torch.Tensor:
        """All decoder layers once, without Engram: the compute that a lookup runs beside."""
        for index in range(self.model.backbone.num_layers):
            hidden = self.backbone.layer(index, hidden, batch)
        return hidden

    def _staged(self) -> list[StagedRows]:
        """The rows of all layers, waited for; on a CPU half of them as a path delivers them that removes duplicates.

        A GPU's ``uva`` removes none, and the engine marks there when the step's lookups begin and each layer's arrive.
        """
        layers = range(len(self.engram_layers))
        if self.device.type == "cuda":
            Mark(self.device, self.clock())
            return [self._marked_rows(index) for index in layers]
        staged = [self._prefetcher.rows_for(index) for index in layers]
        self._num_walks += 1
        first = self._num_walks % 2
        return [_with_inverse(rows) if (index + first) % 2 else rows for index, rows in enumerate(staged)]

    def _marked_rows(self, index: int) -> StagedRows:
        Mark(self.device, self.clock())
        return self._prefetcher.rows_for(index)

    def _take_timings(self) -> list[LookupTiming]:
        return self._prefetcher.take_timings()

    def _key(self, part: Part, step: "BenchStep", batch: BatchPlan, num_samples: int) -> PartKey:
        num_decodes = len(step.plan.decodes)
        if part in ("attention_decode", "attention_verify"):
            assert batch.decode is not None, "a decode step has decoding rows"
            if isinstance(batch.decode, IndexedDecode):
                return part, num_decodes, batch.decode.context
            return part, num_decodes, batch.decode.context - CONTEXT_ALIGNMENT_TOKENS // 2
        if part == "attention_prefill":
            return part, batch.chunks[0].count, batch.chunks[0].start
        if part == "head":
            return part, num_samples, 0
        if part == "step_overhead":
            return part, len(step.plan.decodes), 0
        return part, batch.num_tokens, 0


@dataclass(frozen=True, slots=True)
class BenchStep:
    """A made-up step. ``scheduler`` runs as many sequences as the step decodes; None for a chunk and for drafts."""

    plan: StepPlan
    tokens: TokenStore
    scheduler: Scheduler | None


def _offloaded(engram: Engram, num_rows: int, num_layers: int, device: torch.device) -> tuple[HostTable, LookupPath]:
    """A table in host memory and the path the runtime reads it by: ``uva`` where a GPU can, else ``cpu_gather``."""
    try:
        require_uva(device)
        return _by_gpu(engram, num_rows, num_layers, device)
    except (MissingCapability, RuntimeError):  # a GPU whose driver refuses the gather still has layers to time
        table = HostTable(engram, 0, "packed", num_rows=num_rows)
        return table, CpuGatherPath([table] * num_layers, device)


def _by_gpu(engram: Engram, num_rows: int, num_layers: int, device: torch.device) -> tuple[HostTable, LookupPath]:
    """A pinned table and its path ``uva``, once a row has been read through it."""
    table = HostTable(engram, 0, "packed", is_pinned=True, num_rows=num_rows)
    try:
        path = UvaPath([table] * num_layers, device)
        path.fetch(0, torch.zeros((1, 1), dtype=torch.int64))
        torch.cuda.synchronize(device)
        path.check()
    except BaseException:
        table.close()
        raise
    return table, path


def _endless_scheduler(num_sequences: int) -> Scheduler:
    """A scheduler whose sequences all decode and never finish."""
    limits = Limits(
        max_num_seqs=num_sequences,
        max_num_batched_tokens=2 * num_sequences,
        kv_block_tokens=16,
        kv_capacity_tokens=2 * num_sequences * ENDLESS_TOKENS,
        kv_bytes_per_token=1,
    )
    scheduler = Scheduler(limits)
    for index in range(num_sequences):
        scheduler.submit(Request(index, 0, 1, ENDLESS_TOKENS))
    scheduler.complete(scheduler.plan())
    return scheduler


def _attention_of(plan: StepPlan) -> Component:
    """The component that the attention of a made-up step is."""
    if plan.chunks:
        return "attention_prefill"
    return "attention_verify" if plan.num_draft_tokens else "attention_decode"


def _with_inverse(staged: StagedRows) -> StagedRows:
    """The same rows as if duplicates had been removed: made-up steps have none to remove."""
    places = torch.arange(staged.num_rows, device=staged.rows.device).view(1, -1)
    return StagedRows(staged.rows, places, staged.num_rows, staged.num_rows_read)


def _by_part(names: list[Part | None], laps_ns: list[float], mean: Callable[[list[float]], float]) -> dict[Part, float]:
    """The mean lap of each part; ``linear``, whose own laps end where those of the MLP begin, with the MLP."""
    grouped: dict[Part, list[float]] = {}
    for name, lap in zip(names, laps_ns, strict=True):
        if name is not None:
            grouped.setdefault(name, []).append(lap)
    means: dict[Part, float] = {name: mean(laps) for name, laps in grouped.items()}
    means["linear"] += means["mlp"]
    return means
