"""Which gathers a sweep times: a coarse grid, then points where the curve bends; and which of them are held out."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from tiercast_profiles.gather import GatherPoint, RowOrder
from tiercast_profiles.units import MIB

HOLD_OUT_SALT = "tiercast-gather-1"
HELD_OUT_OF = 5
BEND_RATIO = 0.04  # a point this far from the line between its neighbours asks for points beside it
STEP_RATIO = 0.25  # so do neighbours that differ by more than this
MIN_FOOTPRINT_STEP = 1.3  # no footprints closer together than this factor
PAYLOADS: tuple[tuple[int, ...], ...] = ((64,), (128,), (256,), (264,), (256, 8), (512,), (1024,), (4096,))


@dataclass(frozen=True, slots=True, order=True)
class Spot:
    """Coordinates of one point: bytes of a row's pieces, table size, rows of a gather, workers that share it."""

    piece_bytes: tuple[int, ...]
    footprint_bytes: int
    num_rows: int
    num_workers: int = 1

    @property
    def row_bytes(self) -> int:
        """All pieces together."""
        return sum(self.piece_bytes)


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to gather, swept by itself: pages of the table, order of the ids, its memory and the host's threads."""

    pages: Literal["4k", "thp", "1g"]
    order: RowOrder = "random"
    is_remote: bool = False
    num_threads: int = 1

    @property
    def label(self) -> str:
        """The label that its sweep will have."""
        place = "remote" if self.is_remote else "local"
        return f"cpu_gather/{self.pages}/{self.order}/{place}/{self.num_threads} threads"


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What to sweep.

    ``payloads`` and ``num_rows`` span the first arm; the others get ``few_payloads``. Footprints go from the first in
    factors of ``footprint_step`` up to ``max_footprint_bytes`` or what memory allows. ``num_refined_ratio`` is how many
    points refinement may add for each coarse one. ``num_workers`` are rows in flight of a GPU kernel.
    """

    payloads: tuple[tuple[int, ...], ...] = PAYLOADS
    few_payloads: tuple[tuple[int, ...], ...] = ((64,), (256,), (264,), (1024,), (4096,))
    num_rows: tuple[int, ...] = (16, 96, 768, 4096)
    min_footprint_bytes: int = 64 * MIB
    max_footprint_bytes: int = 1024 * MIB
    footprint_step: int = 4
    num_refined_ratio: float = 0.3
    num_workers: tuple[int, ...] = (64, 256, 1024, 4096)
    max_row_total_bytes: int = 4 * MIB

    def footprints(self, most_bytes: int) -> tuple[int, ...]:
        """Coarse footprints that fit into ``most_bytes``, the largest that does included; none where none fits."""
        limit = min(most_bytes, self.max_footprint_bytes) // MIB * MIB
        sizes, size = [], self.min_footprint_bytes
        while size <= limit:
            sizes.append(size)
            size *= self.footprint_step
        if sizes and limit >= 2 * sizes[-1]:
            sizes.append(limit)
        return tuple(sizes)

    def coarse(self, footprints: Sequence[int], workers: Sequence[int], *, is_full: bool) -> list[Spot]:
        """The coarse grid of an arm; several workers only where a gather has enough rows for them."""
        payloads = self.payloads if is_full else self.few_payloads
        return [
            Spot(pieces, size, count, min(number, count))
            for pieces in payloads
            for size in footprints
            for count in self.num_rows
            for number in sorted({min(number, count) for number in workers})
            if count * sum(pieces) <= self.max_row_total_bytes
        ]


def refine(times: Mapping[Spot, float], num_more: int) -> list[Spot]:
    """Spots between those measured, along the footprint, where the time bends or jumps most: at most ``num_more``."""
    wanted: dict[Spot, float] = {}
    lines: dict[tuple[tuple[int, ...], int, int], list[Spot]] = {}
    for spot in sorted(times):
        lines.setdefault((spot.piece_bytes, spot.num_rows, spot.num_workers), []).append(spot)
    for line in lines.values():
        for index, (left, right) in enumerate(pairwise(line)):
            if right.footprint_bytes < MIN_FOOTPRINT_STEP**2 * left.footprint_bytes:
                continue
            jump = abs(math.log(times[right] / times[left]))
            ends = [line[place : place + 3] for place in (index - 1, index) if place >= 0 and place + 3 <= len(line)]
            bend = max((abs(_bend(times, three)) for three in ends), default=0.0)
            score = bend / BEND_RATIO + jump / STEP_RATIO
            middle = round(math.sqrt(left.footprint_bytes * right.footprint_bytes) / MIB) * MIB
            if score > 1 and left.footprint_bytes < middle < right.footprint_bytes:
                spot = Spot(left.piece_bytes, middle, left.num_rows, left.num_workers)
                wanted[spot] = max(score, wanted.get(spot, 0.0))
    return sorted(sorted(wanted, key=lambda spot: (-wanted[spot], spot))[:num_more])


def _bend(times: Mapping[Spot, float], three: Sequence[Spot]) -> float:
    """How far the middle one of three lies off the line between the others, in log time over log footprint."""
    x = [math.log(spot.footprint_bytes) for spot in three]
    y = [math.log(times[spot]) for spot in three]
    share = (x[1] - x[0]) / (x[2] - x[0])
    return y[1] - (y[0] + share * (y[2] - y[0]))


def is_held_out(label: str, spot: Spot) -> bool:
    """Whether a point is kept from the fit: a fifth of all, by a salted hash of its coordinates and nothing else."""
    key = f"{HOLD_OUT_SALT}/{label}/{spot.piece_bytes}/{spot.footprint_bytes}/{spot.num_rows}/{spot.num_workers}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % HELD_OUT_OF == 0


def as_point(spot: Spot, samples_us: Sequence[float], *, is_out: bool, unique_row_ratio: float = 1.0) -> GatherPoint:
    """A measured spot as the profile keeps it."""
    return GatherPoint(
        piece_bytes=spot.piece_bytes,
        footprint_bytes=spot.footprint_bytes,
        num_rows=spot.num_rows,
        num_workers=spot.num_workers,
        unique_row_ratio=unique_row_ratio,
        samples_us=tuple(samples_us),
        is_held_out=is_out,
    )
