"""Whether two profiles of one machine agree: medians of the same probes beside each other, and what was flagged."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.quantiles import median

AGREED_RATIO = 0.10
GROUPS = {"copy.": "copy", "lookup.nvme": "disk", "storage.": "disk", "lookup.": "gather", "layers.": "layer"}


@dataclass(frozen=True, slots=True)
class Pair:
    """One figure in two profiles: the medians, and whether either profile flagged it."""

    group: str
    label: str
    first: float
    second: float
    is_flagged: bool

    @property
    def difference_ratio(self) -> float:
        """|second − first| ÷ the smaller one."""
        return abs(self.second - self.first) / min(self.first, self.second)

    @property
    def agrees(self) -> bool:
        """True within 10 %."""
        return self.difference_ratio <= AGREED_RATIO


@dataclass(frozen=True, slots=True)
class Agreement:
    """One group: its figures, those that agree, and those that neither agree nor were flagged."""

    group: str
    num_figures: int
    num_agreeing: int
    num_flagged: int
    num_silent: int
    median_difference_ratio: float


def pairs(first: HardwareProfile, second: HardwareProfile) -> list[Pair]:
    """Every figure that both profiles measured with the same parameters, in the order of the first."""
    others = {key: (value, flagged) for key, _, value, flagged in _figures(second)}
    found = []
    for key, group, value, is_flagged in _figures(first):
        if key in others and value > 0 and others[key][0] > 0:
            found.append(Pair(group, key, value, others[key][0], is_flagged or others[key][1]))
    return found


def agreements(figures: list[Pair]) -> list[Agreement]:
    """The groups, in the order they come."""
    counts = Counter(figure.group for figure in figures)
    result = []
    for group, count in counts.items():
        mine = [figure for figure in figures if figure.group == group]
        apart = [figure for figure in mine if not figure.agrees]
        result.append(
            Agreement(
                group=group,
                num_figures=count,
                num_agreeing=count - len(apart),
                num_flagged=sum(figure.is_flagged for figure in apart),
                num_silent=sum(not figure.is_flagged for figure in apart),
                median_difference_ratio=median([figure.difference_ratio for figure in mine]),
            )
        )
    return result


def _figures(profile: HardwareProfile) -> Iterator[tuple[str, str, float, bool]]:
    """Label, group, median and flag of every timed probe and every point of a sweep."""
    for probe in profile.probes:
        group = next((group for start, group in GROUPS.items() if probe.name.startswith(start)), None)
        if group is None or not probe.samples or probe.name.endswith((".fit", ".sum_of_parts")):
            continue
        skipped = ("what", "file_bytes")
        said = " ".join(f"{key}={value}" for key, value in sorted(probe.parameters.items()) if key not in skipped)
        yield f"{probe.name} {said}", group, median(probe.samples), probe.status != "ok"
    for sweep in profile.gather_sweeps:
        for point in sweep.points:
            where = f"{point.piece_bytes} {point.footprint_bytes} {point.num_rows} {point.num_workers}"
            yield f"{sweep.label} {where}", "gather sweep", point.time_us, point.is_unstable or sweep.has_drifted
