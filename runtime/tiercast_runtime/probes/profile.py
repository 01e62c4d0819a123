"""From what the probes found to the profile: every number with its band and its evidence."""

import datetime
import re
from collections.abc import Callable
from pathlib import Path

import torch

from tiercast_profiles.document import Quantity, Source, canonical_sha256
from tiercast_profiles.efficiency import fit_efficiency
from tiercast_profiles.errors import MissingCapability
from tiercast_profiles.hardware import (
    Component,
    Device,
    Efficiency,
    HardwareProfile,
    Host,
    Link,
    LookupCurve,
    LookupPoint,
)
from tiercast_profiles.model import ModelSpec, Precision
from tiercast_profiles.units import GB, NS_PER_US
from tiercast_runtime.backbone import compute_dtype
from tiercast_runtime.device import describe, num_cores, pick_device
from tiercast_runtime.probes.gather import default_threads
from tiercast_runtime.probes.host import read_host
from tiercast_runtime.probes.partial import PartialSweeps, side_file
from tiercast_runtime.probes.plan import FULL, IN_TURNS, QUICK
from tiercast_runtime.probes.survey import Findings, survey
from tiercast_runtime.probes.timing import Spread, rounded

ASSUMED_REMOTE_RATIO = Quantity(value=0.6, low=0.4, high=1.0)
TYPICAL_STEP_SEQUENCES = 8
EMPTY_PARTS: tuple[Component, ...] = ("linear", "attention_decode")  # what a layer of next to no arithmetic is made of
CUDA_RESERVE_BYTES = 1 << 30  # context, workspaces and fragments beside what is in use now; assumed, and marked so


def measure(
    *,
    quick: bool,
    models: list[ModelSpec],
    folder: Path,
    progress: Callable[[str, float], None] | None,
    date: datetime.date | None,
    memory_bytes: int | None = None,
    output: Path | None = None,
    is_resumed: bool = False,
    is_in_turns: bool = False,
) -> HardwareProfile:
    """See :func:`tiercast_runtime.probes.profile_machine`."""
    if read_host().memory_total_bytes is None:
        raise MissingCapability("this system does not say how much memory it has; write the profile by hand")
    report = progress if progress is not None else _silent
    day = date if date is not None else datetime.datetime.now(tz=datetime.UTC).date()
    partial = None
    if output is not None and not quick:
        partial = PartialSweeps(side_file(output), _machine(memory_bytes), is_resumed=is_resumed)
    brief = IN_TURNS if is_in_turns else QUICK
    found = survey(
        plan=brief if quick else FULL,
        models=models,
        folder=folder,
        device=pick_device(),
        date=day,
        progress=report,
        memory_bytes=memory_bytes,
        partial=partial,
    )
    return assemble(found)


def _machine(memory_bytes: int | None) -> dict[str, str | int]:
    """What must be the same for the sweeps of an interrupted run to be worth keeping."""
    host = read_host()
    return {
        "cpu": host.cpu_model,
        "cores": host.num_cores,
        "kernel": host.kernel,
        "memory bytes allowed": "half of what is free" if memory_bytes is None else memory_bytes,
        "plan": canonical_sha256(repr(FULL.sweep)),
    }


def assemble(found: Findings) -> HardwareProfile:
    """The profile of a machine."""
    product = describe(found.device)
    to_device, from_device = _links(found)
    kept = sorted(found.curves, key=lambda curve: (curve.tier, curve.path))
    return HardwareProfile(
        schema_version=1,
        name=f"this-{slug(product)}",
        description=f"{_what(found, product)}, as probed on {found.date}.",
        sources=_sources(found, product),
        evidence=_evidence(found, kept),
        calibration="measured",
        device=_device(found, product),
        host=_host(found, kept),
        host_to_device=to_device,
        device_to_host=from_device,
        nvme=found.storage,
        lookups=tuple(kept),
        host_cache=tuple(found.host_cache),
        compute=(*found.tables, *found.plain_tables),
        efficiencies=_efficiencies(found),
        interference=tuple(sorted(found.interference, key=lambda entry: (entry.tier, entry.path))),
        gather_sweeps=tuple(found.gather_sweeps),
        probes=tuple(found.probes),
    )


def _efficiencies(found: Findings) -> tuple[Efficiency, ...]:
    """What share of the measured peaks the layers of each model reached."""
    precision: Precision = "fp32" if compute_dtype(found.device) == torch.float32 else "bf16"
    peak, rate = found.rates.tflops[precision].value, found.memory_gb_per_s
    fits = [fit_efficiency(table, found.backbones[table.shape_sha256], precision, peak, rate) for table in found.tables]
    return tuple(fit for fit in fits if fit is not None)


