"""Dollars per million tokens of a run, with every line that makes them up.

    USD per Mtok of a kind = USD per hour ÷ (tokens of that kind per second × 3600 ÷ 1e6 × utilisation)

computed for total, input and output tokens apart (the InferenceX convention): the output-only number is several times
the total one. Money is ``Decimal`` until it is printed.

Assumption A21: the fleet serves ``utilization_ratio`` of the time and costs the same in the rest.
Assumption A23: the record's throughput is that of the whole deployment, all replicas together.
"""

import datetime
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal, Self

from pydantic import model_validator

from tiercast_plan.bill import (
    QUANTUM,
    HourlyLine,
    LineName,
    LineUnit,
    all_in_power_kw,
    hourly_bill,
    num_table_copies,
    tenures_of,
)
from tiercast_plan.ownership import Tenure
from tiercast_plan.price_evidence import PriceEvidence, age_warnings, evidence_of
from tiercast_profiles.document import Strict
from tiercast_profiles.errors import BadInput
from tiercast_profiles.record import Metric, RunRecord
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import S_PER_HOUR, TOKENS_PER_MTOK
from tiercast_profiles.workload import Workload
from tiercast_sim.memory import memory_plan

MIN_WAVES = 8
"""Requests for each one in flight from which on the start and the end of a closed loop move a price little."""

TokenKind = Literal["total", "input", "output"]
TOKEN_KINDS: tuple[TokenKind, ...] = ("total", "input", "output")


class CostLine(Strict):
    """One line of the bill. ``amount`` counts ``unit``: devices, GB bought (1 GB = 1e9 bytes), kW or network ports.

    ``is_included``: the device price already pays for it, so it adds nothing. ``usd_per_copy_hour`` is a memory line's
    share of one copy of the tables, staging buffers spread over the copies; None where it holds no copy.
    """

    name: LineName
    amount: Decimal
    unit: LineUnit
    is_included: bool
    note: str
    usd_per_hour: Decimal
    usd_per_mtok: dict[TokenKind, Decimal]
    usd_per_copy_hour: Decimal | None = None


class MoneyInterval(Strict):
    """USD per million tokens; the interval is that of the record's throughput, None where the record has none."""

    value: Decimal
    low: Decimal | None = None
    high: Decimal | None = None


class CostReport(Strict):
    """What a run costs. The lines add up to every total, exactly."""

    hardware_name: str
    model_name: str
    price_book: str
    tenure: Tenure
    offer: str
    num_devices: int
    num_hosts: int
    num_table_copies: int
    utilization_ratio: float
    lines: tuple[CostLine, ...]
    usd_per_hour: Decimal
    usd_per_mtok: dict[TokenKind, MoneyInterval]
    joules_per_token: dict[TokenKind, float]
    evidence: tuple[PriceEvidence, ...]
    warnings: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _lines_add_up(self) -> Self:
        if self.usd_per_hour != sum(line.usd_per_hour for line in self.lines):
            raise ValueError("the lines do not add up to usd_per_hour")
        for kind in TOKEN_KINDS:
            if self.usd_per_mtok[kind].value != sum(line.usd_per_mtok[kind] for line in self.lines):
                raise ValueError(f"the lines do not add up to usd_per_mtok.{kind}")
        return self

    def line(self, name: LineName) -> CostLine:
        """The line of that name; every report has all of them."""
        return next(line for line in self.lines if line.name == name)


def cost_per_mtok(
    resolved: ResolvedScenario, record: RunRecord, *, today: datetime.date | None = None, tenure: Tenure = "rental"
) -> CostReport:
    """Price a run of a scenario with the scenario's price book.

    ``today`` is what prices are aged against; without it nothing is said about their age. No clock is read here.

    Raises:
        NoDevicePrice: the book has no price for this hardware under the tenure.
        BadInput: the record is of another deployment, or lacks input or output tokens.
    """
    _check_same_deployment(resolved, record)
    metrics = record.metrics
    report = cost_of_rates(
        resolved, total=metrics.total_tokens_per_s, output=metrics.output_tokens_per_s, today=today, tenure=tenure
    )
    return report.model_copy(update={"warnings": (*report.warnings, *_short_run(record.scenario.workload))})


def _short_run(workload: Workload) -> tuple[str, ...]:
    """What a closed loop of few requests does to a price: slots stand empty while it starts and while it ends."""
    in_flight, count = workload.concurrency, workload.num_requests
    if in_flight is None or count is None or count >= MIN_WAVES * in_flight:  # only a closed loop has a concurrency
        return ()
    return (
        f"a closed loop with fewer than {MIN_WAVES} requests for each one in flight: its start and its end, when slots "
        "stand empty, are in USD/Mtok, which is above that of a steady load; raise workload.num_requests, or see "
        "tiercast plan, which prices the steady state",
    )


