"""Where the prices of a report come from, and whether they are still young enough to be believed."""

import datetime
from collections.abc import Sequence
from typing import Literal

from tiercast_profiles.document import Strict
from tiercast_profiles.prices import PriceBook

# Contract prices of one GPU rose 38 % in five months of 2026, so half a year is the most a price may be off unnoticed.
MAX_PRICE_AGE_DAYS = 183


class PriceEvidence(Strict):
    """One number of a price book with its source, as it was when the report was made."""

    path: str
    value: str
    kind: Literal["measured", "published", "derived", "assumed"]
    mark: str
    source: str
    date: datetime.date


def evidence_of(prices: PriceBook, path: str) -> PriceEvidence:
    """The evidence of the number at a dotted path of the book."""
    value: object = prices
    for part in path.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    source = prices.source_of(path)
    assert source is not None, f"a price book holds {path} without evidence"
    return PriceEvidence(
        path=path, value=str(value), kind=source.kind, mark=source.mark, source=source.source, date=source.date
    )


def age_warnings(prices: PriceBook, paths: Sequence[str], today: datetime.date | None) -> tuple[str, ...]:
    """What a reader must know about the dates of the prices used: too old today, or too far apart to mix."""
    dated = sorted((evidence_of(prices, path).date, path) for path in paths)
    warnings = []
    if today is not None:
        for date, path in dated:
            age_days = (today - date).days
            if age_days > MAX_PRICE_AGE_DAYS:
                warnings.append(
                    f"price {path} is of {date}, {age_days} days before {today}: older than six months, check it"
                )
    (first, first_path), (last, last_path) = dated[0], dated[-1]
    if (last - first).days > MAX_PRICE_AGE_DAYS:
        warnings.append(
            f"prices more than six months apart are mixed: {first_path} is of {first}, {last_path} of {last}"
        )
    return tuple(warnings)
