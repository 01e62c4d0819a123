"""Which sequences compute what in the next step: continuous batching with chunked prefill.

The policy is the one the simulator implements on its own; a test compares the two step by step. Pure Python, no torch:
it decides, it does not touch a device.
"""

import heapq
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from tiercast_profiles.errors import BadInput, InfeasibleScenario
from tiercast_profiles.units import format_bytes
from tiercast_profiles.workload import Request


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a step and the sequences that run at once. ``kv_bytes_per_token`` only serves the error text.

    A decoding sequence feeds ``num_draft_tokens`` drafts beside its last token.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_block_tokens: int
    kv_capacity_tokens: int
    kv_bytes_per_token: int
    num_draft_tokens: int = 0


@dataclass(slots=True, eq=False)
class Sequence:
    """An admitted request: the slot it occupies and how far it has come.

    ``accepted``: how many drafts each of its decode steps accepts; empty where nothing is drafted.
    """

    request: Request
    slot: int
    num_blocks: int
    num_prefilled: int = 0
    num_outputs: int = 0
    accepted: tuple[int, ...] = ()
    num_decode_steps: int = 0

    @property
    def is_decoding(self) -> bool:
        """True once the whole prompt has been computed."""
        return self.num_prefilled == self.request.prompt_tokens

    @property
    def decode_position(self) -> int:
        """Position of the token that the next decode step feeds: the last one generated."""
        return self.request.prompt_tokens + self.num_outputs - 1

    @property
    def num_cached(self) -> int:
        """Tokens whose keys and values lie in its slot."""
        return self.decode_position if self.is_decoding else self.num_prefilled

    @property
    def num_gained(self) -> int:
        """Outputs that the next decode step brings where drafts are fed: one more than accepted, none past the end."""
        return min(1 + self.accepted[self.num_decode_steps], self.request.output_tokens - self.num_outputs)


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """``count`` prompt tokens of one sequence, the first of them at position ``start``."""

    sequence: Sequence
    start: int
    count: int

    @property
    def completes_prompt(self) -> bool:
        """True when the sequence samples its first token at the end of this step."""
        return self.start + self.count == self.sequence.request.prompt_tokens


@dataclass(frozen=True, slots=True)
class PromptPart:
    """``count`` prompt tokens of a request that may not be admitted yet, the first of them at position ``start``."""

    request: Request
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class SlotMove:
    """What a sequence left in one slot, ``num_tokens`` tokens, goes to another."""

    source: int
    target: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: sequences that decode, then chunks of prompts, both in admission order.

    A decoding sequence feeds its last token and ``num_draft_tokens`` drafts behind it.
    """

    decodes: list[Sequence]
    chunks: list[PrefillChunk]
    num_draft_tokens: int = 0

    @property
    def num_decode_tokens(self) -> int:
        """Tokens that decoding sequences feed, drafts included."""
        return len(self.decodes) * (1 + self.num_draft_tokens)

    @property
    def num_prefill_tokens(self) -> int:
        """Prompt tokens the step computes."""
        return sum(chunk.count for chunk in self.chunks)

    @property
    def num_tokens(self) -> int:
        """All tokens the step computes."""
        return self.num_decode_tokens + self.num_prefill_tokens


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What the end of a step brought: sequences with their first token, and sequences that are done.

    ``num_wasted``: tokens fed in vain, which are rejected drafts and drafts past a request's end.
    """

    first_token: list[Sequence] = field(default_factory=list)
    finished: list[Sequence] = field(default_factory=list)
    num_wasted: int = 0


