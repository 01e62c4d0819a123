"""Serves a workload with the real runtime and keeps the time of everything.

A step: schedule and build the batch; hash the windows of all Engram layers; hand the lookups to the prefetcher; embed;
run the layers, each Engram layer waiting for its rows at its input; sample; account. Outputs are forced: what a
sequence is fed next is the text's own continuation, so that n-grams repeat as in real text. The greedy choice is
recorded beside it, which is how two runs are shown to compute the same.

With speculative decoding a sequence feeds its drafts too, and the step verifies them: see ``drafts`` for where they
come from. What a rejected draft left behind needs no undoing: its keys and values are masked until the next step, which
starts at its position or before it, writes over them, and the convolution state and the history of n-grams keep what
the next token looks at.
"""

import gc
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from collections.abc import Sequence as Series
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import torch

from tiercast_profiles.record import Samples, Span
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.text import load_text
from tiercast_profiles.units import ns_to_s
from tiercast_profiles.workload import Request, draw_requests
from tiercast_runtime.backbone import Backbone, check_runnable, compute_dtype
from tiercast_runtime.batch import BatchBuilder
from tiercast_runtime.cache_plan import plan_cache
from tiercast_runtime.capacity import KvPlan, plan_kv
from tiercast_runtime.checkpoint import Checkpoint
from tiercast_runtime.cores import on_cores
from tiercast_runtime.early import EarlyLedger
from tiercast_runtime.graph_backend import CudaGraphs, GraphBackend
from tiercast_runtime.graph_plan import graph_mode_here
from tiercast_runtime.hashing import EngramHasher
from tiercast_runtime.host_pages import MemoryRequest
from tiercast_runtime.hot_rows import hot_row_ids
from tiercast_runtime.interrupts import clear_cores
from tiercast_runtime.layer import EngramLayer
from tiercast_runtime.layer_weights import load_weights
from tiercast_runtime.network import Network
from tiercast_runtime.paths import open_path
from tiercast_runtime.paths.base import LookupPath
from tiercast_runtime.paths.disk import DiskPath
from tiercast_runtime.prefetch import Prefetcher
from tiercast_runtime.recorder import LayerStep, Recorder, StepTimes
from tiercast_runtime.scheduler import Scheduler, StepOutcome
from tiercast_runtime.step_runner import StepRunner
from tiercast_runtime.table import Table, build_tables
from tiercast_runtime.tokens import TokenStore, prepare_tokens

if TYPE_CHECKING:
    from tiercast_runtime.sharded_lookup import Team

WARM_UP_OUTPUT_TOKENS = 6
FIRST_WARM_UP_ID = 1 << 40  # ids no workload has: warm-up reads other places of the text, hence other rows
NUM_PROGRESS_CALLS = 10


@dataclass(frozen=True, slots=True)
class EngineRun:
    """What one run gives.

    ``token_ids``: greedy choices per request, in id order. ``layers``: per Engram layer, its lookups in steps that
    only decode. ``overhead_ns``: per step, host time of scheduling, batch build and bookkeeping. ``wasted_row_ratio``:
    share of the rows asked for that rejected drafts and drafts past a request's end took; 0 without drafts.
    """

    samples: Samples
    spans: tuple[Span, ...]
    token_ids: tuple[tuple[int, ...], ...]
    layers: tuple[tuple[LayerStep, ...], ...]
    overhead_ns: tuple[int, ...]
    num_warm_up_steps: int
    wasted_row_ratio: float = 0.0


