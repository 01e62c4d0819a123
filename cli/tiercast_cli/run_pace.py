"""How slow a machine was around the runs of a case beside its profile: read from a record, and put into words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import geometric_mean

import numpy as np

from tiercast_profiles.quantiles import median
from tiercast_profiles.record import RunRecord
from tiercast_profiles.scenario import ResolvedScenario

STEP = re.compile(r"pace_((?:decode|chunk)_(\d+))")  # a decode batch of so many sequences, a chunk of so many tokens
DISK = "pace_disk"


@dataclass(frozen=True, slots=True)
class RunPace:
    """Times around the runs of a case over times in the profile: above 1 the machine was slower then.

    Args:
        step_ratios: by reference step, ``decode_8`` or ``chunk_151``, at least one.
        disk_ratio: of reads from a drive; None where none were timed.
    """

    step_ratios: Mapping[str, float]
    disk_ratio: float | None

    @property
    def compute_ratio(self) -> float:
        """One figure for all reference steps, their geometric mean."""
        return geometric_mean(self.step_ratios.values())

    def ratio_at(self, num_tokens: int) -> float:
        """The ratio for steps of so many tokens, on straight lines over the logarithm of tokens between those timed.

        Small steps wait for memory and large ones compute, and on a shared machine the two change speed apart. Below
        the smallest and above the largest reference step the nearest one stands.
        """
        known = sorted((log(_num_tokens(name)), ratio) for name, ratio in self.step_ratios.items())
        places, ratios = zip(*known, strict=True)
        return float(np.interp(log(num_tokens), places, ratios))


def pace_in(measured: RunRecord) -> RunPace | None:
    """The pace in a record's facts; None where none was timed."""
    facts = measured.provenance.facts
    steps = {found[1]: float(value) for name, value in facts.items() if (found := STEP.fullmatch(name))}
    if not steps:
        return None
    disk = facts.get(DISK)
    return RunPace(steps, None if disk is None else float(disk))


def has_step_times(resolved: ResolvedScenario) -> bool:
    """Whether a scenario is predicted from measured times of single calls, which are what a pace stretches."""
    shape, mode = resolved.model.backbone.shape_sha256, resolved.placement.graph_mode
    return mode == "eager" and any(
        table.graph_mode == mode and table.shape_sha256 == shape for table in resolved.hardware.compute
    )


def line(paces: Sequence[RunPace]) -> str:
    """How slow the machine was around the runs of all cases; empty where nothing was timed."""
    if not paces:
        return ""
    common = set.intersection(*(set(pace.step_ratios) for pace in paces))
    steps = [
        f"{_words(name)}: {median([pace.step_ratios[name] for pace in paces]):.2f}"
        for name in sorted(common, key=_num_tokens)
    ]
    text = f"pace: around the runs reference steps took {_times([pace.compute_ratio for pace in paces], steps)}"
    reads = [pace.disk_ratio for pace in paces if pace.disk_ratio is not None]
    return f"{text}, reads from the drive {_times(reads)}" if reads else text


def _times(ratios: Sequence[float], details: Sequence[str] = ()) -> str:
    """The median case; in brackets the range over the cases, where it is one, and details."""
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    notes = [*([f"{low} to {high} over the cases"] if low != high else []), *details]
    return f"{median(ratios):.2f} times as long as in the profile" + (f" ({', '.join(notes)})" if notes else "")


def _words(name: str) -> str:
    kind, count = name.split("_")
    return f"decode of {count}" if kind == "decode" else f"chunk of {count} tokens"


def _num_tokens(name: str) -> int:
    """Tokens of a reference step: a decoding sequence has one."""
    return int(name.split("_")[1])
