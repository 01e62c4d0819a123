"""Several engines served in turns of a few steps, all through their runs.

A machine that others share changes speed within a second. Two engines that run one after the other meet two machines,
and what one loses against the other is lost in their difference; in turns of a step or two both meet the same one.
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tiercast_profiles.units import NS_PER_S
from tiercast_runtime.cores import on_cores
from tiercast_runtime.engine import EngineRun, serving

# Short: means over many steps of a shared machine scatter nearly as much as single steps, so that many short turns say
# more than a few long ones.
TURN_NS = NS_PER_S // 50
STOP_EVERY_NS = 2 * NS_PER_S  # at least so long apart there is time for something else between turns
Steps = Generator[None, None, EngineRun]


class Steppable(Protocol):
    """An engine, as far as turns need one."""

    compute_cores: frozenset[int] | None

    def steps(self, progress: Callable[[float], None] | None = None) -> Steps:
        """Serve all requests, stopping behind every step."""
        ...


@dataclass(slots=True)
class _Run:
    """One engine's run: what is left of it, and what it gave at its end."""

    steps: Steps
    cores: frozenset[int] | None
    found: EngineRun | None = None
    num_turns: int = 1

    def advance(self) -> bool:
        """Make one step; False where that was the end."""
        try:
            next(self.steps)
        except StopIteration as end:
            self.found = end.value
        return self.found is None


@dataclass(frozen=True, slots=True)
class RunInTurns:
    """One engine's run, and in how many turns it was served: 1 where it was done at its warm-up's end."""

    run: EngineRun
    num_turns: int


def run_in_turns(
    engines: Sequence[Steppable],
    progress: Callable[[float], None] | None = None,
    *,
    look: Callable[[], None] | None = None,
    turn_ns: int = TURN_NS,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[RunInTurns]:
    """Serve every engine's requests once, in turns; the time others take is in no engine's run.

    Arguments are those of :func:`turns`; ``look`` is called where that stops, and may take the time it needs.
    """
    with serving():
        going = turns(engines, progress, turn_ns=turn_ns, clock=clock)
        while True:
            try:
                next(going)
            except StopIteration as end:
                found: list[RunInTurns] = end.value
                return found
            if look is not None:
                look()


def turns(
    engines: Sequence[Steppable],
    progress: Callable[[float], None] | None = None,
    *,
    turn_ns: int = TURN_NS,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Generator[None, None, list[RunInTurns]]:
    """As :func:`run_in_turns`, but it stops between laps, at least two seconds apart; wants to be run in ``serving()``.

    All warm up first. Then the engines take laps, each beginning with another one: the first takes as many steps as
    fit in ``turn_ns``, the others as many as it. Engines that serve the same requests therefore keep together to the
    end. One that looks up a step ahead does not stop, and serves its whole run at once behind its warm-up.

    Args:
        engines: open, each in its own memory.
        progress: called with the share done of all of them.
        turn_ns: of the first of a lap.
        clock: ns.
    """
    shares = [0.0] * len(engines)

    def report_of(place: int) -> Callable[[float], None]:
        def report(share: float) -> None:
            shares[place] = share
            if progress is not None:
                progress(sum(shares) / len(shares))

        return report

    runs = [_Run(engine.steps(report_of(place)), engine.compute_cores) for place, engine in enumerate(engines)]
    try:
        for run in runs:
            with on_cores(run.cores):
                run.advance()
        lap, stopped_ns = 0, clock()
        while left := [run for run in runs if run.found is None]:
            first = lap % len(left)
            _lap([*left[first:], *left[:first]], turn_ns, clock)
            lap += 1
            if clock() - stopped_ns >= STOP_EVERY_NS and any(run.found is None for run in runs):
                yield
                stopped_ns = clock()
    finally:
        for run in runs:
            run.steps.close()
    return [RunInTurns(run.found, run.num_turns) for run in runs if run.found is not None]


def _lap(order: Sequence[_Run], turn_ns: int, clock: Callable[[], int]) -> None:
    """One turn of each: the first sets how many steps a turn has."""
    num_steps = 0
    for place, run in enumerate(order):
        with on_cores(run.cores):
            begun_ns, done = clock(), 0
            while run.advance():
                done += 1
                if clock() - begun_ns >= turn_ns if place == 0 else done >= num_steps:
                    break
        run.num_turns += done > 0
        if place == 0:
            num_steps = done
