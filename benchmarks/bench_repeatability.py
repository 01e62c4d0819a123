"""Two quick profiles in a row: which median figures agree within 10 %, and whether those that do not were flagged.

With the paths of two profiles of one machine as arguments it compares those and measures nothing.
"""

import sys
import time
from pathlib import Path

from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.store import load_hardware, load_model
from tiercast_runtime.probes import profile_machine
from tiercast_runtime.probes.repeatability import AGREED_RATIO, agreements, pairs


def measured() -> HardwareProfile:
    start_s = time.perf_counter()
    profile = profile_machine(quick=True, models=[load_model("tiny")], folder=Path.cwd())
    print(f"profile in {time.perf_counter() - start_s:.1f} s")
    return profile


def main() -> None:
    given = sys.argv[1:]
    first, second = map(load_hardware, given) if len(given) == 2 else (measured(), measured())
    figures = pairs(first, second)
    print(
        f"{'figures':14} {'number':>6} {'agree':>6} {'apart, flagged':>15} {'apart, silent':>14} {'median apart':>13}"
    )
    for one in agreements(figures):
        print(
            f"{one.group:14} {one.num_figures:6} {one.num_agreeing:6} {one.num_flagged:15} {one.num_silent:14}"
            f" {100 * one.median_difference_ratio:11.1f} %"
        )
    for figure in figures:
        if not figure.agrees and not figure.is_flagged:
            print(
                f"more than {AGREED_RATIO:.0%} apart, not flagged: {figure.label}  {figure.first:g}  {figure.second:g}"
            )


if __name__ == "__main__":
    main()
