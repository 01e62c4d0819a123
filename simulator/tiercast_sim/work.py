"""What a step is made of: the plan of the scheduler, and the times the cost model gives its parts."""

from dataclasses import dataclass

from tiercast_profiles.workload import Request

SPEED_ONE = 10**9
"""Full speed. Speeds are integers in units of 1e-9, so that progress is exact and runs repeat to the nanosecond."""


def to_speed(ratio: float) -> int:
    """A ratio in (0, 1] as an integer speed; never zero, so that every flow ends."""
    return max(1, min(SPEED_ONE, round(ratio * SPEED_ONE)))


@dataclass(frozen=True, slots=True)
class Chunk:
    """``num_tokens`` prompt tokens of one request in one step, behind ``start`` tokens that were computed before.

    ``goal`` tokens are computed before the request yields its next token: its prompt (None), or after a preemption
    what it had by then.
    """

    request: Request
    start: int
    num_tokens: int
    goal: int | None = None

    @property
    def is_last(self) -> bool:
        """True when the prompt is complete after this chunk, so that the request yields its next token."""
        return self.end == (self.request.prompt_tokens if self.goal is None else self.goal)

    @property
    def end(self) -> int:
        """Tokens computed after this chunk."""
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step computes.

    Decoding sequence i belongs to ``decode_requests[i]`` and feeds the token at ``decode_positions[i]``, plus
    ``num_draft_tokens`` drafts; it attends to position + 1 tokens. ``accepted[i]`` of its drafts are the tokens that
    follow (empty without drafts). ``preempted`` gave up their KV to make room.
    """

    decode_requests: list[Request]
    decode_positions: list[int]
    chunks: tuple[Chunk, ...] = ()
    num_draft_tokens: int = 0
    preempted: tuple[Request, ...] = ()
    accepted: tuple[int, ...] = ()

    @property
    def num_decodes(self) -> int:
        """Decoding sequences in the step."""
        return len(self.decode_positions)

    @property
    def num_prefill_tokens(self) -> int:
        """Prompt tokens in the step."""
        return sum(chunk.num_tokens for chunk in self.chunks)

    @property
    def num_decode_tokens(self) -> int:
        """Tokens fed by decoding sequences, drafts included."""
        return len(self.decode_positions) * (1 + self.num_draft_tokens)

    @property
    def num_tokens(self) -> int:
        """All tokens in the step."""
        return self.num_decode_tokens + self.num_prefill_tokens


@dataclass(frozen=True, slots=True)
class RowCount:
    """Rows of one layer that the tier delivers, and rows that a cache in front of it has.

    ``hit`` counts a row as often as it was asked for, ``found`` as often as the cache is: once in a lookup where
    duplicates are removed in front of it.
    """

    read: int
    hit: int
    found: int


Usage = tuple[tuple[str, float], ...]
"""What a flow takes of shared resources at full speed: (resource name, units per second) pairs."""


@dataclass(frozen=True, slots=True)
class LookupWork:
    """One layer's lookup of one step: how long it takes alone, and what it takes of shared things meanwhile.

    ``rows_read`` and ``rows_hit`` (what a cache has) count all ranks of the replica; ``bytes_per_rank`` what the
    slowest of them fetches. ``taken_ns`` is what it takes from compute beside the time compute waits for it;
    ``wait_ns`` how long the worker takes to begin it once it could. ``time_ratios`` are its times over their mean
    ``duration_ns`` in equally likely cases; empty: it never differs.
    """

    duration_ns: int
    usage: Usage
    rate_bytes_per_s: float
    rows_read: int
    bytes_per_rank: int
    rows_hit: int = 0
    taken_ns: int = 0
    wait_ns: int = 0
    time_ratios: tuple[float, ...] = ()


NO_LOOKUP = LookupWork(duration_ns=0, usage=(), rate_bytes_per_s=0.0, rows_read=0, bytes_per_rank=0)


@dataclass(frozen=True, slots=True)
class StepWork:
    """Times of one step.

    ``pre_ns`` runs before the row ids are known to the lookup worker. ``segments_ns`` has one entry more than there
    are Engram layers: segment i ends where Engram layer i needs its rows, the last one ends the step.
    ``lookups`` are this step's own, ``early_lookups`` those of prompt tokens of the next step (``prev_step``).
    ``gather_ns`` is the part of each segment that gathers rows on the device itself (path ``device``).
    ``time_ratios`` are the segments over their mean in equally likely cases; empty: they never differ.
    """

    pre_ns: int
    segments_ns: tuple[int, ...]
    lookups: tuple[LookupWork, ...] = ()
    early_lookups: tuple[LookupWork, ...] = ()
    gather_ns: tuple[int, ...] = ()
    gather_bytes: tuple[int, ...] = ()
    num_rows: int = 0
    num_rows_gathered: int = 0
    time_ratios: tuple[float, ...] = ()
