"""Whole decoding steps as captured graphs, from scheduling to bookkeeping on the host's clock.

They run by the engine's own code; a whole less its parts is what a step takes beside them. A step with Engram layers
gets its rows from a path that has them already: where they come from is priced by lookup curves.

``full``: in the whole are the hash, fork and join of the side stream, the events around each lookup and the reading of
them. Not in it is the gather. Path ``device`` gathers in front of its layer and forks nothing: of that too much is in.

``pieces``: lookups go through the worker thread of a prefetcher, as those do that the host drives. In the whole are
hash and hand-over, the launches of the further graphs, the copy of a layer's rows to where its graph has them, and of
the wait for the worker's answer what the layers in front of an Engram layer do not cover. Not in it are the copy of row
ids to the host, the host's gather and the copy of rows to the device: the price of a lookup has them (A38, and the hops
over the link). That price begins where the worker turns to a lookup, so no wait is in both. What the layers cover here
of the worker's waking up delays rows that come late, and is in neither: ``wake_up_ns`` says how much that is at most.
"""

import time
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
from tiercast_runtime.prefetch import LookupTiming, Prefetcher
from tiercast_runtime.probes.step_bench import BenchStep, StepBench
from tiercast_runtime.probes.timing import Clock
from tiercast_runtime.recorder import Recorder, StepTimes


class ReadyRows:
    """A path that has the rows of a batch on the device, whatever is asked for: a fetch does nothing.

    Args:
        rows: ``[n, row_bytes] uint8`` of each layer, in token order; a smaller lookup gets the first of them.
        device: where they are.
        is_host_driven: whether a prefetcher has its worker thread fetch them.
    """

    def __init__(self, rows: list[torch.Tensor], device: torch.device, *, is_host_driven: bool) -> None:
        self.name = "cpu_gather" if is_host_driven else "uva"
        self.device, self.is_host_driven = device, is_host_driven
        self._rows = rows
        # As path uva has them, which looks after each step; the host's paths complain where they fetch.
        self._complaints = torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")

    @property
    def facts(self) -> Mapping[str, str | int | float | bool]:
        """Nothing to say."""
        return {}

    def fetch(self, layer_index: int, row_ids: torch.Tensor) -> StagedRows:
        """See ``LookupPath.fetch``; the ids are not looked at."""
        count = row_ids.numel()
        return StagedRows(self._rows[layer_index][:count], None, num_rows=count, num_rows_read=count)

    def clear_cache(self) -> None:
        """This path has no cache."""

    def fill_cache(self, layer_index: int, row_ids: npt.NDArray[np.int64]) -> None:
        """This path has no cache."""

    def check(self) -> None:
        """Look, as path uva does."""
        assert self.is_host_driven or not int(self._complaints[0]), "nothing is read that could be out of range"

    def close(self) -> None:
        """The rows are the caller's."""


@dataclass(frozen=True, slots=True)
class WholeTime:
    """One whole step in ns, and how long its first lookup lay until the worker turned to it; 0 without a worker."""

    total_ns: float
    wake_up_ns: float


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
        lookups: tuple[ReadyRows, Prefetcher] | None = None,
    ) -> None:
        self._device, self._hasher, self._clock = bench.device, bench.hasher, clock
        path, prefetcher = (None, None) if lookups is None else lookups
        self._prefetcher: Prefetcher | None = prefetcher
        engram = bench.model.engram
        self._has_worker = path is not None and path.is_host_driven
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
        self._graphs = DecodeGraphs(
            network, backend, is_full=not self._has_worker, max_rows=counts[-1], device=bench.device, clock=clock
        )
        self._graphs.sizes = tuple(counts)
        self._graphs.capture()
        self._recorder = Recorder(clock(), () if path is None else engram.layer_ids, engram.num_rows_per_token)

    def time(self, step: BenchStep) -> WholeTime:
        """From scheduling to bookkeeping."""
        assert step.scheduler is not None, "a step that decodes has a scheduler"
        clock, graphs, count = self._clock, self._graphs, len(step.plan.decodes)
        start_ns = clock()
        planned = step.scheduler.plan()
        graphs.load(count, sorted(step.plan.decodes, key=lambda sequence: sequence.slot), step.tokens)
        built_ns = clock()
        _, windows_ns, issued_ns = graphs.run(count, count, self._start_lookups)
        computed_ns = clock()
        timings = graphs.take_timings(count, count)
        step.scheduler.complete(planned)
        end_ns = clock()
        times = StepTimes(start_ns, built_ns, issued_ns, computed_ns, end_ns, windows_ns)
        self._recorder.step(planned, times, timings)
        return WholeTime(float(clock() - start_ns), float(_wake_up_ns(timings)) if self._has_worker else 0.0)

    def _start_lookups(self, windows: torch.Tensor) -> tuple[int, Mark]:
        """As the engine starts the lookups of a step in pieces."""
        assert self._prefetcher is not None, "a step without Engram layers looks nothing up"
        row_ids = self._hasher.row_ids(windows)
        issued_ns = self._clock()
        begin = Mark(self._device, issued_ns)
        self._prefetcher.begin_step(row_ids)
        return issued_ns, begin


def _wake_up_ns(timings: list[LookupTiming]) -> int:
    return timings[0].started_ns - timings[0].issued_ns


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

        def lookups(*, is_host_driven: bool) -> tuple[ReadyRows, Prefetcher]:
            path = ReadyRows(rows, bench.device, is_host_driven=is_host_driven)
            prefetcher = Prefetcher(path, "step_entry", clock)
            held.callback(prefetcher.close)
            return path, prefetcher

        yield Wholes(
            WholeSteps(bench, counts, backend, clock),
            WholeSteps(bench, counts, backend, clock, lookups(is_host_driven=False)),
            WholeSteps(bench, counts, backend, clock, lookups(is_host_driven=True)),
        )
