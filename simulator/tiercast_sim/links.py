"""Shared resources as one SimPy thing: flows that progress at max–min fair speeds.

One event is pending at a time, for the flow that ends first; a version number voids it when speeds change. Progress is
kept in integer nanoseconds × integer speed, so a flow that is never slowed ends exactly on its own duration.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import simpy

from tiercast_profiles.units import NS_PER_S
from tiercast_sim.clock import Clock
from tiercast_sim.work import SPEED_ONE, Usage


class Flow:
    """Something in progress: a lookup, or compute that a lookup slows down. ``done`` fires when it ends."""

    __slots__ = ("cap", "done", "duration_ns", "rate_per_s", "remaining", "speed", "usage")

    def __init__(self, done: simpy.Event, duration_ns: int, usage: Usage, rate_per_s: float, cap: int) -> None:
        self.done = done
        self.duration_ns = duration_ns
        self.remaining = duration_ns * SPEED_ONE
        self.usage = usage
        self.rate_per_s = rate_per_s
        self.cap = cap
        self.speed = cap


class Demand(NamedTuple):
    """What a flow asks for, before or without running it."""

    usage: Usage
    rate_per_s: float
    cap: int


class Network:
    """Flows over shared resources with capacities in units per second."""

    def __init__(self, clock: Clock, capacities: Mapping[str, float]) -> None:
        self._clock = clock
        self._capacities = dict(capacities)
        self._flows: list[Flow] = []
        self._updated_ns = 0
        self._version = 0
        self.used_units = dict.fromkeys(self._capacities, 0.0)
        """Units each resource has delivered to the flows that have ended."""

    def start(self, duration_ns: int, usage: Usage = (), rate_per_s: float = 0.0, cap: int = SPEED_ONE) -> Flow:
        """Begin a flow that takes ``duration_ns`` at full speed; ``cap`` is the speed it may have at most."""
        self._advance()
        flow = Flow(self._clock.event(), duration_ns, usage, rate_per_s, cap)
        self._flows.append(flow)
        self._retime()
        return flow

    def set_cap(self, flow: Flow, cap: int) -> None:
        """Change the speed a flow may have at most from now on."""
        if flow.cap == cap:
            return
        self._advance()
        flow.cap = cap
        self._retime()

    def _advance(self) -> None:
        elapsed_ns = self._clock.now_ns - self._updated_ns
        self._updated_ns = self._clock.now_ns
        if elapsed_ns:
            for flow in self._flows:
                flow.remaining -= elapsed_ns * flow.speed

    def _retime(self) -> None:
        self._version += 1
        if not self._flows:
            return
        speeds = fair_speeds(self._flows, self._capacities)
        for flow, speed in zip(self._flows, speeds, strict=True):
            flow.speed = speed
        wait_ns = min(-(-max(0, flow.remaining) // flow.speed) for flow in self._flows)
        timer = self._clock.timeout(wait_ns, value=self._version)
        assert timer.callbacks is not None, "a new timeout takes callbacks"
        timer.callbacks.append(self._expire)

    def _expire(self, event: simpy.Event) -> None:
        if event.value != self._version:
            return
        self._advance()
        ended = [flow for flow in self._flows if flow.remaining <= 0]
        self._flows = [flow for flow in self._flows if flow.remaining > 0]
        self._retime()
        for flow in ended:
            for resource, units in flow.usage:  # slower or faster, a flow takes the same units in the end
                self.used_units[resource] += units * flow.duration_ns / NS_PER_S
            flow.done.succeed()


def lone_speed(usage: Usage, rate_per_s: float, capacities: Mapping[str, float], cap: int = SPEED_ONE) -> int:
    """Speed of a flow with the network to itself, which its own ranks can still fill."""
    return fair_speeds([Demand(usage, rate_per_s, cap)], capacities)[0]


def fair_speeds(flows: Sequence[Flow | Demand], capacities: Mapping[str, float]) -> list[int]:
    """Max–min fair speeds: byte rates rise together until a resource is full or a flow is at its cap.

    Assumption A10: resources are shared max–min fair by bytes per second and rank, and a lookup asks for them evenly
    over its time alone.
    """
    caps = [flow.cap for flow in flows]
    load: dict[str, float] = {}
    for flow in flows:
        for resource, units in flow.usage:
            load[resource] = load.get(resource, 0.0) + units * flow.cap / SPEED_ONE
    for resource, units in load.items():
        if units > capacities[resource]:
            break
    else:
        return caps
    speeds = caps[:]
    open_flows = [index for index, flow in enumerate(flows) if flow.usage and flow.rate_per_s > 0]
    free = dict(capacities)
    while open_flows:
        # The level of bytes per second at which the first resource is full, or the first open flow is at its cap.
        weight: dict[str, float] = {}
        for index in open_flows:
            for resource, units in flows[index].usage:
                weight[resource] = weight.get(resource, 0.0) + units / flows[index].rate_per_s
        full_level = min(free[resource] / units for resource, units in weight.items() if units > 0)
        full = [r for r, units in weight.items() if units > 0 and free[r] / units <= full_level * (1 + 1e-12)]
        capped = [i for i in open_flows if flows[i].rate_per_s * caps[i] / SPEED_ONE <= full_level]
        frozen = capped or [i for i in open_flows if any(resource in full for resource, _ in flows[i].usage)]
        for index in frozen:
            flow = flows[index]
            if not capped:
                speeds[index] = max(1, int(full_level / flow.rate_per_s * SPEED_ONE))
            for resource, units in flow.usage:
                free[resource] = max(0.0, free[resource] - units * speeds[index] / SPEED_ONE)
        open_flows = [index for index in open_flows if index not in frozen]
    return speeds