def slug(text: str) -> str:
    """A name as documents have them: lower case, letters, digits and dashes."""
    cleaned = re.sub(r"\((r|tm)\)|@.*$|\bcpu\b|\bprocessor\b", " ", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", cleaned).strip("-") or "machine"


def _silent(_what: str, _ratio: float) -> None:
    """No one watches."""


def _what(found: Findings, product: str) -> str:
    cores = f"{found.host.num_cores} cores of {found.host.cpu_model}"
    return cores if found.device.type == "cpu" else f"{product} beside {cores}"


def _quantity(spread: Spread[str], factor: float = 1.0) -> Quantity:
    return Quantity(
        value=rounded(factor * spread.value), low=rounded(factor * spread.low), high=rounded(factor * spread.high)
    )


def _device(found: Findings, product: str) -> Device:
    layer_us, step_us = _overheads(found)
    graphs = [fit for fit in _efficiencies(found) if fit.graph_mode != "eager"]
    common = {
        "product_name": product,
        "dense_tflops": found.rates.tflops,
        "matmul_efficiency_ratio": found.rates.matmul_efficiency_ratio,
        "memory_efficiency_ratio": found.rates.memory_efficiency_ratio,
        "layer_overhead_us": {"eager": layer_us} | {fit.graph_mode: fit.layer_overhead_us for fit in reversed(graphs)},
        "step_overhead_us": {"eager": step_us} | {fit.graph_mode: fit.step_overhead_us for fit in reversed(graphs)},
    }
    if found.device_copies is not None:
        properties = torch.cuda.get_device_properties(found.device)
        torch.cuda.empty_cache()  # what the probes used is no reserve
        free, total = torch.cuda.mem_get_info(found.device)
        power = found.gpu.get("power_limit")
        return Device(
            kind="cuda" if torch.version.cuda is not None else "rocm",
            num_per_host=torch.cuda.device_count(),
            num_compute_units=properties.multi_processor_count,
            memory_capacity_gb=Quantity(value=rounded(total / GB)),
            memory_reserve_gb=Quantity(value=rounded((total - free + CUDA_RESERVE_BYTES) / GB)),
            memory_bandwidth_gb_per_s=_quantity(found.device_copies.rates["device"], 2),
            has_unified_memory=bool(getattr(properties, "is_integrated", 0)),
            power_w=Quantity(value=power.value) if power is not None and isinstance(power.value, float) else None,
            **common,
        )
    total_bytes, available = found.host.memory_total_bytes, found.host.memory_available_bytes
    assert total_bytes is not None, "a host without a memory size is refused before the probes"
    return Device(
        kind="cpu",
        num_per_host=1,
        num_compute_units=found.host.num_cores,
        memory_capacity_gb=Quantity(value=rounded(total_bytes / GB)),
        memory_reserve_gb=Quantity(value=rounded(max(0, total_bytes - (available or total_bytes)) / GB)),
        memory_bandwidth_gb_per_s=_quantity(found.host_copies.rates[f"threads_{found.num_threads}"], 2),
        has_unified_memory=True,
        **common,
    )


def _overheads(found: Findings) -> tuple[Quantity, Quantity]:
    """Time of a layer that computes nearly nothing, and host time of a step."""
    empty = found.empty_layer
    assert empty is not None, "the empty layer is always timed"
    linear, attention = (
        next(spread for key, spread in empty.spreads.items() if key[0] == name) for name in EMPTY_PARTS
    )
    issued_us = sum(empty.table.components[name][0].host_us or 0.0 for name in EMPTY_PARTS)
    layer = Quantity(
        value=rounded(max(issued_us, linear.value + attention.value)),
        low=rounded(max(issued_us, linear.low + attention.low)),
        high=rounded(max(issued_us, linear.high + attention.high)),
    )
    times = found.layer_times[0] if found.layer_times else empty
    points = times.table.components["step_overhead"]
    typical = min(points, key=lambda point: abs(point.num_tokens - TYPICAL_STEP_SEQUENCES))
    low, high = min(point.low_us for point in points), max(point.high_us for point in points)
    return layer, Quantity(value=typical.time_us, low=low, high=high)


def _host(found: Findings, curves: list[LookupCurve]) -> Host:
    host = found.host
    assert host.memory_total_bytes is not None, "a host without a memory size is refused before the probes"
    remote = Quantity(value=1.0)
    if _is_remote_assumed(found):
        remote = ASSUMED_REMOTE_RATIO
    elif found.remote_reads is not None:
        spread = found.remote_reads
        low, value, high = (rounded(min(1.0, number)) for number in (spread.low, spread.value, spread.high))
        remote = Quantity(value=value, low=low, high=high)
    return Host(
        cpu_model=host.cpu_model,
        num_cores=host.num_cores,
        num_numa_nodes=host.num_numa_nodes or 1,
        memory_capacity_gb=Quantity(value=rounded(host.memory_total_bytes / GB)),
        memory_bandwidth_gb_per_s=_quantity(found.host_copies.rates[f"threads_{num_cores()}"], 2),
        random_access_ratio=_random_access(found, curves),
        remote_numa_speed_ratio=remote,
        page_size_bytes=host.page_size_bytes,
        huge_pages=host.huge_pages,
    )


def _random_access(found: Findings, curves: list[LookupCurve]) -> Quantity:
    """Rate of row gathers over the rate of copies, both with the threads that gather; both move a byte in and out."""
    curve = next(curve for curve in curves if curve.path == "cpu_gather")
    near = [point for point in curve.points if point.row_bytes >= 256] or list(curve.points)
    row_bytes = min(point.row_bytes for point in near)
    point = max((p for p in near if p.row_bytes == row_bytes), key=lambda p: (p.num_rows, p.footprint_bytes))
    copied = found.host_copies.rates[f"threads_{default_threads(found.device)}"].value

    def ratio(time_us: float) -> float:
        return rounded(min(1.0, _rate_gb_per_s(point, time_us) / copied))

    return Quantity(value=ratio(point.time_us), low=ratio(point.high_us), high=ratio(point.low_us))


def _rate_gb_per_s(point: LookupPoint, time_us: float) -> float:
    return point.num_rows * point.row_bytes / time_us * NS_PER_US / 1e3 / 1e3


def _links(found: Findings) -> tuple[Link, Link]:
    if found.device_copies is not None:
        rates, latencies = found.device_copies.rates, found.device_copies.latencies
        up, down = (
            Link(bandwidth_gb_per_s=_quantity(rates[name]), latency_us=_quantity(latencies[name]))
            for name in ("host_to_device", "device_to_host")
        )
        return up, down
    rate = found.host_copies.rates[f"threads_{found.num_threads}"]
    link = Link(bandwidth_gb_per_s=_quantity(rate), latency_us=_quantity(found.host_copies.latencies["small"]))
    return link, link


def _is_remote_assumed(found: Findings) -> bool:
    return (found.host.num_numa_nodes or 1) > 1 and found.remote_reads is None


def _sources(found: Findings, product: str) -> dict[str, Source]:
    sources = {
        "probe": Source(
            kind="measured", mark="M", source=f"tiercast profile on {found.host.cpu_model} ({product})", date=found.date
        ),
        "system": Source(
            kind="measured", mark="M", source="what the operating system and the driver report", date=found.date
        ),
        "derived": Source(
            kind="derived",
            mark="D",
            source="arithmetic on the probes in this file: fits to lookup points, shares of measured peaks",
            date=found.date,
        ),
    }
    if _is_remote_assumed(found) or found.device_copies is not None:
        sources["assumed"] = Source(
            kind="assumed", mark="R", source="not measurable here; a typical value with a wide band", date=found.date
        )
    return sources


def _evidence(found: Findings, curves: list[LookupCurve]) -> dict[str, str]:
    evidence = {
        "": "probe",
        "device.num_per_host": "system",
        "device.num_compute_units": "system",
        "device.memory_capacity_gb": "system",
        "device.memory_reserve_gb": "system" if found.device_copies is None else "assumed",
        "device.power_w": "system",
        "device.memory_efficiency_ratio": "derived",
        "device.matmul_efficiency_ratio": "derived",
        "host": "system",
        "host.memory_bandwidth_gb_per_s": "probe",
        "host.random_access_ratio": "derived",
        "host.remote_numa_speed_ratio": "assumed" if _is_remote_assumed(found) else "probe",
        "nvme.capacity_gb": "system",
        "efficiencies": "derived",
    }
    if (found.host.num_numa_nodes or 1) == 1:
        evidence["host.remote_numa_speed_ratio"] = "derived"
    for index, sweep in enumerate(found.gather_sweeps):
        if sweep.model is not None:
            evidence[f"gather_sweeps.{index}.model"] = "derived"
            evidence[f"gather_sweeps.{index}.score"] = "derived"
    for index in range(len(curves)):
        for name in ("fixed_us", "row_ns", "bandwidth_gb_per_s"):
            evidence[f"lookups.{index}.{name}"] = "derived"
    return evidence
