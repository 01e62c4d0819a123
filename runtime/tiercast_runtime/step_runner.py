"""One step on the device: piece by piece, or as a captured graph where one fits."""

from collections.abc import Callable
from collections.abc import Sequence as Series
from dataclasses import dataclass

import torch

from tiercast_profiles.errors import TiercastError
from tiercast_profiles.scenario import GraphMode
from tiercast_runtime.batch import BatchBuilder, BatchPlan
from tiercast_runtime.decode_graphs import DecodeGraphs
from tiercast_runtime.early import StepSplit
from tiercast_runtime.graph_backend import GraphBackend
from tiercast_runtime.hashing import MAX_BUFFERED_TOKENS, EngramHasher, RowIdBuffer
from tiercast_runtime.marks import Mark
from tiercast_runtime.network import Network
from tiercast_runtime.prefetch import LookupTiming
from tiercast_runtime.scheduler import Sequence, SlotMove, StepPlan
from tiercast_runtime.tokens import TokenStore


@dataclass(frozen=True, slots=True)
class ComputedStep:
    """A step that has run: whose token is which (samples behind rejected drafts left out), its lookups, and when what.

    ``windows_ns``: per Engram layer, from the issue of the lookups to the need for the rows.
    """

    sampling: tuple[Sequence, ...]
    sampled: list[int]
    lookups: list[LookupTiming]
    built_ns: int
    issued_ns: int
    computed_ns: int
    windows_ns: tuple[int, ...]


