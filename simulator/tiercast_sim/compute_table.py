"""Component times measured on the machine: a table of points, linear in between."""

from bisect import bisect_left
from typing import Literal

from tiercast_profiles.document import Bound
from tiercast_profiles.hardware import Component, ComputePoint, ComputeTable
from tiercast_profiles.units import NS_PER_US

Line = tuple[tuple[float, ...], tuple[float, ...]]
Reading = Bound | Literal["host"]
"""What is read from a point: the time at a bound, or what the host needs to issue it, which has no bounds."""


def interpolate(line: Line, x: float) -> float:
    """Value at ``x`` of a piecewise linear curve, extended by the line through its two nearest points; at least 0."""
    xs, ys = line
    if len(xs) == 1:
        return ys[0]
    above = min(max(bisect_left(xs, x), 1), len(xs) - 1)
    slope = (ys[above] - ys[above - 1]) / (xs[above] - xs[above - 1])
    return max(0.0, ys[above - 1] + slope * (x - xs[above - 1]))


def has_host_times(table: ComputeTable) -> bool:
    """True where any component says what the host needs to issue it beside the device."""
    return any(point.host_us is not None for points in table.components.values() for point in points)


class TableTimes:
    """One compute table read one way; ``time_ns`` is linear in tokens and, where it was varied, in context."""

    def __init__(self, table: ComputeTable, reading: Reading) -> None:
        self.table = table
        self._lines: dict[Component, tuple[tuple[float, ...], tuple[Line, ...]]] = {}
        for component in sorted(table.components):
            points = table.components[component]
            if points:
                self._lines[component] = _lines(points, reading)

    def has(self, component: Component) -> bool:
        """True when the component was measured."""
        return component in self._lines

    def largest_tokens(self, component: Component) -> float:
        """Largest token count measured for a component."""
        return self._lines[component][0][-1]

    def time_ns(self, component: Component, num_tokens: float, context_tokens: float = 0.0) -> float:
        """Time of a component for ``num_tokens`` in the component's own sense; nothing takes no time."""
        if num_tokens <= 0:
            return 0.0
        lines, share = self.lines_around(component, num_tokens)
        low = interpolate(lines[0], context_tokens)
        if len(lines) == 1:
            return low
        return max(0.0, low + (interpolate(lines[1], context_tokens) - low) * share)

    def lines_around(self, component: Component, num_tokens: float) -> tuple[tuple[Line, Line] | tuple[Line], float]:
        """The curves over context at the measured token counts around ``num_tokens``, and where it lies between."""
        tokens, lines = self._lines[component]
        if len(tokens) == 1:
            return (lines[0],), 0.0
        above = min(max(bisect_left(tokens, num_tokens), 1), len(tokens) - 1)
        share = (num_tokens - tokens[above - 1]) / (tokens[above] - tokens[above - 1])
        return (lines[above - 1], lines[above]), share


def _lines(points: tuple[ComputePoint, ...], reading: Reading) -> tuple[tuple[float, ...], tuple[Line, ...]]:
    by_tokens: dict[int, dict[int, float]] = {}
    for point in points:
        by_tokens.setdefault(point.num_tokens, {})[point.context_tokens] = _time_us(point, reading) * NS_PER_US
    tokens = sorted(by_tokens)
    lines = []
    for count in tokens:
        contexts = sorted(by_tokens[count])
        lines.append((tuple(map(float, contexts)), tuple(by_tokens[count][context] for context in contexts)))
    return tuple(map(float, tokens)), tuple(lines)


def _time_us(point: ComputePoint, reading: Reading) -> float:
    if reading == "host":
        return point.host_us or 0.0
    return {"nominal": point.time_us, "optimistic": point.low_us, "pessimistic": point.high_us}[reading]
