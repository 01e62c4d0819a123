"""Gathers from host memory to host memory, timed at several moments of a survey.

What a lookup of few rows takes depends on what other users of the machine leave of its caches: in a virtual machine it
may take three times as long for some seconds. Rounds right behind each other meet one such time; a few here and there
meet many, as the lookups of a server do.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from tiercast_profiles.hardware import LookupPath
from tiercast_profiles.rng import stream
from tiercast_runtime.memory import require_bytes
from tiercast_runtime.paths.base import LookupPath as RuntimePath
from tiercast_runtime.paths.cpu_gather import CpuGatherPath
from tiercast_runtime.paths.device import DevicePath
from tiercast_runtime.probes.block_content import fill_random
from tiercast_runtime.probes.gather import BlockTable, GatherKey, GatherPlan, check_rows, random_ids
from tiercast_runtime.probes.kept_memory import KeptMemory
from tiercast_runtime.probes.lookup_timer import LookupTimer
from tiercast_runtime.probes.timing import Case, Clock, Effort, Spread, collect, to_us
from tiercast_runtime.table import MemoryTable

NUM_MOMENTS = 2  # that always are: behind the copies, and at the end
ONE_ROUND = Effort(0, num_warm_ups=0, min_rounds=1, max_rounds=1)


class HostGathers:
    """Lookups of ``device``, where the CPU is the device, and of ``cpu_gather``; all that was timed so far.

    Nothing is timed before it is :meth:`opened`.

    Args:
        plans: sizes to measure.
        paths: which paths.
        num_threads: gather threads of ``cpu_gather``.
        effort: for each footprint, over both moments.
        every_ns: between two rounds :meth:`amid` another probe.
        memory: lends the tables, which are the first bytes of one block; by default it is taken and given back.
        clock: ns.
    """

    def __init__(
        self,
        plans: Sequence[GatherPlan],
        paths: Sequence[LookupPath],
        num_threads: int,
        effort: Effort,
        *,
        every_ns: int = 0,
        memory: KeptMemory | None = None,
        clock: Clock = time.perf_counter_ns,
    ) -> None:
        self._plans, self._paths, self._num_threads = plans, paths, num_threads
        self._effort, self._every_ns, self._clock = effort, every_ns, clock
        self._memory = memory or KeptMemory()
        self._footprints = sorted({size for plan in plans for size in plan.footprints_bytes})
        self._samples: dict[GatherKey, tuple[float, ...]] = {}
        self._cases: list[Case[GatherKey]] = []
        self._num_opened = self._num_amid = self._last_ns = 0

    @property
    def spreads(self) -> list[Spread[GatherKey]]:
        """All samples in µs, by key."""
        return [Spread(key, samples) for key, samples in self._samples.items()]

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Inside, tables are in memory and can be timed. Rows are compared with the tables once.

        Raises:
            WrongRows: a path delivered wrong bytes.
            InfeasibleScenario: the largest table does not fit in memory.
        """
        size = self._footprints[-1]
        if not self._memory.holds(size):
            require_bytes(size, torch.device("cpu"), "the table of the gather probe")
        with self._memory.lent(size) as block, ExitStack() as stack:
            fill_random(block.array)
            self._cases = self._open(torch.from_numpy(block.array), stack)
            stack.callback(self._cases.clear)  # they hold what is lent
            self._num_opened += 1
            self._num_amid, self._last_ns = 0, self._clock()
            yield

    def time(self) -> None:
        """Time every gather now, for this moment's share of the effort."""
        effort = self._effort
        share = len(self._footprints) * effort.budget_ns // NUM_MOMENTS
        self._collect(replace(effort, budget_ns=share, min_rounds=-(-effort.min_rounds // NUM_MOMENTS)))

    @contextmanager
    def amid(self) -> Iterator[Callable[[], None] | None]:
        """Opened beside another probe, which calls what it is given; None where that would take new memory."""
        if not self._memory.holds(self._footprints[-1]):
            yield None
            return
        with self.opened():
            yield self._now_and_then

    def _now_and_then(self) -> None:
        """One round where the last one is long enough ago, and not more of them than a whole probe has at least."""
        if self._clock() - self._last_ns >= self._every_ns and self._num_amid < self._effort.min_rounds:
            self._collect(ONE_ROUND)
            self._num_amid, self._last_ns = self._num_amid + 1, self._clock()

    def _collect(self, effort: Effort) -> None:
        for spread in collect(self._cases, effort, self._clock):
            self._samples[spread.key] = self._samples.get(spread.key, ()) + to_us(spread).samples

    def _open(self, content: torch.Tensor, stack: ExitStack) -> list[Case[GatherKey]]:
        """Every case on one filled block ``[largest footprint] uint8``; ``stack`` closes what they use."""
        cpu = torch.device("cpu")
        cases = []
        for plan in self._plans:
            for size in plan.footprints_bytes:
                for row_bytes, counts in plan.sizes:
                    table = BlockTable(content[:size], row_bytes)
                    for name in self._paths:
                        path: RuntimePath = DevicePath([table], cpu)
                        if name == "cpu_gather":
                            path = CpuGatherPath([table], cpu, self._num_threads)
                        stack.callback(path.close)
                        # its worker ends before the path does
                        timer = stack.enter_context(LookupTimer(path, self._clock))
                        cases += [self._case((name, row_bytes, count, size), path, table, timer) for count in counts]
        return cases

    def _case(self, key: GatherKey, path: RuntimePath, table: MemoryTable, timer: LookupTimer) -> Case[GatherKey]:
        name, row_bytes, count, size = key
        generator = stream(0, f"gather/{name}/{row_bytes}/{count}/{size}/{self._num_opened}")
        ids = random_ids(generator, table.num_rows, count)
        check_rows(path.fetch(0, ids), torch.from_numpy(table.parts[0].numpy()[ids[0].numpy()]))

        def case() -> list[tuple[GatherKey, float]]:
            return [(key, timer.time_ns(random_ids(generator, table.num_rows, count)))]

        return case
