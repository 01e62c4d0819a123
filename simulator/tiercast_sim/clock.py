"""The simulated clock: a SimPy environment whose time is whole nanoseconds."""

import simpy


class Clock(simpy.Environment):
    """A SimPy environment that starts at 0 ns and only ever waits whole nanoseconds."""

    @property
    def now_ns(self) -> int:
        """Simulated time since run start."""
        now = self.now
        assert isinstance(now, int), "every delay is a whole number of nanoseconds"
        return now
