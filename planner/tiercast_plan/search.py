"""Which machine, how many, where the tables go: enumerate, reserve, estimate, simulate the finalists, rank.

Every option is either ranked or listed with the reason why not. Closed forms decide who is simulated; the simulation
decides the rank.
"""

import datetime
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from tiercast_plan.bill import QUANTUM, hourly_bill
from tiercast_plan.capacity import Infeasible, check_capacity
from tiercast_plan.cost import CostReport, cost_of_rates
from tiercast_plan.estimate import Estimate, Estimator
from tiercast_plan.fleet import Fleet, size_fleet
from tiercast_plan.options import Load, placements, tensor_sizes, try_host_scenario
from tiercast_plan.steady import Steady, is_by_events, steady_state
from tiercast_profiles.document import BOUNDS, Bound
from tiercast_profiles.errors import BadInput, InfeasibleScenario, NoDevicePrice
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.prices import PriceBook
from tiercast_profiles.record import Metric
from tiercast_profiles.scenario import Placement, ResolvedScenario
from tiercast_profiles.units import S_PER_HOUR, TOKENS_PER_MTOK
from tiercast_profiles.workload import Workload, draw_requests

LADDER = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
PER_HARDWARE = 2
"""Finalists of each machine; the cheapest machine also sends the best option of every tier."""
NUM_DRAWN = 512
NUM_WITH_INTERVAL = 3
MAX_TRIES = 4
MAX_BY_EVENTS = 1024
"""Largest concurrency of one replica that is simulated event by event; larger loads of such options are not tried."""
MAX_WITH_CACHE = 256
"""The same behind a row cache, which is asked row by row: at 1,024 requests four caches would take a minute."""

ReasonKind = Literal["no price", "no such tier", "memory", "latency", "budget", "dearer"]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. Latency limits hold at the percentile; None sets no limit."""

    model: ModelSpec
    hardware: tuple[HardwareProfile, ...]
    prices: PriceBook
    load: Load
    slo_ttft_ms: float | None = None
    slo_tpot_ms: float | None = None
    percentile: int = 90
    demand_tokens_per_day: int | None = None
    budget_usd_per_hour: Decimal | None = None
    cache_gib: tuple[float, ...] = ()
    today: datetime.date | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """An option that is not an answer: why, and by how much where memory is the reason."""

    hardware: str
    tensor: int | None
    placement: Placement | None
    kind: ReasonKind
    reason: str
    shortfall_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Family:
    """One way to set up a host, at any load: what it costs by the hour and how fast it is in closed form."""

    resolved: ResolvedScenario
    usd_per_host_hour: Decimal
    estimates: tuple[Estimate, ...]

    @property
    def name(self) -> tuple[str, int, str, str | None, str, str]:
        """What tells families apart."""
        placement = self.resolved.placement
        return (
            self.resolved.hardware.name,
            self.resolved.scenario.parallel.tensor,
            placement.tier,
            placement.path,
            placement.prefetch,
            placement.replication,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A simulated answer for one host, and the fleet of such hosts."""

    resolved: ResolvedScenario
    concurrency_per_replica: int
    estimate: Estimate
    steady: Steady
    cost: CostReport
    fleet: Fleet

    @property
    def usd_per_mtok(self) -> Decimal:
        """US dollars per million tokens, input and output together."""
        return self.cost.usd_per_mtok["total"].value


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """A load at which nothing else is both cheaper and faster, in closed form."""

    hardware: str
    tensor: int
    tier: str
    path: str | None
    prefetch: str
    num_requests_per_replica: int
    tpot_ms: float
    ttft_ms: float
    usd_per_mtok: Decimal


@dataclass(frozen=True, slots=True)
class Answer:
    """Plans that meet everything asked, best first; the front; every family; and why the others are not there."""

    plans: tuple[Plan, ...]
    pareto: tuple[ParetoPoint, ...]
    rejections: tuple[Rejection, ...]
    families: tuple[Family, ...]
    num_options: int
    num_simulated: int