class Scheduler:
    """Continuous batching over a first-come first-served queue.

    A step serves, while its token budget lasts: every decoding sequence with one token and its drafts, then chunks of
    admitted prompts, then waiting requests in order. A request is admitted only when the KV blocks of its whole length
    are free; they are reserved then and freed when it finishes. The first waiting request that does not fit stops
    admission.

    Args:
        limits: what bounds a step.
        accepted: by request id, how many drafts each decode step accepts; given where ``num_draft_tokens`` is above 0.
    """

    def __init__(self, limits: Limits, accepted: Mapping[int, tuple[int, ...]] | None = None) -> None:
        self._limits = limits
        self._accepted = accepted or {}
        self._waiting: deque[Request] = deque()
        self._running: list[Sequence] = []
        self._free_slots = list(range(limits.max_num_seqs))
        self._free_blocks = limits.kv_capacity_tokens // limits.kv_block_tokens

    @property
    def is_idle(self) -> bool:
        """True when nothing runs and nothing waits."""
        return not self._running and not self._waiting

    @property
    def num_running(self) -> int:
        """Admitted sequences."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that arrived and are not admitted yet."""
        return len(self._waiting)

    def num_blocks(self, request: Request) -> int:
        """KV blocks a request needs for its whole length."""
        return -(-(request.prompt_tokens + request.output_tokens) // self._limits.kv_block_tokens)

    def check_fits(self, request: Request) -> None:
        """Raise when the request could never be admitted, however long it waited.

        Raises:
            InfeasibleScenario: with the bytes of KV cache that are missing.
        """
        limits = self._limits
        capacity_blocks = limits.kv_capacity_tokens // limits.kv_block_tokens
        short_blocks = self.num_blocks(request) - capacity_blocks
        if short_blocks > 0:
            shortfall = short_blocks * limits.kv_block_tokens * limits.kv_bytes_per_token
            raise InfeasibleScenario(
                f"request {request.request_id} needs {self.num_blocks(request)} KV blocks of "
                f"{limits.kv_block_tokens} tokens; the cache has {capacity_blocks}: {format_bytes(shortfall)} short; "
                "shorten the requests or free device memory",
                shortfall_bytes=shortfall,
            )

    def submit(self, request: Request) -> None:
        """Put an arrived request at the end of the queue.

        Raises:
            InfeasibleScenario: when it can never fit, even alone.
        """
        if request.prompt_tokens < 1 or request.output_tokens < 1:
            raise BadInput(
                f"request {request.request_id} has {request.prompt_tokens} prompt and {request.output_tokens} output "
                "tokens; both must be at least 1"
            )
        self.check_fits(request)
        self._waiting.append(request)

    def plan(self) -> StepPlan:
        """The next step; admits waiting requests that fit. Empty only when the scheduler is idle."""
        budget, num_drafts = self._limits.max_num_batched_tokens, self._limits.num_draft_tokens
        decodes: list[Sequence] = []
        chunks: list[PrefillChunk] = []
        for sequence in self._running:
            if budget <= num_drafts:
                break
            if sequence.is_decoding:
                decodes.append(sequence)
                budget -= 1 + num_drafts
        for sequence in self._running:
            if budget == 0:
                break
            if not sequence.is_decoding:
                budget -= self._add_chunk(chunks, sequence, budget)
        while budget > 0 and self._waiting and self._has_room(self._waiting[0]):
            sequence = self._admit(self._waiting.popleft())
            budget -= self._add_chunk(chunks, sequence, budget)
        return StepPlan(decodes, chunks, num_drafts)

    def upcoming(self, plan: StepPlan) -> tuple[PromptPart, ...]:
        """Prompt tokens that come after a planned step, nearest first, at most one step's budget; changes nothing.

        Prompts are computed in this order whatever the step samples. How many of these tokens the very next step has
        room for depends on it (decoding sequences go first, finished ones free room); the others follow later.
        """
        budget = self._limits.max_num_batched_tokens
        in_step = {chunk.sequence.request.request_id: chunk.count for chunk in plan.chunks}
        parts: list[PromptPart] = []
        for sequence in self._running:
            start = sequence.num_prefilled + in_step.get(sequence.request.request_id, 0)
            count = min(sequence.request.prompt_tokens - start, budget)
            if count > 0:
                parts.append(PromptPart(sequence.request, start, count))
                budget -= count
        for request in self._waiting:
            if budget == 0:
                break
            parts.append(PromptPart(request, 0, min(request.prompt_tokens, budget)))
            budget -= parts[-1].count
        return tuple(parts)

    def complete(self, plan: StepPlan) -> StepOutcome:
        """Account for a step that has run: progress, first tokens, finished sequences and the room they free."""
        num_wasted = 0
        if plan.num_draft_tokens:
            num_wasted = _take_accepted(plan)
        else:
            for sequence in plan.decodes:
                sequence.num_outputs += 1
        outcome = StepOutcome(num_wasted=num_wasted)
        for chunk in plan.chunks:
            chunk.sequence.num_prefilled += chunk.count
            if chunk.sequence.is_decoding:
                chunk.sequence.num_outputs = 1
                outcome.first_token.append(chunk.sequence)
        outcome.finished.extend(s for s in self._running if s.num_outputs == s.request.output_tokens)
        if outcome.finished:
            self._running = [s for s in self._running if s.num_outputs < s.request.output_tokens]
            for sequence in outcome.finished:
                heapq.heappush(self._free_slots, sequence.slot)
                self._free_blocks += sequence.num_blocks
        return outcome

    def close_gaps(self) -> list[SlotMove]:
        """Give decoding sequences of high slots the free slots below them; returns what has to be moved, in order.

        Decode attention that reads the cache in place then finds its sequences side by side. A prompt under way stays
        where it is.
        """
        moves: list[SlotMove] = []
        decoding = sorted((s for s in self._running if s.is_decoding), key=lambda sequence: sequence.slot)
        while decoding and self._free_slots and self._free_slots[0] < decoding[-1].slot:
            sequence = decoding.pop()
            target = heapq.heapreplace(self._free_slots, sequence.slot)
            moves.append(SlotMove(sequence.slot, target, sequence.num_cached))
            sequence.slot = target
        return moves

    @staticmethod
    def _add_chunk(chunks: list[PrefillChunk], sequence: Sequence, budget: int) -> int:
        count = min(sequence.request.prompt_tokens - sequence.num_prefilled, budget)
        chunks.append(PrefillChunk(sequence, sequence.num_prefilled, count))
        return count

    def _has_room(self, request: Request) -> bool:
        return bool(self._free_slots) and self.num_blocks(request) <= self._free_blocks

    def _admit(self, request: Request) -> Sequence:
        # The lowest free slot keeps the used slots together, which lets decode attention read the cache in place.
        sequence = Sequence(request, heapq.heappop(self._free_slots), self.num_blocks(request))
        if self._limits.num_draft_tokens:
            sequence.accepted = self._accepted[request.request_id]
        self._free_blocks -= sequence.num_blocks
        self._running.append(sequence)
        return sequence


def _take_accepted(plan: StepPlan) -> int:
    """Move every decoding sequence on by what its step brought; returns how many tokens were fed in vain."""
    num_kept = 0
    for sequence in plan.decodes:
        num_gained = sequence.num_gained
        sequence.num_outputs += num_gained
        sequence.num_decode_steps += 1
        num_kept += num_gained
    return plan.num_decode_tokens - num_kept
