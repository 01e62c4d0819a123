"""What lookups by the host take from compute beside the time it waits for them, as the profile of a CPU has it."""

from dataclasses import dataclass
from typing import Self

from tiercast_profiles.document import Bound
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import NS_PER_US
from tiercast_sim.checked import non_negative
from tiercast_sim.interference import entry_of


@dataclass(frozen=True, slots=True)
class LookupOverheads:
    """Times at one bound, for the prefetch mode of a scenario.

    Assumption A100: each lookup takes the same time from the thread that computes, in the layers behind the one it is
    for, whatever its rows. With prefetch that is what lookups beside compute take of it, whether or not compute waits
    for their end; with ``off``, what compute loses behind a lookup it made itself, which takes longer than its curve.
    """

    issue_ns: float
    taken_ns: int
    lookup_ns: int

    @classmethod
    def of(cls, resolved: ResolvedScenario, bound: Bound) -> Self | None:
        """Those of the scenario's path; None where the profile has none, or the path is itself compute (A9)."""
        entry = entry_of(resolved)
        if entry is None or entry.overhead is None or resolved.placement.path == "device":
            return None
        found, label = entry.overhead, f"overhead of {entry.tier}/{entry.path}"
        issue_ns = non_negative(found.issue_us, bound, f"{label} issue_us") * NS_PER_US
        if resolved.placement.prefetch != "off":
            taken_ns = non_negative(found.beside_us, bound, f"{label} beside_us") * NS_PER_US
            return cls(issue_ns, round(taken_ns), 0)
        taken_ns = non_negative(found.after_us, bound, f"{label} after_us") * NS_PER_US
        lookup_ns = non_negative(found.inline_us, bound, f"{label} inline_us") * NS_PER_US
        return cls(issue_ns, round(taken_ns), round(lookup_ns))