def search(question: Question, report: Callable[[str, float], None] | None = None) -> Answer:
    """Answer a question. ``report`` hears what is being looked at and the share done.

    Raises:
        BadInput: no machine to choose from, or a demand or budget that makes no sense.
    """
    if not question.hardware:
        raise BadInput("no hardware to choose from; name at least one")
    size_fleet(
        total_tokens_per_s=1.0,
        usd_per_host_hour=Decimal(1),
        devices_per_host=1,
        utilization_ratio=1.0,
        demand_tokens_per_day=question.demand_tokens_per_day,
        budget_usd_per_hour=question.budget_usd_per_hour,
    )
    say = report or (lambda _what, _ratio: None)
    rejections: list[Rejection] = []
    families: list[Family] = []
    for index, hardware in enumerate(question.hardware):
        say(f"estimate {hardware.name}", 0.3 * index / len(question.hardware))
        for found in _families(question, hardware):
            (rejections if isinstance(found, Rejection) else families).append(found)  # type: ignore[arg-type]
    num_options = len(families) + len(rejections)
    ranked: list[tuple[Decimal, Family, Estimate]] = []
    for family in families:
        best = best_estimate(question, family)
        if isinstance(best, Estimate):
            ranked.append((rank_key(question, family, best), family, best))
        else:
            rejections.append(_rejection(family.resolved, best[0], best[1]))
    ranked.sort(key=lambda entry: (_rounded(entry[0]), _PLAINNESS[entry[1].resolved.placement.prefetch], entry[0]))
    finalists = _finalists(ranked)
    names = {entry[1].name for entry in finalists}
    rejections += [_dearer(question, family, estimate) for _, family, estimate in ranked if family.name not in names]
    plans: list[Plan] = []
    num_simulated = 0
    for index, (_, family, estimate) in enumerate(finalists):
        where = family.resolved
        say(f"simulate {where.hardware.name} TP{where.scenario.parallel.tensor}", 0.3 + 0.6 * index / len(finalists))
        for placement in _with_caches(question, where):
            result, tries = _simulated(question, family, estimate, placement)
            num_simulated += tries
            if isinstance(result, Plan):
                plans.append(result)
            else:
                rejections.append(result)
    plans.sort(key=lambda plan: (_plan_key(question, plan), plan.resolved.hardware.name, plan.concurrency_per_replica))
    say("intervals", 0.9)
    plans = [_with_interval(question, plan) if i < NUM_WITH_INTERVAL else plan for i, plan in enumerate(plans)]
    return Answer(
        plans=tuple(plans),
        pareto=pareto_front(question, families),
        rejections=tuple(rejections),
        families=tuple(families),
        num_options=num_options,
        num_simulated=num_simulated,
    )


def largest_load(load: Load) -> int:
    """The largest number of requests per replica that is tried, memory aside."""
    return max(size for size in LADDER if size <= load.engine.max_num_seqs)


def mean_tokens(load: Load) -> tuple[int, int]:
    """Mean prompt and output tokens of the requests the load draws, whole and at least one."""
    workload = Workload(
        kind="closed_loop",
        concurrency=1,
        num_requests=NUM_DRAWN,
        prompt_tokens=load.prompt_tokens,
        output_tokens=load.output_tokens,
    )
    requests = draw_requests(workload, load.seed)
    prompt = sum(request.prompt_tokens for request in requests) / NUM_DRAWN
    output = sum(request.output_tokens for request in requests) / NUM_DRAWN
    return max(1, round(prompt)), max(1, round(output))


