"""A step in plain arithmetic, without an event queue: the oracle the simulator is checked against, used by tests alone.

It holds where nothing else shares the links: one replica, or resources wide enough for all. All lookups of a step pass
one worker in order; compute and a running lookup slow each other by the interference speeds.
"""

from dataclasses import dataclass, field

from tiercast_profiles.scenario import Prefetch
from tiercast_sim.work import SPEED_ONE, LookupWork, StepWork


@dataclass(slots=True)
class _Job:
    """A lookup on the worker: remaining work in ns × speed, ns until the worker begins it, and its times."""

    remaining: int
    waiting_ns: int = 0
    started_ns: int = -1
    ready_ns: int = -1


@dataclass(slots=True)
class WorkerState:
    """What a step leaves behind for the next: lookups that were issued early and are not ready yet, by layer."""

    now_ns: int = 0
    early: list[_Job] = field(default_factory=list)
    queue: list[_Job] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What a step did: its length, the stall before each Engram layer, and the service time of its lookups."""

    duration_ns: int
    stall_ns: tuple[int, ...]
    lookup_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Speeds:
    """Speed of compute beside a lookup, of a lookup beside compute, and what shared resources leave to a lookup."""

    compute: int = SPEED_ONE
    lookup: int = SPEED_ONE
    share: int = SPEED_ONE


FULL = Speeds()


def run_step(work: StepWork, prefetch: Prefetch, state: WorkerState, speeds: Speeds = FULL) -> StepOutcome:
    """Length and stalls of one step that begins at ``state.now_ns``; advances ``state`` to its end."""
    start_ns = state.now_ns

    def compute(duration_ns: int) -> None:
        _advance_compute(state, duration_ns, speeds.compute, min(speeds.lookup, speeds.share))

    def issue(lookup: LookupWork) -> _Job:
        job = _Job(lookup.duration_ns * SPEED_ONE, lookup.wait_ns)
        if lookup.duration_ns == 0:
            job.started_ns = job.ready_ns = state.now_ns
        else:
            state.queue.append(job)
            _head(state)
        return job

    def wait(job: _Job) -> None:
        while job.ready_ns < 0:
            head = _head(state)
            if head.waiting_ns:
                state.now_ns += head.waiting_ns
                head.waiting_ns = 0
                continue
            state.now_ns += -(-head.remaining // speeds.share)
            head.remaining = 0
            _drop_ready(state)

    early = state.early
    state.early = []
    compute(work.pre_ns)
    jobs: list[_Job] = []
    if prefetch != "off":
        jobs = [issue(lookup) for lookup in work.lookups]
        state.early = [issue(lookup) for lookup in work.early_lookups]
    stalls = []
    for index, lookup in enumerate(work.lookups):
        compute(work.segments_ns[index])
        arrived_ns = state.now_ns
        if prefetch == "off":
            jobs.append(issue(lookup))
        if early:
            wait(early[index])
        wait(jobs[index])
        stalls.append(state.now_ns - arrived_ns)
    for segment_ns in work.segments_ns[len(work.lookups) :]:
        compute(segment_ns)
    services = [job.ready_ns - job.started_ns for job in jobs]
    for index, job in enumerate(early):
        services[index] += job.ready_ns - job.started_ns
    return StepOutcome(state.now_ns - start_ns, tuple(stalls), tuple(services))


def _head(state: WorkerState) -> _Job:
    head = state.queue[0]
    if head.started_ns < 0 and not head.waiting_ns:
        head.started_ns = state.now_ns
    return head


def _drop_ready(state: WorkerState) -> None:
    """Take an ended lookup off the worker; the next one starts at that instant."""
    head = state.queue[0]
    if head.remaining <= 0:
        head.ready_ns = state.now_ns
        state.queue.pop(0)
        if state.queue:
            _head(state)


def _advance_compute(state: WorkerState, duration_ns: int, compute_speed: int, lookup_speed: int) -> None:
    """Run compute to its end; lookups on the worker progress beside it."""
    remaining = duration_ns * SPEED_ONE
    while remaining > 0:
        if not state.queue:
            state.now_ns += -(-remaining // SPEED_ONE)
            return
        head = _head(state)
        if head.waiting_ns:
            elapsed_ns = min(-(-remaining // SPEED_ONE), head.waiting_ns)
            state.now_ns += elapsed_ns
            remaining -= elapsed_ns * SPEED_ONE
            head.waiting_ns -= elapsed_ns
            continue
        elapsed_ns = min(-(-remaining // compute_speed), -(-head.remaining // lookup_speed))
        state.now_ns += elapsed_ns
        remaining -= elapsed_ns * compute_speed
        head.remaining -= elapsed_ns * lookup_speed
        _drop_ready(state)