class Engine:
    """The runtime of one resolved scenario: weights, tables, caches and the loop that serves requests.

    Args:
        resolved: the scenario; what the runtime does not have is refused by ``bench``, not here.
        device: where it computes.
        folder: where table files are kept (tier ``nvme``).
        tables: tables made before, which stay their owner's; by default the engine makes and closes its own.
        graphs: how to capture decoding steps; by default CUDA graphs where the placement asks for them.
        requests: what to serve; by default the scenario's own workload.
        clock: ns since anything.
        sleep: waits a number of seconds; only an idle engine waiting for an arrival calls it.
        checkpoint: where the rows and the Engram layers' weights come from; computed and random ones without.
        memory: what tables in host memory are made of.
        team: the ranks that share the lookups out, all of which serve these requests; one process alone without.
        others: open engines of the same checkpoint; weights that one of them has are used and not made again.

    Raises:
        MissingCapability: the model is not a dense runnable decoder, or this machine lacks the path.
        InfeasibleScenario: tables or the KV cache of the longest request do not fit.
    """

    backbone: Backbone

    def __init__(
        self,
        resolved: ResolvedScenario,
        device: torch.device,
        folder: Path,
        *,
        tables: Series[Table] | None = None,
        requests: tuple[Request, ...] | None = None,
        graphs: GraphBackend | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
        sleep: Callable[[float], None] = time.sleep,
        checkpoint: Checkpoint | None = None,
        memory: MemoryRequest | None = None,
        team: "Team | None" = None,
        others: Series["Engine"] = (),
    ) -> None:
        model, seed = resolved.model, resolved.scenario.seed
        check_runnable(model)
        self.resolved, self.device, self.checkpoint = resolved, device, checkpoint
        self.requests = draw_requests(resolved.scenario.workload, seed) if requests is None else requests
        self.dtype = compute_dtype(device)
        self._clock, self._sleep, self._team = clock, sleep, team
        self.text = load_text(resolved.scenario.workload.text, model)
        self._speculative = resolved.scenario.speculative
        self._tokens = prepare_tokens(self.requests, self.text, model, seed, self._speculative)
        with ExitStack() as held:  # where a later part fails, the parts that are open are closed
            has_tables = resolved.placement.tier != "none"
            layers = range(len(model.engram.layer_ids))
            sources = None if checkpoint is None else [checkpoint.rows(layer) for layer in layers]
            self.tables = build_tables(resolved, device, folder, sources, memory) if tables is None else list(tables)
            for table in self.tables if tables is None else ():
                held.callback(table.close)
            held.callback(_wait_for, device)
            self.table_bytes = sum(table.size_bytes for table in self.tables)
            self.cache = plan_cache(resolved)
            self._has_filled = False
            graph_mode, graph_reason = graph_mode_here(
                resolved.placement,
                device,
                has_backend=graphs is not None,
                has_ranks=team is not None,
                has_drafts=self._speculative.draft_tokens > 0,
            )
            num_pad_slots = 0 if graph_mode == "eager" else 1
            self.kv: KvPlan = plan_kv(
                resolved, self.requests, device, self.dtype, self.table_bytes, num_spare_slots=num_pad_slots
            )
            shape = {
                "num_slots": self.kv.num_slots + num_pad_slots,
                "max_context_tokens": self.kv.max_context_tokens,
                "max_step_tokens": self.kv.max_step_tokens,
            }
            alike = [other for other in others if other.has_weights_of(resolved, device)]
            twin = alike[0].backbone if alike else None
            self.backbone = Backbone(model, device, self.dtype, seed=seed, weights_of=twin, **shape)
            self.builder = BatchBuilder(
                model,
                device,
                self.dtype,
                max_context_tokens=self.kv.max_context_tokens,
                num_draft_tokens=self._speculative.draft_tokens,
            )
            self.engram_layers: list[EngramLayer] = []
            self.hasher: EngramHasher | None = None
            self.prefetcher: Prefetcher | None = None
            path: LookupPath | None = None
            self.path_facts: dict[str, str | int | float | bool] = {}
            if has_tables:
                generator = torch.Generator(device=device).manual_seed(seed + 1)
                donors = next((other.engram_layers for other in alike if other.engram_layers), None)
                self.engram_layers = [
                    EngramLayer(
                        model,
                        layer,
                        device,
                        self.dtype,
                        generator,
                        num_slots=shape["num_slots"],
                        num_draft_tokens=self._speculative.draft_tokens,
                        weights=None if checkpoint is None or donors else load_weights(checkpoint, layer),
                        weights_of=None if donors is None else donors[layer],
                    )
                    for layer in layers
                ]
                self.hasher = EngramHasher(model.engram, device)
                path = open_path(resolved, self.tables, device)
                held.callback(path.close)
                if team is not None:
                    path = team.share(path)
                self.path_facts = dict(path.facts)
                self.prefetcher = Prefetcher(path, resolved.placement.prefetch, clock, steals=True)
                held.callback(self.prefetcher.close)
            self.compute_cores = self._clear_cores(path)
            network = Network(
                backbone=self.backbone,
                num_layers=model.backbone.num_layers,
                rope_table=self.builder.rope_table,
                engram_layers=tuple(self.engram_layers),
                hasher=self.hasher,
                path=path,
                prefetcher=self.prefetcher,
                max_order=model.engram.ngram_orders[-1],
                row_bytes=model.engram.row_bytes,
                rows_per_token=model.engram.num_rows_per_token,
                pad_slot=self.kv.num_slots,
            )
            self._steps = StepRunner(network, self.builder, device, clock)
            backend = CudaGraphs(device, clock) if num_pad_slots and graphs is None else graphs
            # A step decodes no more sequences than it has tokens, and buffers have no more rows.
            self._steps.use_graphs(graph_mode, graph_reason, min(self.kv.num_slots, self.kv.max_step_tokens), backend)
            self._held = held.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the worker, the path and the tables; a second call does nothing."""
        self.prefetcher = None
        self._steps.release()
        self._held.close()

    def has_weights_of(self, resolved: ResolvedScenario, device: torch.device) -> bool:
        """Whether an engine of that scenario on that device computes with the same weights."""
        mine = self.resolved
        same_model = mine.model == resolved.model and mine.scenario.seed == resolved.scenario.seed
        return same_model and self.device == device

    @property
    def engram_weight_bytes(self) -> int:
        """Bytes of the Engram projections, gates and convolutions."""
        return sum(layer.weight_bytes for layer in self.engram_layers)

    @property
    def graph_facts(self) -> dict[str, str | int | float | bool]:
        """Which graph mode ran, and why where it is not the one asked for."""
        return self._steps.facts

    def run(self, progress: Callable[[float], None] | None = None, *, keeps_cache: bool = False) -> EngineRun:
        """Serve all requests once, after an unrecorded warm-up with shapes like theirs and other rows.

        A row cache starts the run empty, as the simulator's does, or with the hottest rows where its policy is
        ``static_hot``; with ``keeps_cache`` it starts with what it has.
        """
        with serving(), on_cores(self.compute_cores):
            run = self.steps(progress, keeps_cache=keeps_cache)
            while True:
                try:
                    next(run)
                except StopIteration as end:
                    return cast(EngineRun, end.value)

    def steps(
        self, progress: Callable[[float], None] | None = None, *, keeps_cache: bool = False
    ) -> Generator[None, None, EngineRun]:
        """As :meth:`run`, but stops behind every step until the next is asked for.

        To be driven inside ``serving`` and on the :attr:`compute_cores`.

        The time it stands still counts in nothing that is recorded: several engines can be stepped in turns and each
        measured as if it ran alone. With ``prev_step`` it does not stop, for the lookups in flight would go on.
        """
        self._steps.capture()
        self._fill_caches()
        num_warm_up_steps = self._warm_up()
        is_static = self.resolved.placement.cache_policy == "static_hot"
        if self.cache.size_bytes and not (keeps_cache or is_static) and self.prefetcher is not None:
            self.prefetcher.clear_cache()
        recorder = self._recorder()
        outputs = yield from self._serve(self.requests, self._tokens, recorder, progress)
        return EngineRun(
            samples=recorder.samples(self.requests),
            spans=recorder.spans(),
            token_ids=tuple(tuple(outputs[r.request_id]) for r in sorted(self.requests, key=_request_id)),
            layers=tuple(tuple(steps) for steps in recorder.layers),
            overhead_ns=tuple(recorder.overhead_ns),
            num_warm_up_steps=num_warm_up_steps,
            wasted_row_ratio=recorder.wasted_row_ratio,
        )

    def _clear_cores(self, path: LookupPath | None) -> frozenset[int] | None:
        """Where this thread is to compute while a drive is read beside it; None for anywhere.

        A thread that reads itself waits while the drive interrupts, and ranks share the cores out among themselves.
        """
        is_beside = self.resolved.placement.prefetch != "off" and self.device.type == "cpu" and self._team is None
        if not is_beside or not isinstance(path, DiskPath):
            return None
        return clear_cores(path.readers[0].path, torch.get_num_threads())

    def _recorder(self) -> Recorder:
        rows_per_token = self.resolved.model.engram.num_rows_per_token
        has_cache = self.cache.size_bytes > 0
        return Recorder(
            self._clock(), tuple(layer.layer_id for layer in self.engram_layers), rows_per_token, has_cache=has_cache
        )

    def _fill_caches(self) -> None:
        """Give caches that never change their rows, once."""
        resolved = self.resolved
        if self._has_filled or not self.cache.size_bytes or resolved.placement.cache_policy != "static_hot":
            return
        assert self.prefetcher is not None, "a cache stands in front of a tier"
        self._has_filled = True
        hottest = hot_row_ids(self.requests, self.text, resolved.model, resolved.scenario.seed)
        for layer_index, row_ids in enumerate(hottest):
            self.prefetcher.fill_cache(layer_index, row_ids)

    def _warm_up(self) -> int:
        """Run requests nobody counts; returns the number of steps they took."""
        longest_prompt = max(request.prompt_tokens for request in self.requests)
        budget = self.resolved.scenario.engine.max_num_batched_tokens
        prompt = max(1, min(longest_prompt, 2 * budget // self.kv.num_slots))
        # A slot may be longer than the blocks that the longest request takes, and than those there are.
        longest = min(self.kv.max_context_tokens - self._speculative.draft_tokens, self.kv.room_tokens)
        outputs = warm_up_outputs(self.kv.num_slots, longest - prompt)
        requests = tuple(Request(FIRST_WARM_UP_ID + i, 0, prompt, output) for i, output in enumerate(outputs))
        tokens = prepare_tokens(
            requests, self.text, self.resolved.model, self.resolved.scenario.seed, self._speculative
        )
        recorder = self._recorder()
        for _ in self._serve(requests, tokens, recorder, None):
            pass
        return len(recorder.overhead_ns)

    def _close_gaps(self, scheduler: Scheduler, outcome: StepOutcome) -> None:
        """Bring decoding sequences side by side where attention reads the cache in place and a step left a gap."""
        if self.builder.reads_slots_in_place and (outcome.finished or outcome.first_token):
            self._steps.move(scheduler.close_gaps())

    def _serve(
        self,
        requests: tuple[Request, ...],
        tokens: TokenStore,
        recorder: Recorder,
        progress: Callable[[float], None] | None,
    ) -> Generator[None, None, dict[int, list[int]]]:
        clock, origin = self._clock, recorder.origin_ns
        scheduler = Scheduler(self.kv.limits(self.resolved), tokens.accepted)
        looks_ahead = self.prefetcher is not None and self.prefetcher.looks_ahead
        ledger = EarlyLedger() if looks_ahead else None
        for request in requests:
            scheduler.check_fits(request)
        outputs: dict[int, list[int]] = {request.request_id: [] for request in requests}
        arrivals = deque(requests)
        concurrency = self.resolved.scenario.workload.concurrency
        for _ in range(min(concurrency or 0, len(arrivals))):
            _arrive(arrivals.popleft(), 0, scheduler, recorder)
        reported, now = 0, origin
        while recorder.num_finished < len(requests):
            if concurrency is None:
                passed_ns = now - origin if self._team is None else self._team.agree_ns(now - origin)
                while arrivals and arrivals[0].arrival_ns <= passed_ns:
                    _arrive(arrivals[0], arrivals[0].arrival_ns, scheduler, recorder)
                    arrivals.popleft()
                if scheduler.is_idle:
                    self._sleep(max(0.0, ns_to_s(arrivals[0].arrival_ns - passed_ns)))
                    now = clock()
                    continue
            start_ns = now
            plan = scheduler.plan()
            split = None if ledger is None else ledger.split(plan, scheduler.upcoming(plan))
            ahead = self.builder.windows(split.ahead, tokens) if split is not None and split.ahead else None
            ran = self._steps.run(plan, tokens, split, ahead)
            outcome = scheduler.complete(plan)
            self._close_gaps(scheduler, outcome)
            for sequence, token_id in zip(ran.sampling, ran.sampled, strict=True):
                outputs[sequence.request.request_id].append(token_id)
            now = clock()
            times = StepTimes(start_ns, ran.built_ns, ran.issued_ns, ran.computed_ns, now, ran.windows_ns)
            recorder.step(plan, times, ran.lookups)
            recorder.outcome(outcome, now - origin)
            for _ in range(min(len(outcome.finished), len(arrivals)) if concurrency is not None else 0):
                _arrive(arrivals.popleft(), now - origin, scheduler, recorder)
            if progress is not None and outcome.finished:
                done = recorder.num_finished * NUM_PROGRESS_CALLS // len(requests)
                if done > reported:
                    reported = done
                    progress(done / NUM_PROGRESS_CALLS)
            if ledger is None:
                yield
                resumed = clock()
                origin += resumed - now
                recorder.origin_ns, now = origin, resumed
        return outputs


def warm_up_outputs(num_sequences: int, most: int) -> tuple[int, ...]:
    """Output tokens of the requests of a warm-up, at most ``most`` each.

    Half of those that still decode end at a time, so that batches of all orders of size are run: kernels are compiled
    for some of them apart.
    """
    return tuple(
        min(most, WARM_UP_OUTPUT_TOKENS + (num_sequences // (index + 1)).bit_length() - 1)
        for index in range(num_sequences)
    )


def _wait_for(device: torch.device) -> None:
    """Until a GPU is idle: after an error or an interrupt it may still be reading rows that are about to go."""
    if device.type == "cuda":
        with suppress(RuntimeError):  # a lost context reads nothing more
            torch.cuda.synchronize(device)


def _request_id(request: Request) -> int:
    return request.request_id


def _arrive(request: Request, at_ns: int, scheduler: Scheduler, recorder: Recorder) -> None:
    scheduler.submit(request)
    recorder.arrived(request, at_ns)


@contextmanager
def serving() -> Iterator[None]:
    """What engines run in: no gradients, and no cyclic garbage collection.

    A full pass of the collector takes milliseconds and would land in some step.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        with torch.inference_mode():
            yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
