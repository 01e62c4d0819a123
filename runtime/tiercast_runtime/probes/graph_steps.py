"""Whole decoding steps as captured graphs, from scheduling to bookkeeping on the host's clock.

They run by the engine's own code; a whole less its parts is what a step takes beside them. A step with Engram layers
gets its rows from a path that gathers nothing: what a gather takes is priced by lookup curves.

``full``: in the whole are the hash, fork and join of the side stream, the events around each lookup and the reading of
them. Not in it is the gather. Path ``device`` gathers in front of its layer and forks nothing: of that too much is in.

``pieces``: lookups go through the worker thread of a prefetcher, as those do that the host drives. In the whole are
hash and hand-over, the launches of the further graphs and the copy of a layer's rows to where its graph has them; and
of a lookup's way without its gather (the worker wakes up, row ids come to the host, rows go to the device) what the
layers in front of it do not cover, which the device says (``stall_ns``) and the overhead of the table is without. The
way of a step's first lookup (``way_ns``) is a component of its own: with its gather it is how long such a lookup takes,
of which the simulator makes the wait.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tiercast_runtime.decode_graphs import DecodeGraphs
from tiercast_runtime.graph_backend import GraphBackend
from tiercast_runtime.marks import Mark
from tiercast_runtime.network import Network
from tiercast_runtime.paths.base import StagedRows
from tiercast_runtime.paths.staging import SLOTS_PER_LAYER, StagingRing
from tiercast_runtime.prefetch import Prefetcher
from tiercast_runtime.probes.step_bench import BenchStep, StepBench
from tiercast_runtime.probes.timing import Clock
from tiercast_runtime.recorder import Recorder, StepTimes


class _Ungathered:
    """What the paths of whole steps share: they have their rows, whatever is asked for."""

    name: str
    is_host_driven: bool

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def facts(self) -> Mapping[str, str | int | float | bool]:
        """Nothing to say."""
        return {}

    def clear_cache(self) -> None:
        """There is no cache."""

    def fill_cache(self, layer_index: int, row_ids: npt.NDArray[np.int64]) -> None:
        """There is no cache."""


class RowsOnDevice(_Ungathered):
    """Path ``uva`` without its gather: a fetch does nothing.

    ``rows``: ``[n, row_bytes] uint8`` of each layer on the device, in token order; a lookup gets the first of them.
    """

    name = "uva"
    is_host_driven = False

    def __init__(self, rows: list[torch.Tensor], device: torch.device) -> None:
        super().__init__(device)
        self._rows = rows
        self._complaints = torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")

    def fetch(self, layer_index: int, row_ids: torch.Tensor) -> StagedRows:
        """See ``LookupPath.fetch``."""
        count = row_ids.numel()
        return StagedRows(self._rows[layer_index][:count], None, num_rows=count, num_rows_read=count)

    def check(self) -> None:
        """Look, as path uva does."""
        assert not int(self._complaints[0]), "nothing is read that could be out of range"

    def close(self) -> None:
        """The rows are the caller's."""


class RowsOnHost(_Ungathered):
    """Path ``cpu_gather`` without its gather: ids to the host, and rows that lie in staging to the device.

    ``rows``: ``[n, row_bytes] uint8`` of each layer, in token order; a lookup gets the first of them.
    """

    name = "cpu_gather"
    is_host_driven = True

    def __init__(self, rows: list[torch.Tensor], device: torch.device) -> None:
        super().__init__(device)
        self._ring = StagingRing(len(rows), rows[0].shape[1], device)
        for layer_index, content in enumerate(rows):
            for _ in range(SLOTS_PER_LAYER):
                self._ring.next_slot(layer_index).rows(len(content)).copy_(content)

    def fetch(self, layer_index: int, row_ids: torch.Tensor) -> StagedRows:
        """See ``LookupPath.fetch``."""
        count = row_ids.to("cpu").contiguous().numel()
        slot = self._ring.next_slot(layer_index)
        return StagedRows(self._ring.to_device(slot, slot.rows(count)), None, num_rows=count, num_rows_read=count)

    def check(self) -> None:
        """The host's paths complain where they fetch."""

    def close(self) -> None:
        """Free staging."""
        self._ring.close()


@dataclass(frozen=True, slots=True)
class WholeTime:
    """One whole step in ns, and in it: how long it stood still for lookups, and the way of the first of them."""

    total_ns: float
    stall_ns: float
    way_ns: float


