"""A sweep of scattered row reads, and the small physical model fitted to it.

The model is what a row costs where it lies: instructions, requests, and the address translation of its pages, each
growing with the footprint of the table in its own way. It is fitted to four fifths of the points and scored on the
rest (:class:`GatherScore`); both are kept with every sample.
"""

import math
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from tiercast_profiles.document import Grown, Strict
from tiercast_profiles.quantiles import PROBE_UNSTABLE_RATIO, is_unstable, median, quantile

PageKind = Literal["4k", "thp", "1g", "device"]
RowOrder = Literal["random", "sorted", "text"]
MemoryPlace = Literal["local", "remote"]
FloatArray = npt.NDArray[np.float64]

LINE_BYTES = 64  # rows that start elsewhere than on a line are copied piecemeal
SMALL_PAGE_BYTES = 4096
# These three were chosen with the form of the model, on 32 sweeps of two cores; they are no machine's parameters.
FILL_ROWS = 32  # by as many rows half of what a call waits for at its start has come; a loop asks 16 rows ahead
WINDOW_BYTES = 1024  # rows as long fill what a core executes ahead of time: the next one's read starts only then
SPILL_POWER = 4.0  # how suddenly a cache is full


class GatherPoint(Strict):
    """Times of one gather: ``num_rows`` rows, each in the separate reads ``piece_bytes`` (values and scales apart).

    ``num_workers`` gather at the same time: threads of a host, or rows that the programs of a GPU kernel hold in
    flight. ``unique_row_ratio`` is the share of different rows among those of one gather. ``residual_ratio`` is
    (fitted − measured) ÷ measured.
    """

    piece_bytes: tuple[int, ...] = Field(min_length=1)
    footprint_bytes: int = Field(gt=0)
    num_rows: int = Field(gt=0)
    num_workers: int = Field(gt=0)
    unique_row_ratio: float = Field(default=1.0, gt=0, le=1)
    samples_us: tuple[float, ...] = Field(min_length=1)
    is_held_out: bool = False
    residual_ratio: float | None = None

    @property
    def time_us(self) -> float:
        """Median."""
        return median(self.samples_us)

    @property
    def low_us(self) -> float:
        """Lower quartile."""
        return quantile(self.samples_us, 0.25)

    @property
    def high_us(self) -> float:
        """Upper quartile."""
        return quantile(self.samples_us, 0.75)

    @property
    def is_unstable(self) -> bool:
        """True when the quartiles lie further apart than 5 % of the median."""
        return is_unstable(self.samples_us, PROBE_UNSTABLE_RATIO)


