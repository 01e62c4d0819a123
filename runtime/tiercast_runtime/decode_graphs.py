"""Decoding steps as captured graphs: static buffers in, one replay, sampled tokens out.

A graph is captured per batch size bucket; a batch takes the smallest that holds it and pads it with a token in a slot
no sequence has. Only what is written into the static buffers before a replay decides what it computes. A ``full`` graph
holds the whole step, lookups included; ``piecewise`` ones end where an Engram layer needs rows, which are brought by
the prefetcher between two replays. Steps with prompt tokens run without a graph, as in other engines.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tiercast_profiles.errors import TiercastError
from tiercast_profiles.graph_buckets import bucket_for, bucket_sizes
from tiercast_runtime.batch import BatchPlan, IndexedDecode
from tiercast_runtime.graph_backend import Graph, GraphBackend
from tiercast_runtime.graph_lookups import CapturedLookups
from tiercast_runtime.graph_plan import pieces
from tiercast_runtime.hashing import DEAD
from tiercast_runtime.history import NgramHistory
from tiercast_runtime.marks import Mark
from tiercast_runtime.network import Network
from tiercast_runtime.paths.base import StagedRows
from tiercast_runtime.prefetch import LookupTiming
from tiercast_runtime.scheduler import Sequence
from tiercast_runtime.tokens import TokenStore

_COLUMNS = 3  # token id, position, slot; then the window


class StaticInputs:
    """Inputs of a decode step in memory that stays where it is: ``[bucket]`` ids, positions, slots, then the windows.

    All buckets share one buffer, which one copy fills.
    """

    def __init__(self, max_rows: int, history: NgramHistory, pad_slot: int, device: torch.device) -> None:
        self._history, self._max_order, self._pad_slot = history, history.max_order, pad_slot
        size = max_rows * (_COLUMNS + self._max_order)
        self._device_values = torch.zeros(size, dtype=torch.int64, device=device)
        self._host_values = torch.zeros(size, dtype=torch.int64, pin_memory=device.type == "cuda")

    def views(self, bucket: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids, positions, slots ``[bucket]`` and windows ``[bucket, max_order]`` on the device."""
        ids, positions, slots = (self._device_values[i * bucket : (i + 1) * bucket] for i in range(_COLUMNS))
        windows = self._device_values[_COLUMNS * bucket :][: bucket * self._max_order]
        return ids, positions, slots, windows.view(bucket, self._max_order)

    def load(self, bucket: int, decodes: list[Sequence], tokens: TokenStore) -> None:
        """Write a batch and its padding, and take it into the history; the step before must have ended."""
        count, size = len(decodes), bucket * (_COLUMNS + self._max_order)
        values: npt.NDArray[np.int64] = self._host_values.numpy()[:size]
        positions = np.array([sequence.decode_position for sequence in decodes], np.int64)
        index = positions + np.array([tokens.offsets[s.request.request_id] for s in decodes], np.int64)
        columns = values[: _COLUMNS * bucket].reshape(_COLUMNS, bucket)
        columns[0, :count], columns[0, count:] = tokens.token_ids[index], 0
        columns[1, :count], columns[1, count:] = positions, 0
        slots = np.array([sequence.slot for sequence in decodes], np.int64)
        columns[2, :count], columns[2, count:] = slots, self._pad_slot
        windows = values[_COLUMNS * bucket :].reshape(bucket, self._max_order)
        windows[:count] = self._history.append(slots, positions, tokens.folded_ids[index, None])[:, 0]
        windows[count:] = DEAD
        self._device_values[:size].copy_(self._host_values[:size], non_blocking=True)


@dataclass(frozen=True, slots=True)
class _Captured:
    """The graphs of one bucket, in order, and the lookups inside them where there are any."""

    graphs: tuple[Graph, ...]
    lookups: CapturedLookups | None