def _families(question: Question, hardware: HardwareProfile) -> Iterator[Family | Rejection]:
    try:
        key = question.prices.device_key(hardware.name, hardware.device.product_name)
    except NoDevicePrice as error:
        yield Rejection(hardware.name, None, None, "no price", str(error))
        return
    prompt, output = mean_tokens(question.load)
    for tensor in tensor_sizes(hardware):
        for placement in placements(hardware):
            resolved = try_host_scenario(
                hardware, question.model, question.prices, question.load, tensor=tensor, placement=placement
            )
            if isinstance(resolved, str):
                yield Rejection(hardware.name, tensor, placement, "no such tier", resolved)
                continue
            verdict = check_capacity(resolved)
            if isinstance(verdict, Infeasible):
                yield _rejection(resolved, "memory", verdict.reason, verdict.shortfall_bytes)
                continue
            bill = hourly_bill(resolved, verdict.plan, key)
            usd_per_hour = sum((line.usd_per_hour for line in bill), Decimal(0))
            most = max(1, verdict.plan.kv_capacity_tokens // (prompt + output))
            estimator = Estimator(resolved, prompt, output)
            most = min(most, most_simulated(resolved), question.load.engine.max_num_seqs)
            steps = [size for size in LADDER if size <= most]
            yield Family(resolved, usd_per_hour, tuple(estimator.at(size) for size in steps))


def most_simulated(resolved: ResolvedScenario) -> int:
    """The largest load of an option that is simulated, memory and limits aside.

    Closed forms rank no larger one: it could win there and then be simulated, and shown, at a fraction of its load.
    """
    if not is_by_events(resolved):
        return LADDER[-1]
    return MAX_WITH_CACHE if resolved.placement.cache_gib > 0 else MAX_BY_EVENTS


def best_estimate(question: Question, family: Family) -> Estimate | tuple[ReasonKind, str]:
    """The cheapest load of a family that meets the limits in closed form, or why there is none."""
    fitting = [estimate for estimate in family.estimates if _is_fast(question, estimate.ttft_ms, estimate.tpot_ms)]
    if not fitting:
        gentlest = min(family.estimates, key=lambda estimate: (estimate.tpot_ms, estimate.ttft_ms))
        return (
            "latency",
            f"in closed form {_latencies(gentlest.ttft_ms, gentlest.tpot_ms)} at best; {_limits(question)}",
        )
    best = max(fitting, key=lambda estimate: estimate.total_tokens_per_s)
    fleet = _fleet(question, family, best.total_tokens_per_s)
    too_dear = _over_budget(question, fleet)
    return best if too_dear is None else ("budget", too_dear)


def _over_budget(question: Question, fleet: Fleet) -> str | None:
    budget = question.budget_usd_per_hour
    if budget is None or fleet.usd_per_hour <= budget:
        return None
    return f"{fleet.num_hosts} hosts cost {fleet.usd_per_hour:.2f} USD an hour, the budget is {budget}"


def rank_key(question: Question, family: Family, estimate: Estimate) -> Decimal:
    """What is compared: the fleet's hourly cost where a demand is given, else US dollars per million tokens."""
    if question.demand_tokens_per_day is not None:
        return _fleet(question, family, estimate.total_tokens_per_s).usd_per_hour
    return usd_per_mtok(question, family.usd_per_host_hour, estimate.total_tokens_per_s)


def usd_per_mtok(question: Question, usd_per_host_hour: Decimal, total_tokens_per_s: float) -> Decimal:
    """US dollars per million tokens of a host at a rate, at the book's utilisation."""
    mtok = Decimal(str(total_tokens_per_s)) * Decimal(str(question.prices.utilization_ratio))
    return usd_per_host_hour / (mtok * S_PER_HOUR / TOKENS_PER_MTOK)


def _plan_key(question: Question, plan: Plan) -> Decimal:
    return plan.fleet.usd_per_hour if question.demand_tokens_per_day is not None else plan.usd_per_mtok


def _fleet(question: Question, family: Family, total_tokens_per_s: float) -> Fleet:
    return size_fleet(
        total_tokens_per_s=total_tokens_per_s,
        usd_per_host_hour=family.usd_per_host_hour,
        devices_per_host=family.resolved.hardware.device.num_per_host,
        utilization_ratio=question.prices.utilization_ratio,
        demand_tokens_per_day=question.demand_tokens_per_day,
        budget_usd_per_hour=question.budget_usd_per_hour,
    )


_PLAINNESS = {"step_entry": 0, "off": 1, "prev_step": 2}
"""Of options that cost the same to two percent, the one that engines do by themselves goes first."""


def _rounded(amount: Decimal) -> int:
    return round(math.log(amount) / 0.02)


def _finalists(ranked: Sequence[tuple[Decimal, Family, Estimate]]) -> list[tuple[Decimal, Family, Estimate]]:
    """The best of each machine, no two of them alike in ranks and tier, and every tier of the cheapest machine."""
    chosen: list[tuple[Decimal, Family, Estimate]] = []
    for entry in ranked:
        hardware, tensor, tier = entry[1].name[:3]
        own = [other[1].name for other in chosen if other[1].name[0] == hardware]
        is_new_tier = hardware == ranked[0][1].name[0] and all(name[2] != tier for name in own)
        if is_new_tier or (len(own) < PER_HARDWARE and all(name[1:3] != (tensor, tier) for name in own)):
            chosen.append(entry)
    return chosen


def _dearer(question: Question, family: Family, estimate: Estimate) -> Rejection:
    cost = usd_per_mtok(question, family.usd_per_host_hour, estimate.total_tokens_per_s)
    return _rejection(
        family.resolved, "dearer", f"{cost:.4f} USD/Mtok in closed form, not among the cheapest and not simulated"
    )


def _with_caches(question: Question, resolved: ResolvedScenario) -> Iterator[Placement]:
    placement = resolved.scenario.placement
    yield placement
    if placement.tier != "hbm":
        for cache_gib in question.cache_gib:
            if cache_gib > 0:
                yield placement.model_copy(update={"cache_gib": cache_gib})


def _simulated(
    question: Question, family: Family, estimate: Estimate, placement: Placement
) -> tuple[Plan | Rejection, int]:
    """The family at the largest load that meets the limits when simulated; how many simulations that took."""
    loads = [known for known in family.estimates if known.total_tokens_per_s <= estimate.total_tokens_per_s * 1.001]
    loads.sort(key=lambda known: known.concurrency_per_replica, reverse=True)
    resolved = family.resolved.with_placement(placement)
    loads = [known for known in loads if known.concurrency_per_replica <= most_simulated(resolved)]
    reason, shortfall = "", 0
    tries = 0
    while loads and tries < MAX_TRIES:
        known = loads[0]
        tries += 1
        try:
            steady = steady_state(resolved, question.percentile, known.concurrency_per_replica)
        except InfeasibleScenario as error:
            reason, shortfall = str(error), error.shortfall_bytes
            loads = loads[1:]
            continue
        if _is_fast(question, steady.ttft_ms, steady.tpot_ms):
            plan = _plan(question, resolved, known, {"nominal": steady})
            too_dear = _over_budget(question, plan.fleet)
            return (plan if too_dear is None else _rejection(family.resolved, "budget", too_dear)), tries
        reason = (
            f"simulated {_latencies(steady.ttft_ms, steady.tpot_ms)} at p{question.percentile} with "
            f"{known.concurrency_per_replica} requests per replica; {_limits(question)}"
        )
        # Latency grows with the load: go down by as much as it is over, at least by one step of the ladder.
        over = max(
            steady.tpot_ms / question.slo_tpot_ms if question.slo_tpot_ms else 0,
            steady.ttft_ms / question.slo_ttft_ms if question.slo_ttft_ms else 0,
        )
        loads = [other for other in loads[1:] if other.concurrency_per_replica * over <= known.concurrency_per_replica]
    kind: ReasonKind = "memory" if shortfall else "latency"
    return _rejection(family.resolved, kind, reason, shortfall), tries


def _plan(question: Question, resolved: ResolvedScenario, estimate: Estimate, found: dict[Bound, Steady]) -> Plan:
    steady = found["nominal"]
    cost = cost_of_rates(
        resolved,
        total=_metric({bound: one.total_tokens_per_s for bound, one in found.items()}),
        output=_metric({bound: one.output_tokens_per_s for bound, one in found.items()}),
        today=question.today,
    )
    fleet = size_fleet(
        total_tokens_per_s=steady.total_tokens_per_s,
        usd_per_host_hour=cost.usd_per_hour,
        devices_per_host=resolved.hardware.device.num_per_host,
        utilization_ratio=question.prices.utilization_ratio,
        demand_tokens_per_day=question.demand_tokens_per_day,
        budget_usd_per_hour=question.budget_usd_per_hour,
    )
    return Plan(resolved, estimate.concurrency_per_replica, estimate, steady, cost, fleet)


def _metric(values: dict[Bound, float]) -> Metric:
    if len(values) == 1:
        return Metric(value=values["nominal"])
    return Metric(value=values["nominal"], low=min(values.values()), high=max(values.values()), basis="band")


def _with_interval(question: Question, plan: Plan) -> Plan:
    """The plan with the bands of its inputs run through the simulation; an end that does not fit is left out."""
    found: dict[Bound, Steady] = {"nominal": plan.steady}
    for bound in BOUNDS:
        if bound != "nominal":
            try:
                found[bound] = steady_state(plan.resolved, question.percentile, plan.concurrency_per_replica, bound)
            except InfeasibleScenario:
                continue
    return _plan(question, plan.resolved, plan.estimate, found)


def pareto_front(question: Question, families: Sequence[Family]) -> tuple[ParetoPoint, ...]:
    """Loads that nothing beats in both TPOT and cost per token, fastest first; limits are not applied."""
    points = [
        ParetoPoint(
            hardware=family.resolved.hardware.name,
            tensor=family.resolved.scenario.parallel.tensor,
            tier=family.resolved.placement.tier,
            path=family.resolved.placement.path,
            prefetch=family.resolved.placement.prefetch,
            num_requests_per_replica=estimate.concurrency_per_replica,
            tpot_ms=estimate.tpot_ms,
            ttft_ms=estimate.ttft_ms,
            usd_per_mtok=usd_per_mtok(question, family.usd_per_host_hour, estimate.total_tokens_per_s).quantize(
                QUANTUM
            ),
        )
        for family in families
        for estimate in family.estimates
    ]
    points.sort(key=lambda point: (point.tpot_ms, point.usd_per_mtok))
    front: list[ParetoPoint] = []
    for point in points:
        if not front or point.usd_per_mtok < front[-1].usd_per_mtok:
            front.append(point)
    return tuple(front)


def _is_fast(question: Question, ttft_ms: float, tpot_ms: float) -> bool:
    is_soon = question.slo_ttft_ms is None or ttft_ms <= question.slo_ttft_ms
    return is_soon and (question.slo_tpot_ms is None or tpot_ms <= question.slo_tpot_ms)


def _latencies(ttft_ms: float, tpot_ms: float) -> str:
    return f"TTFT {ttft_ms:.4g} ms, TPOT {tpot_ms:.4g} ms"


def _limits(question: Question) -> str:
    limits = (("TTFT", question.slo_ttft_ms), ("TPOT", question.slo_tpot_ms))
    return "asked: " + ", ".join(f"{name} {limit:g} ms" for name, limit in limits if limit is not None)


def _rejection(resolved: ResolvedScenario, kind: ReasonKind, reason: str, shortfall_bytes: int = 0) -> Rejection:
    scenario = resolved.scenario
    return Rejection(
        resolved.hardware.name, scenario.parallel.tensor, scenario.placement, kind, reason, shortfall_bytes
    )
