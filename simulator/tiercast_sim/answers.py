"""Answers beside the metrics: where the time went, how busy shared things were, what a placement buys."""

from functools import partial

from tiercast_profiles.document import BOUNDS, Bound
from tiercast_profiles.errors import MissingCapability
from tiercast_profiles.record import KvChain, ResourceUse, TierOffer, TimePart, TimeSpent
from tiercast_profiles.scenario import ALLOWED_PATHS, Placement, ResolvedScenario
from tiercast_profiles.stats import SampleStatistics
from tiercast_profiles.units import GB, NS_PER_MS, NS_PER_S, NS_PER_US
from tiercast_sim.memory import MemoryPlan, memory_plan
from tiercast_sim.metrics import Runs, at_each, band, median_decode_step
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
        total_ns=sum(step.duration_ns for step in runs["nominal"].steps),
        parts=tuple(
            TimePart(name=name, total_ns=total_ns, ms_per_step=band(per_step(name)))
            for name, total_ns in nominal.items()
        ),
    )


def _parts(layer_ids: tuple[int, ...], result: RunResult) -> dict[str, int]:
    stalls = dict.fromkeys(layer_ids, 0)
    for step in result.steps:
        for layer_id, layer in zip(layer_ids, step.layers, strict=False):
            stalls[layer_id] += layer.stall_ns
    return result.compute.ledger.breakdown(sum(step.duration_ns for step in result.steps), stalls)


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
    replicas = sorted({step.replica for step in runs["nominal"].steps})
    for replica in replicas:
        for name, read in (("compute", _compute), ("lookup worker", _lookups)):
            busy = at_each(runs, partial(read, replica=replica))
            if any(busy.values()):
                label = f"{name} of replica {replica}"
                found.append(ResourceUse(name=label, kind="time", capacity_per_s=1.0, busy_ratio=band(busy)))
    return tuple(found)


def _busy_ratio(result: RunResult, name: str) -> float:
    use = result.shared[name]
    return min(1.0, use.units / use.capacity_per_s * NS_PER_S / _elapsed_ns(result))


def _elapsed_ns(result: RunResult) -> int:
    return max(result.samples.requests.finish_ns)


def _compute(result: RunResult, replica: int) -> float:
    busy_ns = sum(step.duration_ns - step.stall_ns for step in result.steps if step.replica == replica)
    return busy_ns / _elapsed_ns(result)


def _lookups(result: RunResult, replica: int) -> float:
    if result.is_device_path:
        return 0.0
    busy_ns = sum(step.lookup_ns for step in result.steps if step.replica == replica)
    return min(1.0, busy_ns / _elapsed_ns(result))


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
    freed = (sum(other.hbm_per_rank.values()) - sum(nominal.memory.hbm_per_rank.values())) * nominal.memory.num_ranks
    requests = nominal.samples.requests
    mean_tokens = (sum(requests.prompt_tokens) + sum(requests.output_tokens)) / len(requests.finish_ns)
    return KvChain(
        hbm_freed_bytes=freed,
        kv_capacity_tokens=nominal.memory.total_kv_capacity_tokens,
        kv_capacity_tokens_hbm=other.total_kv_capacity_tokens if other.fits else None,
        requests_in_kv=nominal.memory.total_kv_capacity_tokens / mean_tokens,
        requests_in_kv_hbm=other.total_kv_capacity_tokens / mean_tokens if other.fits else None,
        mean_batch=_mean_batch(nominal),
        mean_batch_hbm=None if reference is None else _mean_batch(reference),
        output_tokens_per_s=SampleStatistics(nominal.samples).output_tokens_per_s,
        output_tokens_per_s_hbm=(
            None if reference is None else SampleStatistics(reference.samples).output_tokens_per_s
        ),
    )


def _mean_batch(result: RunResult) -> float:
    elapsed_ns = _elapsed_ns(result)
    return sum(step.decode_sequences * step.duration_ns for step in result.steps) / elapsed_ns


def offers(resolved: ResolvedScenario, runs: Runs) -> tuple[TierOffer, ...]:
    """What every tier and path of the machine gives to the lookup of a median decode step, beside its windows.

    All rows the tokens ask for are read: what duplicates and a cache save is the placement's own doing.
    """
    step = median_decode_step(runs["nominal"].steps)
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
