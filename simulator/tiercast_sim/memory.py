"""Does it fit, and how much room is left for KV: bytes by tier, per rank and per host."""

import math
from dataclasses import dataclass, replace

from tiercast_profiles.document import Bound
from tiercast_profiles.errors import InfeasibleScenario, MissingCapability
from tiercast_profiles.hardware import HOST_DRIVEN_PATHS, Tier
from tiercast_profiles.head_sizes import table_rows
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import format_bytes, gb_to_bytes, gib_to_bytes
from tiercast_sim.checked import non_negative, positive


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """What the replicas that only prefill hold besides KV on each device, and their KV room."""

    hbm_per_rank: dict[str, int]
    kv_capacity_tokens: int
    num_replicas: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of one scenario at one bound.

    ``hbm_per_rank`` are the pieces each device holds besides KV; ``per_host`` the pieces each host holds by tier below
    HBM, one entry per host. ``kv_capacity_tokens`` is the KV room of one replica, a whole number of blocks.
    With replicas that only prefill, ``prefill`` is their part, and the plan itself that of the replicas that decode.
    When it does not fit, ``short_tier`` and ``shortfall_bytes`` name the first tier that is short and by how much.
    """

    hbm_per_rank: dict[str, int]
    per_host: dict[Tier, tuple[dict[str, int], ...]]
    hbm_usable_bytes_per_rank: int
    kv_bytes_per_token_per_rank: float
    kv_room_bytes_per_rank: int
    kv_capacity_tokens: int
    num_ranks: int
    num_replicas: int
    num_hosts: int
    table_bytes: int
    short_tier: Tier | None
    shortfall_bytes: int
    prefill: PrefillPlan | None = None

    @property
    def fits(self) -> bool:
        """True when every tier holds what it is given and one KV block is left."""
        return self.short_tier is None

    @property
    def total_kv_capacity_tokens(self) -> int:
        """KV room of all replicas."""
        own = self.kv_capacity_tokens * self.num_replicas
        return own if self.prefill is None else own + self.prefill.kv_capacity_tokens * self.prefill.num_replicas

    def total_bytes(self) -> dict[Tier, int]:
        """Bytes by tier over all ranks and hosts; KV, which takes what is left of HBM, is not counted."""
        num_prefill = 0 if self.prefill is None else self.prefill.num_replicas
        ranks_per_replica = self.num_ranks // (self.num_replicas + num_prefill)
        hbm = sum(self.hbm_per_rank.values()) * self.num_replicas * ranks_per_replica
        if self.prefill is not None:
            hbm += sum(self.prefill.hbm_per_rank.values()) * num_prefill * ranks_per_replica
        totals: dict[Tier, int] = {"hbm": hbm}
        for tier, hosts in self.per_host.items():
            totals[tier] = sum(sum(pieces.values()) for pieces in hosts)
        return totals


def replicas_per_host(resolved: ResolvedScenario) -> int:
    """Replicas one host carries: tensor-parallel ranks stay on one host."""
    return resolved.hardware.device.num_per_host // resolved.scenario.parallel.tensor


def num_table_copies(resolved: ResolvedScenario, num_replicas: int) -> int:
    """Whole copies of the tables on a host with ``num_replicas`` replicas (Assumption A17).

    ``none``: every replica keeps its own, its ranks a share each. ``per_rank``: every rank keeps a whole one.
    """
    return {
        "none": num_replicas,
        "per_rank": num_replicas * resolved.scenario.parallel.tensor,
        "per_numa": resolved.hardware.host.num_numa_nodes,
        "per_node": 1,
    }[resolved.placement.replication]


def table_bytes(resolved: ResolvedScenario) -> int:
    """Bytes of one copy of all tables in the placement's row layout."""
    engram = resolved.model.engram
    return sum(table_rows(engram)) * engram.stored_row_bytes(resolved.placement.row_layout)


def activation_bytes(resolved: ResolvedScenario) -> int:
    """Activations of the largest step of one rank (Assumption A16).

    Two copies of the hidden states of all branches, the wider of the MLP and the Engram projection, and fp32 logits of
    every sequence.
    """
    backbone, engine = resolved.model.backbone, resolved.scenario.engine
    tensor = resolved.scenario.parallel.tensor
    value_bytes = 4 if backbone.compute_precision == "fp32" else 2
    wide = 2 * backbone.intermediate_size // tensor
    if resolved.placement.tier != "none":
        wide = max(wide, resolved.model.engram.projection_outputs(backbone))
    per_token = (2 * backbone.num_branches * backbone.hidden_size + wide) * value_bytes
    num_logits = min(engine.max_num_seqs, engine.max_num_batched_tokens) * backbone.vocab_size // tensor
    return engine.max_num_batched_tokens * per_token + 4 * num_logits


