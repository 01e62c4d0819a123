"""``tiercast profile`` on sizes that take a second, in a process of its own that says where it is and waits there.

Arguments: the place to stop at (a stage and how many times it was reached before, or ``disk lookups``), then those of
the command.
"""

import contextlib
import signal
import sys
from collections import Counter

import pytest
from test_probes_profile import SMALL, make_small

from tiercast_cli import probing
from tiercast_cli.main import main
from tiercast_runtime.probes import profile, storage

# A shell that runs jobs in the background has them ignore Ctrl-C, and a child inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
STOP, SEEN, LOOKUPS = sys.argv[1], Counter(), storage.measure_disk_lookups


def reached(place, _ratio=0.0):
    label = f"{place} {SEEN[place]}"
    SEEN[place] += 1
    if STOP in (place, label):
        print("stopped", flush=True)
        signal.pause()


@contextlib.contextmanager
def progress(_title):
    yield reached


if __name__ == "__main__":
    patch = pytest.MonkeyPatch()
    make_small(patch)
    patch.setattr(profile, "FULL", SMALL)
    patch.setattr(probing, "progress", progress)
    patch.setattr(
        storage, "measure_disk_lookups", lambda *given, **named: reached("disk lookups") or LOOKUPS(*given, **named)
    )
    del sys.argv[1]
    main()
