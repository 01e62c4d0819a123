"""Two quick profiles in a row: which median figures agree within 10 %, and whether those that do not were flagged.

With the paths of two profiles of one machine as arguments it compares those and measures nothing. ``--record FILE``
writes the counts, with the held-out errors of the gather model.
"""

import argparse
import dataclasses
import time
from pathlib import Path

from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.store import load_hardware, load_model
from tiercast_runtime.probes import profile_machine
from tiercast_runtime.probes.repeatability import AGREED_RATIO, agreements, pairs
from write_record import write_record


def measured() -> tuple[HardwareProfile, float]:
    start_s = time.perf_counter()
    profile = profile_machine(quick=True, models=[load_model("tiny")], folder=Path.cwd())
    wall_s = time.perf_counter() - start_s
    print(f"profile in {wall_s:.1f} s")
    return profile, wall_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profiles", nargs="*", metavar="PROFILE", help="two profiles of one machine; none: measure")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the figures as JSON")
    given = parser.parse_args()
    if len(given.profiles) not in (0, 2):
        parser.error("give two profiles, or none")
    made = [(load_hardware(path), 0.0) for path in given.profiles] or [measured(), measured()]
    (first, first_s), (second, second_s) = made
    figures = pairs(first, second)
    groups = agreements(figures)
    print(
        f"{'figures':14} {'number':>6} {'agree':>6} {'apart, flagged':>15} {'apart, silent':>14} {'median apart':>13}"
    )
    for one in groups:
        print(
            f"{one.group:14} {one.num_figures:6} {one.num_agreeing:6} {one.num_flagged:15} {one.num_silent:14}"
            f" {100 * one.median_difference_ratio:11.1f} %"
        )
    for figure in figures:
        if not figure.agrees and not figure.is_flagged:
            print(
                f"more than {AGREED_RATIO:.0%} apart, not flagged: {figure.label}  {figure.first:g}  {figure.second:g}"
            )
    scores = []
    for number, profile in enumerate((first, second), start=1):
        for sweep in profile.gather_sweeps:
            if sweep.score is not None:
                print(
                    f"profile {number}, {sweep.label}: held out {sweep.score.num_held_out}, error median / p90 "
                    f"{sweep.score.held_out_median_ratio} / {sweep.score.held_out_p90_ratio}"
                )
                scores.append({"profile": number, "sweep": sweep.label, **sweep.score.model_dump()})
    if given.record is not None:
        agreed = {one.group: dataclasses.asdict(one) for one in groups}
        write_record(given.record, {"wall_s": [first_s, second_s], "agreement": agreed, "gather_model": scores})


if __name__ == "__main__":
    main()
