"""When does the answer flip, and what moves it most: break-even points and a tornado, in closed form.

Both vary one thing at a time over the contenders, the families that the closed forms rank first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

from tiercast_plan.bill import QUANTUM, hourly_bill, tenures_of
from tiercast_plan.capacity import Infeasible, check_capacity
from tiercast_plan.estimate import Estimate, Estimator
from tiercast_plan.search import Family, Question, best_estimate, mean_tokens, rank_key, usd_per_mtok
from tiercast_profiles.document import Quantity
from tiercast_profiles.hardware import LookupCurve
from tiercast_profiles.prices import PriceBook
from tiercast_profiles.scenario import ResolvedScenario

NUM_CONTENDERS = 8
FACTORS = (1.5, 2.0, 4.0, 8.0, 16.0)
NUM_HALVINGS = 7
UTILIZATION_ENDS = (0.3, 0.7)

Knob = Literal["dram price", "link speed", "table size", "TTFT limit", "TPOT limit"]


@dataclass(frozen=True, slots=True)
class BreakEven:
    """The nearest value of a knob at which another option wins; ``value`` is None where none was found in the range."""

    knob: Knob
    unit: str
    current: float
    direction: Literal["below", "above"]
    value: float | None
    winner: str | None
    searched_to: float


@dataclass(frozen=True, slots=True)
class Sway:
    """What one uncertain input does to the answer's cost, and who wins instead at either end (None: the answer)."""

    name: str
    low: str
    high: str
    usd_per_mtok_at_low: Decimal | None
    usd_per_mtok_at_high: Decimal | None
    winner_at_low: str | None
    winner_at_high: str | None

    @property
    def width(self) -> Decimal:
        """Distance between the two costs; an end at which the answer fails counts as nothing."""
        ends = (self.usd_per_mtok_at_low, self.usd_per_mtok_at_high)
        return abs(ends[1] - ends[0]) if ends[0] is not None and ends[1] is not None else Decimal(0)


def label(family: Family) -> str:
    """A family in a few words: machine, ranks per replica, tier."""
    resolved = family.resolved
    return f"{resolved.hardware.name} TP{resolved.scenario.parallel.tensor} {resolved.placement.tier}"


def contenders(question: Question, families: Sequence[Family]) -> list[Family]:
    """The families that rank first, one for each machine, ranks and tier."""
    ranked = [
        (rank_key(question, family, best), index, family)
        for index, family in enumerate(families)
        if isinstance(best := best_estimate(question, family), Estimate)
    ]
    found: dict[str, Family] = {}
    for _, _, family in sorted(ranked, key=lambda entry: entry[:2]):
        found.setdefault(label(family), family)
    return list(found.values())[:NUM_CONTENDERS]


def winner(question: Question, families: Sequence[Family | None]) -> str | None:
    """Who ranks first in closed form, or None where nobody meets the limits."""
    ranked = [
        (rank_key(question, family, best), label(family))
        for family in families
        if family is not None and isinstance(best := best_estimate(question, family), Estimate)
    ]
    return min(ranked)[1] if ranked else None


def break_evens(question: Question, families: Sequence[Family]) -> tuple[BreakEven, ...]:
    """For each knob, in both directions, the nearest value at which the winner changes."""
    few = contenders(question, families)
    if not few:
        return ()
    dram = float(question.prices.dram_usd_per_gb)
    found = [
        *_both_ways("dram price", "USD/GB", dram, lambda f: winner(question, [_at_dram(x, f) for x in few])),
        *_both_ways("link speed", "x", 1.0, lambda f: winner(question, [_at_link(question, x, f) for x in few])),
        *_both_ways("table size", "x", 1.0, lambda f: winner(question, [_at_tables(question, x, f) for x in few])),
    ]
    ttft, tpot = question.slo_ttft_ms, question.slo_tpot_ms
    if ttft is not None:
        found += _both_ways(
            "TTFT limit", "ms", ttft, lambda f: winner(replace(question, slo_ttft_ms=ttft * f), families)
        )
    if tpot is not None:
        found += _both_ways(
            "TPOT limit", "ms", tpot, lambda f: winner(replace(question, slo_tpot_ms=tpot * f), families)
        )
    return tuple(found)