class WholeSteps:
    """Whole decoding steps of one kind.

    Without ``lookups`` they have no Engram layers. Those whose path is driven by the host run in pieces, others whole.
    """

    def __init__(
        self,
        bench: StepBench,
        counts: list[int],
        backend: GraphBackend,
        clock: Clock,
        lookups: tuple[RowsOnDevice | RowsOnHost, Prefetcher] | None = None,
    ) -> None:
        self._device, self._hasher, self._clock = bench.device, bench.hasher, clock
        path, prefetcher = (None, None) if lookups is None else lookups
        self._prefetcher: Prefetcher | None = prefetcher
        engram = bench.model.engram
        network = Network(
            backbone=bench.backbone,
            num_layers=bench.model.backbone.num_layers,
            rope_table=bench.builder.rope_table,
            engram_layers=() if path is None else tuple(bench.engram_layers),
            hasher=None if path is None else bench.hasher,
            path=path,
            prefetcher=prefetcher,
            max_order=engram.ngram_orders[-1],
            row_bytes=engram.row_bytes,
            rows_per_token=engram.num_rows_per_token,
            pad_slot=bench.geometry.num_slots - 1,  # no batch here is padded; captures alone write to it
        )
        is_full = path is None or not path.is_host_driven
        self._graphs = DecodeGraphs(
            network, backend, is_full=is_full, max_rows=counts[-1], device=bench.device, clock=clock
        )
        self._graphs.sizes = tuple(counts)
        self._graphs.capture()
        self._outputs: defaultdict[int, list[int]] = defaultdict(list)
        self._recorder = Recorder(clock(), () if path is None else engram.layer_ids, engram.num_rows_per_token)

    def time(self, step: BenchStep) -> WholeTime:
        """From scheduling to bookkeeping."""
        assert step.scheduler is not None, "a step that decodes has a scheduler"
        clock, graphs, count = self._clock, self._graphs, len(step.plan.decodes)
        start_ns = clock()
        planned = step.scheduler.plan()
        decodes = sorted(step.plan.decodes, key=lambda sequence: sequence.slot)
        graphs.load(count, decodes, step.tokens)
        built_ns = clock()
        sampled, windows_ns, issued_ns = graphs.run(count, count, self._start_lookups)
        computed_ns = clock()
        timings = graphs.take_timings(count, count)
        outcome = step.scheduler.complete(planned)
        for sequence, token_id in zip(decodes, sampled, strict=True):
            self._outputs[sequence.request.request_id].append(token_id)
        end_ns = clock()
        times = StepTimes(start_ns, built_ns, issued_ns, computed_ns, end_ns, windows_ns)
        self._recorder.step(planned, times, timings)
        self._recorder.outcome(outcome, end_ns)
        total_ns = clock() - start_ns
        ways_ns = [timing.ready_ns - timing.issued_ns for timing in timings[:1]]
        return WholeTime(float(total_ns), float(sum(timing.stall_ns for timing in timings)), float(sum(ways_ns)))

    def _start_lookups(self, windows: torch.Tensor) -> tuple[int, Mark]:
        """As the engine starts the lookups of a step in pieces."""
        assert self._prefetcher is not None, "a step without Engram layers looks nothing up"
        row_ids = self._hasher.row_ids(windows)
        issued_ns = self._clock()
        begin = Mark(self._device, issued_ns)
        self._prefetcher.begin_step(row_ids)
        return issued_ns, begin


@dataclass(frozen=True, slots=True)
class Wholes:
    """Steps of the backbone alone, and with Engram layers as one graph and as pieces."""

    plain: WholeSteps
    full: WholeSteps
    pieces: WholeSteps


@contextmanager
def whole_steps(
    bench: StepBench, counts: list[int], backend: GraphBackend, clock: Clock = time.perf_counter_ns
) -> Iterator[Wholes]:
    """Capture whole steps of ``counts`` sequences, ascending; the lookup worker ends with the context.

    Raises:
        TiercastError: the device refuses a capture.
    """
    largest = bench.batch(bench.step([2] * counts[-1], []))
    rows = [staged.rows.clone() for staged in bench.staged(largest)]
    with ExitStack() as held:

        def fed_by(path: RowsOnDevice | RowsOnHost) -> tuple[RowsOnDevice | RowsOnHost, Prefetcher]:
            held.callback(path.close)
            prefetcher = Prefetcher(path, "step_entry", clock)
            held.callback(prefetcher.close)  # its worker ends before the path does
            return path, prefetcher

        yield Wholes(
            WholeSteps(bench, counts, backend, clock),
            WholeSteps(bench, counts, backend, clock, fed_by(RowsOnDevice(rows, bench.device))),
            WholeSteps(bench, counts, backend, clock, fed_by(RowsOnHost(rows, bench.device))),
        )
