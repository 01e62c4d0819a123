"""The process of ``probe_turns`` with quick stand-ins for the probes: ``stopping_probes.py STORY``.

Each case of the stand-in takes 40 ms and notes begin and end, on the clock all processes share, in ``$CASES``.
"""

import os
import sys
import time
from pathlib import Path

from tiercast_cli import probe_process, probing
from tiercast_profiles import store
from tiercast_profiles.errors import FileProblem
from tiercast_runtime.probes.timing import Effort, collect

COMMITTED = Path(__file__).resolve().parents[2] / "validation" / "two-core-xeon" / "profile.yaml"
STORY = sys.argv[1]


def case():
    begun_ns = time.monotonic_ns()
    time.sleep(0.04)
    with Path(os.environ["CASES"]).open("a", encoding="ascii") as file:
        file.write(f"{begun_ns} {time.monotonic_ns()}\n")
    return [("key", 1.0)]


def probe(models, *, quick, is_in_turns, report):
    assert (list(models), quick, is_in_turns) == (["tiny"], True, STORY != "awaited")
    report("naps", 0.0)
    if STORY == "refuses":
        raise FileProblem("/there: is full")
    if STORY == "crashes":
        collect([case], Effort(0, num_warm_ups=0, min_rounds=1, max_rounds=1))
        raise ZeroDivisionError("a bug")
    print("a library says something")
    spread = collect([case], Effort(int(8e8), num_warm_ups=1, min_rounds=19, max_rounds=19))[0]
    assert len(spread.samples) == 19, "pauses count against no budget"
    return store.load_hardware(str(COMMITTED))


probing.probe = probe
probe_process.main()
