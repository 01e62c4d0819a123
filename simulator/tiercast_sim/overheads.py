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
    """

    rows_log: tuple[float, ...]
    issue_points_ns: tuple[float, ...]
    taken_points_ns: tuple[float, ...]
    lookup_points_ns: tuple[float, ...]

    @classmethod
    def of(cls, resolved: ResolvedScenario, bound: Bound) -> Self | None:
        """Those of the scenario's path; None where the profile has none, or the path is itself compute (A9)."""
        entry = entry_of(resolved)
        if entry is None or entry.overhead is None or resolved.placement.path == "device":
            return None
        points, label = entry.overhead.by_rows(), f"overhead of {entry.tier}/{entry.path}"

        def times_ns(name: str, found: list[Quantity]) -> tuple[float, ...]:
            return tuple(non_negative(each, bound, f"{label} {name}") * NS_PER_US for each in found)

        is_ahead = resolved.placement.prefetch != "off"
        taken = ("beside_us", [p.beside_us for p in points]) if is_ahead else ("after_us", [p.after_us for p in points])
        lookup = (0.0,) * len(points) if is_ahead else times_ns("inline_us", [p.inline_us for p in points])
        return cls(
            tuple(float(np.log(point.num_rows)) for point in points),
            times_ns("issue_us", [point.issue_us for point in points]),
            times_ns(*taken),
            lookup,
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

    def _at(self, num_rows: int, times_ns: tuple[float, ...]) -> float:
        return float(np.interp(np.log(max(1, num_rows)), self.rows_log, times_ns))
