"""Does a scenario fit, and if not, by how much not. An infeasible plan is a result, not an exception."""

from dataclasses import dataclass

from tiercast_profiles.document import Bound
from tiercast_profiles.errors import InfeasibleScenario
from tiercast_profiles.hardware import Tier
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import format_bytes
from tiercast_sim.memory import MemoryPlan, memory_plan


@dataclass(frozen=True, slots=True)
class Fits:
    """Everything is placed; ``plan`` says where each byte is and how much KV room is left."""

    plan: MemoryPlan

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens of KV over all replicas."""
        return self.plan.total_kv_capacity_tokens


@dataclass(frozen=True, slots=True)
class Infeasible:
    """One tier is short: of how many bytes, and why. ``plan`` is None where not even the bytes could be counted."""

    reason: str
    shortfall_bytes: int
    tier: Tier | None
    plan: MemoryPlan | None = None


Verdict = Fits | Infeasible


def check_capacity(resolved: ResolvedScenario, bound: Bound = "nominal") -> Verdict:
    """Whether the scenario fits the machine, at the nominal sizes or at one end of their bands.

    Raises:
        MissingCapability: the machine does not have the tier at all.
    """
    try:
        plan = memory_plan(resolved, bound)
    except InfeasibleScenario as error:
        return Infeasible(reason=str(error), shortfall_bytes=error.shortfall_bytes, tier=None)
    if plan.fits:
        longest = _longest_request_tokens(resolved)
        if longest <= plan.kv_capacity_tokens:
            return Fits(plan)
        missing = int((longest - plan.kv_capacity_tokens) * plan.kv_bytes_per_token_per_rank)
        reason = (
            f"one request needs KV for {longest} tokens and a replica has room for {plan.kv_capacity_tokens}; "
            f"{format_bytes(missing)} more per rank would hold it"
        )
        return Infeasible(reason=reason, shortfall_bytes=missing, tier="hbm", plan=plan)
    return Infeasible(
        reason=f"tier {plan.short_tier!r} is short of {format_bytes(plan.shortfall_bytes)}: {_demand(plan)}",
        shortfall_bytes=plan.shortfall_bytes,
        tier=plan.short_tier,
        plan=plan,
    )


def _longest_request_tokens(resolved: ResolvedScenario) -> int:
    """The longest request the workload really draws, prompt and output, in whole KV blocks."""
    from tiercast_profiles.workload import draw_requests

    block = resolved.scenario.engine.kv_block_tokens
    requests = draw_requests(resolved.scenario.workload, resolved.scenario.seed)
    longest = max(request.prompt_tokens + request.output_tokens for request in requests)
    return -(-longest // block) * block


def _demand(plan: MemoryPlan) -> str:
    if plan.short_tier == "hbm":
        pieces, where = plan.hbm_per_rank, "per device"
    else:
        hosts = plan.per_host[plan.short_tier] if plan.short_tier is not None else ()
        pieces, where = max(hosts, key=lambda host: sum(host.values())), "on the fullest host"
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in pieces.items() if size)
    return f"{parts} {where}"
