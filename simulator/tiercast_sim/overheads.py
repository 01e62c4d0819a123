"""What lookups by the host take from compute beside the time it waits for them, as the profile of a CPU has it."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from tiercast_profiles.document import Bound, Quantity
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import NS_PER_US
from tiercast_sim.checked import non_negative
from tiercast_sim.interference import entry_of


@dataclass(frozen=True, slots=True)
class LookupOverheads:
    """Times at one bound, for the prefetch mode of a scenario.

    Assumption A100: each lookup takes a time from the thread that computes, in the layers behind the one it is for.
    With prefetch that is what lookups beside compute take of it, whether or not compute waits for their end; with
    ``off``, what compute loses behind a lookup it made itself, which takes longer than its curve. Times are those of
    the sizes that were timed, with straight lines over the logarithm of rows between them, and held outside.

    Assumption A106: with prefetch the worker wakes up for the first lookup of a step and takes a moment between two;
    a lookup right behind another finds worker, caches and drive awake and takes less, by no more than the fixed time of
    its curve.
    """

    rows_log: tuple[float, ...]
    issue_points_ns: tuple[float, ...]
    taken_points_ns: tuple[float, ...]
    lookup_points_ns: tuple[float, ...]
    wake_points_ns: tuple[float, ...]
    turn_points_ns: tuple[float, ...]
    behind_points_ns: tuple[float, ...]

    @classmethod
    def of(cls, resolved: ResolvedScenario, bound: Bound) -> Self | None:
        """Those of the scenario's path; None where the profile has none, or the path is itself compute (A9)."""
        entry = entry_of(resolved)
        if entry is None or entry.overhead is None or resolved.placement.path == "device":
            return None
        points, label = entry.overhead.by_rows(), f"overhead of {entry.tier}/{entry.path}"

        nothing = (0.0,) * len(points)

        def times_ns(name: str, found: list[Quantity]) -> tuple[float, ...]:
            return tuple(non_negative(each, bound, f"{label} {name}") * NS_PER_US for each in found)

        def of_worker(name: str, found: list[Quantity | None], *, is_saved: bool = False) -> tuple[float, ...]:
            known = [each for each in found if each is not None]
            if not is_ahead or len(known) < len(found):
                return nothing
            times = (non_negative(each, bound, f"{label} {name}", higher_is_better=is_saved) for each in known)
            return tuple(time * NS_PER_US for time in times)

        is_ahead = resolved.placement.prefetch != "off"
        taken = ("beside_us", [p.beside_us for p in points]) if is_ahead else ("after_us", [p.after_us for p in points])
        lookup = nothing if is_ahead else times_ns("inline_us", [p.inline_us for p in points])
        return cls(
            tuple(float(np.log(point.num_rows)) for point in points),
            times_ns("issue_us", [point.issue_us for point in points]),
            times_ns(*taken),
            lookup,
            of_worker("wake_us", [point.wake_us for point in points]),
            of_worker("turn_us", [point.turn_us for point in points]),
            of_worker("behind_us", [point.behind_us for point in points], is_saved=True),
        )

    def issue_ns(self, num_rows: int) -> float:
        """Handing over the lookups of a step, each of so many rows."""
        return self._at(num_rows, self.issue_points_ns)

    def taken_ns(self, num_rows: int) -> int:
        """What a lookup of so many rows takes from compute."""
        return round(self._at(num_rows, self.taken_points_ns))

    def lookup_ns(self, num_rows: int) -> int:
        """How much longer than its curve a lookup of so many rows takes."""
        return round(self._at(num_rows, self.lookup_points_ns))

    def wait_ns(self, num_rows: int, *, is_behind: bool) -> int:
        """How long the worker takes to begin a lookup: it wakes up, or turns to it right behind another."""
        return round(self._at(num_rows, self.turn_points_ns if is_behind else self.wake_points_ns))

    def saved_ns(self, num_rows: int) -> float:
        """How much less than its curve a lookup right behind another takes."""
        return self._at(num_rows, self.behind_points_ns)

    def _at(self, num_rows: int, times_ns: tuple[float, ...]) -> float:
        return float(np.interp(np.log(max(1, num_rows)), self.rows_log, times_ns))
