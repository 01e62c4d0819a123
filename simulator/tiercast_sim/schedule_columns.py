"""The batches of a closed loop, whole run at once: who computes what in which step, before any step has a length.

With one replica in a closed loop no plan depends on time: the next request arrives at the finish of an earlier one,
wherever on the clock that is. So the plan is made once, by counting steps, and every bound and baseline prices it.
The policy is that of ``serving``, written a second time without queues of sequences: a sequence is the step of its
first token and the step of its last; a stretch of steps that only decode is passed in one leap to its first finish.
"""

import heapq
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tiercast_profiles.scenario import Engine
from tiercast_profiles.workload import Request, Workload
from tiercast_sim.kv_blocks import blocks_of
from tiercast_sim.source import drawn, requests_of

Column = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps are counted from 0; all columns are int64.

    By request: prompt and output tokens, the step whose end gave its first token, the step whose end let it arrive
    (−1: there from the start). By chunk of a prompt, in order: its step, tokens computed before it, its tokens.
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

    @property
    def last_step(self) -> Column:
        """Step whose end finished each request."""
        return self.first_step + self.output_tokens - 1

    @property
    def num_steps(self) -> int:
        """Steps of the run."""
        return int(self.last_step.max()) + 1


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
    _schedule.cache_clear()


class _Finishes:
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
    return _plan(requests_of(workload, seed), workload.concurrency or 0, engine, num_blocks)


def _plan(requests: tuple[Request, ...], concurrency: int, engine: Engine, num_blocks: int | None) -> Schedule:
    prompts = [request.prompt_tokens for request in requests]
    outputs = [request.output_tokens for request in requests]
    max_seqs, budget_tokens = engine.max_num_seqs, engine.max_num_batched_tokens
    blocks = [blocks_of(r.prompt_tokens + r.output_tokens, engine.kv_block_tokens) for r in requests]
    count = len(requests)
    least_free = total = free = num_blocks if num_blocks is not None else sum(blocks)
    first_step = [0] * count
    arrival_step = [-1] * count
    chunks: list[tuple[int, int, int, int]] = []
    prefilling: list[tuple[int, int]] = []  # request and its prompt tokens done, in admission order
    finishes = _Finishes()
    num_arrived = min(concurrency, count)
    next_waiting = num_decoding = num_done = step = 0
    while num_done < count:
        budget = budget_tokens - num_decoding
        continuing: list[tuple[int, int]] = []
        for request, done in prefilling:
            tokens = min(prompts[request] - done, budget)
            if tokens:
                chunks.append((request, step, done, tokens))
                budget -= tokens
            continuing.append((request, done + tokens))
        running = num_decoding + len(continuing)
        while next_waiting < num_arrived and budget > 0 and running < max_seqs and blocks[next_waiting] <= free:
            tokens = min(prompts[next_waiting], budget)
            chunks.append((next_waiting, step, 0, tokens))
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
            if done < prompts[request]:
                prefilling.append((request, done))
                continue
            first_step[request] = step
            num_decoding += 1
            finishes.add(step + outputs[request] - 1, request)
        done_now = finishes.pop(step)
        num_done += len(done_now)
        num_decoding -= len(done_now)
        for request in done_now:
            free += blocks[request]
            if num_arrived < count:
                arrival_step[num_arrived] = step
                num_arrived += 1
        step += 1
    columns = np.array(chunks, dtype=np.int64).reshape(-1, 4).T.copy()
    return Schedule(
        prompt_tokens=np.array(prompts, dtype=np.int64),
        output_tokens=np.array(outputs, dtype=np.int64),
        first_step=np.array(first_step, dtype=np.int64),
        arrival_step=np.array(arrival_step, dtype=np.int64),
        chunk_request=columns[0],
        chunk_step=columns[1],
        chunk_start=columns[2],
        chunk_tokens=columns[3],
        peak_blocks=total - least_free,
    )


@dataclass(frozen=True, slots=True)
class Batches:
    """What each step computes, ``[num_steps] int64`` each.

    ``position_sum`` adds the positions that decoding sequences feed, ``ended_sum`` those of prompts that end in the
    step; in the ``window`` sums each position is cut at the attention window − 1.
    """

    num_decodes: Column
    num_prefill_tokens: Column
    num_chunks: Column
    num_ended: Column
    position_sum: Column
    window_sum: Column
    ended_sum: Column
    ended_window_sum: Column

    @property
    def num_tokens(self) -> Column:
        """All tokens of each step."""
        return self.num_decodes + self.num_prefill_tokens


def batches_of(schedule: Schedule, window: int | None) -> Batches:
    """Totals of each step of a plan; ``window`` is the attention window in tokens."""
    num_steps = schedule.num_steps
    prompt, first, last = schedule.prompt_tokens, schedule.first_step, schedule.last_step

    def totals(step: Column, weight: Column | None = None) -> Column:
        # Weights pass through float64: totals of positions stay far below 2^53, where it is exact.
        return np.bincount(step, weight, minlength=num_steps + 1)[: num_steps + 1].astype(np.int64)

    def over(start: Column, end: Column, weight: Column | None = None) -> Column:
        """Per step: the sum of ``weight`` (or the number) of those whose [start, end) holds it."""
        return np.cumsum(totals(start, weight) - totals(end, weight))[:num_steps]

    steps = np.arange(num_steps, dtype=np.int64)
    joined, left = first + 1, last + 1  # a sequence feeds its prompt length at `joined`, one more each step
    offset = prompt - joined
    num_decodes = over(joined, left)
    position_sum = over(joined, left, offset) + steps * num_decodes
    ended_sum = totals(first, prompt - 1)[:num_steps]
    window_sum, ended_window_sum = position_sum, ended_sum
    if window is not None:
        cut = window - 1
        full = np.clip(cut - offset, joined, left)  # from here on the window is full
        window_sum = over(joined, full, offset) + steps * over(joined, full) + cut * over(full, left)
        ended_window_sum = totals(first, np.minimum(prompt - 1, cut))[:num_steps]
    return Batches(
        num_decodes=num_decodes,
        num_prefill_tokens=totals(schedule.chunk_step, schedule.chunk_tokens)[:num_steps],
        num_chunks=totals(schedule.chunk_step)[:num_steps],
        num_ended=totals(first)[:num_steps],
        position_sum=position_sum,
        window_sum=window_sum,
        ended_sum=ended_sum,
        ended_window_sum=ended_window_sum,
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
