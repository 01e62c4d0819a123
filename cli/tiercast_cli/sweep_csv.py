"""The rows of a sweep as CSV: one line per point, units in the names of the columns."""

import csv
import io
from collections.abc import Iterator, Sequence

from tiercast_plan.sweep import SweepRow
from tiercast_profiles.compare import flat_metrics


def to_csv(rows: Sequence[SweepRow]) -> str:
    """Settings first, then metrics with the ends of their intervals, then cost; what is not known is empty."""
    lines = [dict(_cells(row)) for row in rows]
    names = list(dict.fromkeys(name for line in lines for name in line))
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return sheet.getvalue()


def _cells(row: SweepRow) -> Iterator[tuple[str, object]]:
    yield from row.settings.items()
    yield "problem", row.problem or ""
    yield "shortfall_bytes", row.shortfall_bytes
    if row.metrics is not None:
        for name, (_, metric) in flat_metrics(row.metrics).items():
            yield name, metric.value
            if metric.low is not None:
                yield f"{name}.low", metric.low
                yield f"{name}.high", metric.high
    if row.cost is not None:
        yield "usd_per_hour", row.cost.usd_per_hour
        for kind, money in row.cost.usd_per_mtok.items():
            yield f"usd_per_mtok.{kind}", money.value
            if money.low is not None:
                yield f"usd_per_mtok.{kind}.low", money.low
                yield f"usd_per_mtok.{kind}.high", money.high