def _both_ways(knob: Knob, unit: str, current: float, at: Callable[[float], str | None]) -> list[BreakEven]:
    own = at(1.0)
    found: list[BreakEven] = []
    for direction in ("below", "above"):
        factors = [factor if direction == "above" else 1 / factor for factor in FACTORS]
        inside, outside, other = 1.0, None, None
        for factor in factors:
            other = at(factor)
            if other != own:
                outside = factor
                break
            inside = factor
        if outside is not None:
            for _ in range(NUM_HALVINGS):
                middle = (inside * outside) ** 0.5
                seen = at(middle)
                if seen == own:
                    inside = middle
                else:
                    outside, other = middle, seen
        found.append(
            BreakEven(
                knob=knob,
                unit=unit,
                current=current,
                direction=direction,
                value=None if outside is None else current * outside,
                winner=None if outside is None else (other or "nothing meets the limits"),
                searched_to=current * factors[-1],
            )
        )
    return found


def tornado(question: Question, families: Sequence[Family]) -> tuple[Sway, ...]:
    """What the bands of inputs and the spread of prices do to the answer, the widest first."""
    few = contenders(question, families)
    if not few:
        return ()
    answer = few[0]
    rows = [sway for change in _changes(question, answer) if (sway := _sway(question, few, *change)) is not None]
    return tuple(sorted(rows, key=lambda row: row.width, reverse=True))


Change = Callable[[Question, Family], tuple[Question, Family | None]]


def _changes(question: Question, answer: Family) -> list[tuple[str, str, str, Change, Change]]:
    """Every input that is varied: its name, both ends in words, and how to put it there."""
    found: list[tuple[str, str, str, Change, Change]] = []
    scenarios = sorted(question.prices.dram_scenarios_usd_per_gb.values())
    if scenarios:
        least, most = (float(price / question.prices.dram_usd_per_gb) for price in (scenarios[0], scenarios[-1]))
        found.append(
            (
                "DRAM price, USD/GB",
                str(scenarios[0]),
                str(scenarios[-1]),
                lambda q, family: (q, _at_dram(family, least)),
                lambda q, family: (q, _at_dram(family, most)),
            )
        )
    low, high = UTILIZATION_ENDS
    found.append(
        (
            "utilisation",
            f"{low:g}",
            f"{high:g}",
            lambda q, family: (_at_utilization(q, low), family),
            lambda q, family: (_at_utilization(q, high), family),
        )
    )
    rates = _hourly_rates(question.prices, answer)
    if rates[0] != rates[-1]:
        found.append(
            (
                "device price, rented or owned",
                f"{float(rates[0]):.4g} USD/h",
                f"{float(rates[-1]):.4g} USD/h",
                lambda q, family: (q, _at_tenure(q, family, cheapest=True)),
                lambda q, family: (q, _at_tenure(q, family, cheapest=False)),
            )
        )
    for name, read, write in _BANDED:
        quantity = read(answer.resolved)
        if quantity is not None and quantity.low is not None and quantity.high is not None:
            ends = (_to_end(read, write, is_high=False), _to_end(read, write, is_high=True))
            found.append((name, f"{quantity.low:g}", f"{quantity.high:g}", *ends))
    return found


def _sway(question: Question, few: Sequence[Family], name: str, low: str, high: str, *ends: Change) -> Sway | None:
    costs: list[Decimal | None] = []
    winners: list[str | None] = []
    for change in ends:
        changed = [change(question, family) for family in few]
        own_question, own = changed[0]
        best = None if own is None else best_estimate(own_question, own)
        is_priced = own is not None and isinstance(best, Estimate)
        costs.append(
            usd_per_mtok(own_question, own.usd_per_host_hour, best.total_tokens_per_s).quantize(QUANTUM)
            if is_priced and own is not None and isinstance(best, Estimate)
            else None
        )
        first = winner(own_question, [family for _, family in changed])
        winners.append(None if first == label(few[0]) else first or "nothing meets the limits")
    if costs[0] == costs[1] and winners == [None, None]:
        return None
    return Sway(name, low, high, costs[0], costs[1], winners[0], winners[1])


def _repriced(family: Family, prices: PriceBook) -> Family:
    resolved = family.resolved.model_copy(update={"prices": prices})
    verdict = check_capacity(resolved)
    assert not isinstance(verdict, Infeasible), "a price moves no bytes"
    key = prices.device_key(resolved.hardware.name, resolved.hardware.device.product_name)
    bill = hourly_bill(resolved, verdict.plan, key)
    return replace(family, resolved=resolved, usd_per_host_hour=sum((line.usd_per_hour for line in bill), Decimal(0)))


