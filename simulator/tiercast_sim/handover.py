"""Prefill and decode on separate replicas: prompts end on one, their KV travels, outputs come from another.

Assumption A77: prefill replica i mod ``prefill`` computes request i and yields its first token; decode replica i mod
``data`` fetches the KV of the prompt once it has blocks for it, over the link of tensor-parallel traffic, every rank
its own share. The blocks on the prefill side are held until then. Transfers out of one replica, and into one, share
its link and do not slow collectives.
"""

from collections import deque
from collections.abc import Generator
from dataclasses import replace

import simpy

from tiercast_profiles.document import Bound
from tiercast_profiles.errors import MissingCapability
from tiercast_profiles.scenario import Parallel, ResolvedScenario
from tiercast_profiles.units import GB, NS_PER_S, NS_PER_US
from tiercast_profiles.workload import Request
from tiercast_sim.checked import non_negative, positive
from tiercast_sim.clock import Clock
from tiercast_sim.links import Network
from tiercast_sim.memory import kv_bytes_per_token_per_rank
from tiercast_sim.serving import Scheduler
from tiercast_sim.source import RequestSource


class KvLink:
    """What the KV of a prompt takes between two replicas at one bound."""

    def __init__(self, resolved: ResolvedScenario, bound: Bound) -> None:
        collective = resolved.hardware.device.collective
        if collective is None:
            raise MissingCapability(f"hardware {resolved.hardware.name!r} has no device.collective to move KV over")
        name = "device.collective"
        self.bytes_per_s = positive(collective.bandwidth_gb_per_s, bound, f"{name}.bandwidth_gb_per_s") * GB
        self._latency_ns = non_negative(collective.latency_us, bound, f"{name}.latency_us") * NS_PER_US
        self._bytes_per_token = kv_bytes_per_token_per_rank(resolved, bound)

    def bytes_of(self, num_tokens: int) -> float:
        """KV of so many tokens on one rank."""
        return num_tokens * self._bytes_per_token

    def duration_ns(self, num_tokens: int) -> int:
        """A transfer with its link to itself."""
        return max(1, round(self._latency_ns + self.bytes_of(num_tokens) / self.bytes_per_s * NS_PER_S))


def out_of(replica: int) -> str:
    """Name of a prefill replica's link."""
    return f"KV out of replica {replica}"


def into(replica: int) -> str:
    """Name of a decode replica's link."""
    return f"KV into replica {replica}"


