"""How much a lookup and the compute beside it slow each other, at the size of the scenario's own lookups."""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import TypeVar

from tiercast_profiles.document import Bound
from tiercast_profiles.hardware import Interference, InterferencePoint
from tiercast_profiles.scenario import ResolvedScenario, Scenario
from tiercast_sim.checked import speed_ratio
from tiercast_sim.lookup import row_pieces
from tiercast_sim.work import SPEED_ONE, to_speed

T = TypeVar("T")


def interference_speeds(resolved: ResolvedScenario, bound: Bound) -> tuple[int, int, bool]:
    """Speed of compute beside a lookup, of a lookup beside compute, and whether the profile gives them.

    Assumption A14: the two ratios hold for as long as both run. Where the profile has them by size and a closed loop
    says how many sequences decode at once, they are those of such a decode step, in every step; else those of the
    profile's own size.
    """
    entry = entry_of(resolved)
    if entry is None:
        return SPEED_ONE, SPEED_ONE, False
    label = f"interference {entry.tier}/{entry.path}"
    series = _series(resolved, entry)
    if not series:
        compute = speed_ratio(entry.compute_speed_ratio, bound, f"{label} compute_speed_ratio")
        lookup = speed_ratio(entry.lookup_speed_ratio, bound, f"{label} lookup_speed_ratio")
    else:
        rows = _decode_rows(resolved)
        assert rows is not None, "a series is of the rows of a decode step"
        names = [f"{label} at {point.num_rows} rows" for point in series]
        points = list(zip(series, names, strict=True))
        compute = _at(rows, [(p.num_rows, speed_ratio(p.compute_speed_ratio, bound, name)) for p, name in points])
        lookup = _at(rows, [(p.num_rows, speed_ratio(p.lookup_speed_ratio, bound, name)) for p, name in points])
    return to_speed(compute), to_speed(lookup), True


def interference_warning(resolved: ResolvedScenario) -> str | None:
    """What to say where a decode step's lookups are smaller or larger than any that were measured beside compute."""
    entry, rows = entry_of(resolved), _decode_rows(resolved)
    series = [] if entry is None else _series(resolved, entry)
    if not series or rows is None or series[0].num_rows <= rows <= series[-1].num_rows:
        return None
    return (
        f"interference was measured with {series[0].num_rows} to {series[-1].num_rows} rows in a lookup, a decode step "
        f"has {rows}: the nearest is taken"
    )


def entry_of(resolved: ResolvedScenario) -> Interference | None:
    """What the profile says of lookups by the scenario's path beside compute."""
    wanted = (resolved.placement.tier, resolved.placement.path)
    return next((entry for entry in resolved.hardware.interference if (entry.tier, entry.path) == wanted), None)


def decode_tokens(scenario: Scenario) -> int | None:
    """Tokens of a decode step at the load a closed loop keeps up; None where arrivals decide."""
    concurrency = scenario.workload.concurrency
    if scenario.workload.kind != "closed_loop" or concurrency is None:
        return None
    sequences = min(-(-concurrency // scenario.parallel.data), scenario.engine.max_num_seqs)
    return min(sequences * (1 + scenario.speculative.draft_tokens), scenario.engine.max_num_batched_tokens)


def _decode_rows(resolved: ResolvedScenario) -> int | None:
    """Rows the slowest rank reads for one layer of such a step (Assumption A8)."""
    tokens = decode_tokens(resolved.scenario)
    if tokens is None:
        return None
    return tokens * -(-resolved.model.engram.num_rows_per_token // resolved.scenario.parallel.tensor)


def _series(resolved: ResolvedScenario, entry: Interference) -> list[InterferencePoint]:
    """Points of the nearest grid, row size and step, ascending in rows; none where sizes or the load are not known.

    A grid is taken to be the runtime's own, half of the compute units, and threads those of the path's curve.
    """
    tokens = decode_tokens(resolved.scenario)
    if tokens is None or not entry.points:
        return []
    curve = resolved.hardware.curve(entry.tier, entry.path)
    threads = None if curve is None else curve.num_threads
    row_bytes = sum(row_pieces(resolved.model.engram, resolved.placement.row_layout))
    points: Iterable[InterferencePoint] = entry.points
    points = _nearest(points, max(1, resolved.hardware.device.num_compute_units // 2), lambda point: point.num_programs)
    points = _nearest(points, threads, lambda point: point.num_threads)
    points = _nearest(points, row_bytes, lambda point: point.row_bytes)
    points = _nearest(points, tokens, lambda point: point.num_tokens)
    return sorted(points, key=lambda point: point.num_rows)


def _nearest(points: Iterable[T], wanted: int | None, read: Callable[[T], int | None]) -> list[T]:
    """Points whose value lies nearest to the wanted one by ratio; all where nothing is wanted or none has a value."""
    kept = list(points)
    known = [value for point in kept if (value := read(point)) is not None]
    if wanted is None or not known:
        return kept
    best = min(known, key=lambda value: (abs(math.log(value / wanted)), value))
    return [point for point in kept if read(point) == best]


def _at(rows: int, points: list[tuple[int, float]]) -> float:
    """Linear in the logarithm of the rows between points, the end ones beyond them."""
    if rows <= points[0][0]:
        return points[0][1]
    for (low, low_ratio), (high, high_ratio) in pairwise(points):
        if rows <= high:
            share = math.log(rows / low) / math.log(high / low)
            return low_ratio + share * (high_ratio - low_ratio)
    return points[-1][1]
