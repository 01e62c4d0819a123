"""What serving did beyond what samples show: tokens fed in vain."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class ServingCounts:
    """Tokens that steps computed, and those among them that drafts fed and nobody used."""

    fed_tokens: int = 0
    wasted_tokens: int = 0

    @property
    def wasted_ratio(self) -> float:
        """Share of all tokens fed, hence of all rows asked for, that rejected drafts and drafts past the end took."""
        return self.wasted_tokens / self.fed_tokens if self.fed_tokens else 0.0


def summed(counts: Iterable[ServingCounts]) -> ServingCounts:
    """The counts of all replicas."""
    total = ServingCounts()
    for one in counts:
        total.fed_tokens += one.fed_tokens
        total.wasted_tokens += one.wasted_tokens
    return total