def cost_of_rates(
    resolved: ResolvedScenario,
    *,
    total: Metric,
    output: Metric,
    today: datetime.date | None = None,
    tenure: Tenure = "rental",
) -> CostReport:
    """Price a deployment that serves so many tokens per second, all and output ones.

    Raises:
        NoDevicePrice: the book has no price for this hardware under the tenure.
        BadInput: no input or no output tokens.
    """
    prices, plan = resolved.prices, memory_plan(resolved)
    key = prices.device_key(resolved.hardware.name, resolved.hardware.device.product_name)
    rates = _tokens_per_s(total, output)
    bill = hourly_bill(resolved, plan, key, tenure)
    lines = tuple(_cost_line(line, rates, prices.utilization_ratio) for line in bill)
    power_w = float(all_in_power_kw(resolved, key) * 1000)
    paid = [path for line in bill if line.usd_per_hour > 0 for path in line.price_paths]
    unpriced = tuple(f"{line.name}: {line.note}" for line in bill if line.amount and not line.price_paths)
    conventions = [f"devices.{key}.all_in_power_kw", "utilization_ratio"]
    if any(line.unit == "GB" and line.usd_per_hour > 0 for line in bill):
        conventions.append("amortisation_years")
    return CostReport(
        hardware_name=resolved.hardware.name,
        model_name=resolved.model.name,
        price_book=prices.name,
        tenure=tenure,
        offer=bill[0].note,
        num_devices=plan.num_ranks,
        num_hosts=plan.num_hosts,
        num_table_copies=num_table_copies(plan),
        utilization_ratio=prices.utilization_ratio,
        lines=lines,
        usd_per_hour=sum((line.usd_per_hour for line in lines), Decimal(0)),
        # Input tokens go with the total, their share of it being fixed.
        usd_per_mtok={kind: _interval(lines, kind, output if kind == "output" else total) for kind in TOKEN_KINDS},
        joules_per_token={kind: power_w / float(rates[kind]) for kind in TOKEN_KINDS},
        evidence=tuple(evidence_of(prices, path) for path in [*paid, *conventions]),
        warnings=(*unpriced, *age_warnings(prices, paid, today)),
    )


def every_tenure(
    resolved: ResolvedScenario, record: RunRecord, *, today: datetime.date | None = None
) -> tuple[CostReport, ...]:
    """The run priced in every way the book knows for this device, rental first.

    Raises:
        NoDevicePrice: the book has no price for this hardware.
    """
    key = resolved.prices.device_key(resolved.hardware.name, resolved.hardware.device.product_name)
    return tuple(
        cost_per_mtok(resolved, record, today=today, tenure=tenure) for tenure in tenures_of(resolved.prices, key)
    )


def at_dram_scenarios(resolved: ResolvedScenario, record: RunRecord) -> dict[str, CostReport]:
    """The run priced at each DRAM price the book keeps, by its name; device prices stay those of today."""
    found = {}
    for name, price in resolved.prices.dram_scenarios_usd_per_gb.items():
        prices = resolved.prices.model_copy(update={"dram_usd_per_gb": price})
        found[name] = cost_per_mtok(resolved.model_copy(update={"prices": prices}), record)
    return found


def _check_same_deployment(resolved: ResolvedScenario, record: RunRecord) -> None:
    """A record may be priced anew with another book, but not as another deployment."""
    pairs = (
        ("model", record.provenance.model_name, resolved.model.name),
        ("hardware", record.provenance.hardware_name, resolved.hardware.name),
        ("placement", record.placement, resolved.placement),
        ("parallel", record.scenario.parallel, resolved.scenario.parallel),
    )
    for what, theirs, ours in pairs:
        if theirs != ours:
            raise BadInput(
                f"the record was made with {what} {theirs}, the scenario has {ours}; give the pair that match"
            )


def _tokens_per_s(total_tokens_per_s: Metric, output_tokens_per_s: Metric) -> dict[TokenKind, Decimal]:
    total = Decimal(str(total_tokens_per_s.value))
    output = Decimal(str(output_tokens_per_s.value))
    if not 0 < output < total:
        raise BadInput(f"the record has {output} output of {total} tokens per second; a cost needs both kinds of token")
    return {"total": total, "input": total - output, "output": output}


def _cost_line(line: HourlyLine, rates: dict[TokenKind, Decimal], utilization_ratio: float) -> CostLine:
    mtok_per_hour = Decimal(str(utilization_ratio)) * S_PER_HOUR / TOKENS_PER_MTOK
    return CostLine(
        name=line.name,
        amount=line.amount,
        unit=line.unit,
        is_included=line.is_included,
        note=line.note,
        usd_per_hour=line.usd_per_hour,
        usd_per_mtok={
            kind: (line.usd_per_hour / (rates[kind] * mtok_per_hour)).quantize(QUANTUM) for kind in TOKEN_KINDS
        },
        usd_per_copy_hour=(line.usd_per_hour / line.num_copies).quantize(QUANTUM) if line.num_copies else None,
    )


def _interval(lines: Sequence[CostLine], kind: TokenKind, throughput: Metric) -> MoneyInterval:
    """Cost falls as throughput rises: the high end of the one is the low end of the other."""
    value = sum((line.usd_per_mtok[kind] for line in lines), Decimal(0))
    if throughput.low is None or throughput.high is None or throughput.low <= 0:
        return MoneyInterval(value=value)
    at_value = value * Decimal(str(throughput.value))
    low, high = (at_value / Decimal(str(end)) for end in (throughput.high, throughput.low))
    return MoneyInterval(value=value, low=low.quantize(QUANTUM), high=high.quantize(QUANTUM))
