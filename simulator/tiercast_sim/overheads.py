"""What lookups by the host take from compute beside the time it waits for them, as the profile of a CPU has it."""

from dataclasses import dataclass
from typing import Self

from tiercast_profiles.document import Bound
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import NS_PER_US
from tiercast_sim.checked import non_negative, speed_ratio
from tiercast_sim.interference import entry_of


@dataclass(frozen=True, slots=True)
class LookupOverheads:
    """Times and speed at one bound, for the prefetch mode of a scenario.

    Assumption A100: each lookup takes the same time from the thread that computes, in the layers behind the one it is
    for, whatever its rows. With prefetch that is what lookups beside compute take of it, whether or not compute waits
    for their end; with ``off``, what compute loses behind a lookup it made itself, which is also slower than its curve.
    """

    issue_ns: float
    taken_ns: int
    lookup_speed_ratio: float

    @classmethod
    def of(cls, resolved: ResolvedScenario, bound: Bound) -> Self | None:
        """Those of the scenario's path; None where the profile has none."""
        entry = entry_of(resolved)
        if entry is None or entry.overhead is None:
            return None
        found, label = entry.overhead, f"overhead of {entry.tier}/{entry.path}"
        issue_ns = non_negative(found.issue_us, bound, f"{label} issue_us") * NS_PER_US
        if resolved.placement.prefetch != "off":
            taken_ns = non_negative(found.beside_us, bound, f"{label} beside_us") * NS_PER_US
            return cls(issue_ns, round(taken_ns), 1.0)
        taken_ns = non_negative(found.after_us, bound, f"{label} after_us") * NS_PER_US
        speed = speed_ratio(found.inline_speed_ratio, bound, f"{label} inline_speed_ratio")
        return cls(issue_ns, round(taken_ns), speed)