class GatherModel(Grown):
    """Time of a gather: ``call_us + num_rows × row_ns(…) ÷ speedup(num_workers)``.

    Moving: a row of ``b`` bytes touches ``q`` requests of ``request_bytes``. They cost ``request_ns`` each (a round
    trip over the requests outstanding) up to about ``num_run_requests``; by then the machine fetches ahead, and what is
    left is ``byte_ns`` for every byte carried. With the footprint F both grow by ``1 + memory_ratio × F ÷ (F +
    cache_reach_bytes)``. Finding: ``row_ns`` of instructions whatever the size, and for every page touched ``walk_ns ×
    F ÷ (F + translation_reach_bytes)``. Rows overlap, so the finding of one hides behind the moving of another:
    together they take ``(finding^overlap_power + moving^overlap_power)^(1 ÷ overlap_power)``, their sum where the power
    is 1 and nearly the longer of the two where it is large.

    Nothing hides the first reads of a call of a host, which no loop has asked for ahead: for each piece
    ``num_first_walks`` walks more, ``1 + size ÷ WINDOW_BYTES`` times as many, for long rows overlap less; a call of
    ``n`` rows is over when ``n ÷ (n + FILL_ROWS)`` of that has been waited for. Nothing hides the last reads of a call
    of a GPU: ``last_read_ns × F ÷ (F + cache_reach_bytes)``.

    A core writes as much as it reads. Where what a worker writes outgrows ``write_reach_bytes`` it no longer stays in
    the core's own cache, and each row waits ``spilled_row_ns`` for its place: by the share ``T^SPILL_POWER ÷
    (T^SPILL_POWER + write_reach_bytes^SPILL_POWER)`` of ``T`` bytes written.

    ``unaligned_row_ns`` is what a row costs not to start on a line. The pieces of a row lie in tables of their own,
    each with its share of F: the few bytes of scales are near long after the values are not. A row in ``n`` pieces pays
    ``piece_row_ns`` and ``piece_call_us`` n − 1 times. ``num_workers_max`` bounds how many workers help another.
    ``num_distinct_rows``, where the rows asked for are few (those of a text), bounds F by the bytes they lie in.

    Assumption A96: F ÷ (F + reach) is the share of accesses that miss: exact for a reach that is drawn from at random,
    and without the kink that a cache of fixed size would have. The run of requests ends as a hyperbolic tangent does.
    """

    added_fields = frozenset({"num_first_walks", "spilled_row_ns", "write_reach_bytes"})

    call_us: float = Field(ge=0)
    row_ns: float = Field(ge=0)
    request_bytes: int = Field(gt=0)
    request_ns: float = Field(ge=0)
    byte_ns: float = Field(ge=0)
    num_run_requests: float = Field(gt=0)
    memory_ratio: float = Field(ge=0)
    cache_reach_bytes: float = Field(gt=0)
    walk_ns: float = Field(ge=0)
    translation_reach_bytes: float = Field(gt=0)
    overlap_power: float = Field(default=1.0, ge=1)
    last_read_ns: float = Field(default=0.0, ge=0)
    num_first_walks: float = Field(default=0.0, ge=0)
    spilled_row_ns: float = Field(default=0.0, ge=0)
    write_reach_bytes: float | None = Field(default=None, gt=0)
    unaligned_row_ns: float = Field(default=0.0, ge=0)
    piece_row_ns: float = Field(default=0.0, ge=0)
    piece_call_us: float = Field(default=0.0, ge=0)
    num_workers_max: float | None = Field(default=None, gt=0)
    num_distinct_rows: int | None = Field(default=None, gt=0)

    def time_us(
        self,
        piece_bytes: tuple[int, ...],
        footprint_bytes: float,
        num_rows: float,
        num_workers: int,
        unique_row_ratio: float = 1.0,
    ) -> float:
        """Time of one gather."""
        far_ns, near_ns = self.per_row_ns(piece_bytes, footprint_bytes), self.per_row_ns(piece_bytes, 0)
        per_row_ns = unique_row_ratio * far_ns + (1 - unique_row_ratio) * near_ns
        if self.write_reach_bytes is not None:
            written_bytes = num_rows * sum(piece_bytes) / num_workers
            per_row_ns += self.spilled_row_ns * spilled(written_bytes, self.write_reach_bytes)
        waiting_ns = self.last_read_ns * self._far_ratio(piece_bytes[0], _share(piece_bytes, 0, footprint_bytes))
        waiting_ns += self._first_ns(piece_bytes, footprint_bytes) * num_rows / (num_rows + FILL_ROWS)
        call_us = self.call_us + (len(piece_bytes) - 1) * self.piece_call_us
        return call_us + (waiting_ns + num_rows * per_row_ns / self.speedup(num_workers)) / 1e3

    def per_row_ns(self, piece_bytes: tuple[int, ...], footprint_bytes: float) -> float:
        """Time of a row in a long gather by one worker."""
        total_ns = (len(piece_bytes) - 1) * self.piece_row_ns
        for number, size in enumerate(piece_bytes):
            pages, own_bytes = pages_of(size), _share(piece_bytes, number, footprint_bytes)
            finding_ns = self.row_ns + self.walk_ns * pages * missing(own_bytes, self.translation_reach_bytes)
            run = self.num_run_requests * math.tanh(requests_of(size, self.request_bytes) / self.num_run_requests)
            moving_ns = run * self.request_ns + size * self.byte_ns
            moving_ns *= 1 + self.memory_ratio * self._far_ratio(size, own_bytes)
            total_ns += overlapped(finding_ns, moving_ns, self.overlap_power)
            total_ns += self.unaligned_row_ns if is_unaligned(size) else 0.0
        return total_ns

    def _first_ns(self, piece_bytes: tuple[int, ...], footprint_bytes: float) -> float:
        """What a long call waits for at its start, all pieces together."""
        walks = sum(
            (1 + size / WINDOW_BYTES)
            * missing(_share(piece_bytes, number, footprint_bytes), self.translation_reach_bytes)
            for number, size in enumerate(piece_bytes)
        )
        return self.num_first_walks * self.walk_ns * walks

    def _far_ratio(self, piece_bytes: int, footprint_bytes: float) -> float:
        """Share of requests that come from memory and not from a cache."""
        touched = footprint_bytes
        if self.num_distinct_rows is not None:
            span = requests_of(piece_bytes, self.request_bytes) * self.request_bytes
            touched = min(touched, self.num_distinct_rows * span)
        return missing(touched, self.cache_reach_bytes)

    def speedup(self, num_workers: int) -> float:
        """How much faster this many workers are than one: all of them, up to ``num_workers_max``, without a kink."""
        if self.num_workers_max is None:
            return 1.0
        return 1 / math.hypot(1 / num_workers, 1 / self.num_workers_max)


