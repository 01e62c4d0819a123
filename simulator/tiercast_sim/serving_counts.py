"""What serving did beyond what samples show: tokens fed in vain, KV given up and found again."""

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(slots=True)
class ServingCounts:
    """Tokens that steps computed, and those among them that drafts fed and nobody used; sequences preempted.

    ``prompt_tokens`` counts prompts at their first admission, ``cached_tokens`` those of them that were there already.
    """

    fed_tokens: int = 0
    wasted_tokens: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def wasted_ratio(self) -> float:
        """Share of all tokens fed, hence of all rows asked for, that rejected drafts and drafts past the end took."""
        return self.wasted_tokens / self.fed_tokens if self.fed_tokens else 0.0

    @property
    def prefix_hit_ratio(self) -> float:
        """Share of prompt tokens whose KV was there when their request was first admitted."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


def summed(counts: Iterable[ServingCounts]) -> ServingCounts:
    """The counts of all replicas."""
    known = list(counts)
    return ServingCounts(*(sum(getattr(one, part.name) for one in known) for part in fields(ServingCounts)))
