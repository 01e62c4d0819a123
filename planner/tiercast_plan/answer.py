"""The answer to a question as plain rows: ranked plans with flags, the front, why-nots, break-evens, sensitivities."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from tiercast_plan.cost import CostReport
from tiercast_plan.flags import LaunchFlags, launch_flags
from tiercast_plan.fleet import Fleet
from tiercast_plan.search import (
    Answer,
    ParetoPoint,
    Plan,
    Question,
    ReasonKind,
    Rejection,
    largest_load,
    most_simulated,
    search,
)
from tiercast_plan.sensitivity import BreakEven, Sway, break_evens, tornado
from tiercast_profiles.scenario import ResolvedPlacement


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One ranked plan. Latencies are simulated, at the percentile asked for; rates are those of one host.

    ``estimate_error_ratio``: closed form over simulation, minus one, of the total rate.
    ``num_requests_per_replica`` is the load: requests in flight on each replica; ``is_at_largest_load``: no larger one
    was tried, so a larger limit of sequences may be cheaper still. ``is_at_event_limit``: the plan is simulated event
    by event and larger loads, which others were given, were not tried for it: a larger one may be cheaper.
    """

    rank: int
    hardware: str
    is_calibrated: bool
    num_hosts: int
    num_devices: int
    tensor: int
    data_per_host: int
    placement: ResolvedPlacement
    num_requests_per_replica: int
    is_at_largest_load: bool
    is_at_event_limit: bool
    kv_capacity_tokens_per_replica: int
    ttft_ms: float
    tpot_ms: float
    stall_ms_per_step: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    estimate_error_ratio: float
    fleet: Fleet
    cost: CostReport
    flags: tuple[LaunchFlags, ...]


@dataclass(frozen=True, slots=True)
class WhyNot:
    """One machine and tier without a plan: how many options failed by kind of reason, and the nearest to an answer."""

    hardware: str
    tier: str | None
    num_options_by_kind: dict[ReasonKind, int]
    kind: ReasonKind
    tensor: int | None
    reason: str
    shortfall_bytes: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a person who signs the order wants to see; ``rejections`` has every option that is not a plan."""

    model: str
    price_book: str
    percentile: int
    slo_ttft_ms: float | None
    slo_tpot_ms: float | None
    demand_tokens_per_day: int | None
    budget_usd_per_hour: Decimal | None
    num_options: int
    num_simulated: int
    plans: tuple[PlanRow, ...]
    why_not: tuple[WhyNot, ...]
    rejections: tuple[Rejection, ...]
    pareto: tuple[ParetoPoint, ...]
    break_evens: tuple[BreakEven, ...]
    tornado: tuple[Sway, ...]
    warnings: tuple[str, ...]


def answer(question: Question, report: Callable[[str, float], None] | None = None) -> Report:
    """Search, then ask what would change the answer.

    Raises:
        BadInput: no machine to choose from, or a demand or budget that makes no sense.
    """
    found = search(question, report)
    largest = largest_load(question.load)
    plans = tuple(_row(index + 1, plan, largest) for index, plan in enumerate(found.plans))
    flips = break_evens(question, found.families) if plans else ()
    sways = tornado(question, found.families) if plans else ()
    return Report(
        model=question.model.name,
        price_book=question.prices.name,
        percentile=question.percentile,
        slo_ttft_ms=question.slo_ttft_ms,
        slo_tpot_ms=question.slo_tpot_ms,
        demand_tokens_per_day=question.demand_tokens_per_day,
        budget_usd_per_hour=question.budget_usd_per_hour,
        num_options=found.num_options,
        num_simulated=found.num_simulated,
        plans=plans,
        why_not=_why_not(found),
        rejections=found.rejections,
        pareto=found.pareto,
        break_evens=flips,
        tornado=sways,
        warnings=tuple(dict.fromkeys(warning for row in plans for warning in row.cost.warnings)),
    )


def _row(rank: int, plan: Plan, largest: int) -> PlanRow:
    resolved, steady = plan.resolved, plan.steady
    placement = resolved.placement
    curve = None
    if placement.tier != "none" and placement.path is not None:
        curve = resolved.hardware.curve(placement.tier, placement.path)
    return PlanRow(
        rank=rank,
        hardware=resolved.hardware.name,
        is_calibrated=resolved.hardware.calibration == "measured" and curve is not None and curve.is_calibrated,
        num_hosts=plan.fleet.num_hosts,
        num_devices=plan.fleet.num_devices,
        tensor=resolved.scenario.parallel.tensor,
        data_per_host=resolved.scenario.parallel.data,
        placement=placement,
        num_requests_per_replica=plan.concurrency_per_replica,
        is_at_largest_load=plan.concurrency_per_replica == largest,
        is_at_event_limit=plan.concurrency_per_replica == most_simulated(resolved) < largest,
        kv_capacity_tokens_per_replica=steady.memory.kv_capacity_tokens,
        ttft_ms=steady.ttft_ms,
        tpot_ms=steady.tpot_ms,
        stall_ms_per_step=steady.stall_ms_per_step,
        output_tokens_per_s=steady.output_tokens_per_s,
        total_tokens_per_s=steady.total_tokens_per_s,
        estimate_error_ratio=plan.estimate.total_tokens_per_s / steady.total_tokens_per_s - 1,
        fleet=plan.fleet,
        cost=plan.cost,
        flags=launch_flags(resolved, steady.memory, plan.concurrency_per_replica),
    )


_NEAREST: tuple[ReasonKind, ...] = ("dearer", "latency", "budget", "memory", "no such tier", "no price")


def _why_not(found: Answer) -> tuple[WhyNot, ...]:
    """One row for each machine and tier that have no plan; the option that came nearest speaks."""
    planned = {(plan.resolved.hardware.name, plan.resolved.placement.tier) for plan in found.plans}
    groups: dict[tuple[str, str | None], list[Rejection]] = {}
    for rejection in found.rejections:
        where = None if rejection.placement is None else rejection.placement.tier
        if (rejection.hardware, where) not in planned:
            groups.setdefault((rejection.hardware, where), []).append(rejection)
    rows = []
    for (hardware, tier), members in groups.items():
        nearest = min(members, key=lambda one: (_NEAREST.index(one.kind), one.shortfall_bytes))
        rows.append(
            WhyNot(
                hardware=hardware,
                tier=tier,
                num_options_by_kind={
                    kind: count for kind in _NEAREST if (count := sum(one.kind == kind for one in members))
                },
                kind=nearest.kind,
                tensor=nearest.tensor,
                reason=nearest.reason,
                shortfall_bytes=nearest.shortfall_bytes,
            )
        )
    return tuple(rows)
