"""What depends on a count alone is asked for once a count: prices by tokens, sequences and samples of a step."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tiercast_profiles.hardware import Component
from tiercast_sim.compute import ComputeModel
from tiercast_sim.lanes import Lane, Lanes
from tiercast_sim.schedule_columns import Column

Times = npt.NDArray[np.float64]
MARKS_PER_COUNT = 4  # a table this much longer than the column is still faster than a sort
MOST_KEPT = 2**20  # counts beyond are priced each time


def distinct_of(counts: Column) -> tuple[Column, npt.NDArray[np.intp]]:
    """Distinct values of non-negative ``counts``, ascending, and where among them each count is.

    As ``np.unique`` with its inverse, without the sort where the counts are dense enough to be marked in a table.
    """
    size = int(counts.max(initial=0)) + 1
    if size > MARKS_PER_COUNT * len(counts) + 1024:
        distinct, where = np.unique(counts, return_inverse=True)
        return distinct, where
    is_there = np.zeros(size, dtype=np.bool_)
    is_there[counts] = True
    place = np.cumsum(is_there, dtype=np.intp) - 1
    return np.flatnonzero(is_there).astype(np.int64), place[counts]


class CountPrices:
    """Prices that depend on a count alone: each count is priced once a run."""

    def __init__(self, price: Callable[[int], float]) -> None:
        self._price = price
        self._known = np.full(0, np.nan)

    def of(self, distinct: Column) -> Times:
        """Prices of ascending counts."""
        size = int(distinct[-1]) + 1
        if size > MOST_KEPT:
            return np.array([self._price(count) for count in distinct.tolist()], dtype=np.float64)
        if size > len(self._known):
            more = np.full(max(size, 2 * len(self._known)) - len(self._known), np.nan)
            self._known = np.concatenate((self._known, more))
        unknown = distinct[np.isnan(self._known[distinct])]
        if len(unknown):
            self._known[unknown] = [self._price(count) for count in unknown.tolist()]
        return self._known[distinct]


class Counts:
    """A column of counts, as its distinct values, where each stands, and how often it comes."""

    def __init__(self, counts: Column) -> None:
        self.distinct, self.where = distinct_of(counts)
        self._how_often = np.bincount(self.where)

    def total(self, prices: Times) -> float:
        """The sum over all counts of what each distinct one is priced at."""
        return float((prices * self._how_often).sum())


class LanePrices:
    """What a lane of the steps of one kind has that depends on a count alone."""

    def __init__(self, compute: ComputeModel, lanes: Lanes, lane: Lane) -> None:
        def tokenwise(component: Component) -> CountPrices:
            return CountPrices(lambda count: lane.tokenwise_ns(component, lanes.num_rows(count)))

        def linear(*, is_late: bool) -> CountPrices:
            return CountPrices(lambda count: lane.linear_ns(lanes.num_rows(count), is_late=is_late))

        self.lane = lane
        self.linear, self.late_linear = linear(is_late=False), linear(is_late=True)
        self.embed, self.head, self.module = tokenwise("embed"), tokenwise("head"), tokenwise("engram_module")
        self.hash, self.issue = tokenwise("hash"), CountPrices(lambda count: compute.issue_ns(lane, count))
        self.overhead = CountPrices(lambda count: lane.tokenwise_ns("step_overhead", count))
        self.more_chunks = CountPrices(lane.more_chunks_ns)


class KindPrices:
    """Both lanes of the steps of one kind, and what is no component."""

    def __init__(self, compute: ComputeModel, lanes: Lanes) -> None:
        self.lanes = lanes
        self.device = LanePrices(compute, lanes, lanes.device)
        self.host = None if lanes.host is None else LanePrices(compute, lanes, lanes.host)
        self.over_ranks = CountPrices(compute.over_ranks_ns)
        self.reduce = CountPrices(lambda count: compute.reduce_ns(lanes, count, 0))
        self.late_reduce = CountPrices(lambda count: compute.reduce_ns(lanes, 0, count))


class ComputePrices:
    """What the compute of a step has that depends on a count alone."""

    def __init__(self, compute: ComputeModel) -> None:
        self.compute = compute
        self.single = KindPrices(compute, compute.single)
        self.captured = None if compute.captured is None else KindPrices(compute, compute.captured)
