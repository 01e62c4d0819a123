"""The serving policy: continuous batching with chunked prefill and KV blocks reserved at admission.

The runtime implements the same policy on its own; a test compares the two step by step.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from tiercast_profiles.errors import InfeasibleScenario
from tiercast_profiles.rng import stream
from tiercast_profiles.scenario import Engine, Speculative
from tiercast_profiles.workload import Request
from tiercast_sim.serving_counts import ServingCounts
from tiercast_sim.work import Chunk, StepPlan


@dataclass(slots=True, eq=False)
class Sequence:
    """An admitted request.

    ``position`` is that of the token it feeds next once its prompt is done; it is finished when ``position`` reaches
    ``end``, the position of its last output token, which nobody feeds.
    """

    request: Request
    num_blocks: int
    position: int
    end: int
    prompt_done: int = 0
    chunk: int = 0
    num_decode_steps: int = 0
    accepted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """What the end of a step brought: requests with their first token, and requests that are done."""

    first_tokens: tuple[Request, ...]
    done: tuple[Request, ...]


def blocks_of(num_tokens: int, block_tokens: int) -> int:
    """KV blocks that hold ``num_tokens``."""
    return -(-num_tokens // block_tokens)


def check_requests_fit(
    requests: tuple[Request, ...], engine: Engine, capacity_tokens: int, kv_bytes_per_token: float
) -> None:
    """Refuse a workload with a request that no empty engine could hold.

    Raises:
        InfeasibleScenario: with the shortfall of the largest request.
    """
    block = engine.kv_block_tokens
    largest = max(requests, key=lambda request: request.prompt_tokens + request.output_tokens)
    tokens = blocks_of(largest.prompt_tokens + largest.output_tokens, block) * block
    if tokens > capacity_tokens:
        shortfall_bytes = round((tokens - capacity_tokens) * kv_bytes_per_token)
        raise InfeasibleScenario(
            f"request {largest.request_id} needs {tokens} KV tokens and the KV memory holds {capacity_tokens}; "
            f"{shortfall_bytes} bytes short; shorten the requests, free device memory or use more ranks",
            shortfall_bytes,
        )


class Scheduler:
    """Queues of one replica. ``plan`` says what the next step computes, ``finish`` books its end."""

    def __init__(self, engine: Engine, capacity_tokens: int, speculative: Speculative, seed: int) -> None:
        self._engine = engine
        self._speculative = speculative
        self._seed = seed
        self._free_blocks = capacity_tokens // engine.kv_block_tokens
        self.num_blocks = self._free_blocks
        self._waiting: deque[Request] = deque()
        # Both in admission order. Prompts complete in that order too, because earlier ones get the budget first.
        self._prefilling: list[Sequence] = []
        self._decoding: list[Sequence] = []
        self._in_step: list[Sequence] = []
        self.counts = ServingCounts()

    @property
    def has_work(self) -> bool:
        """True while a request waits or runs."""
        return bool(self._waiting or self._prefilling or self._decoding)

    @property
    def num_running(self) -> int:
        """Sequences that hold KV blocks."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def used_blocks(self) -> int:
        """KV blocks reserved now."""
        return self.num_blocks - self._free_blocks

    def add(self, request: Request) -> None:
        """Queue a request that has arrived."""
        self._waiting.append(request)

    def plan(self) -> StepPlan:
        """What the next step computes; admits from the waiting queue as a side effect."""
        budget = self._engine.max_num_batched_tokens
        per_decode = 1 + self._speculative.draft_tokens
        self._in_step = self._decoding[: budget // per_decode]
        budget -= len(self._in_step) * per_decode
        chunks: list[Chunk] = []
        for sequence in self._prefilling:
            sequence.chunk = min(sequence.request.prompt_tokens - sequence.prompt_done, budget)
            if sequence.chunk:
                chunks.append(Chunk(sequence.request, sequence.prompt_done, sequence.chunk))
                budget -= sequence.chunk
        while self._waiting and budget > 0 and self.num_running < self._engine.max_num_seqs:
            admitted = self._admit(self._waiting[0])
            if admitted is None:  # head of line: nobody overtakes
                break
            self._waiting.popleft()
            admitted.chunk = min(admitted.request.prompt_tokens, budget)
            chunks.append(Chunk(admitted.request, 0, admitted.chunk))
            budget -= admitted.chunk
        plan = StepPlan(
            [sequence.request for sequence in self._in_step],
            [sequence.position for sequence in self._in_step],
            tuple(chunks),
            self._speculative.draft_tokens,
        )
        self.counts.fed_tokens += plan.num_tokens
        return plan

    def upcoming_chunks(self) -> tuple[Chunk, ...]:
        """Prompt tokens that can come after the planned step, nearest first, at most one step's budget of them."""
        budget = self._engine.max_num_batched_tokens
        chunks: list[Chunk] = []
        for sequence in self._prefilling:
            start = sequence.prompt_done + sequence.chunk
            count = min(sequence.request.prompt_tokens - start, budget)
            if count > 0:
                chunks.append(Chunk(sequence.request, start, count))
                budget -= count
        for request in self._waiting:
            if budget <= 0:
                break
            chunks.append(Chunk(request, 0, min(request.prompt_tokens, budget)))
            budget -= chunks[-1].num_tokens
        return tuple(chunks)

    def finish(self) -> Finished:
        """Book the end of the step that was planned last: tokens appear, finished sequences free their blocks."""
        for sequence in self._in_step:
            start = sequence.position
            sequence.position += 1
            if sequence.accepted:
                sequence.position += sequence.accepted[sequence.num_decode_steps]
                sequence.num_decode_steps += 1
                used = min(sequence.position, sequence.end) - start
                self.counts.wasted_tokens += 1 + self._speculative.draft_tokens - used
        first: list[Sequence] = []
        for sequence in self._prefilling:
            sequence.prompt_done += sequence.chunk
            sequence.chunk = 0
            if sequence.prompt_done == sequence.request.prompt_tokens:
                first.append(sequence)
        if first:
            self._prefilling = self._prefilling[len(first) :]
            self._decoding += first
        done = [sequence for sequence in self._decoding if sequence.position >= sequence.end]
        if done:
            self._decoding = [sequence for sequence in self._decoding if sequence.position < sequence.end]
            self._free_blocks += sum(sequence.num_blocks for sequence in done)
        return Finished(tuple(sequence.request for sequence in first), tuple(sequence.request for sequence in done))

    def _admit(self, request: Request) -> Sequence | None:
        blocks = blocks_of(request.prompt_tokens + request.output_tokens, self._engine.kv_block_tokens)
        if blocks > self._free_blocks:
            return None
        self._free_blocks -= blocks
        # The prompt's own last token yields output 0, which is fed at position prompt_tokens.
        sequence = Sequence(request, blocks, request.prompt_tokens, request.prompt_tokens + request.output_tokens - 1)
        if self._speculative.draft_tokens:
            sequence.accepted = accepted_drafts(request, self._speculative, self._seed)
        self._prefilling.append(sequence)
        return sequence


def accepted_drafts(request: Request, speculative: Speculative, seed: int) -> tuple[int, ...]:
    """Accepted drafts in each decode step a request can have: drafts are accepted in turn until one fails.

    One stream per request, so that the draw does not depend on when the request runs (Assumption A15).
    """
    generator = stream(seed, f"acceptance/{request.request_id}")
    draws = generator.random((request.output_tokens, speculative.draft_tokens)) < speculative.acceptance_ratio
    return tuple(int(n) for n in np.cumprod(draws, axis=1).sum(axis=1))
