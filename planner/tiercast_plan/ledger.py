"""The ledger: every published case predicted from shipped data, nothing fitted, misses first."""

from collections.abc import Callable
from typing import Literal

from tiercast_plan.ablation import NOTHING, Without
from tiercast_plan.ledger_predictions import Predicted, predict
from tiercast_profiles.document import Strict
from tiercast_profiles.published import PublishedCase, PublishedQuantity
from tiercast_profiles.stats import median
from tiercast_profiles.store import load_published, shipped_names

WIDEST_BAND_RATIO = 0.25
"""A predicted band wider than this share of its value, either way, needs the words that say which input is unknown."""

Verdict = Literal["outside", "inside", "not scored"]
ORDER: tuple[Verdict, ...] = ("outside", "inside", "not scored")


class LedgerRow(Strict):
    """One published quantity beside what we predict for it.

    ``is_wide``: the band reaches further than a quarter of the value. ``reason`` says why a row is not scored or why
    its band is wide. ``error_ratio`` is predicted ÷ published − 1.
    """

    case: int
    case_name: str
    grade: Literal["A", "B"]
    quantity: str
    unit: str
    published: float
    published_low: float
    published_high: float
    predicted: float | None
    low: float | None
    high: float | None
    error_ratio: float | None
    is_wide: bool
    verdict: Verdict
    reason: str
    source: str


class Ledger(Strict):
    """Every row, and the score: how many of the scored ones hold the published value in their band."""

    rows: tuple[LedgerRow, ...]
    num_scored: int
    num_inside: int

    @property
    def median_error_ratio(self) -> float:
        """Median distance of the scored predictions from what was published, as a share of it; 0 where none is."""
        errors = [
            abs(row.error_ratio) for row in self.rows if row.predicted is not None and row.error_ratio is not None
        ]
        return median(errors) if errors else 0.0

    @property
    def inside_ratio(self) -> float:
        """Share of the scored rows that are inside; 0 where nothing is scored."""
        return self.num_inside / self.num_scored if self.num_scored else 0.0


def ledger(progress: Callable[[str, float], None] | None = None, without: Without = NOTHING) -> Ledger:
    """Predict every shipped case, with an assumption left out if one is named.

    ``progress`` hears (case, share of the cases done). Misses come first, the largest error on top; then what is
    inside; then what is not scored, in case order.
    """
    names = shipped_names("published")
    rows: list[LedgerRow] = []
    for done, name in enumerate(names):
        case = load_published(name)
        rows += [_row(case, index, without) for index in range(len(case.quantities))]
        if progress is not None:
            progress(name, (done + 1) / len(names))
    rows.sort(key=lambda row: (ORDER.index(row.verdict), -abs(row.error_ratio or 0.0), row.case))
    scored = [row for row in rows if row.verdict != "not scored"]
    return Ledger(rows=tuple(rows), num_scored=len(scored), num_inside=sum(row.verdict == "inside" for row in scored))


def _row(case: PublishedCase, index: int, without: Without) -> LedgerRow:
    quantity = case.quantities[index]
    found = None if quantity.prediction is None else predict(quantity.prediction, without)
    published = quantity.published
    low = published.value if published.low is None else published.low
    high = published.value if published.high is None else published.high
    source = case.source_of(f"quantities.{index}.published.value") or case.source_of(f"quantities.{index}.published")
    return LedgerRow(
        case=case.case,
        case_name=case.name,
        grade=case.grade,
        quantity=quantity.name,
        unit=quantity.unit,
        published=published.value,
        published_low=low,
        published_high=high,
        predicted=None if found is None else found.value,
        low=None if found is None else found.low,
        high=None if found is None else found.high,
        error_ratio=None if found is None or published.value == 0 else found.value / published.value - 1,
        is_wide=found is not None and is_wide(found),
        verdict=_verdict(found, low, high),
        reason=_reason(quantity, found),
        source="" if source is None else source.source,
    )


def is_wide(found: Predicted) -> bool:
    """True where the band reaches further than a quarter of the value, either way."""
    reach = max(found.high - found.value, found.value - found.low)
    return reach > WIDEST_BAND_RATIO * abs(found.value)


def _verdict(found: Predicted | None, published_low: float, published_high: float) -> Verdict:
    if found is None:
        return "not scored"
    return "inside" if found.low <= published_high and published_low <= found.high else "outside"


def _reason(quantity: PublishedQuantity, found: Predicted | None) -> str:
    if quantity.not_scored is not None:
        return quantity.not_scored
    return (quantity.unknown_inputs or "") if found is not None and is_wide(found) else ""