class GatherScore(Strict):
    """How well the model predicts points it was not fitted to: quantiles of |predicted − measured| ÷ measured.

    The model is fitted to every point that is not held out, since an unstable one still says more than none; errors
    are those of stable points. ``num_unused`` points are unstable and held out: kept, flagged, and in no number here;
    ``is_unstable`` says that most points were unstable, so that errors are those of all.
    """

    num_fitted: int = Field(ge=0)
    num_held_out: int = Field(ge=0)
    num_unused: int = Field(ge=0)
    fitted_median_ratio: float = Field(ge=0)
    fitted_p90_ratio: float = Field(ge=0)
    held_out_median_ratio: float | None = None
    held_out_p90_ratio: float | None = None
    is_unstable: bool = False


class GatherSweep(Strict):
    """All points of one way to gather, its fitted model and its score.

    ``round_trip_ns`` is the time of one dependent read at the largest footprint, measured by itself; with it
    ``num_requests_outstanding`` says how many reads overlap: round trip over the time each request takes in a gather.
    ``drift_ratio`` is the median of (again − first) ÷ first over a few points timed once more when the profile ends.
    """

    path: Literal["device", "uva", "cpu_gather"]
    pages: PageKind
    order: RowOrder
    place: MemoryPlace
    num_threads: int | None = Field(default=None, gt=0)
    huge_page_ratio: float | None = Field(default=None, ge=0, le=1)
    unique_row_ratio: float | None = Field(default=None, gt=0, le=1)
    round_trip_ns: float | None = Field(default=None, gt=0)
    num_requests_outstanding: float | None = Field(default=None, gt=0)
    drift_ratio: float | None = None
    model: GatherModel | None = None
    score: GatherScore | None = None
    points: tuple[GatherPoint, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _a_model_has_a_score(self) -> Self:
        if (self.model is None) != (self.score is None):
            raise ValueError("model and score come together")
        return self

    @property
    def has_drifted(self) -> bool:
        """True when the machine was another one by the end of the profile: more than 5 % faster or slower."""
        return self.drift_ratio is not None and abs(self.drift_ratio) > PROBE_UNSTABLE_RATIO

    @property
    def label(self) -> str:
        """What tells this sweep from the others of a profile."""
        threads = "" if self.num_threads is None else f"/{self.num_threads} threads"
        return f"{self.path}/{self.pages}/{self.order}/{self.place}{threads}"


def _share(piece_bytes: tuple[int, ...], number: int, footprint_bytes: float) -> float:
    """Bytes of the table that holds one of the pieces of every row."""
    return footprint_bytes * piece_bytes[number] / sum(piece_bytes)


def missing(footprint_bytes: float, reach_bytes: float) -> float:
    """Share of random accesses to a footprint that miss what keeps ``reach_bytes`` of it."""
    return footprint_bytes / (footprint_bytes + reach_bytes)


def spilled(written_bytes: float, reach_bytes: float) -> float:
    """Share of rows whose place no longer lies in a cache that keeps ``reach_bytes`` of what is written in turn."""
    if not written_bytes:
        return 0.0
    return float(1 / (1 + (reach_bytes / written_bytes) ** SPILL_POWER))


def overlapped(first_ns: float, second_ns: float, power: float) -> float:
    """Time of two kinds of work that overlap: their sum at power 1, towards the longer one at high powers."""
    return float((first_ns**power + second_ns**power) ** (1 / power))


def requests_of(piece_bytes: int, request_bytes: int) -> float:
    """Mean number of blocks that a piece touches when pieces lie back to back: 264 B touch 5 of 64 B, not 4.125."""
    step = math.gcd(piece_bytes, request_bytes)
    return 1 + (piece_bytes - step) / request_bytes


def pages_of(piece_bytes: int) -> float:
    """Mean number of small pages that a piece touches."""
    return requests_of(piece_bytes, SMALL_PAGE_BYTES)


def is_unaligned(piece_bytes: int) -> bool:
    """True when pieces that lie back to back straddle lines."""
    return piece_bytes > LINE_BYTES and piece_bytes % LINE_BYTES != 0
