"""The batches of a closed loop, whole run at once: who computes what in which step, before any step has a length.

With one replica in a closed loop no plan depends on time: the next request arrives at the finish of an earlier one,
wherever on the clock that is. So the plan is made once, by counting steps, and every bound and baseline prices it.
The policy is that of ``serving``, written a second time without queues of sequences: a sequence is the step of its
first token and the step of its last; a stretch of steps that only decode is passed in one leap to its first finish.
What a plan keeps is eight numbers a request; the steps themselves are counted out of it a block at a time.
"""

import heapq
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tiercast_profiles.scenario import Engine
from tiercast_profiles.workload import RequestShapes, Workload
from tiercast_sim.source import drawn, drawn_shapes, shapes_of

Column = npt.NDArray[np.int64]
BLOCK_STEPS = 32_768
"""Steps that are priced at once: enough to make columns worth it, few enough to stay in a cache."""


def _none() -> Column:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps are counted from 0; all columns are int64.

    By request: prompt and output tokens, the step whose end gave its first token, the step whose end let it arrive
    (−1: there from the start); both steps ascend, for requests are served in order. By chunk of a prompt, in order:
    its step, tokens computed before it, its tokens. ``running`` holds, for each block, the requests with
    their first token before it that finish in it or later. Where requests arrive by the clock ``arrival_ns`` says
    when, and ``idle_ns`` for how long nothing ran before the steps ``idle_step``.
    """

    prompt_tokens: Column
    output_tokens: Column
    first_step: Column
    arrival_step: Column
    chunk_request: Column
    chunk_step: Column
    chunk_start: Column
    chunk_tokens: Column
    peak_blocks: int
    num_steps: int
    block_steps: int
    running: tuple[Column, ...]
    arrival_ns: Column | None = None
    idle_step: Column = field(default_factory=_none)
    idle_ns: Column = field(default_factory=_none)

    @property
    def last_step(self) -> Column:
        """Step whose end finished each request."""
        return self.first_step + self.output_tokens - 1

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First step of each block, and the one behind its last."""
        for first in range(0, self.num_steps, self.block_steps):
            yield first, min(first + self.block_steps, self.num_steps)

    def requests_in(self, first: int, last: int) -> tuple[Column, slice]:
        """Requests that decode in the steps first … last − 1 of one block, and those whose prompt ends there."""
        block = first // self.block_steps
        since, begin, end = np.searchsorted(self.first_step, (block * self.block_steps, first, last)).tolist()
        return np.concatenate((self.running[block], np.arange(since, end))), slice(begin, end)

    def idle_before(self, first: int, last: int) -> Column:
        """Time during which nothing ran before each of the steps first … last − 1."""
        found = np.zeros(last - first, dtype=np.int64)
        part = slice(*np.searchsorted(self.idle_step, (first, last)).tolist())
        found[self.idle_step[part] - first] = self.idle_ns[part]
        return found


def schedule_of(workload: Workload, seed: int, engine: Engine, num_blocks: int) -> Schedule:
    """The plan of a closed loop on one replica with this many KV blocks, each large enough for every request."""
    texts = (workload.model_dump_json(), seed, engine.model_dump_json())
    roomy = _schedule(*texts, None)
    # A plan that never used more blocks than there are was never held back by them. Blocks taken on demand are not
    # planned here: the roomy plan says that they could run out.
    is_enough = roomy.peak_blocks <= num_blocks or engine.kv_reservation == "on_demand"
    return roomy if is_enough else _schedule(*texts, num_blocks)


def forget() -> None:
    """Drop plans and requests kept for further bounds; a benchmark that times them needs it."""
    drawn.cache_clear()
    drawn_shapes.cache_clear()
    _schedule.cache_clear()


class Finishes:
    """Running requests by the step whose end finishes them."""

    def __init__(self) -> None:
        self._requests: dict[int, list[int]] = {}
        self._steps: list[int] = []

    @property
    def next_step(self) -> int:
        """The first step that finishes a request."""
        return self._steps[0]

    def add(self, step: int, request: int) -> None:
        """A request will finish at the end of ``step``."""
        known = self._requests.get(step)
        if known is None:
            self._requests[step] = [request]
            heapq.heappush(self._steps, step)
        else:
            known.append(request)

    def pop(self, step: int) -> list[int]:
        """Requests that finish at the end of ``step``, none before which is left."""
        if not self._steps or self._steps[0] != step:
            return []
        heapq.heappop(self._steps)
        return self._requests.pop(step)


