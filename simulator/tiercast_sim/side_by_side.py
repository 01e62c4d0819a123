"""Runs of replicas that leave each other alone, put together: one sequence of steps, one set of samples, one summary.

Request i belongs to replica i mod their number, as :class:`tiercast_sim.source.RequestSource` deals them.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import overload

import numpy as np

from tiercast_profiles.columns import RequestColumns, SampleColumns, SampleTotals, StepTotals, joined
from tiercast_profiles.record import Samples
from tiercast_profiles.stats import SampleStatistics
from tiercast_sim.priced_run import AddedUp, PricedRun
from tiercast_sim.run_summary import RunSummary
from tiercast_sim.schedule_columns import Column
from tiercast_sim.step import StepLog


@dataclass(frozen=True)
class SideBySide(Sequence[StepLog]):
    """The steps of all replicas in the order they began; of those at one instant, by replica."""

    runs: tuple[PricedRun, ...]

    def __len__(self) -> int:
        return sum(len(run) for run in self.runs)

    @cached_property
    def _order(self) -> tuple[Column, Column]:
        """Replica, and index in its own run, of each step."""
        starts = [np.concatenate([table.start_ns for table in run.tables()]) for run in self.runs]
        replicas = np.repeat(np.arange(len(starts)), [len(part) for part in starts])
        order = np.lexsort((replicas, np.concatenate(starts)))
        indices = np.concatenate([np.arange(len(part)) for part in starts])
        return replicas[order], indices[order]

    @overload
    def __getitem__(self, index: int) -> StepLog: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[StepLog, ...]: ...
    def __getitem__(self, index: int | slice) -> StepLog | tuple[StepLog, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        replicas, indices = self._order
        return self.runs[int(replicas[index])].step(int(indices[index]))

    def __iter__(self) -> Iterator[StepLog]:
        return heapq.merge(*self.runs, key=lambda step: (step.start_ns, step.replica))

    def requests(self) -> RequestColumns:
        """When each request came, had its first token and was done."""
        return dealt([run.requests() for run in self.runs])

    def to_samples(self) -> Samples:
        """The samples as a record keeps them."""
        steps = joined([table.sample_columns() for run in self.runs for table in run.tables()])
        replicas = np.repeat(np.arange(len(self.runs)), [len(run) for run in self.runs])
        order = np.lexsort((replicas, steps.start_ns))
        sorted_steps = {
            part.name: values[order] if len(values := getattr(steps, part.name)) else values for part in fields(steps)
        }
        return SampleColumns(self.requests(), type(steps)(**sorted_steps)).to_samples()


def dealt(parts: Sequence[RequestColumns]) -> RequestColumns:
    """Requests of all replicas in the order of their ids."""
    if len(parts) == 1:
        return parts[0]

    def column(name: str) -> Column:
        values = [getattr(part, name) for part in parts]
        found = np.empty(sum(map(len, values)), dtype=np.int64)
        for replica, own in enumerate(values):
            found[replica :: len(parts)] = own
        return found

    return RequestColumns(**{part.name: column(part.name) for part in fields(RequestColumns)})


def summary_of_replicas(parts: Sequence[AddedUp]) -> RunSummary:
    """The sums over all replicas."""
    requests = dealt([part.totals.requests for part in parts])
    each = [part.totals.steps for part in parts]
    totals = StepTotals(
        duration_ns=each[0].duration_ns if len(each) == 1 else np.concatenate([one.duration_ns for one in each]),
        stall_ns=sum(one.stall_ns for one in each),
        lookup_ns=sum(one.lookup_ns for one in each),
        rows=sum(one.rows for one in each),
        rows_read=sum(one.rows_read for one in each),
        rows_hit=None,
    )
    lengths = [part.lengths_ns for part in parts if part.lengths_ns is not None]
    busy = {replica: (int(one.duration_ns.sum()) - one.stall_ns, one.lookup_ns) for replica, one in enumerate(each)}
    return RunSummary(
        statistics=SampleStatistics(SampleTotals(requests, totals), np.concatenate(lengths) if lengths else None),
        num_requests=len(requests.finish_ns),
        prompt_tokens=int(requests.prompt_tokens.sum()),
        output_tokens=int(requests.output_tokens.sum()),
        elapsed_ns=max(part.end_ns for part in parts),
        step_ns=int(totals.duration_ns.sum()),
        rows_read=totals.rows_read,
        decoding_ns=sum(part.decoding_ns for part in parts),
        stall_ns_by_layer=tuple(sum(part.stalls_ns for part in parts[1:]) + parts[0].stalls_ns),
        busy_ns=busy,
        median_decode=median_decode(parts, totals.duration_ns),
    )


def median_decode(parts: Sequence[AddedUp], durations: Column) -> StepLog:
    """The step of median length among those that only decode, or among all; of equal ones as if sorted by start."""
    chosen = np.flatnonzero(np.concatenate([part.is_decode for part in parts]))
    if not len(chosen):
        chosen = np.arange(len(durations))
    among = durations[chosen]
    middle = (len(among) - 1) // 2
    length = np.partition(among, middle)[middle]
    equal = chosen[among == length]
    if len(parts) > 1:  # one replica's steps stand in the order of their starts
        starts = np.concatenate([part.starts_ns() for part in parts])
        equal = equal[np.lexsort((equal, starts[equal]))]
    place = int(equal[middle - int((among < length).sum())])
    for part in parts:
        if place < len(part.run):
            return part.run.step_from(place, int(part.starts_ns()[place]))
        place -= len(part.run)
    raise AssertionError("a place lies in one of the parts")
