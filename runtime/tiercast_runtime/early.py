"""Prefetch ``prev_step``: rows of prompt tokens, looked up one step before the step that computes them.

Prompt tokens are known when their request arrives; a token that a step samples is known when that step has ended. So
beside its own lookups a step hands over those of the next prompt tokens, up to one step's budget (Assumption A5), and
decoding tokens are looked up at the entry of their own step as ever.

Nothing fetched ahead is wasted: prompts are computed in the order they are queued in and none is dropped, so rows that
the next step has no room for stay until a later step takes them. What is held never exceeds one step's budget.
"""

from collections import deque
from dataclasses import dataclass

from tiercast_runtime.scheduler import PromptPart, StepPlan


@dataclass(frozen=True, slots=True)
class StepSplit:
    """Which tokens of a step have their lookups behind them, and which prompt tokens to look up ahead.

    The tokens at rows ``first_early … first_early + num_early − 1`` of the step's batch were looked up before.
    """

    first_early: int
    num_early: int
    ahead: tuple[PromptPart, ...]


class EarlyLedger:
    """Books which prompt tokens have been looked up ahead; no rows, only requests and positions.

    One ledger serves one scheduler from its first step on: every step is split once, in order.
    """

    def __init__(self) -> None:
        self._booked: deque[PromptPart] = deque()
        self._end: dict[int, int] = {}

    @property
    def num_booked(self) -> int:
        """Tokens looked up and not computed yet."""
        return sum(part.count for part in self._booked)

    def split(self, plan: StepPlan, upcoming: tuple[PromptPart, ...]) -> StepSplit:
        """Take the step's tokens off the book, and put those of ``upcoming`` on it that are not there yet."""
        num_early, is_over = 0, False
        for chunk in plan.chunks:
            request_id = chunk.sequence.request.request_id
            count = min(self._end.get(request_id, 0), chunk.start + chunk.count) - chunk.start
            if count > 0:
                assert not is_over, "the early tokens of a step are its first prompt tokens"
                self._take(PromptPart(chunk.sequence.request, chunk.start, count))
                num_early += count
            is_over = count < chunk.count
            if chunk.completes_prompt:
                self._end.pop(request_id, None)
        ahead = tuple(rest for part in upcoming if (rest := self._rest(part)) is not None)
        for part in ahead:
            self._end[part.request.request_id] = part.start + part.count
        self._booked.extend(ahead)
        return StepSplit(plan.num_decode_tokens, num_early, ahead)

    def _rest(self, part: PromptPart) -> PromptPart | None:
        start, end = max(part.start, self._end.get(part.request.request_id, 0)), part.start + part.count
        return PromptPart(part.request, start, end - start) if start < end else None

    def _take(self, wanted: PromptPart) -> None:
        """Take tokens off the front. Rows are kept in this order, so it is what gives each token its own rows."""
        position, end = wanted.start, wanted.start + wanted.count
        while position < end:
            part = self._booked.popleft()
            is_next = (part.request.request_id, part.start) == (wanted.request.request_id, position)
            assert is_next, "prompt tokens are computed in the order their rows were looked up in"
            count = min(part.count, end - position)
            if count < part.count:
                self._booked.appendleft(PromptPart(part.request, part.start + count, part.count - count))
            position += count
