"""What the ledger looks like: misses, hits, what is not scored and why, the score."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tiercast_cli import render

if TYPE_CHECKING:
    from tiercast_plan.ledger import Ledger, LedgerRow

COLUMNS = ["case", "published", "predicted", "band", "error"]


def show(found: "Ledger") -> None:
    """Every row of the ledger, misses first."""
    render.heading("published measurements, predicted from shipped data; nothing is fitted")
    for verdict, title in (("outside", "outside the predicted band"), ("inside", "inside the predicted band")):
        rows = [row for row in found.rows if row.verdict == verdict]
        if rows:
            render.table(title, COLUMNS, [_cells(row) for row in rows])
    for row in found.rows:
        if row.is_wide:
            render.line(f"wide band of case {row.case}, {row.quantity}: {row.reason}")
    not_scored = [row for row in found.rows if row.verdict == "not scored"]
    if not_scored:
        cells = [[f"{row.case} {row.grade}  {row.quantity}: {row.reason}", published(row)] for row in not_scored]
        render.table("not scored", ["case and reason", "published"], cells)
    render.line()
    render.line(score(found))


def score(found: "Ledger") -> str:
    """The score in a sentence."""
    misses = found.num_scored - found.num_inside
    return (
        f"{found.num_inside} of {found.num_scored} scored numbers lie inside their predicted band "
        f"({render.percent(found.inside_ratio)}); {misses} outside; {len(found.rows) - found.num_scored} not scored"
    )


def _cells(row: "LedgerRow") -> Sequence[str]:
    low, high = render.number(row.low), render.number(row.high)
    return [
        f"{row.case} {row.grade}  {row.quantity}, {row.unit}",
        published(row),
        render.number(row.predicted),
        low if low == high else f"{low} .. {high}",
        render.percent(row.error_ratio, signed=True),
    ]


def published(row: "LedgerRow") -> str:
    """The published value, with its spread where the source gives one."""
    if row.published_low == row.published_high:
        return render.number(row.published)
    return f"{render.number(row.published_low)} .. {render.number(row.published_high)}"
