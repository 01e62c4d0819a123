"""From the options of ``tiercast plan`` to a question the planner answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from tiercast_cli import pricing
from tiercast_plan import answer as planner
from tiercast_plan.answer import Report
from tiercast_plan.options import Load
from tiercast_plan.search import Question
from tiercast_profiles import store
from tiercast_profiles.errors import BadInput, InfeasibleScenario
from tiercast_profiles.scenario import Engine
from tiercast_profiles.workload import Fixed, Lengths, Uniform


@dataclass(frozen=True, slots=True)
class Limits:
    """What a person asked for, numbers that must be exact still as text."""

    slo_ttft_ms: float | None = None
    slo_tpot_ms: float | None = None
    percentile: int = 90
    demand_tokens_per_day: str | None = None
    budget_usd_per_hour: str | None = None


def question(
    *,
    model: str,
    hardware: Sequence[str],
    prices: str,
    lengths: tuple[str, str],
    text: str,
    engine_limits: tuple[int, int],
    seed: int,
    limits: Limits,
    cache_gib: str | None,
) -> Question:
    """Load what the options name and check every value.

    Raises:
        BadInput: a name or a value cannot be used.
    """
    prompt, output = (parse_lengths(value, name) for value, name in zip(lengths, ("prompt", "output"), strict=True))
    demand = None
    if limits.demand_tokens_per_day is not None:
        demand = int(amount(limits.demand_tokens_per_day, "--demand-tokens-per-day"))
    budget = None
    if limits.budget_usd_per_hour is not None:
        budget = amount(limits.budget_usd_per_hour, "--budget-usd-per-hour")
    caches = () if cache_gib is None else tuple(float(amount(x, "--cache-gib")) for x in cache_gib.split(","))
    max_num_seqs, max_num_batched_tokens = engine_limits
    return Question(
        model=store.load_model(model),
        hardware=tuple(store.load_hardware(name) for name in hardware),
        prices=store.load_prices(prices),
        load=Load(
            prompt_tokens=prompt,
            output_tokens=output,
            text=text,
            engine=Engine(max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens),
            seed=seed,
        ),
        slo_ttft_ms=limits.slo_ttft_ms,
        slo_tpot_ms=limits.slo_tpot_ms,
        percentile=limits.percentile,
        demand_tokens_per_day=demand,
        budget_usd_per_hour=budget,
        cache_gib=caches,
        today=pricing.today(),
    )


def answer(asked: Question, report: Callable[[str, float], None]) -> Report:
    """The planner's answer."""
    return planner.answer(asked, report)


def check_answered(report: Report) -> None:
    """Refuse to call it done when nothing meets what was asked.

    Raises:
        InfeasibleScenario: with the nearest miss.
    """
    if report.plans:
        return
    order = ("latency", "budget", "memory", "no such tier", "no price", "dearer")
    nearest = min(report.why_not, key=lambda row: (order.index(row.kind), row.shortfall_bytes))
    tier = "" if nearest.tier is None else f" with tables in {nearest.tier}"
    raise InfeasibleScenario(
        f"no option meets what was asked; nearest: {nearest.hardware}{tier}: {nearest.reason}", nearest.shortfall_bytes
    )


def parse_lengths(text: str, name: str) -> Lengths:
    """``512``, or ``100..1024`` for lengths drawn evenly.

    Raises:
        BadInput: neither.
    """
    low, separator, high = text.partition("..")
    if low.strip().isdecimal() and (not separator or high.strip().isdecimal()):
        ends = (int(low), int(high) if separator else int(low))
        if 0 < ends[0] <= ends[1] <= 10_000_000:
            return Uniform(uniform=ends) if separator else Fixed(fixed=ends[0])
    raise BadInput(f"--{name}-tokens {text!r}: give a number such as 512, or a range such as 100..1024, from 1 up")


def amount(text: str, option: str) -> Decimal:
    """A number above zero, exact.

    Raises:
        BadInput: it is none.
    """
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        value = Decimal(0)
    if not value.is_finite() or value <= 0:
        raise BadInput(f"{option} {text!r}: give a number above 0, as in 250 or 1e12")
    return value