def _at_dram(family: Family, factor: float) -> Family:
    prices = family.resolved.prices
    price = prices.dram_usd_per_gb * Decimal(str(factor))
    return _repriced(family, prices.model_copy(update={"dram_usd_per_gb": price}))


def _at_utilization(question: Question, ratio: float) -> Question:
    return replace(question, prices=question.prices.model_copy(update={"utilization_ratio": ratio}))


def _device_key(prices: PriceBook, family: Family) -> str:
    hardware = family.resolved.hardware
    return prices.device_key(hardware.name, hardware.device.product_name)


def _hourly_rates(prices: PriceBook, family: Family) -> list[Decimal]:
    """What a host of this family costs by the hour under every tenure the book knows, ascending."""
    key = _device_key(prices, family)
    verdict = check_capacity(family.resolved)
    assert not isinstance(verdict, Infeasible), "families fit"
    bills = (hourly_bill(family.resolved, verdict.plan, key, tenure) for tenure in tenures_of(prices, key))
    return sorted(sum((line.usd_per_hour for line in bill), Decimal(0)) for bill in bills)


def _at_tenure(question: Question, family: Family, *, cheapest: bool) -> Family:
    rates = _hourly_rates(question.prices, family)
    return replace(family, usd_per_host_hour=rates[0] if cheapest else rates[-1])


