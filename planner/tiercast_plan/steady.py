"""A finalist simulated: what a closed loop does once its first wave is over.

One replica is simulated and speaks for all of its host. Assumption A31: the replicas of a host use what they share at
the same time, so each has an even part of host memory, drive, pool, worker cores and of links between them. That is
the slow end: replicas whose lookups miss each other are faster.

Assumption A29: the requests of the first wave, which all start at once, count for nothing: neither their latencies nor
the tokens of the time in which their prompts are worked off, nor the last wave, in which slots run empty. A benchmark
that keeps ``concurrency`` requests in flight for long reports the same.
"""

from dataclasses import dataclass

import numpy as np

from tiercast_profiles.document import Bound, Quantity
from tiercast_profiles.hardware import HardwareProfile, Storage
from tiercast_profiles.quantiles import quantile
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import NS_PER_MS, NS_PER_S
from tiercast_sim.fast_serving import needs_events
from tiercast_sim.memory import MemoryPlan
from tiercast_sim.run import run

NUM_WAVES = 4
NUM_WAVES_BY_EVENTS = 2
MIN_REQUESTS = 64


@dataclass(frozen=True, slots=True)
class Steady:
    """A host in its steady state; latencies at one percentile, rates over all its replicas."""

    ttft_ms: float
    tpot_ms: float
    stall_ms_per_step: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    memory: MemoryPlan


def is_by_events(resolved: ResolvedScenario) -> bool:
    """True where one replica needs the event engine: its lookups reach into the next step, repeat, or are drawn."""
    placement = resolved.placement
    has_draws = placement.tier in ("nvme", "cxl", "pool") and bool(_storage(resolved.hardware, placement.tier))
    return has_draws or needs_events(one_replica(resolved, 1)) is not None


def one_replica(resolved: ResolvedScenario, concurrency: int) -> ResolvedScenario:
    """One replica of a full host at a load, with its part of what the host's replicas share."""
    scenario, parts = resolved.scenario, resolved.scenario.parallel.data
    workload = scenario.workload.model_copy(update={"concurrency": concurrency})
    alone = scenario.model_copy(
        update={"parallel": scenario.parallel.model_copy(update={"data": 1}), "workload": workload}
    )
    return resolved.model_copy(update={"scenario": alone, "hardware": _part_of(resolved, parts)})


def _part_of(resolved: ResolvedScenario, parts: int) -> HardwareProfile:
    hardware = resolved.hardware
    if parts == 1:
        return hardware
    host, link = hardware.host, hardware.host_to_device
    per_link = max(1, link.num_sharing // resolved.scenario.parallel.tensor)  # replicas on one link
    return hardware.model_copy(
        update={
            "host": host.model_copy(
                update={
                    "memory_bandwidth_gb_per_s": _divided(host.memory_bandwidth_gb_per_s, parts),
                    "num_cores": max(1, host.num_cores // parts),
                }
            ),
            "host_to_device": link.model_copy(
                update={"bandwidth_gb_per_s": _divided(link.bandwidth_gb_per_s, min(parts, per_link))}
            ),
            "nvme": _part_of_storage(hardware.nvme, parts),
            "cxl": _part_of_storage(hardware.cxl, parts),
            "pool": _part_of_storage(hardware.pool, parts),
        }
    )


def _part_of_storage(storage: Storage | None, parts: int) -> Storage | None:
    if storage is None:
        return None
    reads, in_flight = storage.max_reads_per_s, storage.num_reads_in_flight
    return storage.model_copy(
        update={
            "read_bandwidth_gb_per_s": _divided(storage.read_bandwidth_gb_per_s, parts),
            "max_reads_per_s": None if reads is None else _divided(reads, parts),
            "num_reads_in_flight": None if in_flight is None else max(1, in_flight // parts),
        }
    )


def _divided(quantity: Quantity, parts: int) -> Quantity:
    ends = {} if quantity.low is None or quantity.high is None else {"low": quantity.low, "high": quantity.high}
    return Quantity.model_validate({name: end / parts for name, end in {"value": quantity.value, **ends}.items()})


def _storage(hardware: HardwareProfile, tier: str) -> tuple[object, ...]:
    storage = {"nvme": hardware.nvme, "cxl": hardware.cxl, "pool": hardware.pool}.get(tier)
    return () if storage is None else storage.latency_tail


def steady_state(resolved: ResolvedScenario, percentile: int, concurrency: int, bound: Bound = "nominal") -> Steady:
    """Simulate a closed loop of ``concurrency`` requests per replica and read the steady state of the host.

    Raises:
        InfeasibleScenario: it does not fit at this bound.
    """
    num_replicas = resolved.scenario.parallel.data
    waves = NUM_WAVES_BY_EVENTS if is_by_events(resolved) else NUM_WAVES
    alone = one_replica(resolved, concurrency)
    workload = alone.scenario.workload.model_copy(update={"num_requests": max(MIN_REQUESTS, waves * concurrency)})
    scenario = alone.scenario.model_copy(update={"workload": workload})
    result = run(alone.model_copy(update={"scenario": scenario}), bound)
    samples = result.samples
    requests, steps = samples.requests, samples.steps
    arrival, first, finish, tokens, prompts = (
        np.asarray(column)
        for column in (
            requests.arrival_ns,
            requests.first_token_ns,
            requests.finish_ns,
            requests.output_tokens,
            requests.prompt_tokens,
        )
    )
    is_later = arrival > 0
    start_ns, end_ns = int(first[~is_later].max()), int(arrival.max())
    if end_ns <= start_ns:  # hardly more requests than slots: the whole run is all there is
        start_ns, end_ns, is_later = 0, int(finish.max()), np.ones_like(is_later)
    has_more = is_later & (tokens > 1)
    tpot = (finish - first)[has_more] / (tokens[has_more] - 1)
    begins = np.asarray(steps.start_ns)
    in_window = (begins >= start_ns) & (begins < end_ns)
    decoded = int(np.asarray(steps.decode_sequences)[in_window].sum())
    started = int(((first > start_ns) & (first <= end_ns)).sum())
    output_per_s = num_replicas * (decoded + started) * NS_PER_S / (end_ns - start_ns)
    return Steady(
        ttft_ms=quantile((first - arrival)[is_later].tolist(), percentile / 100) / NS_PER_MS,
        tpot_ms=quantile(tpot.tolist(), percentile / 100) / NS_PER_MS if len(tpot) else 0.0,
        stall_ms_per_step=float(np.asarray(steps.stall_ns).mean()) / NS_PER_MS,
        output_tokens_per_s=output_per_s,
        total_tokens_per_s=output_per_s * (1 + float(prompts.sum()) / float(tokens.sum())),
        memory=result.memory,
    )