class StepRunner:
    """Builds and computes the steps of one run.

    Args:
        network: weights and lookups.
        builder: makes the tensors of a step.
        device: where it computes.
        clock: ns.
    """

    def __init__(self, network: Network, builder: BatchBuilder, device: torch.device, clock: Callable[[], int]) -> None:
        self._net, self._builder, self._device, self._clock = network, builder, device, clock
        self._engram_at = {layer.layer_id: index for index, layer in enumerate(network.engram_layers)}
        self._graphs: DecodeGraphs | None = None
        self._row_id_buffer: RowIdBuffer | None = None
        self.graph_mode: GraphMode = "eager"
        self.graph_reason = ""

    def use_graphs(self, mode: GraphMode, reason: str, max_rows: int, backend: GraphBackend | None) -> None:
        """Run decoding steps as graphs from the next ``capture`` on; ``reason`` says why not in the mode asked for."""
        self.graph_mode, self.graph_reason = mode, reason
        if backend is not None and mode != "eager":
            self._graphs = DecodeGraphs(
                self._net,
                backend,
                is_full=mode == "full",
                max_rows=max_rows,
                device=self._device,
                clock=self._clock,
                history=self._builder.history,
            )

    def capture(self) -> None:
        """Capture what is not captured yet; where the device refuses, no step has a graph, and the facts say so."""
        if self._graphs is None:
            return
        try:
            self._graphs.capture()
        except TiercastError as error:
            self._graphs, self.graph_mode, self.graph_reason = None, "eager", str(error)

    def move(self, moves: Series[SlotMove]) -> None:
        """Move what sequences keep between steps from slot to slot, in the order given."""
        self._net.move(moves)
        for move in moves:
            self._builder.history.move(move.source, move.target)

    def release(self) -> None:
        """Let go of the graphs and of the memory they hold."""
        self._graphs = None

    @property
    def facts(self) -> dict[str, str | int | float | bool]:
        """The graph mode that really ran, why where it is not the one asked for, and how much of it there was."""
        facts: dict[str, str | int | float | bool] = {"graph_mode_run": self.graph_mode}
        if self.graph_reason:
            facts["graph_mode_reason"] = self.graph_reason
        if self._graphs is not None:
            facts["graph_batch_sizes"] = len(self._graphs.sizes)
            facts["graph_steps"] = self._graphs.num_steps
        return facts

    def run(
        self, plan: StepPlan, tokens: TokenStore, split: StepSplit | None, ahead: torch.Tensor | None
    ) -> ComputedStep:
        """Build and compute a step.

        Args:
            plan: what it serves.
            tokens: of all requests.
            split: which of its tokens were looked up a step ago (``prev_step``); None for none.
            ahead: windows of prompt tokens to look up behind the step's own, ``[num_tokens, max_order] int64``.
        """
        graphs = None if plan.chunks else self._graphs
        bucket = None if graphs is None else graphs.bucket_for(len(plan.decodes))
        prefetcher = self._net.prefetcher
        if graphs is None or bucket is None:
            batch = self._builder.build(plan, tokens)
            built_ns = self._clock()
            sampled, windows_ns, issued_ns = self._compute(batch, split, ahead)
            computed_ns = self._clock()
            lookups = prefetcher.take_timings() if prefetcher is not None else []
            return ComputedStep(batch.sampling, sampled, lookups, built_ns, issued_ns, computed_ns, windows_ns)
        decodes = sorted(plan.decodes, key=_slot)
        graphs.load(bucket, decodes, tokens)
        built_ns = self._clock()
        sampled, windows_ns, issued_ns = graphs.run(
            bucket, len(decodes), lambda windows: self._start_lookups(windows, split, ahead)
        )
        computed_ns = self._clock()
        lookups = graphs.take_timings(bucket, len(decodes))
        return ComputedStep(tuple(decodes), sampled, lookups, built_ns, issued_ns, computed_ns, windows_ns)

    def _compute(
        self, batch: BatchPlan, split: StepSplit | None, ahead: torch.Tensor | None
    ) -> tuple[list[int], tuple[int, ...], int]:
        """Sampled token ids, the window of each Engram layer in ns, and the time the lookups were issued."""
        net = self._net
        issued_ns, begin = self._start_lookups(batch.windows, split, ahead)
        marks: list[Mark] = []
        hidden = net.backbone.embed(batch)
        for index in range(net.num_layers):
            engram_index = self._engram_at.get(index)
            if engram_index is not None and net.prefetcher is not None:
                marks.append(Mark(self._device, self._clock()))
                staged = net.prefetcher.rows_for(engram_index)
                hidden = net.engram_layers[engram_index].forward(hidden, staged, batch)
            hidden = net.backbone.layer(index, hidden, batch)
        sampled: list[int] = []
        if batch.sampling:
            sampled = net.backbone.head(hidden, batch).tolist()  # on a GPU this waits for the step
            if batch.kept is not None:
                sampled = [sampled[place] for place in batch.kept]
        elif self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        is_waiting = net.prefetcher is not None and net.prefetcher.mode == "off"
        return sampled, tuple(0 if is_waiting else mark.since_ns(begin) for mark in marks), issued_ns

    def _start_lookups(
        self, windows: torch.Tensor, split: StepSplit | None, ahead: torch.Tensor | None
    ) -> tuple[int, Mark]:
        """Hash the windows of a step and hand its lookups over; says when, by the clock and in the stream."""
        hasher, prefetcher = self._net.hasher, self._net.prefetcher
        if split is not None and split.num_early:
            behind = split.first_early + split.num_early
            windows = torch.cat((windows[: split.first_early], windows[behind:]))
        row_ids = None if hasher is None else self._row_ids(hasher, windows)
        issued_ns = self._clock()
        begin = Mark(self._device, issued_ns)
        if row_ids is not None and prefetcher is not None:
            if split is None:
                prefetcher.begin_step(row_ids)
            else:
                prefetcher.begin_split_step(row_ids, split.first_early, split.num_early)
            if ahead is not None and hasher is not None:
                prefetcher.look_ahead(hasher.row_ids(ahead))
        return issued_ns, begin

    def _row_ids(self, hasher: EngramHasher, windows: torch.Tensor) -> torch.Tensor:
        """Row ids of a step's windows; on the CPU small steps of one size write them to the same place.

        The rows of a step have all been taken when the next one is hashed, which is when its row ids may go. What is
        looked up ahead is not hashed here: it is still read then.
        """
        num_tokens = windows.shape[0]
        if not windows.is_cpu or num_tokens > MAX_BUFFERED_TOKENS:
            return hasher.row_ids(windows)
        if self._row_id_buffer is None or self._row_id_buffer.num_tokens != num_tokens:
            self._row_id_buffer = hasher.buffer(num_tokens)
        return hasher.row_ids(windows, self._row_id_buffer)


def _slot(sequence: Sequence) -> int:
    return sequence.slot