class Handover:
    """Prompts that are done on prefill replicas, and the transfers of their KV.

    Replicas 0 … ``data`` − 1 decode, the others prefill. ``transfer_ns`` holds how long each transfer took.
    """

    def __init__(self, clock: Clock, network: Network, link: KvLink, source: RequestSource, parallel: Parallel) -> None:
        self._clock, self._network, self._link, self.source = clock, network, link, source
        self._num_decode, self._num_prefill = parallel.data, parallel.prefill
        self._queues: list[deque[Request]] = [deque() for _ in range(parallel.data)]
        self._wakes: dict[int, simpy.Event] = {}
        self._schedulers: dict[int, Scheduler] = {}
        self._left = len(source.requests)
        self.transfer_ns: list[int] = []

    def source_of(self, replica: int, scheduler: Scheduler) -> "PrefillSource | DecodeSource":
        """Where a replica, which ``scheduler`` serves, gets its requests from."""
        self._schedulers[replica] = scheduler
        return DecodeSource(self) if replica < self._num_decode else PrefillSource(self)

    def decode_of(self, request: Request) -> int:
        """The replica that decodes a request."""
        return request.request_id % self._num_decode

    def prefill_of(self, request: Request) -> int:
        """The replica that computes a request's prompt."""
        return self._num_decode + request.request_id % self._num_prefill

    def sleep(self, replica: int) -> simpy.Event:
        """An event at the next thing that happens to a replica."""
        wake = self._wakes[replica] = self._clock.event()
        return wake

    def take(self, replica: int) -> Generator[Request, None, None]:
        """Requests whose prompts are done, for a decode replica."""
        queue = self._queues[replica]
        while queue:
            yield queue.popleft()

    @property
    def is_over(self) -> bool:
        """True when every request is finished."""
        return self._left == 0

    def prompt_done(self, request: Request, now_ns: int) -> None:
        """A prefill replica has yielded the first token; a request of one token ends there."""
        whole = self.source.requests[request.request_id]
        if whole.output_tokens == 1:
            self._schedulers[self.prefill_of(whole)].sent(whole)
            self.done(whole, now_ns)
            return
        self._queues[self.decode_of(whole)].append(whole)
        self._wake(self.decode_of(whole))

    def done(self, request: Request, now_ns: int) -> None:
        """A request is finished; in a closed loop the next one arrives."""
        self.source.finish(request, now_ns)
        self._left -= 1
        if self.is_over:
            for replica in range(self._num_decode):
                self._wake(replica)

    def load(self, request: Request) -> None:
        """A decode replica has blocks for a prompt: its KV sets out."""
        start_ns, size = self._clock.now_ns, self._link.bytes_of(request.prompt_tokens)
        duration_ns = self._link.duration_ns(request.prompt_tokens)
        rate = size * NS_PER_S / duration_ns
        names = (out_of(self.prefill_of(request)), into(self.decode_of(request)))
        flow = self._network.start(duration_ns, tuple((name, rate) for name in names), rate)

        def arrived(_event: simpy.Event) -> None:
            self.transfer_ns.append(self._clock.now_ns - start_ns)
            self._schedulers[self.decode_of(request)].loaded(request)
            self._schedulers[self.prefill_of(request)].sent(request)
            self._wake(self.decode_of(request))
            self._wake(self.prefill_of(request))

        assert flow.done.callbacks is not None, "a new flow has not ended"
        flow.done.callbacks.append(arrived)

    def _wake(self, replica: int) -> None:
        wake = self._wakes.pop(replica, None)
        if wake is not None:
            wake.succeed()


class PrefillSource:
    """The requests of a prefill replica: their prompts, which yield one token each."""

    def __init__(self, handover: Handover) -> None:
        self._handover, self._source = handover, handover.source

    def arrived(self, replica: int, now_ns: int) -> Generator[Request, None, None]:
        """Prompts that have arrived."""
        for request in self._source.arrived(replica, now_ns):
            yield replace(request, output_tokens=1)

    def next_arrival(self, clock: Clock, replica: int) -> simpy.Event | None:
        """As of the whole stream of requests."""
        return self._source.next_arrival(clock, replica)

    def blocked(self, replica: int) -> simpy.Event:
        """An event at the next KV that was fetched from here."""
        return self._handover.sleep(replica)

    def load(self, request: Request) -> None:
        """Nothing travels to a prefill replica."""
        raise AssertionError(f"request {request.request_id} was to be loaded by a prefill replica")

    def first_token(self, request: Request, now_ns: int) -> None:
        """Book the first token of a request."""
        self._source.first_token(request, now_ns)

    def finish(self, request: Request, now_ns: int) -> None:
        """The prompt is done."""
        self._handover.prompt_done(request, now_ns)


class DecodeSource:
    """The requests of a decode replica: prompts that are done elsewhere."""

    def __init__(self, handover: Handover) -> None:
        self._handover = handover

    def arrived(self, replica: int, _now_ns: int) -> Generator[Request, None, None]:
        """Requests whose prompts were done since the last call."""
        yield from self._handover.take(replica)

    def next_arrival(self, _clock: Clock, replica: int) -> simpy.Event | None:
        """An event at the next prompt that is done, or None when all requests are finished."""
        return None if self._handover.is_over else self._handover.sleep(replica)

    def blocked(self, replica: int) -> simpy.Event:
        """An event at the next KV that arrives, or prompt that is done."""
        return self._handover.sleep(replica)

    def load(self, request: Request) -> None:
        """Fetch the KV of a request that has blocks now."""
        self._handover.load(request)

    def first_token(self, request: Request, _now_ns: int) -> None:
        """The first token came from the prefill replica."""
        raise AssertionError(f"request {request.request_id} had its first token already")

    def finish(self, request: Request, now_ns: int) -> None:
        """Book the end of a request."""
        self._handover.done(request, now_ns)