def _reestimated(question: Question, family: Family, resolved: ResolvedScenario) -> Family | None:
    """The family with other inputs at the loads around its best, or None where it does not fit any more."""
    verdict = check_capacity(resolved)
    if isinstance(verdict, Infeasible):
        return None
    prompt, output = mean_tokens(question.load)
    most = max(1, verdict.plan.kv_capacity_tokens // (prompt + output))
    sizes = [known.concurrency_per_replica for known in family.estimates if known.concurrency_per_replica <= most]
    best = best_estimate(question, family)
    if isinstance(best, Estimate) and best.concurrency_per_replica in sizes:
        index = sizes.index(best.concurrency_per_replica)
        sizes = sizes[max(0, index - 1) : index + 2]
    if not sizes:
        return None
    estimator = Estimator(resolved, prompt, output)
    key = _device_key(resolved.prices, family)
    bill = hourly_bill(resolved, verdict.plan, key)
    hourly = sum((line.usd_per_hour for line in bill), Decimal(0))
    return Family(resolved, hourly, tuple(estimator.at(size) for size in sizes))


def _at_link(question: Question, family: Family, factor: float) -> Family | None:
    """Rows reach the device so many times faster, over the link and by the path that crosses it."""
    if family.resolved.placement.tier == "hbm" or factor == 1:
        return family
    hardware = family.resolved.hardware
    link = hardware.host_to_device
    faster = link.model_copy(update={"bandwidth_gb_per_s": _times(link.bandwidth_gb_per_s, factor)})
    lookups = tuple(_faster(curve, factor) if curve.path != "device" else curve for curve in hardware.lookups)
    changed = hardware.model_copy(update={"host_to_device": faster, "lookups": lookups})
    return _reestimated(question, family, family.resolved.model_copy(update={"hardware": changed}))


def _faster(curve: LookupCurve, factor: float) -> LookupCurve:
    points = tuple(
        point.model_copy(
            update={
                "time_us": point.time_us / factor,
                "low_us": point.low_us / factor,
                "high_us": point.high_us / factor,
            }
        )
        for point in curve.points
    )
    return curve.model_copy(
        update={
            "row_ns": _times(curve.row_ns, 1 / factor),
            "bandwidth_gb_per_s": _times(curve.bandwidth_gb_per_s, factor),
            "points": points,
        }
    )


def _at_tables(question: Question, family: Family, factor: float) -> Family | None:
    """Tables of so many times the rows."""
    if factor == 1:
        return family
    engram = family.resolved.model.engram
    rows = tuple(max(1, round(count * factor)) for count in engram.rows_per_head)
    model = family.resolved.model.model_copy(
        update={"engram": engram.model_copy(update={"rows_per_head": rows}), "published_table_rows": None}
    )
    return _reestimated(question, family, family.resolved.model_copy(update={"model": model}))


def _times(quantity: Quantity, factor: float) -> Quantity:
    return Quantity.model_validate(
        {
            name: end * factor
            for name, end in (("value", quantity.value), ("low", quantity.low), ("high", quantity.high))
            if end is not None
        }
    )


Read = Callable[[ResolvedScenario], Quantity | None]
Write = Callable[[ResolvedScenario, Quantity], ResolvedScenario]


def _to_end(read: Read, write: Write, *, is_high: bool) -> Change:
    """Every family at the same end of its own band."""

    def change(question: Question, family: Family) -> tuple[Question, Family | None]:
        quantity = read(family.resolved)
        if quantity is None or quantity.low is None or quantity.high is None:
            return question, family
        end = Quantity(value=quantity.high if is_high else quantity.low)
        return question, _reestimated(question, family, write(family.resolved, end))

    return change


def _of_device(name: str) -> tuple[Read, Write]:
    def read(resolved: ResolvedScenario) -> Quantity | None:
        found: Quantity = getattr(resolved.hardware.device, name)
        return found

    def write(resolved: ResolvedScenario, quantity: Quantity) -> ResolvedScenario:
        device = resolved.hardware.device.model_copy(update={name: quantity})
        return resolved.model_copy(update={"hardware": resolved.hardware.model_copy(update={"device": device})})

    return read, write


def _of_overhead(name: str) -> tuple[Read, Write]:
    """An overhead of the graph mode that is asked for."""

    def read(resolved: ResolvedScenario) -> Quantity | None:
        found: Mapping[str, Quantity] = getattr(resolved.hardware.device, name)
        return found.get(resolved.placement.graph_mode)

    def write(resolved: ResolvedScenario, quantity: Quantity) -> ResolvedScenario:
        device = resolved.hardware.device
        table = {**getattr(device, name), resolved.placement.graph_mode: quantity}
        hardware = resolved.hardware.model_copy(update={"device": device.model_copy(update={name: table})})
        return resolved.model_copy(update={"hardware": hardware})

    return read, write


def _read_collective(resolved: ResolvedScenario) -> Quantity | None:
    collective = resolved.hardware.device.collective
    return None if collective is None or resolved.scenario.parallel.tensor == 1 else collective.latency_us


def _write_collective(resolved: ResolvedScenario, quantity: Quantity) -> ResolvedScenario:
    device = resolved.hardware.device
    assert device.collective is not None, "what was read is there"
    changed = device.model_copy(update={"collective": device.collective.model_copy(update={"latency_us": quantity})})
    return resolved.model_copy(update={"hardware": resolved.hardware.model_copy(update={"device": changed})})


def _of_curve(name: str) -> tuple[Read, Write]:
    def read(resolved: ResolvedScenario) -> Quantity | None:
        placement = resolved.placement
        if placement.tier == "none" or placement.path is None:
            return None
        curve = resolved.hardware.curve(placement.tier, placement.path)
        return None if curve is None else getattr(curve, name)

    def write(resolved: ResolvedScenario, quantity: Quantity) -> ResolvedScenario:
        where = (resolved.placement.tier, resolved.placement.path)
        lookups = tuple(
            curve.model_copy(update={name: quantity}) if (curve.tier, curve.path) == where else curve
            for curve in resolved.hardware.lookups
        )
        return resolved.model_copy(update={"hardware": resolved.hardware.model_copy(update={"lookups": lookups})})

    return read, write


def _read_kv(resolved: ResolvedScenario) -> Quantity | None:
    return resolved.model.backbone.kv_bytes_per_token


def _write_kv(resolved: ResolvedScenario, quantity: Quantity) -> ResolvedScenario:
    backbone = resolved.model.backbone.model_copy(update={"kv_bytes_per_token": quantity})
    return resolved.model_copy(update={"model": resolved.model.model_copy(update={"backbone": backbone})})


_BANDED: tuple[tuple[str, Read, Write], ...] = (
    ("matmul efficiency", *_of_device("matmul_efficiency_ratio")),
    ("memory efficiency", *_of_device("memory_efficiency_ratio")),
    ("device memory bandwidth, GB/s", *_of_device("memory_bandwidth_gb_per_s")),
    ("overhead of a step, us", *_of_overhead("step_overhead_us")),
    ("overhead of a layer, us", *_of_overhead("layer_overhead_us")),
    ("latency of a collective, us", _read_collective, _write_collective),
    ("lookup bandwidth of the path, GB/s", *_of_curve("bandwidth_gb_per_s")),
    ("lookup time per row, ns", *_of_curve("row_ns")),
    ("fixed time of a lookup, us", *_of_curve("fixed_us")),
    ("KV bytes per token", _read_kv, _write_kv),
)
