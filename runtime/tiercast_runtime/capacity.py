"""How many sequences and tokens the KV cache of a run may hold beside what else the device keeps.

Assumption A37: the cache is static, one slot per sequence, each as long as the longest request. Admission counts
blocks, as a paged cache would; the number of slots is what the static form can allocate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tiercast_profiles.errors import InfeasibleScenario
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import format_bytes, gb_to_bytes
from tiercast_profiles.workload import Request
from tiercast_runtime.backbone import kv_bytes_per_token
from tiercast_runtime.batch import aligned_context
from tiercast_runtime.cache_plan import plan_cache
from tiercast_runtime.memory import available_host_bytes
from tiercast_runtime.scheduler import Limits


@dataclass(frozen=True, slots=True)
class KvPlan:
    """Shape of the KV cache of one run.

    ``room_tokens`` is what the device could hold beside weights, buffers and resident tables: the capacity a record
    reports and admission counts with. ``num_wanted_slots`` is what the workload could use at once.
    """

    room_tokens: int
    num_slots: int
    num_wanted_slots: int
    max_context_tokens: int
    max_step_tokens: int
    bytes_per_token: int

    def limits(self, resolved: ResolvedScenario) -> Limits:
        """What the scheduler keeps to."""
        engine = resolved.scenario.engine
        return Limits(
            max_num_seqs=self.num_slots,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            kv_block_tokens=engine.kv_block_tokens,
            kv_capacity_tokens=self.room_tokens,
            kv_bytes_per_token=self.bytes_per_token,
            num_draft_tokens=resolved.scenario.speculative.draft_tokens,
        )


def free_bytes(device: torch.device) -> int:
    """Memory of the device that can still be taken."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_host_bytes()


def parameter_bytes(resolved: ResolvedScenario, dtype: torch.dtype) -> int:
    """Bytes of the backbone's matrices and, with an Engram, of its projections, as this runtime allocates them."""
    spec, engram = resolved.model.backbone, resolved.model.engram
    heads_width = spec.num_attention_heads * spec.head_dim
    per_layer = spec.hidden_size * (
        2 * heads_width + 2 * spec.num_kv_heads * spec.head_dim + 3 * spec.intermediate_size
    )
    count = spec.num_layers * per_layer + 2 * spec.vocab_size * spec.hidden_size
    if resolved.placement.tier != "none":
        count += len(engram.layer_ids) * engram.embedding_values * engram.projection_outputs(spec)
    return count * dtype.itemsize


def buffer_bytes(resolved: ResolvedScenario, dtype: torch.dtype, max_step_tokens: int) -> int:
    """Bytes of the work buffers one step of ``max_step_tokens`` tokens needs."""
    spec = resolved.model.backbone
    heads_width = spec.num_attention_heads * spec.head_dim
    width = 2 * spec.hidden_size + 2 * heads_width + 2 * spec.num_kv_heads * spec.head_dim + 3 * spec.intermediate_size
    return width * max_step_tokens * dtype.itemsize


def plan_kv(
    resolved: ResolvedScenario,
    requests: Sequence[Request],
    device: torch.device,
    dtype: torch.dtype,
    table_bytes: int,
    *,
    num_spare_slots: int = 0,
) -> KvPlan:
    """Slots and tokens of the KV cache for these requests.

    Args:
        resolved: gives the device's memory, the share of it that may be used, and the engine's limits.
        requests: the run's requests; the longest decides the length of a slot.
        device: whose free memory bounds the static cache.
        dtype: compute type.
        table_bytes: bytes of all tables; those in the memory the device uses are taken off.
        num_spare_slots: slots to leave room for beside those of sequences.

    Raises:
        InfeasibleScenario: when not even the longest request fits.
    """
    engine, memory = resolved.scenario.engine, resolved.hardware.device
    block, per_token = engine.kv_block_tokens, kv_bytes_per_token(resolved.model.backbone, dtype)
    longest = max(r.prompt_tokens + r.output_tokens for r in requests)
    # Admission counts the tokens of a request; the drafts of its last step lie behind them, and a slot holds both.
    num_drafts = resolved.scenario.speculative.draft_tokens
    max_context = aligned_context(max(-(-longest // block) * block, longest + num_drafts))
    wanted = min(engine.max_num_seqs, resolved.scenario.workload.concurrency or len(requests), len(requests))
    most_of_one = max(1 + num_drafts, *(r.prompt_tokens for r in requests))
    max_step = min(engine.max_num_batched_tokens, wanted * most_of_one)
    usable = gb_to_bytes(memory.memory_capacity_gb.value) * engine.memory_utilization_ratio
    # Where the CPU is the device, tier dram is the same memory as tier hbm.
    shared_tiers = ("hbm", "dram") if device.type == "cpu" else ("hbm",)
    tables = table_bytes if resolved.placement.tier in shared_tiers else 0
    fresh = parameter_bytes(resolved, dtype) + buffer_bytes(resolved, dtype, max_step)
    # A row cache of the host takes device memory only where the two are one; it is filled while the run lasts.
    planned = plan_cache(resolved)
    cache = planned.size_bytes if planned.is_on_device or device.type == "cpu" else 0
    room = math.floor(usable - gb_to_bytes(memory.memory_reserve_gb.value) - fresh - tables - cache)
    # What the profile grants, and what is really free now: the tables are allocated already, weights and cache are not.
    allocatable = min(room, free_bytes(device) - fresh - cache)
    slot_bytes = max_context * per_token
    num_slots = min(wanted, max(0, allocatable) // slot_bytes - num_spare_slots)
    if num_slots < 1:
        shortfall = (1 + num_spare_slots) * slot_bytes - allocatable
        raise InfeasibleScenario(
            f"the KV cache of one request of {longest} tokens needs {format_bytes(slot_bytes)}; weights, buffers and "
            f"tables leave {format_bytes(max(0, allocatable))}: {format_bytes(shortfall)} short; shorten the requests, "
            "offload the tables or raise engine.memory_utilization_ratio",
            shortfall_bytes=shortfall,
        )
    return KvPlan(
        room_tokens=room // per_token // block * block,
        num_slots=num_slots,
        num_wanted_slots=wanted,
        max_context_tokens=max_context,
        max_step_tokens=max_step,
        bytes_per_token=per_token,
    )
