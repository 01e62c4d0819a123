"""Laps of a walk by two clocks: a GPU computes what the host has issued before, so each part has two times.

On a CPU there is one. On a GPU the host's time of a part is that of its calls; the device's lies between two events in
a stream that was held shut until the host was ahead, so that no launch is waited for. What the engine takes for a row
of parts follows from both: see ``tiercast_sim.compute``.
"""

from collections.abc import Hashable

import torch

from tiercast_runtime.probes.hold import LEAST_HOLD_NS, MOST_HOLD_NS, hold
from tiercast_runtime.probes.timing import Clock, Stopwatch

HOLD_MARGIN = 1.5
FIRST_HOLD_NS = 30_000_000  # of a kind of walk that nobody has timed yet: longer than any host takes to issue one
LEAST_LAP_NS = 1.0  # what an event takes varies: less of a part than of an empty lap is not nothing


class Holds:
    """How long to hold the stream of a GPU for walks of a kind: what the host took for the last one, and more."""

    def __init__(self) -> None:
        self._hold_ns: dict[Hashable, int] = {}

    def of(self, kind: Hashable) -> int:
        """Time to hold, ns."""
        return self._hold_ns.get(kind, FIRST_HOLD_NS)

    def learn(self, kind: Hashable, issued_ns: int) -> None:
        """The host took so long to issue a walk of this kind."""
        self._hold_ns[kind] = min(MOST_HOLD_NS, max(LEAST_HOLD_NS, round(HOLD_MARGIN * issued_ns)))


class LaneWatch:
    """Laps of one walk on a device.

    Args:
        device: where the walk computes.
        clock: the host's, ns.
    """

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self._device, self._clock = device, clock
        self._is_gpu = device.type == "cuda"
        self._watch = Stopwatch(device, clock)
        self._host_ns: list[float] = []
        self._resumed_ns = 0
        self._issued_ns: int | None = None
        self._shut_at: int | None = None
        self._shut_ns = 0

    def lap(self) -> None:
        """Now. Neither of a GPU's two times holds what the lap itself takes the host."""
        if not self._is_gpu:
            self._watch.lap()
            return
        issued_ns = self._clock() if self._issued_ns is None else self._issued_ns
        self._host_ns.append(float(issued_ns - self._resumed_ns))
        self._issued_ns = None
        self._watch.lap()
        self._resumed_ns = self._clock()

    def issued(self) -> None:
        """The host has issued the part and goes on to wait for it: its time of this lap ends here."""
        if self._is_gpu:
            self._issued_ns = self._clock()

    def shut(self, hold_ns: int) -> None:
        """Hold a GPU's stream; takes two laps that are no part's, of which the second is empty."""
        if not self._is_gpu:
            return
        hold(hold_ns)
        self._shut_at = len(self._host_ns)
        self.lap()
        self._shut_ns = self._resumed_ns
        self.lap()

    @property
    def since_shut_ns(self) -> int:
        """What the host has taken since the stream was shut."""
        return self._clock() - self._shut_ns if self._is_gpu else 0

    def laps_ns(self) -> tuple[list[float], list[float] | None]:
        """Times of each lap but those of ``shut``, of the device and of the host; on a CPU the first alone.

        Laps in front of ``shut`` found the device idle: what the calls took is given for both. An event takes the
        device a moment too: what the empty lap took is taken from each that was held.
        """
        laps = self._watch.laps_ns()
        if not self._is_gpu:
            return laps, None
        host = self._host_ns[1:]
        if self._shut_at is None:
            return laps, host
        first, empty_ns = self._shut_at - 1, laps[self._shut_at]
        held = [max(LEAST_LAP_NS, lap - empty_ns) for lap in laps[first + 2 :]]
        return host[:first] + held, host[:first] + host[first + 2 :]
