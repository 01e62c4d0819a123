"""Probes that stop for others: ``python -m tiercast_cli.probe_process``. Started by ``probe_turns``; never by hand.

Reads what to probe as one line of JSON, then for how long it may: ``{"seconds": 0.5}``, or null for the rest. Behind
each stretch it says so and waits for the next. It ends when the pipe it reads from closes, however the other ended.

A stretch begins with a fifth of a second of compute that nobody times: a process that stood still for some seconds
computes a tenth more slowly at first. Table files are made before the first stretch.
"""

import json
import os
import select
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tiercast_cli import probing
from tiercast_profiles import store
from tiercast_profiles.errors import TiercastError
from tiercast_profiles.units import NS_PER_S
from tiercast_runtime.saying import Say, say_on_stdout

WARM_UP_S = 0.2  # about as long as the first steps of a process that stood still are slower on a virtual machine


class Stretches:
    """When to stop, as the other side says; :meth:`pause` is called between the cases of the probes.

    Args:
        descriptor: what the other side writes to.
        say: tells it something.
        warm_up: what a stretch begins with.
        clock: ns.
    """

    def __init__(
        self,
        descriptor: int,
        say: Say,
        warm_up: Callable[[], None],
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._descriptor, self._say, self._warm_up, self._clock = descriptor, say, warm_up, clock
        self._until_ns: int | None = 0

    def pause(self) -> int:
        """Wait for the other side where the stretch is over; for how many ns.

        Raises:
            SystemExit: the other side is gone.
        """
        begun_ns = self._clock()
        if self._until_ns is None:
            ready, _, _ = select.select([self._descriptor], [], [], 0)
            if ready:  # nothing is said behind "the rest": its end is
                raise SystemExit(1)
            return 0
        if begun_ns < self._until_ns:
            return 0
        self._say({"paused": True})
        seconds = self.order()["seconds"]
        self._warm_up()
        now_ns = self._clock()
        self._until_ns = None if seconds is None else now_ns + round(float(seconds) * NS_PER_S)
        return now_ns - begun_ns

    def order(self) -> dict[str, Any]:  # Any: what ``probe_turns`` wrote
        """The next line of the other side.

        Raises:
            SystemExit: it is gone.
        """
        line = b""
        while not line.endswith(b"\n"):
            found = os.read(self._descriptor, 1)
            if not found:
                raise SystemExit(1)
            line += found
        order: dict[str, Any] = json.loads(line)
        return order


def main() -> None:
    """Probe as the other side says."""
    say = say_on_stdout()
    stretches = Stretches(sys.stdin.fileno(), say, partial(probing.warm_up, WARM_UP_S))
    order = stretches.order()
    try:
        from tiercast_runtime.probes.timing import pausing

        with pausing(stretches.pause):
            profile = probing.probe(
                order["models"],
                quick=True,
                is_in_turns=order["is_in_turns"],
                report=lambda what, _ratio: say({"stage": what}),
            )
        store.write_text(Path(order["file"]), store.to_yaml(profile))
    except TiercastError as error:
        say({"problem": type(error).__name__, "text": str(error)})


if __name__ == "__main__":
    main()
