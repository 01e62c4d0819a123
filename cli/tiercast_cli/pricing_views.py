"""What priced placements look like: the comparison first, then each bill."""

from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from tiercast_cli import render, views

if TYPE_CHECKING:
    from tiercast_cli.pricing import PricedRow
    from tiercast_plan.cost import MoneyInterval


def rows(results: "Sequence[PricedRow]") -> None:
    """Throughput, penalty, KV room and cost of each placement, then the lines of the bill."""
    comparison(results)
    bill(results)
    tenures(results)
    dram_scenarios(results)
    api(results)
    warnings = dict.fromkeys(warning for row in results if row.cost is not None for warning in row.cost.warnings)
    for warning in warnings:
        render.line(views.WARNING_SIGN + warning)


def comparison(results: "Sequence[PricedRow]") -> None:
    """What each placement does, then what it costs; a placement that does not fit says by how much."""
    speed, price = [], []
    for row in results:
        if row.metrics is None or row.cost is None:
            speed.append([row.name, "does not fit", "", "", "", ""])
            continue
        metrics, mtok = row.metrics, row.cost.usd_per_mtok
        penalty = metrics.penalty_ratio.get("no_engram")
        speed.append(
            [
                row.name,
                render.value(metrics.output_tokens_per_s),
                render.interval(metrics.output_tokens_per_s),
                render.percent(None if penalty is None else penalty.value),
                render.percent_interval(penalty),
                render.value(metrics.kv_capacity_tokens),
            ]
        )
        price.append([row.name, *money(mtok["total"]), *money(mtok["output"])])
    columns = ["placement", "output\ntokens/s", "interval", "penalty vs\nno Engram", "interval", "KV room\ntokens"]
    render.table("", columns, speed)
    columns = ["placement", "USD/Mtok\nall tokens", "interval", "USD/Mtok\noutput only", "interval"]
    render.table("", columns, price)
    for row in results:
        if row.infeasible_reason is not None:
            render.line(f"{row.name} does not fit: {row.infeasible_reason}")
    labels(results)


def labels(results: "Sequence[PricedRow]") -> None:
    """Say which rows rest on measured curves and which do not."""
    uncalibrated = [row.name for row in results if row.is_calibrated is False]
    if uncalibrated:
        render.line(f"uncalibrated (lookup times from datasheet and published numbers): {', '.join(uncalibrated)}")
    if any(row.hardware_calibration == "datasheet" for row in results):
        render.line("uncalibrated: compute times follow datasheet peaks; brackets are the bands of the inputs")


def bill(results: "Sequence[PricedRow]") -> None:
    """Dollars per hour of each placement, line by line."""
    priced = [(row.name, row.cost) for row in results if row.cost is not None]
    if not priced:
        return
    names = [line.name for line in priced[0][1].lines if line.name != "colocation"]  # only owners pay it
    cells = [
        [name, *(usd(line.usd_per_hour) for line in cost.lines if line.name in names), usd(cost.usd_per_hour)]
        for name, cost in priced
    ]
    render.table("USD per hour", ["placement", *names, "sum"], cells)
    first = priced[0][1]
    served = f"the fleet serves {100 * first.utilization_ratio:g} % of the time"
    render.line(f"price book {first.price_book}: {first.offer}; {served}")


def tenures(results: "Sequence[PricedRow]") -> None:
    """Rented and owned side by side, USD per million tokens of all kinds; the bill of what is owned line by line."""
    priced = [(row.name, (row.cost, *row.owned)) for row in results if row.cost is not None and row.owned]
    if not priced:
        return
    kinds = list(dict.fromkeys(cost.tenure for _, costs in priced for cost in costs))
    cells = []
    for name, costs in priced:
        known = {cost.tenure: cost for cost in costs}
        prices = [usd(known[kind].usd_per_mtok["total"].value) if kind in known else render.UNKNOWN for kind in kinds]
        cells.append([name, *prices])
    titles = [kind.replace("own_", "own,\n") for kind in kinds]
    render.table("USD/Mtok, all tokens, rented and owned", ["placement", *titles], cells)
    bought = [(name, cost) for name, costs in priced for cost in costs if cost.tenure == "owned"]
    if bought:
        heads = [line.name for line in bought[0][1].lines]
        cells = [[name, *(usd(line.usd_per_hour) for line in cost.lines)] for name, cost in bought]
        render.table("USD per hour, owned", ["placement", *heads], cells)


def dram_scenarios(results: "Sequence[PricedRow]") -> None:
    """USD per million tokens at each DRAM price the book keeps."""
    known = [row for row in results if row.dram_scenarios_usd_per_mtok]
    if not known:
        return
    names = list(known[0].dram_scenarios_usd_per_mtok)
    cells = [[row.name, *(usd(row.dram_scenarios_usd_per_mtok[name].value) for name in names)] for row in known]
    heads = [name.replace("-contract", "\ncontract").replace("-spot", "\nspot") for name in names]
    render.table("USD/Mtok, all tokens, rented, by DRAM price", ["placement", *heads], cells)


def api(results: "Sequence[PricedRow]") -> None:
    """One line per placement beside the API price that was given."""
    for row in results:
        if row.api is not None:
            render.line(
                f"{row.name}: {usd(row.api.own_usd_per_mtok)} USD/Mtok, {row.api.own_of_api_ratio:.3f} x the API price "
                f"of {usd(row.api.api_usd_per_mtok)} on this mix of tokens"
            )


def usd(amount: Decimal) -> str:
    """Dollars for a table; JSON has the exact amount."""
    if amount == 0:
        return "0"
    return (
        f"{amount:.4f}" if abs(amount) < Decimal("0.1") else f"{amount:,.3f}" if abs(amount) < 10 else f"{amount:,.2f}"
    )


def money(interval: "MoneyInterval") -> tuple[str, str]:
    """Dollars and their interval, for two cells."""
    if interval.low is None or interval.high is None:
        return usd(interval.value), render.UNKNOWN
    return usd(interval.value), f"{usd(interval.low)} .. {usd(interval.high)}"
