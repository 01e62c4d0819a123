"""One replica in simulated time: its queue, its steps, its lookup worker."""

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import NamedTuple

import simpy

from tiercast_profiles.scenario import Prefetch
from tiercast_sim.clock import Clock
from tiercast_sim.costs import StepCosts
from tiercast_sim.handover import DecodeSource, PrefillSource
from tiercast_sim.links import Flow, Network
from tiercast_sim.serving import Scheduler
from tiercast_sim.source import RequestSource
from tiercast_sim.time_spread import mean_stalls_ns
from tiercast_sim.work import SPEED_ONE, LookupWork, StepWork

Process = Generator[simpy.Event, object, None]


@dataclass(slots=True)
class LookupJob:
    """A lookup handed to the worker, and its times in ns; −1 until known."""

    work: LookupWork
    issued_ns: int
    started_ns: int = -1
    ready_ns: int = -1
    ready: simpy.Event | None = None


class LayerTimes(NamedTuple):
    """One Engram layer in one step: when its ids were known, when it wanted its rows, when they were there."""

    known_ns: int
    wanted_ns: int
    issued_ns: int
    ready_ns: int
    stall_ns: int
    service_ns: int
    rows_read: int
    bytes_per_rank: int

    @property
    def window_ns(self) -> int:
        """Time between the moment the row ids are known and the moment the layer wants the rows."""
        return self.wanted_ns - self.known_ns

    @property
    def required_ns(self) -> int:
        """Time its own lookup may take without a stall; 0 where it begins when the layer already waits."""
        return max(0, self.wanted_ns - (self.ready_ns - self.service_ns))


class StepLog(NamedTuple):
    """One step as it happened."""

    replica: int
    start_ns: int
    duration_ns: int
    prefill_tokens: int
    decode_sequences: int
    stall_ns: int
    lookup_ns: int
    rows: int
    rows_read: int
    rows_hit: int = 0
    pre_ns: int = 0
    layers: tuple[LayerTimes, ...] = ()


@dataclass(slots=True)
class LookupWorker:
    """Serves lookups one after another, in the order they were handed over."""

    clock: Clock
    network: Network
    speed_beside_compute: int
    is_compute_running: bool = False
    is_serving: bool = False
    flow: Flow | None = None
    queue: deque[LookupJob] = field(default_factory=deque)
    slows: "Replica | None" = None

    def submit(self, work: LookupWork) -> LookupJob:
        """Hand over a lookup; one of no rows is ready at once and queues behind nothing."""
        job = LookupJob(work, self.clock.now_ns)
        if work.duration_ns == 0:
            job.started_ns = job.ready_ns = self.clock.now_ns
            return job
        self.queue.append(job)
        if not self.is_serving:
            self._next()
        return job

    def compute_runs(self, is_running: bool) -> None:
        """Told when compute starts or stops: a lookup beside compute has the interference speed."""
        self.is_compute_running = is_running
        if self.flow is not None:
            self.network.set_cap(self.flow, self._cap())

    def _cap(self) -> int:
        return self.speed_beside_compute if self.is_compute_running else SPEED_ONE

    def _next(self) -> None:
        self.is_serving = bool(self.queue)
        if self.queue and self.queue[0].work.wait_ns:
            turned = self.clock.timeout(self.queue[0].work.wait_ns)
            assert turned.callbacks is not None, "a new timeout has not ended"
            turned.callbacks.append(self._begin)
        elif self.queue:
            self._begin()
            return
        self._tell()

    def _begin(self, _event: simpy.Event | None = None) -> None:
        job = self.queue[0]
        job.started_ns = self.clock.now_ns
        work = job.work
        self.flow = self.network.start(work.duration_ns, work.usage, work.rate_bytes_per_s, self._cap())
        assert self.flow.done.callbacks is not None, "a new flow has not ended"
        self.flow.done.callbacks.append(self._ended)
        self._tell()

    def _tell(self) -> None:
        if self.slows is not None:
            self.slows.lookup_runs(self.flow is not None)

    def _ended(self, _event: simpy.Event) -> None:
        self.flow = None
        job = self.queue.popleft()
        job.ready_ns = self.clock.now_ns
        if job.ready is not None:
            job.ready.succeed()
        self._next()


@dataclass(frozen=True, slots=True)
class World:
    """What the replicas of a run share. The speeds are those of compute and lookup beside each other."""

    clock: Clock
    network: Network
    source: RequestSource | PrefillSource | DecodeSource
    prefetch: Prefetch
    compute_speed: int = SPEED_ONE
    lookup_speed: int = SPEED_ONE