@lru_cache(maxsize=3)
def _schedule(workload_json: str, seed: int, engine_json: str, num_blocks: int | None) -> Schedule:
    workload = Workload.model_validate_json(workload_json)
    engine = Engine.model_validate_json(engine_json)
    return _plan(shapes_of(workload, seed), workload.concurrency or 0, engine, num_blocks)


def _plan(requests: RequestShapes, concurrency: int, engine: Engine, num_blocks: int | None) -> Schedule:
    prompts, outputs = requests.prompt_tokens, requests.output_tokens
    max_seqs, budget_tokens = engine.max_num_seqs, engine.max_num_batched_tokens
    needed = -(-(prompts + outputs) // engine.kv_block_tokens)
    count = len(prompts)
    # Arrays, not lists: eight bytes a number, and as fast to read one by one.
    prompt, output, blocks = (array("q", column.tobytes()) for column in (prompts, outputs, needed))
    least_free = total = free = num_blocks if num_blocks is not None else int(needed.sum())
    first_step, arrival_step = array("q", bytes(8 * count)), array("q", [-1]) * count
    chunks = array("q")  # request, step, start and tokens of one after the other
    prefilling: list[tuple[int, int]] = []  # request and its prompt tokens done, in admission order
    finishes = Finishes()
    num_arrived = min(concurrency, count)
    next_waiting = num_decoding = num_done = step = 0
    while num_done < count:
        budget = budget_tokens - num_decoding
        continuing: list[tuple[int, int]] = []
        for request, done in prefilling:
            tokens = min(prompt[request] - done, budget)
            if tokens:
                chunks.extend((request, step, done, tokens))
                budget -= tokens
            continuing.append((request, done + tokens))
        running = num_decoding + len(continuing)
        while next_waiting < num_arrived and budget > 0 and running < max_seqs and blocks[next_waiting] <= free:
            tokens = min(prompt[next_waiting], budget)
            chunks.extend((next_waiting, step, 0, tokens))
            budget -= tokens
            free -= blocks[next_waiting]
            continuing.append((next_waiting, tokens))
            next_waiting += 1
            running += 1
        least_free = min(least_free, free)
        if not continuing:  # nothing changes before the next finish
            step = finishes.next_step
        prefilling = []
        for request, done in continuing:
            if done < prompt[request]:
                prefilling.append((request, done))
                continue
            first_step[request] = step
            num_decoding += 1
            finishes.add(step + output[request] - 1, request)
        done_now = finishes.pop(step)
        num_done += len(done_now)
        num_decoding -= len(done_now)
        for request in done_now:
            free += blocks[request]
            if num_arrived < count:
                arrival_step[num_arrived] = step
                num_arrived += 1
        step += 1
    columns = np.frombuffer(chunks, dtype=np.int64).reshape(-1, 4).T.copy()
    first = np.frombuffer(first_step, dtype=np.int64)
    last = first + outputs - 1
    return Schedule(
        prompt_tokens=prompts,
        output_tokens=outputs,
        first_step=first,
        arrival_step=np.frombuffer(arrival_step, dtype=np.int64),
        chunk_request=columns[0],
        chunk_step=columns[1],
        chunk_start=columns[2],
        chunk_tokens=columns[3],
        peak_blocks=total - least_free,
        num_steps=step,
        block_steps=BLOCK_STEPS,
        running=running_by_block(first, last, step),
    )


def running_by_block(first: Column, last: Column, num_steps: int) -> tuple[Column, ...]:
    """Requests that decode across the start of each block of steps."""
    running, seen = np.zeros(0, dtype=np.int64), 0
    found = []
    for start in range(0, num_steps, BLOCK_STEPS):
        end = int(np.searchsorted(first, start))
        known = np.concatenate((running, np.arange(seen, end)))
        running, seen = known[last[known] >= start], end
        found.append(running)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Batches:
    """What each step of a range computes, ``[num_steps] int64`` each.

    ``position_sum`` adds the positions that decoding sequences feed, ``ended_sum`` those of prompts that end in the
    step; in the ``window`` sums each position is cut at the attention window − 1. By chunk of a prompt, in order: its
    step, counted from the first of the range, tokens computed before it, its tokens.
    """

    num_decodes: Column
    num_prefill_tokens: Column
    num_chunks: Column
    num_ended: Column
    position_sum: Column
    window_sum: Column
    ended_sum: Column
    ended_window_sum: Column
    chunk_step: Column
    chunk_start: Column
    chunk_tokens: Column

    @property
    def num_tokens(self) -> Column:
        """All tokens of each step."""
        return self.num_decodes + self.num_prefill_tokens

    def chosen(self, which: npt.NDArray[np.bool_]) -> "Batches":
        """Some of the steps, in order; ``which`` is ``[num_steps]``."""
        place, has_chunk = np.cumsum(which) - 1, which[self.chunk_step]
        return Batches(
            num_decodes=self.num_decodes[which],
            num_prefill_tokens=self.num_prefill_tokens[which],
            num_chunks=self.num_chunks[which],
            num_ended=self.num_ended[which],
            position_sum=self.position_sum[which],
            window_sum=self.window_sum[which],
            ended_sum=self.ended_sum[which],
            ended_window_sum=self.ended_window_sum[which],
            chunk_step=place[self.chunk_step[has_chunk]],
            chunk_start=self.chunk_start[has_chunk],
            chunk_tokens=self.chunk_tokens[has_chunk],
        )


def batches_of(schedule: Schedule, window: int | None, first: int, last: int) -> Batches:
    """Totals of the steps first … last − 1 of one block; ``window`` is the attention window in tokens."""
    num_steps = last - first
    who, ending = schedule.requests_in(first, last)
    prompt, begun = schedule.prompt_tokens[who], schedule.first_step[who] - first
    part = slice(*np.searchsorted(schedule.chunk_step, (first, last)).tolist())
    chunk_step, chunk_tokens = schedule.chunk_step[part] - first, schedule.chunk_tokens[part]
    ended, last_position = schedule.first_step[ending] - first, schedule.prompt_tokens[ending] - 1

    def totals(step: Column, weight: Column | None = None) -> Column:
        # Weights pass through float64: totals of positions stay far below 2^53, where it is exact.
        return np.bincount(step, weight, minlength=num_steps).astype(np.int64)

    def over(start: Column, end: Column, weight: Column | None = None) -> Column:
        """Per step: the sum of ``weight`` (or the number) of those whose [start, end) holds it."""
        total: Column = np.cumsum(totals(start, weight)[:num_steps] - totals(end, weight)[:num_steps])
        return total

    steps = np.arange(num_steps, dtype=np.int64)
    offset = prompt - begun - 1  # a sequence feeds its prompt length in the step behind its first token, then one more
    joined = np.clip(begun + 1, 0, num_steps)
    left = np.clip(begun + schedule.output_tokens[who], 0, num_steps)
    num_decodes = over(joined, left)
    position_sum = over(joined, left, offset) + steps * num_decodes
    ended_sum = totals(ended, last_position)
    window_sum, ended_window_sum = position_sum, ended_sum
    if window is not None:
        cut = window - 1
        full = np.clip(cut - offset, joined, left)  # from here on the window is full
        window_sum = over(joined, full, offset) + steps * over(joined, full) + cut * over(full, left)
        ended_window_sum = totals(ended, np.minimum(last_position, cut))
    return Batches(
        num_decodes=num_decodes,
        num_prefill_tokens=totals(chunk_step, chunk_tokens),
        num_chunks=totals(chunk_step),
        num_ended=totals(ended),
        position_sum=position_sum,
        window_sum=window_sum,
        ended_sum=ended_sum,
        ended_window_sum=ended_window_sum,
        chunk_step=chunk_step,
        chunk_start=schedule.chunk_start[part],
        chunk_tokens=chunk_tokens,
    )


def longest_positions(schedule: Schedule) -> tuple[Column, Column]:
    """Largest position fed by a decoding sequence in each step, and the largest at which a prompt ends; 0 for none."""
    num_steps = schedule.num_steps
    longest = np.zeros(num_steps, dtype=np.int64)
    ended = np.zeros(num_steps, dtype=np.int64)
    np.maximum.at(ended, schedule.first_step, schedule.prompt_tokens - 1)
    # All positions grow by one a step, so the order by position − step never changes: a heap with stale entries.
    order = np.argsort(schedule.first_step, kind="stable")
    first, last, prompt = schedule.first_step.tolist(), schedule.last_step.tolist(), schedule.prompt_tokens.tolist()
    heap: list[tuple[int, int]] = []
    waiting = order.tolist()[::-1]
    step = 0
    while step < num_steps:
        while waiting and first[waiting[-1]] < step:
            request = waiting.pop()
            heapq.heappush(heap, (first[request] + 1 - prompt[request], last[request]))
        while heap and heap[0][1] < step:
            heapq.heappop(heap)
        stop = min(first[waiting[-1]] + 1 if waiting else num_steps, heap[0][1] + 1 if heap else num_steps)
        stop = max(stop, step + 1)
        if heap:
            longest[step:stop] = np.arange(step, stop) - heap[0][0]
        step = stop
    return longest, ended
