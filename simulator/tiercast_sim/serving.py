"""The serving policy: continuous batching with chunked prefill and KV blocks, reserved whole or taken on demand.

The runtime implements the policy with whole reservations on its own; a test compares the two step by step. On demand a
sequence takes blocks as it fills them, and where none is free the one admitted last gives its own back and starts
over, as vLLM preempts by recomputation.
"""

from collections import deque
from dataclasses import dataclass
from typing import Literal

from tiercast_profiles.drafts import accepted_drafts
from tiercast_profiles.errors import InfeasibleScenario
from tiercast_profiles.scenario import Engine, Speculative
from tiercast_profiles.workload import Column, Request
from tiercast_sim.kv_blocks import BlockTable, KvBlocks, blocks_of
from tiercast_sim.serving_counts import ServingCounts
from tiercast_sim.work import Chunk, StepPlan

Role = Literal["both", "prefill", "decode"]


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in a replica, waiting or running.

    It computes ``goal`` tokens before it yields its next one: its prompt, or after preemption all it had by then.
    ``position`` is that of the token it feeds next once it decodes; it is finished when ``position`` reaches ``end``,
    the position of its last output token, which nobody feeds.
    """

    request: Request
    blocks: BlockTable
    goal: int
    position: int
    end: int
    prompt_done: int = 0
    chunk: int = 0
    num_decode_steps: int = 0
    num_preemptions: int = 0
    is_running: bool = False
    is_decoding: bool = False
    accepted: tuple[int, ...] = ()

    @property
    def num_right(self) -> int:
        """Drafts of the next decode step that are accepted and not past the end."""
        return min(self.accepted[self.num_decode_steps], self.end - self.position)


@dataclass(frozen=True, slots=True)
class Finished:
    """What the end of a step brought: requests with their first token, and requests that are done."""

    first_tokens: tuple[Request, ...]
    done: tuple[Request, ...]


def check_requests_fit(
    prompt_tokens: Column, output_tokens: Column, engine: Engine, capacity_tokens: int, kv_bytes_per_token: float
) -> None:
    """Refuse a workload with a request that no empty engine could hold; the columns are ``[num_requests] int64``.

    Raises:
        InfeasibleScenario: with the shortfall of the largest request.
    """
    block = engine.kv_block_tokens
    lengths = prompt_tokens + output_tokens
    largest = int(lengths.argmax())
    tokens = blocks_of(int(lengths[largest]), block) * block
    if tokens > capacity_tokens:
        shortfall_bytes = round((tokens - capacity_tokens) * kv_bytes_per_token)
        raise InfeasibleScenario(
            f"request {largest} needs {tokens} KV tokens and the KV memory holds {capacity_tokens}; "
            f"{shortfall_bytes} bytes short; shorten the requests, free device memory or use more ranks",
            shortfall_bytes,
        )


class Scheduler:
    """Queues of one replica. ``plan`` says what the next step computes, ``finish`` books its end."""

    def __init__(
        self, engine: Engine, capacity_tokens: int, speculative: Speculative, seed: int, role: Role = "both"
    ) -> None:
        self._role = role
        self._loading: dict[int, Sequence] = {}
        self._to_load: list[Request] = []
        self._held: dict[int, Sequence] = {}
        self._engine = engine
        self._speculative = speculative
        self._seed = seed
        block = engine.kv_block_tokens
        self._kv = KvBlocks(capacity_tokens // block, block, caches_prefixes=engine.prefix_caching)
        self._is_on_demand = engine.kv_reservation == "on_demand"
        self._waiting: deque[Sequence] = deque()
        # Both in admission order. Prompts complete in that order too, because earlier ones get the budget first.
        self._prefilling: list[Sequence] = []
        self._decoding: list[Sequence] = []
        self._in_step: list[Sequence] = []
        self._preempted: list[Request] = []
        self.counts = ServingCounts()

    @property
    def has_work(self) -> bool:
        """True while a request waits or runs."""
        return bool(self._waiting or self._prefilling or self._decoding or self._loading)

    @property
    def num_running(self) -> int:
        """Sequences that hold KV blocks."""
        return len(self._prefilling) + len(self._decoding) + len(self._loading)

    @property
    def used_blocks(self) -> int:
        """KV blocks in use now."""
        return self._kv.num_blocks - self._kv.num_free

    def add(self, request: Request) -> None:
        """Queue a request that has arrived."""
        prompt, end = request.prompt_tokens, request.prompt_tokens + request.output_tokens - 1
        # The prompt's own last token yields output 0, which is fed at position prompt_tokens.
        sequence = Sequence(request, self._kv.table(request), goal=prompt, position=prompt, end=end)
        if self._speculative.draft_tokens:
            sequence.accepted = accepted_drafts(request, self._speculative, self._seed)
        self._waiting.append(sequence)

    def plan(self) -> StepPlan:
        """What the next step computes; admits from the waiting queue, and may preempt, as side effects."""
        budget = self._engine.max_num_batched_tokens
        per_decode = 1 + self._speculative.draft_tokens
        self._preempted = []
        self._in_step = self._decoding[: budget // per_decode]
        if self._is_on_demand:
            self._in_step = [sequence for sequence in self._in_step if self._has_room(sequence, per_decode)]
        budget -= len(self._in_step) * per_decode
        chunks: list[Chunk] = []
        for sequence in self._prefilling[:]:
            count = min(sequence.goal - sequence.prompt_done, budget)
            if count and self._has_room(sequence, count):
                budget -= count
                chunks.append(self._chunk(sequence, count))
        while self._waiting and budget > 0 and not self._preempted and self.num_running < self._engine.max_num_seqs:
            admitted = self._admit(self._waiting[0], budget)
            if admitted is None:  # head of line: nobody overtakes
                break
            self._waiting.popleft()
            if admitted.request.request_id in self._loading:
                continue
            count = min(admitted.goal - admitted.prompt_done, budget)
            budget -= count
            chunks.append(self._chunk(admitted, count))
        plan = StepPlan(
            [sequence.request for sequence in self._in_step],
            [sequence.position for sequence in self._in_step],
            tuple(chunks),
            self._speculative.draft_tokens,
            tuple(self._preempted),
            tuple([s.num_right for s in self._in_step]) if self._speculative.draft_tokens else (),
        )
        self.counts.fed_tokens += plan.num_tokens
        return plan

    def take_loads(self) -> list[Request]:
        """Requests whose KV may set out for here since the last call (role ``decode``)."""
        loads, self._to_load = self._to_load, []
        return loads

    def loaded(self, request: Request) -> None:
        """The KV of a request is here: it decodes from the next step on."""
        sequence = self._loading.pop(request.request_id)
        sequence.prompt_done = sequence.goal
        sequence.is_decoding = True
        self._decoding.append(sequence)

    def sent(self, request: Request) -> None:
        """The KV of a request was fetched from here, or nobody wants it: its blocks are free (role ``prefill``)."""
        sequence = self._held.pop(request.request_id)
        self._kv.release(sequence.blocks, sequence.goal)

    def upcoming_chunks(self) -> tuple[Chunk, ...]:
        """Prompt tokens that can come after the planned step, nearest first, at most one step's budget of them."""
        budget = self._engine.max_num_batched_tokens
        chunks: list[Chunk] = []
        for sequence in self._prefilling:
            start = sequence.prompt_done + sequence.chunk
            count = min(sequence.goal - start, budget)
            if count > 0:
                chunks.append(Chunk(sequence.request, start, count, sequence.goal))
                budget -= count
        for sequence in self._waiting:
            if budget <= 0:
                break
            if self._role == "decode" and sequence.num_preemptions == 0:  # its prompt is computed elsewhere
                continue
            start = self._kv.num_cached_tokens(sequence.blocks, sequence.goal)
            chunks.append(Chunk(sequence.request, start, min(sequence.goal - start, budget), sequence.goal))
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
        ended: list[Sequence] = []
        first: list[Request] = []
        for sequence in self._prefilling:
            sequence.prompt_done += sequence.chunk
            sequence.chunk = 0
            if sequence.prompt_done == sequence.goal:
                sequence.position = sequence.goal
                sequence.is_decoding = True
                ended.append(sequence)
                if sequence.goal == sequence.request.prompt_tokens:  # later goals lie behind the first token
                    first.append(sequence.request)
        if ended:
            self._prefilling = self._prefilling[len(ended) :]
            self._decoding += ended
        done = [sequence for sequence in self._decoding if sequence.position >= sequence.end]
        if done:
            self._decoding = [sequence for sequence in self._decoding if sequence.position < sequence.end]
            for sequence in done:
                if self._role == "prefill":
                    self._held[sequence.request.request_id] = sequence
                else:
                    self._kv.release(sequence.blocks, sequence.end)
        return Finished(tuple(first), tuple(sequence.request for sequence in done))

    def _chunk(self, sequence: Sequence, count: int) -> Chunk:
        sequence.chunk = count
        self._kv.computed(sequence.blocks, sequence.prompt_done + count)
        return Chunk(sequence.request, sequence.prompt_done, count, sequence.goal)

    def _admit(self, sequence: Sequence, budget: int) -> Sequence | None:
        if self._role == "decode" and sequence.num_preemptions == 0:
            return self._admit_to_load(sequence)
        cached = self._kv.num_cached_tokens(sequence.blocks, sequence.goal)
        num_tokens = sequence.end + 1
        if self._is_on_demand:
            num_tokens = cached + min(sequence.goal - cached, budget)
        if not self._kv.start(sequence.blocks, cached, num_tokens):
            return None
        if sequence.num_preemptions == 0:
            self.counts.prompt_tokens += sequence.goal
            self.counts.cached_tokens += cached
        sequence.prompt_done = cached
        sequence.is_running = True
        self._prefilling.append(sequence)
        return sequence

    def _admit_to_load(self, sequence: Sequence) -> Sequence | None:
        """Blocks for a prompt that was computed elsewhere; it decodes once its KV is here."""
        num_tokens = sequence.goal if self._is_on_demand else sequence.end + 1
        if not self._kv.start(sequence.blocks, 0, num_tokens):
            return None
        sequence.is_running = True
        self._loading[sequence.request.request_id] = sequence
        self._to_load.append(sequence.request)
        return sequence

    def _has_room(self, sequence: Sequence, count: int) -> bool:
        """Room for ``count`` more tokens; preempts from the end of the line, the sequence itself last of all."""
        if not self._is_on_demand:
            return True
        done = sequence.position if sequence.is_decoding else sequence.prompt_done
        num_tokens = min(done + count, sequence.end + 1)
        while sequence.is_running and not self._kv.grow(sequence.blocks, num_tokens):
            self._preempt()
        return sequence.is_running

    def _preempt(self) -> None:
        """The sequence admitted last gives back its blocks, and waits in front to compute again all it had."""
        victim = (self._prefilling or self._decoding).pop()
        if victim.is_decoding:
            victim.goal = victim.position + 1
        self._kv.release(victim.blocks, victim.position if victim.is_decoding else victim.prompt_done)
        victim.prompt_done = victim.chunk = 0
        victim.is_running = victim.is_decoding = False
        victim.num_preemptions += 1
        self.counts.preemptions += 1
        self._preempted.append(victim.request)
        self._waiting.appendleft(victim)
