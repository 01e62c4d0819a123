"""Answers beside the metrics: where the time went, how busy shared things were, what a placement buys."""

from functools import partial

from tiercast_profiles.document import BOUNDS, Bound
from tiercast_profiles.errors import MissingCapability
from tiercast_profiles.record import KvChain, KvLinks, ResourceUse, TierOffer, TimePart, TimeSpent
from tiercast_profiles.scenario import ALLOWED_PATHS, Placement, ResolvedScenario
from tiercast_profiles.units import GB, NS_PER_MS, NS_PER_S, NS_PER_US
from tiercast_sim.memory import MemoryPlan, memory_plan
from tiercast_sim.metrics import Runs, at_each, band
from tiercast_sim.run import RunResult
from tiercast_sim.tiers import LookupCosts


def time_spent(resolved: ResolvedScenario, runs: Runs) -> TimeSpent:
    """The mean step by part; ns are those of the nominal run."""
    layer_ids = resolved.model.engram.layer_ids
    parts = at_each(runs, lambda result: _parts(layer_ids, result))
    nominal = parts["nominal"]
    num_steps = at_each(runs, lambda result: len(result.steps))

    def per_step(name: str) -> dict[Bound, float]:
        return {bound: parts[bound].get(name, 0) / num_steps[bound] / NS_PER_MS for bound in parts}

    return TimeSpent(
        num_steps=num_steps["nominal"],
        total_ns=runs["nominal"].summary.step_ns,
        parts=tuple(
            TimePart(name=name, total_ns=total_ns, mean_ms_per_step=band(per_step(name)))
            for name, total_ns in nominal.items()
        ),
    )


def _parts(layer_ids: tuple[int, ...], result: RunResult) -> dict[str, int]:
    stalls = dict(zip(layer_ids, result.summary.stall_ns_by_layer, strict=False))
    return result.compute.ledger.breakdown(result.summary.step_ns, stalls)


def resources(runs: Runs) -> tuple[ResourceUse, ...]:
    """How busy each shared thing was over the run, and the devices' compute and lookup workers beside them."""
    found = []
    for name, use in sorted(runs["nominal"].shared.items()):
        found.append(
            ResourceUse(
                name=name,
                kind=use.kind,
                capacity_per_s=use.capacity_per_s,
                busy_ratio=band(at_each(runs, partial(_busy_ratio, name=name))),
            )
        )
    workers = at_each(runs, _worker_ratios)
    for replica in workers["nominal"]:
        for index, name in enumerate(("compute", "lookup worker")):
            busy = at_each(workers, partial(_of_worker, replica=replica, index=index))
            if any(busy.values()):
                label = f"{name} of replica {replica}"
                found.append(ResourceUse(name=label, kind="time", capacity_per_s=1.0, busy_ratio=band(busy)))
    return tuple(found)


def _busy_ratio(result: RunResult, name: str) -> float:
    use = result.shared[name]
    return min(1.0, use.units / use.capacity_per_s * NS_PER_S / result.summary.elapsed_ns)


def _worker_ratios(result: RunResult) -> dict[int, tuple[float, float]]:
    """Share of the run that each replica's devices computed, and that its lookup worker fetched."""
    elapsed = result.summary.elapsed_ns
    ratios = {}
    for replica, (compute_ns, lookup_ns) in result.summary.busy_ns.items():
        # On the device path the gather is compute (A9): no worker fetches.
        fetching = 0.0 if result.is_device_path else min(1.0, lookup_ns / elapsed)
        ratios[replica] = (min(1.0, compute_ns / elapsed), fetching)
    return ratios


def _of_worker(ratios: dict[int, tuple[float, float]], replica: int, index: int) -> float:
    return ratios.get(replica, (0.0, 0.0))[index]


def kv_chain(resolved: ResolvedScenario, nominal: RunResult, hbm: RunResult | None) -> KvChain | None:
    """Placement → HBM freed → KV room → concurrency → throughput; None without tables."""
    if resolved.placement.tier == "none":
        return None
    own_hbm = resolved.placement.tier == "hbm"
    other: MemoryPlan = nominal.memory
    if not own_hbm:
        wanted = resolved.scenario.placement
        placement = Placement(tier="hbm", path="device", graph_mode=wanted.graph_mode, row_layout=wanted.row_layout)
        try:
            other = memory_plan(resolved.with_placement(placement))
        except MissingCapability:  # without a curve for tables in HBM there is nothing to set this beside
            return None
    reference = nominal if own_hbm else hbm
    freed = other.total_bytes()["hbm"] - nominal.memory.total_bytes()["hbm"]
    summary = nominal.summary
    mean_tokens = (summary.prompt_tokens + summary.output_tokens) / summary.num_requests
    return KvChain(
        hbm_freed_bytes=freed,
        here=_links(nominal.memory, mean_tokens, nominal),
        in_hbm=_links(other, mean_tokens, reference) if other.fits else None,
    )


def _links(memory: MemoryPlan, mean_tokens: float, result: RunResult | None) -> KvLinks:
    return KvLinks(
        kv_capacity_tokens=memory.total_kv_capacity_tokens,
        num_requests_in_kv=memory.total_kv_capacity_tokens / mean_tokens,
        num_decoding_mean=None if result is None else result.summary.mean_batch,
        output_tokens_per_s=None if result is None else result.summary.statistics.output_tokens_per_s,
    )


def offers(resolved: ResolvedScenario, runs: Runs) -> tuple[TierOffer, ...]:
    """What every tier and path of the machine gives to the lookup of a median decode step, beside its windows.

    All rows the tokens ask for are read: what duplicates and a cache save is the placement's own doing.
    """
    step = runs["nominal"].summary.median_decode
    engram = resolved.model.engram
    if not step.layers:
        return ()
    found = []
    for curve in resolved.hardware.lookups:
        if curve.path not in ALLOWED_PATHS[curve.tier] or (curve.tier, curve.path) == ("hbm", "device"):
            continue
        times: dict[Bound, float] = {}
        rates: dict[Bound, float] = {}
        try:
            wanted = Placement(tier=curve.tier, path=curve.path, row_layout=resolved.placement.row_layout)
            placed = resolved.with_placement(wanted)
            for bound in BOUNDS:
                if bound not in runs:
                    continue
                work = LookupCosts(placed, bound, 0).lookup(step.rows // len(engram.layer_ids), 0, 0)
                times[bound] = work.duration_ns / NS_PER_US
                rates[bound] = work.bytes_per_rank * NS_PER_S / work.duration_ns / GB
        except MissingCapability:  # a tier without numbers for all its parts offers nothing that could be said
            continue
        hidden = tuple(
            layer_id
            for index, (layer_id, layer) in enumerate(zip(engram.layer_ids, step.layers, strict=True))
            if (index + 1) * times["nominal"] * NS_PER_US <= layer.window_ns
        )
        found.append(
            TierOffer(
                tier=curve.tier,
                path=curve.path,
                lookup_us=band(times),
                given_gb_per_s=band(rates),
                hidden_layer_ids=hidden,
            )
        )
    return tuple(found)
