"""Warnings of a run that is at its limits: a shared thing is full, or requests come faster than they are served."""

from collections.abc import Sequence

import numpy as np

from tiercast_profiles.columns import RequestColumns
from tiercast_profiles.record import RequestSamples, ResourceUse
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.stats import median
from tiercast_profiles.units import NS_PER_MS, NS_PER_S
from tiercast_sim.run import RunResult

FULL_RATIO = 0.95  # both are when to speak up, not parts of the model: no number depends on them
GROWTH_RATIO = 2
MIN_REQUESTS = 8  # fewer show no trend


def load_warnings(resolved: ResolvedScenario, nominal: RunResult, shared: Sequence[ResourceUse]) -> list[str]:
    """What the nominal run says about its own load; ``shared`` is how busy shared things were."""
    warnings = [
        f"{use.name} is {100 * use.busy_ratio.value:.0f} % busy: it limits the run"
        for use in shared
        if use.kind != "time" and use.busy_ratio.value >= FULL_RATIO
    ]
    if resolved.scenario.workload.kind != "closed_loop":
        warnings += open_loop_warnings(nominal.requests)
    return warnings


def open_loop_warnings(requests: RequestSamples | RequestColumns) -> list[str]:
    """Whether requests came faster than they were served, and whether the queue was still growing."""
    arrival, first, finish = map(np.asarray, (requests.arrival_ns, requests.first_token_ns, requests.finish_ns))
    num_requests, last_ns = len(arrival), int(arrival.max())
    if num_requests < MIN_REQUESTS or last_ns == 0:
        return []
    warnings = []
    num_tokens = int(np.asarray(requests.output_tokens).sum())
    offered, served = num_tokens * NS_PER_S / last_ns, num_tokens * NS_PER_S / int(finish.max())
    waits = (first - arrival)[np.argsort(arrival, kind="stable")].tolist()
    quarter = num_requests // 4
    early, late = median(waits[quarter : 2 * quarter]), median(waits[-quarter:])
    is_growing = late > GROWTH_RATIO * early
    if is_growing:
        warnings.append(
            f"the queue grows: the median TTFT rises from {early / NS_PER_MS:.3g} ms in the second quarter of the "
            f"requests to {late / NS_PER_MS:.3g} ms in the last; latencies depend on num_requests"
        )
    # A drain of the last few requests is no overload: served falls behind offered and the waits rise.
    if is_growing and served < FULL_RATIO * offered:
        warnings.append(f"offered load exceeds capacity: {offered:.4g} output tokens/s asked for, {served:.4g} served")
    return warnings