def staging_bytes(resolved: ResolvedScenario) -> int:
    """Rows of the largest step of all Engram layers, twice where the next step's are fetched beside it."""
    if resolved.placement.tier == "none":
        return 0
    engram = resolved.model.engram
    per_token = engram.num_rows_per_token * engram.stored_row_bytes(resolved.placement.row_layout)
    buffers = 2 if resolved.placement.prefetch == "prev_step" else 1
    return buffers * resolved.scenario.engine.max_num_batched_tokens * per_token * len(engram.layer_ids)


def kv_bytes_per_token_per_rank(resolved: ResolvedScenario, bound: Bound) -> float:
    """KV of one token on one rank: ranks share the KV heads as far as there are heads."""
    backbone = resolved.model.backbone
    kv_bytes = positive(backbone.kv_bytes_per_token, bound, "kv_bytes_per_token", higher_is_better=False)
    return kv_bytes / min(resolved.scenario.parallel.tensor, backbone.num_kv_heads)


def memory_plan(resolved: ResolvedScenario, bound: Bound = "nominal") -> MemoryPlan:
    """Account for every byte the scenario places, by role where prefill and decode are apart.

    A replica that only decodes needs activations and staging for its sequences' tokens, not for chunks of prompts,
    unless preemption makes it compute some again.

    Raises:
        BadInput: a capacity in the profile is not positive.
        MissingCapability: the machine does not have the tier.
    """
    whole = _plan(resolved, bound)
    scenario = resolved.scenario
    if not scenario.parallel.prefill:
        return whole
    engine = scenario.engine
    if engine.kv_reservation == "full":
        step_tokens = engine.max_num_seqs * (1 + scenario.speculative.draft_tokens)
        tokens = min(engine.max_num_batched_tokens, step_tokens)
        engine = engine.model_copy(update={"max_num_batched_tokens": tokens})
    decode = _plan(resolved.model_copy(update={"scenario": scenario.model_copy(update={"engine": engine})}), bound)
    return replace(
        decode,
        per_host=whole.per_host,  # staging for the larger role
        num_replicas=scenario.parallel.data,
        short_tier=whole.short_tier or decode.short_tier,
        shortfall_bytes=whole.shortfall_bytes or decode.shortfall_bytes,
        prefill=PrefillPlan(whole.hbm_per_rank, whole.kv_capacity_tokens, scenario.parallel.prefill),
    )


