"""How long a placement takes to come up: loading, first touch, registration, upload; unknown rates stay unknown."""

from tiercast_profiles.document import Bound, Quantity
from tiercast_profiles.hardware import HOST_DRIVEN_PATHS
from tiercast_profiles.record import StartUp, StartUpPart
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import GB
from tiercast_sim.checked import positive
from tiercast_sim.memory import MemoryPlan, replicas_per_host
from tiercast_sim.metrics import Runs, at_each, band


def start_up(resolved: ResolvedScenario, runs: Runs) -> StartUp:
    """Start-up of the fullest host.

    Assumption A74: hosts start side by side; on a host the parts follow one another, and each runs at its stated rate.
    A drive tier is read in place, a pool is full already. Weights and tables are read once for each copy, from the
    host's drive.
    """
    plans = at_each(runs, lambda result: result.memory)
    sizes = _sizes(resolved, plans["nominal"])
    hardware = resolved.hardware
    link = hardware.host_to_device
    drive = None if hardware.nvme is None else hardware.nvme.read_bandwidth_gb_per_s
    rates: dict[str, tuple[str, Quantity | None, float]] = {
        "read from the drive": ("nvme.read_bandwidth_gb_per_s", drive, 1.0),
        "first touch of pages": ("host.page_fill_gb_per_s", hardware.host.page_fill_gb_per_s, 1.0),
        "register with the devices": ("host.register_gb_per_s", hardware.host.register_gb_per_s, 1.0),
        "copy to the devices": ("host_to_device.bandwidth_gb_per_s", link.bandwidth_gb_per_s, 1 / link.num_sharing),
    }
    parts: list[StartUpPart] = []
    totals: dict[Bound, float] = dict.fromkeys(plans, 0.0)
    is_known = True
    for name, (field, rate, share) in rates.items():
        size = sizes[name]
        if size == 0:
            continue
        if rate is None:
            is_known = False
            note = f"the profile of {hardware.name} does not state {field}"
            parts.append(StartUpPart(name=name, size_bytes=size, time_s=None, note=note))
            continue
        seconds: dict[Bound, float] = {}
        for bound in plans:
            seconds[bound] = size / (positive(rate, bound, field) * GB * share)
            totals[bound] += seconds[bound]
        parts.append(StartUpPart(name=name, size_bytes=size, time_s=band(seconds)))
    return StartUp(parts=tuple(parts), total_s=band(totals) if is_known else None)


def _sizes(resolved: ResolvedScenario, plan: MemoryPlan) -> dict[str, int]:
    """Bytes of each part on the fullest host; those copied to the devices per device, which share links by group."""
    placement, tensor = resolved.placement, resolved.scenario.parallel.tensor
    num_replicas = min(resolved.scenario.parallel.num_replicas, replicas_per_host(resolved))
    per_rank = sum(plan.hbm_per_rank[name] for name in ("weights", "replicated_weights", "tables"))
    in_dram = plan.per_host.get("dram", ({},))[0]
    tables = in_dram.get("tables", 0)
    held = sum(plan.per_host["cxl"][0].values()) if "cxl" in plan.per_host else tables
    is_cpu = resolved.hardware.device.kind == "cpu"
    pinned = in_dram.get("staging", 0) if placement.path in HOST_DRIVEN_PATHS else held
    return {
        "read from the drive": per_rank * tensor * num_replicas + held,
        "first touch of pages": sum(in_dram.values()),
        "register with the devices": 0 if is_cpu else pinned,
        "copy to the devices": 0 if is_cpu else per_rank,
    }
