"""What the runtime does not do, refused by name before anything is built: a knob is never silently ignored."""

import torch

from tiercast_profiles.errors import MissingCapability
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_runtime.backbone import check_runnable


def device_of(resolved: ResolvedScenario) -> torch.device:
    """The device the scenario's hardware profile describes, if this machine has it.

    Raises:
        MissingCapability: the profile is of another kind of machine.
    """
    kind, name = resolved.hardware.device.kind, resolved.hardware.name
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "cuda" and torch.cuda.is_available() and torch.version.cuda is not None:
        return torch.device("cuda", torch.cuda.current_device())
    raise MissingCapability(
        f"hardware {name!r} has a {kind} device and this machine has none that torch can use; bench runs on the "
        "machine a profile was made on: run 'tiercast profile' here and name its file, or simulate instead"
    )


def check_supported(resolved: ResolvedScenario, *, has_ranks: bool = False) -> None:
    """Refuse a scenario that asks for what the runtime lacks. ``has_ranks``: it can be given several processes.

    Raises:
        MissingCapability: one line with the knob, its value and what to do.
    """
    scenario, placement, hardware = resolved.scenario, resolved.placement, resolved.hardware
    check_runnable(resolved.model)
    if placement.tier != "none":
        resolved.model.engram.require_hash()
    refusals = (
        (
            scenario.speculative.draft_tokens > 0 and bool(scenario.speculative.draft_step_us),
            f"speculative.draft_step_us={scenario.speculative.draft_step_us}: the runtime has no draft model, drafts "
            "take no time in it; set 0 or simulate",
        ),
        (
            scenario.engine.kv_reservation != "full",
            f"engine.kv_reservation {scenario.engine.kv_reservation!r}: the runtime reserves KV for whole requests; "
            "set full or simulate",
        ),
        (
            scenario.engine.prefix_caching,
            "engine.prefix_caching true: the runtime keeps no KV of earlier requests; set false or simulate",
        ),
        (
            scenario.parallel.prefill > 0,
            f"parallel.prefill={scenario.parallel.prefill}: the runtime uses one device for both; set 0 or simulate",
        ),
        (
            scenario.parallel.data > 1,
            f"parallel is tensor={scenario.parallel.tensor}, data={scenario.parallel.data}: the runtime serves one "
            "replica, and replicas share no request and no device; set data to 1 and the load (concurrency or rate, "
            f"num_requests) to 1/{scenario.parallel.data} of it to measure one of them, or simulate them together",
        ),
        (
            scenario.parallel.tensor > 1 and not has_ranks,
            f"parallel.tensor={scenario.parallel.tensor}: the runtime's ranks share out lookups and not compute, so "
            "that predictions of tensor-parallel compute cannot be checked against them; set it to 1, or use bench",
        ),
        (
            placement.replication == "per_numa" and hardware.host.num_numa_nodes > 1,
            f"placement.replication 'per_numa' on {hardware.host.num_numa_nodes} NUMA nodes: the runtime keeps one "
            "copy; set per_node or simulate",
        ),
        (
            placement.tier in ("cxl", "pool"),
            f"placement.tier {placement.tier!r}: the runtime keeps tables in hbm, dram or nvme; simulate this one",
        ),
        (
            placement.page_cache_residency_ratio > 0,
            f"placement.page_cache_residency_ratio={placement.page_cache_residency_ratio:g}: the runtime reports what "
            "the page cache holds and cannot set it; leave it out or simulate",
        ),
    )
    for is_refused, text in refusals:
        if is_refused:
            raise MissingCapability(text)
