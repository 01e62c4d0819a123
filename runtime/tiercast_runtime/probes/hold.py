"""Keeping a GPU's stream waiting while the host enqueues what is to be timed, so that no time of the host is in it."""

from collections.abc import Callable

import torch

from tiercast_runtime.probes.timing import cuda_event

LEAST_HOLD_NS, MOST_HOLD_NS = 1_000_000, 100_000_000
MOST_CYCLES_A_NS = 2  # no GPU counts faster, so that a hold is never shorter than asked for


def hold(hold_ns: int) -> None:
    """Let what comes next in the current stream wait for ``hold_ns`` at least, behind a kernel that only spins."""
    torch.cuda._sleep(MOST_CYCLES_A_NS * hold_ns)  # type: ignore[no-untyped-call]  # torch's own tests' way


class Gate:
    """Keeps the current stream shut until everything of a sample is enqueued.

    nvbandwidth's kernel spins until the host sets a flag. A kernel of torch's spins for a number of cycles: it opens by
    itself, so that a call which waits for the device costs a sample and hangs nothing. How long it must be is not
    guessed: once all is enqueued the device is asked whether the gate is still shut, and where it is not, the same is
    enqueued again behind one twice as long.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._hold_ns = LEAST_HOLD_NS
        self._passed = cuda_event()
        self.held_always = True
        """False once a gate of ``MOST_HOLD_NS`` opened too early: some sample holds time of the host."""

    def run(self, enqueue: Callable[[torch.cuda.Event], None]) -> None:
        """Enqueue behind the gate, and wait until it is done.

        Args:
            enqueue: called with the event at which the gate opens, for which other streams are to wait; more than
                once where the gate turns out too short. The last time counts.
        """
        while True:
            hold(self._hold_ns)
            self._passed.record()
            enqueue(self._passed)
            was_shut = not self._passed.query()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            torch.cuda.synchronize(self._device)
            if was_shut:
                return
            if self._hold_ns >= MOST_HOLD_NS:
                self.held_always = False
                return
            self._hold_ns = min(2 * self._hold_ns, MOST_HOLD_NS)