class Replica:
    """Serves its share of the requests until the source has no more for it."""

    def __init__(self, world: World, index: int, scheduler: Scheduler, costs: StepCosts) -> None:
        self._world, self._index, self._scheduler, self._costs = world, index, scheduler, costs
        self._has_interference = (world.compute_speed, world.lookup_speed) != (SPEED_ONE, SPEED_ONE)
        self._worker = LookupWorker(world.clock, world.network, world.lookup_speed)
        if self._has_interference:
            self._worker.slows = self
        self._compute_flow: Flow | None = None
        self._early: tuple[LookupJob, ...] = ()
        self.steps: list[StepLog] = []

    def run(self) -> Process:
        """The serving loop: plan, step, book, again; idle until the next arrival."""
        clock, scheduler, source = self._world.clock, self._scheduler, self._world.source
        while True:
            for request in source.arrived(self._index, clock.now_ns):
                scheduler.add(request)
            if not scheduler.has_work:
                wake = source.next_arrival(clock, self._index)
                if wake is None:
                    return
                yield wake
                continue
            plan = scheduler.plan()
            for request in scheduler.take_loads():
                source.load(request)
            if plan.num_tokens == 0:
                yield source.blocked(self._index)
                continue
            upcoming = scheduler.upcoming_chunks() if self._costs.wants_upcoming else ()
            work = self._costs.price(plan, upcoming)
            start_ns = clock.now_ns
            layers: list[LayerTimes] = []
            if work.lookups:
                yield from self._with_lookups(work, layers)
            else:
                yield clock.timeout(work.pre_ns + sum(work.segments_ns))
                _gathered(work, start_ns, layers)
            rows_read = work.num_rows_gathered + sum(look.rows_read for look in work.lookups + work.early_lookups)
            self.steps.append(
                StepLog(
                    replica=self._index,
                    start_ns=start_ns,
                    duration_ns=clock.now_ns - start_ns,
                    prefill_tokens=plan.num_prefill_tokens,
                    decode_sequences=plan.num_decodes,
                    stall_ns=sum(layer.stall_ns for layer in layers),
                    lookup_ns=sum(layer.service_ns for layer in layers),
                    rows=work.num_rows,
                    rows_read=rows_read,
                    rows_hit=sum(look.rows_hit for look in work.lookups + work.early_lookups),
                    pre_ns=work.pre_ns,
                    layers=tuple(layers),
                )
            )
            finished = scheduler.finish()
            for request in finished.first_tokens:
                source.first_token(request, clock.now_ns)
            for request in finished.done:
                source.finish(request, clock.now_ns)

    def lookup_runs(self, is_running: bool) -> None:
        """Told when the worker starts or stops: compute beside a lookup has the interference speed."""
        if self._compute_flow is not None:
            self._world.network.set_cap(self._compute_flow, self._world.compute_speed if is_running else SPEED_ONE)

    def _compute(self, duration_ns: int) -> Process:
        if duration_ns <= 0:
            return
        if not self._has_interference:
            yield self._world.clock.timeout(duration_ns)
            return
        speed = self._world.compute_speed if self._worker.flow is not None else SPEED_ONE
        self._compute_flow = self._world.network.start(duration_ns, cap=speed)
        self._worker.compute_runs(True)
        yield self._compute_flow.done
        self._compute_flow = None
        self._worker.compute_runs(False)

    def _with_lookups(self, work: StepWork, layers: list[LayerTimes]) -> Process:
        clock, worker = self._world.clock, self._worker
        early, self._early = self._early, ()
        yield from self._compute(work.pre_ns)
        known_ns = clock.now_ns
        jobs: list[LookupJob] = []
        if self._world.prefetch != "off":
            jobs = [worker.submit(lookup) for lookup in work.lookups]
            self._early = tuple(worker.submit(lookup) for lookup in work.early_lookups)
        least_ns = mean_stalls_ns(work, self._world.prefetch, self._world.lookup_speed)
        stood_ns = 0
        for index, lookup in enumerate(work.lookups):
            yield from self._compute(work.segments_ns[index])
            wanted_ns = clock.now_ns
            if self._world.prefetch == "off":
                jobs.append(worker.submit(lookup))
            waited = [job for job in (*early[index : index + 1], jobs[index]) if job is not None]
            for job in waited:
                if job.ready_ns < 0:
                    job.ready = clock.event()
                    yield job.ready
            stood_ns += clock.now_ns - wanted_ns
            if least_ns and stood_ns < least_ns[index]:
                yield clock.timeout(least_ns[index] - stood_ns)
                stood_ns = least_ns[index]
            layers.append(
                LayerTimes(
                    known_ns=known_ns,
                    wanted_ns=wanted_ns,
                    issued_ns=jobs[index].issued_ns,
                    ready_ns=jobs[index].ready_ns,
                    stall_ns=clock.now_ns - wanted_ns,
                    service_ns=sum(job.ready_ns - job.started_ns for job in waited),
                    rows_read=sum(job.work.rows_read for job in waited),
                    bytes_per_rank=sum(job.work.bytes_per_rank for job in waited),
                )
            )
        yield from self._compute(work.segments_ns[-1])


def _gathered(work: StepWork, start_ns: int, layers: list[LayerTimes]) -> None:
    """Layer times of a step whose rows the device gathers itself: the gather is compute, the stall is zero (A9)."""
    known_ns = start_ns + work.pre_ns
    wanted_ns = known_ns
    for index, gather_ns in enumerate(work.gather_ns):
        wanted_ns += work.segments_ns[index]
        rows_read = work.num_rows_gathered // len(work.gather_ns)
        layers.append(
            LayerTimes(
                known_ns=known_ns,
                wanted_ns=wanted_ns,
                issued_ns=wanted_ns,
                ready_ns=wanted_ns + gather_ns,
                stall_ns=0,
                service_ns=gather_ns,
                rows_read=rows_read,
                bytes_per_rank=work.gather_bytes[index],
            )
        )
