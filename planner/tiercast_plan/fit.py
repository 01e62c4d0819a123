"""The fit matrix: bytes per rank and per host of every machine, ranks, tier and number of copies."""

from collections.abc import Sequence

from tiercast_plan.checkpoint_sizes import CheckpointSizes
from tiercast_plan.options import Load, tensor_sizes, try_host_scenario
from tiercast_profiles.document import Strict
from tiercast_profiles.hardware import HardwareProfile, Tier
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.prices import PriceBook
from tiercast_profiles.scenario import Engine, Placement, Replication
from tiercast_profiles.units import format_bytes, gb_to_bytes
from tiercast_profiles.workload import Fixed
from tiercast_sim.memory import memory_plan

REPLICATIONS: tuple[Replication, ...] = ("none", "per_rank", "per_numa", "per_node")


class FitRow(Strict):
    """One way to place a model on a full host of one machine.

    ``hbm_bytes_per_rank`` and ``host_bytes`` name every piece; ``host_bytes`` is that of one host, by tier below HBM.
    ``kv_room_tokens`` is the KV room of one replica, None where it is not known. A row with ``is_lower_bound`` counts
    weights and tables alone: it may fit on paper and not in fact, never the other way round.
    """

    hardware: str
    tensor: int
    data: int
    tier: Tier
    replication: Replication
    fits: bool
    short_tier: Tier | None
    shortfall_bytes: int
    hbm_bytes_per_rank: dict[str, int]
    hbm_usable_bytes_per_rank: int
    host_bytes: dict[Tier, dict[str, int]]
    kv_room_bytes_per_rank: int
    kv_room_tokens: int | None
    is_lower_bound: bool
    reason: str


