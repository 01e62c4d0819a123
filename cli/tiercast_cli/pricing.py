"""Predict and price placements side by side; one that does not fit is a row that says so."""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tiercast_plan.api_price import ApiComparison, ApiPrice, against_api
from tiercast_plan.capacity import Infeasible, check_capacity
from tiercast_plan.cost import CostReport, MoneyInterval, at_dram_scenarios, every_tenure
from tiercast_profiles.errors import InfeasibleScenario
from tiercast_profiles.hardware import TIERS
from tiercast_profiles.record import Metrics, RunRecord
from tiercast_profiles.scenario import Placement, PlacementTier, ResolvedPlacement, ResolvedScenario, natural_path
from tiercast_sim.simulate import simulate

Named = tuple[str, ResolvedScenario]


@dataclass(frozen=True, slots=True)
class PricedRow:
    """One placement: what it is predicted to do and what that costs, or why it does not fit.

    ``is_calibrated`` is true when the lookup curve it rests on was measured; None where there is no lookup.
    ``cost`` is rented; ``owned`` are the other tenures the book can price; ``dram_scenarios_usd_per_mtok`` is the cost
    of all tokens, rented, at each DRAM price the book keeps. ``api`` sets it beside a price the user gave.
    """

    name: str
    placement: ResolvedPlacement
    is_calibrated: bool | None
    hardware_calibration: str
    metrics: Metrics | None
    cost: CostReport | None
    infeasible_reason: str | None
    shortfall_bytes: int
    owned: tuple[CostReport, ...] = ()
    dram_scenarios_usd_per_mtok: dict[str, MoneyInterval] = field(default_factory=dict)
    api: ApiComparison | None = None


def placements(scenarios: Sequence[Named]) -> list[Named]:
    """Several scenarios as they are; a single one beside every other tier that its machine has, and no Engram."""
    if len(scenarios) > 1:
        return list(scenarios)
    name, resolved = scenarios[0]
    own = resolved.placement.tier
    rows = [(name, resolved)]
    tiers: tuple[PlacementTier, ...] = ("none", *TIERS)
    for tier in tiers:
        path = natural_path(tier, resolved.hardware)
        if tier == own or (tier != "none" and (path is None or resolved.hardware.curve(tier, path) is None)):
            continue
        placement = Placement(
            tier=tier,
            prefetch=resolved.placement.prefetch,
            replication=resolved.placement.replication,
            row_layout=resolved.placement.row_layout,
        )
        rows.append(("no Engram" if tier == "none" else f"tables in {tier}", resolved.with_placement(placement)))
    return rows


def today() -> datetime.date:
    """The day that prices are aged against."""
    return datetime.datetime.now(tz=datetime.UTC).date()


def price_all(
    scenarios: Sequence[Named], report: Callable[[str, float], None], api_price: ApiPrice | None = None
) -> list[PricedRow]:
    """Predict and price each."""
    rows = []
    for index, (name, resolved) in enumerate(scenarios):
        report(name, index / len(scenarios))
        rows.append(price(name, resolved, api_price)[0])
    return rows


def price(
    name: str, resolved: ResolvedScenario, api_price: ApiPrice | None = None
) -> tuple[PricedRow, RunRecord | None]:
    """Predict and price one scenario; the record is None where it does not fit."""
    verdict = check_capacity(resolved)
    if isinstance(verdict, Infeasible):
        return _row(name, resolved, reason=verdict.reason, shortfall_bytes=verdict.shortfall_bytes), None
    try:
        record = simulate(resolved)
    except InfeasibleScenario as error:
        return _row(name, resolved, reason=str(error), shortfall_bytes=error.shortfall_bytes), None
    costs = every_tenure(resolved, record, today=today())
    row = replace(
        _row(name, resolved, metrics=record.metrics, cost=costs[0]),
        owned=costs[1:],
        dram_scenarios_usd_per_mtok={
            scenario: cost.usd_per_mtok["total"] for scenario, cost in at_dram_scenarios(resolved, record).items()
        },
        api=None if api_price is None else against_api(costs[0], record.metrics, api_price),
    )
    return row, record


def check_any_fits(rows: Sequence[PricedRow]) -> None:
    """Refuse to call it done when nothing fits.

    Raises:
        InfeasibleScenario: with the smallest shortfall.
    """
    if rows and all(row.cost is None for row in rows):
        nearest = min(rows, key=lambda row: row.shortfall_bytes)
        raise InfeasibleScenario(
            f"no placement fits; the nearest is {nearest.name}: {nearest.infeasible_reason}", nearest.shortfall_bytes
        )


def _row(
    name: str,
    resolved: ResolvedScenario,
    *,
    metrics: Metrics | None = None,
    cost: CostReport | None = None,
    reason: str | None = None,
    shortfall_bytes: int = 0,
) -> PricedRow:
    placement = resolved.placement
    curve = None
    if placement.tier != "none" and placement.path is not None:
        curve = resolved.hardware.curve(placement.tier, placement.path)
    return PricedRow(
        name=name,
        placement=placement,
        is_calibrated=None if curve is None else curve.is_calibrated,
        hardware_calibration=resolved.hardware.calibration,
        metrics=metrics,
        cost=cost,
        infeasible_reason=reason,
        shortfall_bytes=shortfall_bytes,
    )
