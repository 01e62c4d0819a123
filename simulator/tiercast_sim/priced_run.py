"""A priced run that keeps no steps: added up block by block as it goes, priced again where somebody looks at a step.

What grows with the run is the plan, eight numbers a request, and while it is added up three times a request and the
lengths of each step, one or one for each case, of which exact percentiles are taken; what is left then does not grow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import overload

import numpy as np
import numpy.typing as npt

from tiercast_profiles.columns import RequestColumns, SampleColumns, SampleTotals, StepTotals, joined
from tiercast_profiles.record import Samples
from tiercast_sim.breakdown import Ledger
from tiercast_sim.schedule_columns import Column, Schedule
from tiercast_sim.step import StepLog
from tiercast_sim.step_pricing import StepPricer
from tiercast_sim.step_table import StepTable

LARGEST_NS = 2**62


@dataclass(frozen=True)
class PricedRun(Sequence[StepLog]):
    """The steps of one replica, which read like a sequence of step logs; ``starts_ns`` has one entry per block."""

    schedule: Schedule
    pricer: StepPricer
    starts_ns: tuple[int, ...]

    def __len__(self) -> int:
        return self.schedule.num_steps

    def table(self, first: int, last: int) -> StepTable:
        """The steps first … last − 1, which lie in one block, priced anew."""
        block = first // self.schedule.block_steps
        begin = block * self.schedule.block_steps
        priced = self.pricer.steps(begin, last, self.starts_ns[block])
        assert priced is not None, "the run was priced before"
        return priced.table.since(first - begin)

    @overload
    def __getitem__(self, index: int) -> StepLog: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[StepLog, ...]: ...
    def __getitem__(self, index: int | slice) -> StepLog | tuple[StepLog, ...]:
        if isinstance(index, slice):
            wanted, size = range(*index.indices(len(self))), self.schedule.block_steps
            if wanted and wanted.step == 1 and wanted[0] // size == wanted[-1] // size:
                return tuple(self.table(wanted[0], wanted[-1] + 1))
            return tuple(self[i] for i in wanted)
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.step(index % len(self))

    def step(self, index: int) -> StepLog:
        """One step, priced anew."""
        return self.table(index, index + 1)[0]

    def step_from(self, index: int, start_ns: int) -> StepLog:
        """One step that begins at ``start_ns``, priced without the steps of its block before it."""
        idle_ns = int(self.schedule.idle_before(index, index + 1)[0])
        priced = self.pricer.steps(index, index + 1, start_ns - idle_ns)
        assert priced is not None, "the run was priced before"
        return priced.table[0]

    def __iter__(self) -> Iterator[StepLog]:
        return chain.from_iterable(self.tables())

    def tables(self) -> Iterator[StepTable]:
        """All steps, block by block."""
        for first, last in self.schedule.blocks():
            yield self.table(first, last)

    def requests(self) -> RequestColumns:
        """When each request came, had its first token and was done."""
        times = RequestTimes(self.schedule)
        for (first, _), table in zip(self.schedule.blocks(), self.tables(), strict=True):
            times.book(first, table)
        return times.columns()

    def to_samples(self) -> Samples:
        """The samples as a record keeps them."""
        times, columns = RequestTimes(self.schedule), []
        for (first, _), table in zip(self.schedule.blocks(), self.tables(), strict=True):
            times.book(first, table)
            columns.append(table.sample_columns())
        return SampleColumns(times.columns(), joined(columns)).to_samples()


class RequestTimes:
    """When each request arrived, had its first token and was done, filled in as the steps are priced."""

    def __init__(self, schedule: Schedule) -> None:
        count = len(schedule.prompt_tokens)
        self._schedule = schedule
        self._first_token_ns = np.empty(count, dtype=np.int64)
        self._finish_ns = np.empty(count, dtype=np.int64)
        self._arrival_ns = np.zeros(count, dtype=np.int64)
        if schedule.arrival_ns is not None:
            self._arrival_ns = schedule.arrival_ns

    def book(self, first: int, table: StepTable) -> None:
        """Take the ends of a whole block of steps, the first of which is ``first``."""
        schedule, last = self._schedule, first + len(table)
        end_ns = table.start_ns + table.duration_ns
        who, ending = schedule.requests_in(first, last)
        self._first_token_ns[ending] = end_ns[schedule.first_step[ending] - first]
        last_step = schedule.first_step[who] + schedule.output_tokens[who] - 1
        done = last_step < last
        self._finish_ns[who[done]] = end_ns[last_step[done] - first]
        if schedule.arrival_ns is None:
            arrived = slice(*np.searchsorted(schedule.arrival_step, (first, last)).tolist())
            self._arrival_ns[arrived] = end_ns[schedule.arrival_step[arrived] - first]

    def columns(self) -> RequestColumns:
        """All of them, once every step was booked."""
        schedule = self._schedule
        return RequestColumns(
            arrival_ns=self._arrival_ns,
            first_token_ns=self._first_token_ns,
            finish_ns=self._finish_ns,
            prompt_tokens=schedule.prompt_tokens,
            output_tokens=schedule.output_tokens,
        )


@dataclass(frozen=True, slots=True)
class AddedUp:
    """One replica's run and its sums.

    ``lengths_ns`` are those of its steps in every case, or None where steps never differ; ``is_decode``
    ``[num_steps] bool`` marks the steps that only decode.
    """

    run: PricedRun
    totals: SampleTotals
    lengths_ns: Column | None
    is_decode: npt.NDArray[np.bool_]
    stalls_ns: Column
    decoding_ns: int
    end_ns: int

    def starts_ns(self) -> Column:
        """When each step began."""
        durations = self.totals.steps.duration_ns
        ends: Column = np.cumsum(durations + self.run.schedule.idle_before(0, len(durations)))
        return ends - durations


def add_up(schedule: Schedule, pricer: StepPricer, ledger: Ledger) -> AddedUp | None:
    """Price every step once, in order; None where a number outgrows exact columns."""
    num_steps = schedule.num_steps
    times = RequestTimes(schedule)
    durations = np.empty(num_steps, dtype=np.int64)
    is_decode = np.empty(num_steps, dtype=np.bool_)
    starts_ns: list[int] = []
    lengths: list[Column] = []
    now_ns = lookup_ns = rows = rows_read = decoding_ns = 0
    stalls = np.zeros(pricer.num_layers, dtype=np.int64)
    for first, last in schedule.blocks():
        starts_ns.append(now_ns)
        priced = pricer.steps(first, last, now_ns)
        if priced is None or now_ns + float(priced.table.duration_ns.sum(dtype=np.float64)) > LARGEST_NS:
            return None
        table = priced.table
        ledger.book(priced.parts_ns)
        ledger.close(priced.priced_ns, priced.gather_ns)
        pricer.count(table)
        times.book(first, table)
        durations[first:last] = table.duration_ns
        if (lengths_ns := pricer.lengths_ns(table)) is not None:
            lengths.append(lengths_ns)
        is_decode[first:last] = table.prefill_tokens == 0
        stalls += table.layers.stall_ns.sum(axis=1)
        lookup_ns += int(table.layers.service_ns.sum())
        rows += int(table.rows.sum())
        rows_read += int(table.layers.rows_read.sum())
        decoding_ns += _dot(table.decode_sequences, table.duration_ns)
        now_ns = int(table.start_ns[-1] + table.duration_ns[-1])
    totals = StepTotals(durations, int(stalls.sum()), lookup_ns, rows, rows_read, None)
    return AddedUp(
        run=PricedRun(schedule, pricer, tuple(starts_ns)),
        totals=SampleTotals(times.columns(), totals),
        lengths_ns=np.concatenate(lengths) if lengths else None,
        is_decode=is_decode,
        stalls_ns=stalls,
        decoding_ns=decoding_ns,
        end_ns=now_ns,
    )


def _dot(counts: Column, durations: Column) -> int:
    """Exact sum of products."""
    if float(counts.max()) * float(durations.max()) * len(counts) < LARGEST_NS:
        return int(np.dot(counts, durations))
    return sum(count * ns for count, ns in zip(counts.tolist(), durations.tolist(), strict=True))
