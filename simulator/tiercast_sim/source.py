"""Where requests come from and where their times are written: drawn once, then one stream dealt to the replicas."""

from collections import deque
from collections.abc import Generator
from functools import lru_cache

import simpy

from tiercast_profiles.workload import Request, RequestShapes, Workload, draw_requests, draw_shapes
from tiercast_sim.clock import Clock


def requests_of(workload: Workload, seed: int) -> tuple[Request, ...]:
    """Requests of a workload, drawn or read once for all bounds and baselines of a scenario."""
    return drawn(workload.model_dump_json(), seed, workload.stamp())


def shapes_of(workload: Workload, seed: int) -> RequestShapes:
    """Their arrivals and lengths alone, as columns, for those who need no requests one by one."""
    return drawn_shapes(workload.model_dump_json(), seed, workload.stamp())


@lru_cache(maxsize=2)
def drawn_shapes(workload_json: str, seed: int, _stamp: tuple[int, int] | None) -> RequestShapes:
    """As :func:`drawn`."""
    return draw_shapes(Workload.model_validate_json(workload_json), seed)


@lru_cache(maxsize=2)
def drawn(workload_json: str, seed: int, _stamp: tuple[int, int] | None) -> tuple[Request, ...]:
    """Requests of a workload given as text, which a cache can tell apart, and of its trace file as it is now."""
    return draw_requests(Workload.model_validate_json(workload_json), seed)


class RequestSource:
    """Arrivals of a run. Request i belongs to replica ``first_replica`` + i mod ``num_replicas``.

    Closed loop: the first ``concurrency`` requests arrive at 0, each finish lets the next one arrive at that instant.
    Otherwise requests arrive when they were drawn to, or when the trace says.
    """

    def __init__(
        self, workload: Workload, requests: tuple[Request, ...], num_replicas: int, first_replica: int = 0
    ) -> None:
        self._num_replicas, self._first_replica = num_replicas, first_replica
        self._is_closed = workload.kind == "closed_loop"
        self._pending: deque[Request] = deque(requests)
        self._arrivals: list[deque[tuple[int, Request]]] = [deque() for _ in range(first_replica + num_replicas)]
        self._wakes: list[simpy.Event | None] = [None] * (first_replica + num_replicas)
        self.arrival_ns = [0] * len(requests)
        self.first_token_ns = [0] * len(requests)
        self.finish_ns = [0] * len(requests)
        self.requests = requests
        first = (workload.concurrency or 0) if self._is_closed else len(requests)
        for _ in range(min(first, len(requests))):
            request = self._pending.popleft()
            self._arrive(request, request.arrival_ns)

    def arrived(self, replica: int, now_ns: int) -> Generator[Request, None, None]:
        """Requests of a replica that have arrived and were not taken yet, in order."""
        queue = self._arrivals[replica]
        while queue and queue[0][0] <= now_ns:
            yield queue.popleft()[1]

    def next_arrival(self, clock: Clock, replica: int) -> simpy.Event | None:
        """An event at a replica's next arrival, or None when nothing more can come to it."""
        queue = self._arrivals[replica]
        if queue:
            return clock.timeout(queue[0][0] - clock.now_ns)
        if not any(self._replica_of(request) == replica for request in self._pending):
            return None
        wake = self._wakes[replica] = clock.event()
        return wake

    def first_token(self, request: Request, now_ns: int) -> None:
        """Book the first token of a request."""
        self.first_token_ns[request.request_id] = now_ns

    def finish(self, request: Request, now_ns: int) -> None:
        """Book the end of a request; in a closed loop the next one arrives now."""
        self.finish_ns[request.request_id] = now_ns
        if self._is_closed and self._pending:
            self._arrive(self._pending.popleft(), now_ns)

    def blocked(self, replica: int) -> simpy.Event:
        """Nothing but a step of its own helps a replica that computes whole requests."""
        raise AssertionError(f"replica {replica} has work and computes nothing")

    def load(self, request: Request) -> None:
        """Nothing travels where prompts are computed in place."""
        raise AssertionError(f"request {request.request_id} was to be loaded")

    def _replica_of(self, request: Request) -> int:
        return self._first_replica + request.request_id % self._num_replicas

    def _arrive(self, request: Request, now_ns: int) -> None:
        replica = self._replica_of(request)
        self.arrival_ns[request.request_id] = now_ns
        self._arrivals[replica].append((now_ns, request))
        wake, self._wakes[replica] = self._wakes[replica], None
        if wake is not None:
            wake.succeed()