class DecodeGraphs:
    """Captures decode steps ahead of a run and replays them.

    Args:
        network: weights, caches and lookups.
        backend: how to capture.
        is_full: one graph per step, lookups included; else one per piece between Engram layers.
        max_rows: the largest decode batch to expect.
        device: where the static buffers live.
        clock: ns.
        history: of the sequences, shared with whoever builds the steps without a graph; by default one of its own.
    """

    def __init__(
        self,
        network: Network,
        backend: GraphBackend,
        *,
        is_full: bool,
        max_rows: int,
        device: torch.device,
        clock: Callable[[], int],
        history: NgramHistory | None = None,
    ) -> None:
        self._net, self._backend, self._is_full, self._device, self._clock = network, backend, is_full, device, clock
        self.sizes = bucket_sizes(max_rows)
        self.num_steps = 0
        largest = self.sizes[-1]
        history = NgramHistory(network.max_order) if history is None else history
        self._inputs = StaticInputs(largest, history, network.pad_slot, device)
        self._hidden = network.backbone.empty_hidden(largest)
        self._sampled = torch.zeros(largest, dtype=torch.int64, device=device)
        self._rows = [
            torch.zeros((largest * network.rows_per_token, network.row_bytes), dtype=torch.uint8, device=device)
            for _ in (network.engram_layers if not is_full else ())
        ]
        self._captured: dict[int, _Captured] = {}

    def capture(self) -> None:
        """Capture every bucket, largest first, so that the shared pool grows once.

        Raises:
            TiercastError: the device refuses a capture, with its reason; the step can still run without a graph.
        """
        nothing = TokenStore(np.empty(0, np.int64), np.empty(0, np.int64), {})
        for bucket in reversed(self.sizes):
            if bucket in self._captured:
                continue
            self._inputs.load(bucket, [], nothing)
            try:
                self._captured[bucket] = self._capture_whole(bucket) if self._is_full else self._capture_pieces(bucket)
            except RuntimeError as error:  # what torch raises for a refused capture and for memory that ran out
                self._captured.clear()
                raise TiercastError(f"no graph of {bucket} rows: {str(error).splitlines()[0]}") from error

    def bucket_for(self, num_rows: int) -> int | None:
        """The bucket a batch of decoding sequences runs in; None where it has to run without a graph."""
        return bucket_for(num_rows, self.sizes)

    def load(self, bucket: int, decodes: list[Sequence], tokens: TokenStore) -> None:
        """Bring a batch to the device."""
        self._inputs.load(bucket, decodes, tokens)

    def run(
        self, bucket: int, count: int, start_lookups: Callable[[torch.Tensor], tuple[int, Mark]]
    ) -> tuple[list[int], tuple[int, ...], int]:
        """Compute the batch that was loaded last.

        Args:
            bucket: its bucket.
            count: its sequences.
            start_lookups: hashes n-gram windows ``[count, max_order]``, hands the row ids to the prefetcher and says
                when, by clock and by mark; a full graph does it itself.

        Returns:
            Sampled token ids, the window of each Engram layer in ns, and the time the lookups were issued.
        """
        captured = self._captured[bucket]
        self.num_steps += 1
        if captured.lookups is not None or not self._net.engram_layers:
            issued_ns = self._clock()
            captured.graphs[0].replay()
            sampled: list[int] = self._sampled[:count].tolist()  # on a GPU this waits for the step
            lookups = captured.lookups
            if lookups is None:
                return sampled, (), issued_ns
            return sampled, lookups.windows_ns(), self._backend.host_ns(lookups.issued)
        prefetcher = self._net.prefetcher
        assert prefetcher is not None, "Engram layers have a prefetcher"
        windows = self._inputs.views(bucket)[3][:count]
        marks = []
        issued_ns, begin = start_lookups(windows)
        captured.graphs[0].replay()
        for index, graph in enumerate(captured.graphs[1:]):
            marks.append(Mark(self._device, self._clock()))
            self._place(index, prefetcher.rows_for(index))
            graph.replay()
        sampled = self._sampled[:count].tolist()
        is_waiting = prefetcher.mode == "off"
        return sampled, tuple(0 if is_waiting else mark.since_ns(begin) for mark in marks), issued_ns

    def take_timings(self, bucket: int, count: int) -> list[LookupTiming]:
        """Timings of the lookups of the step that ran last, in layer order.

        Raises:
            BadInput: the device found a row id outside its table.
        """
        lookups = self._captured[bucket].lookups
        timings = []
        if lookups is not None:
            timings = lookups.timings(count * self._net.rows_per_token)
            lookups.path.check()
        elif self._net.prefetcher is not None:
            timings = self._net.prefetcher.take_timings()
        self._backend.end_step()
        return timings

    def _place(self, index: int, staged: StagedRows) -> None:
        """Put a layer's rows, in token order, where its graph reads them."""
        width = self._net.row_bytes
        target = self._rows[index][: staged.num_rows]
        if staged.inverse is None:
            target.copy_(staged.rows[:, :width])
        else:
            target.copy_(staged.rows[:, :width].index_select(0, staged.inverse.reshape(-1)))

    def _plan(self, bucket: int) -> BatchPlan:
        """The step as tensors over the static buffers; the rope is gathered anew in every replay."""
        ids, positions, slots, windows = self._inputs.views(bucket)
        return BatchPlan(
            num_tokens=bucket,
            token_ids=ids,
            positions=positions,
            slots=slots,
            windows=windows,
            rope=self._net.rope_table.index_select(0, positions).unsqueeze(1),
            sample_rows=torch.arange(bucket, device=self._device),
            decode=IndexedDecode(bucket, slots, positions + 1, len(self._net.rope_table)),
            chunks=(),
            sampling=(),
        )

    def _capture_whole(self, bucket: int) -> _Captured:
        net = self._net
        lookups = None
        if net.path is not None and net.prefetcher is not None:
            is_ahead = net.prefetcher.mode != "off" and net.path.name != "device"
            lookups = CapturedLookups(self._backend, net.path, is_ahead)

        def work() -> None:
            plan = self._plan(bucket)
            if lookups is not None and net.hasher is not None:
                lookups.begin(net.hasher.row_ids(plan.windows))
            self._compute(plan, range(net.num_layers), None if lookups is None else lookups.rows_for)

        return _Captured((self._backend.capture(work),), lookups)

    def _capture_pieces(self, bucket: int) -> _Captured:
        net = self._net
        num_rows = bucket * net.rows_per_token

        def static_rows(index: int) -> StagedRows:
            return StagedRows(self._rows[index][:num_rows], None, num_rows, num_rows)

        parts = pieces(net.num_layers, [layer.layer_id for layer in net.engram_layers])

        def work(number: int) -> Callable[[], None]:
            # what one graph makes (a rope, lengths) is not there in the next: each piece makes its own plan
            is_last = number == len(parts) - 1
            return lambda: self._compute(
                self._plan(bucket), parts[number], static_rows, embeds=number == 0, samples=is_last
            )

        return _Captured(tuple(self._backend.capture(work(number)) for number in range(len(parts))), None)

    def _compute(
        self,
        plan: BatchPlan,
        layers: range,
        rows_for: Callable[[int], StagedRows] | None,
        *,
        embeds: bool = True,
        samples: bool = True,
    ) -> None:
        """Decoder layers of a step or of a piece of it, with the embedding before and the sampling behind."""
        net = self._net
        engram_at = {layer.layer_id: (place, layer) for place, layer in enumerate(net.engram_layers)}
        hidden = self._hidden[: plan.num_tokens]
        if embeds:
            hidden.copy_(net.backbone.embed(plan))
        for index in layers:
            if index in engram_at and rows_for is not None:
                place, layer = engram_at[index]
                layer.forward(hidden, rows_for(place), plan)
            net.backbone.layer(index, hidden, plan)
        if samples:
            self._sampled[: plan.num_tokens].copy_(net.backbone.head(hidden, plan))