def _plan(resolved: ResolvedScenario, bound: Bound) -> MemoryPlan:
    """One plan for every replica.

    Raises:
        BadInput: a capacity in the profile is not positive.
        MissingCapability: the machine does not have the tier.
    """
    hardware, backbone, placement = resolved.hardware, resolved.model.backbone, resolved.placement
    tensor, num_replicas = resolved.scenario.parallel.tensor, resolved.scenario.parallel.num_replicas
    hbm = {
        "weights": -(-backbone.weight_bytes // tensor),
        "replicated_weights": backbone.replicated_weight_bytes,
        "activations": activation_bytes(resolved),
        "reserve": gb_to_bytes(non_negative(hardware.device.memory_reserve_gb, bound, "device.memory_reserve_gb")),
        "staging": staging_bytes(resolved),
        "cache": 0 if placement.path in HOST_DRIVEN_PATHS else gib_to_bytes(placement.cache_gib),
        "tables": 0,
    }
    one_copy = 0 if placement.tier == "none" else table_bytes(resolved)
    if placement.tier == "hbm":
        hbm["tables"] = -(-one_copy // tensor)
    per_host = _host_pieces(resolved, one_copy)
    capacity = gb_to_bytes(positive(hardware.device.memory_capacity_gb, bound, "device.memory_capacity_gb"))
    usable = int(capacity * resolved.scenario.engine.memory_utilization_ratio)
    kv_bytes = kv_bytes_per_token_per_rank(resolved, bound)
    room = usable - sum(hbm.values())
    short_tier, shortfall = _first_short_tier(resolved, per_host, bound)
    if is_shared_memory(resolved) and "dram" in per_host:
        # One memory: what the host holds is missing for KV (hardware.md §C: unified-memory boxes).
        most = max(sum(pieces.values()) for pieces in per_host["dram"])
        room -= -(-most // (min(num_replicas, replicas_per_host(resolved)) * tensor))
    block = resolved.scenario.engine.kv_block_tokens
    if room < block * kv_bytes and short_tier is None:
        short_tier, shortfall = "hbm", int(block * kv_bytes) - room
    return MemoryPlan(
        hbm_per_rank=hbm,
        per_host=per_host,
        hbm_usable_bytes_per_rank=usable,
        kv_bytes_per_token_per_rank=kv_bytes,
        kv_room_bytes_per_rank=max(0, room),
        kv_capacity_tokens=int(max(0, room) / kv_bytes) // block * block,
        num_ranks=resolved.num_ranks,
        num_replicas=num_replicas,
        num_hosts=num_hosts(resolved),
        table_bytes=one_copy,
        short_tier=short_tier,
        shortfall_bytes=shortfall,
    )


def is_shared_memory(resolved: ResolvedScenario) -> bool:
    """True where host and device draw on the same memory: a CPU as device, or a unified-memory part."""
    device = resolved.hardware.device
    return device.kind == "cpu" or device.has_unified_memory


def require_fit(resolved: ResolvedScenario, plan: MemoryPlan) -> None:
    """Refuse a plan that does not fit.

    Raises:
        InfeasibleScenario: naming the tier and the missing bytes.
    """
    if plan.fits:
        return
    remedy = (
        "use more ranks or another tier for the tables"
        if plan.short_tier == "hbm"
        else "use fewer copies (replication) or a larger tier"
    )
    raise InfeasibleScenario(
        f"{resolved.model.name} on {resolved.hardware.name}: tier {plan.short_tier!r} is short of "
        f"{format_bytes(plan.shortfall_bytes)} ({plan.shortfall_bytes} bytes); {remedy}",
        plan.shortfall_bytes,
    )


def num_hosts(resolved: ResolvedScenario) -> int:
    """Hosts the scenario's replicas fill."""
    return len(_replicas_by_host(resolved))


def _replicas_by_host(resolved: ResolvedScenario) -> list[int]:
    num_replicas, per_host = resolved.scenario.parallel.num_replicas, replicas_per_host(resolved)
    full, rest = divmod(num_replicas, per_host)
    return [per_host] * full + ([rest] if rest else [])


def _host_pieces(resolved: ResolvedScenario, one_copy: int) -> dict[Tier, tuple[dict[str, int], ...]]:
    tier, path = resolved.placement.tier, resolved.placement.path
    hosts = _replicas_by_host(resolved)
    pieces: dict[Tier, tuple[dict[str, int], ...]] = {}
    if tier == "none" or tier == "hbm":  # noqa: PLR1714 (mypy narrows the type by comparison, not by membership)
        return pieces
    staging = staging_bytes(resolved) if path in HOST_DRIVEN_PATHS else 0
    # A remote pool holds one copy for everybody; it is booked on the first host.
    copies = (
        [1] + [0] * (len(hosts) - 1)
        if tier == "pool"
        else [num_table_copies(resolved, num_replicas) for num_replicas in hosts]
    )
    pieces[tier] = tuple({"tables": one_copy * count} for count in copies)
    if staging:
        # Assumption A12: where the host moves the rows, the caches of all ranks lie in its memory.
        cache = gib_to_bytes(resolved.placement.cache_gib) * resolved.scenario.parallel.tensor
        room = {"staging": staging, "cache": cache} if cache else {"staging": staging}
        by_host = [{name: size * num_replicas for name, size in room.items()} for num_replicas in hosts]
        if tier == "dram":
            pieces["dram"] = tuple({**tables, **ring} for tables, ring in zip(pieces["dram"], by_host, strict=True))
        else:
            pieces["dram"] = tuple(by_host)
    if resolved.placement.page_cache_residency_ratio > 0:
        resident = page_cache_bytes(resolved)
        in_dram = pieces.get("dram", ({},) * len(hosts))
        pieces["dram"] = tuple({**room, "page_cache": size} for room, size in zip(in_dram, resident, strict=True))
    return pieces


def drive_bytes(resolved: ResolvedScenario) -> tuple[int, ...]:
    """Bytes of the tables on the drive of each host."""
    whole = table_bytes(resolved)
    return tuple(whole * num_table_copies(resolved, num_replicas) for num_replicas in _replicas_by_host(resolved))


def page_cache_bytes(resolved: ResolvedScenario) -> tuple[int, ...]:
    """Bytes of the tables that lie in the page cache of each host.

    Assumption A82: hashes scatter the rows that are asked for over all pages, so that a share of the reads needs that
    share of the tables.
    """
    ratio = resolved.placement.page_cache_residency_ratio
    return tuple(math.ceil(size * ratio) for size in drive_bytes(resolved))


def _first_short_tier(
    resolved: ResolvedScenario, per_host: dict[Tier, tuple[dict[str, int], ...]], bound: Bound
) -> tuple[Tier | None, int]:
    for tier, hosts in per_host.items():
        quantity = resolved.hardware.tier_capacity_gb(tier)
        if quantity is None:
            raise MissingCapability(f"hardware {resolved.hardware.name!r} has no tier {tier!r}; choose another tier")
        capacity = gb_to_bytes(positive(quantity, bound, f"capacity_gb of tier {tier}"))
        shortfall = max(sum(pieces.values()) for pieces in hosts) - capacity
        if shortfall > 0:
            return tier, shortfall
    return None, 0