def fit_matrix(
    model: ModelSpec,
    machines: Sequence[HardwareProfile],
    prices: PriceBook,
    *,
    tiers: Sequence[Tier],
    replications: Sequence[Replication],
    context_tokens: int,
    engine: Engine,
) -> tuple[FitRow, ...]:
    """Every combination; ``context_tokens`` is the longest request a replica has to hold."""
    length = Fixed(fixed=context_tokens)
    load = Load(length, Fixed(fixed=1), "random", engine, 0)
    rows = []
    for hardware in machines:
        for tensor in tensor_sizes(hardware):
            for tier, replication in _placements(tiers, replications):
                placement = Placement(tier=tier, replication=replication)
                resolved = try_host_scenario(hardware, model, prices, load, tensor=tensor, placement=placement)
                data = hardware.device.num_per_host // tensor
                if isinstance(resolved, str):
                    rows.append(_absent(hardware, tensor, data, tier=tier, replication=replication, reason=resolved))
                    continue
                plan = memory_plan(resolved)
                short, missing, reason = plan.short_tier, plan.shortfall_bytes, ""
                block = engine.kv_block_tokens
                needed = -(-(context_tokens + 1) // block) * block
                if plan.fits and plan.kv_capacity_tokens < needed:
                    short = "hbm"
                    missing = int((needed - plan.kv_capacity_tokens) * plan.kv_bytes_per_token_per_rank)
                    reason = f"KV room for {plan.kv_capacity_tokens} tokens, a request needs {needed}"
                elif short is not None:
                    reason = _short_of(short, missing)
                rows.append(
                    FitRow(
                        hardware=hardware.name,
                        tensor=tensor,
                        data=data,
                        tier=tier,
                        replication=replication,
                        fits=short is None,
                        short_tier=short,
                        shortfall_bytes=missing,
                        hbm_bytes_per_rank=plan.hbm_per_rank,
                        hbm_usable_bytes_per_rank=plan.hbm_usable_bytes_per_rank,
                        host_bytes={tier: hosts[0] for tier, hosts in plan.per_host.items()},
                        kv_room_bytes_per_rank=plan.kv_room_bytes_per_rank,
                        kv_room_tokens=plan.kv_capacity_tokens,
                        is_lower_bound=False,
                        reason=reason,
                    )
                )
    return tuple(rows)


def fit_lower_bound(
    sizes: CheckpointSizes,
    machines: Sequence[HardwareProfile],
    *,
    tiers: Sequence[Tier],
    replications: Sequence[Replication],
    memory_utilization_ratio: float,
) -> tuple[FitRow, ...]:
    """From headers alone: weights split evenly over ranks, tables, the reserve; nothing for KV or activations."""
    rows = []
    for hardware in machines:
        device = hardware.device
        most_gb, least_reserve_gb = device.memory_capacity_gb.high, device.memory_reserve_gb.low
        # the ends at which most fits: what does not fit then does not fit
        capacity = gb_to_bytes(device.memory_capacity_gb.value if most_gb is None else most_gb)
        reserve = gb_to_bytes(device.memory_reserve_gb.value if least_reserve_gb is None else least_reserve_gb)
        usable = int(capacity * memory_utilization_ratio)
        for tensor in tensor_sizes(hardware):
            for tier, replication in _placements(tiers, replications):
                data = hardware.device.num_per_host // tensor
                tier_capacity = hardware.tier_capacity_gb(tier)
                if tier_capacity is None:
                    reason = f"hardware {hardware.name!r} has no tier {tier!r}"
                    rows.append(_absent(hardware, tensor, data, tier=tier, replication=replication, reason=reason))
                    continue
                hbm = {
                    "weights": -(-sizes.weight_bytes // tensor),
                    "reserve": reserve,
                    "tables": -(-sizes.table_bytes // tensor) if tier == "hbm" else 0,
                }
                copies = {
                    "none": data,
                    "per_rank": data * tensor,
                    "per_numa": hardware.host.num_numa_nodes,
                    "per_node": 1,
                }[replication]
                host: dict[Tier, dict[str, int]] = {}
                if tier != "hbm":
                    host[tier] = {"tables": sizes.table_bytes * (1 if tier == "pool" else copies)}
                room = usable - sum(hbm.values())
                short: Tier | None = "hbm" if room < 0 else None
                missing = max(0, -room)
                over = 0 if tier == "hbm" else host[tier]["tables"] - gb_to_bytes(tier_capacity.value)
                if over > 0:
                    short, missing = tier, over
                rows.append(
                    FitRow(
                        hardware=hardware.name,
                        tensor=tensor,
                        data=data,
                        tier=tier,
                        replication=replication,
                        fits=short is None,
                        short_tier=short,
                        shortfall_bytes=missing,
                        hbm_bytes_per_rank=hbm,
                        hbm_usable_bytes_per_rank=usable,
                        host_bytes=host,
                        kv_room_bytes_per_rank=max(0, room),
                        kv_room_tokens=None,
                        is_lower_bound=True,
                        reason="" if short is None else _short_of(short, missing),
                    )
                )
    return tuple(rows)


def _short_of(tier: Tier, missing_bytes: int) -> str:
    return f"{tier} is short of {format_bytes(missing_bytes)} per {'rank' if tier == 'hbm' else 'host'}"


def _placements(tiers: Sequence[Tier], replications: Sequence[Replication]) -> list[tuple[Tier, Replication]]:
    """In device memory the ranks of a replica share one copy, and a pool holds one for all: no choice there."""
    found: list[tuple[Tier, Replication]] = []
    for tier in tiers:
        copies: Sequence[Replication] = replications
        if tier in ("hbm", "pool"):
            copies = ("none",) if tier == "hbm" else ("per_node",)
        for replication in copies:
            found.append((tier, replication))
    return found


def _absent(
    hardware: HardwareProfile, tensor: int, data: int, *, tier: Tier, replication: Replication, reason: str
) -> FitRow:
    return FitRow(
        hardware=hardware.name,
        tensor=tensor,
        data=data,
        tier=tier,
        replication=replication,
        fits=False,
        short_tier=None,
        shortfall_bytes=0,
        hbm_bytes_per_rank={},
        hbm_usable_bytes_per_rank=0,
        host_bytes={},
        kv_room_bytes_per_rank=0,
        kv_room_tokens=None,
        is_lower_bound=False,
        reason=reason,
    )
