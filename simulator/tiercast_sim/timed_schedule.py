"""The batches of requests that arrive by the clock: a plan that has to know how long each step takes.

The policy is that of ``schedule_columns``; but who is there when a step begins depends on when it begins, so steps are
walked one by one. What attention needs of a batch is kept as sums that grow by what joined and left.
"""

from array import array

import numpy as np

from tiercast_profiles.scenario import Engine
from tiercast_profiles.workload import RequestShapes
from tiercast_sim import schedule_columns
from tiercast_sim.schedule_columns import Column, Finishes, Schedule, running_by_block
from tiercast_sim.step_clock import StepClock


class PositionSums:
    """Sums of the positions that decoding sequences feed: whole, and each cut at the attention window − 1."""

    def __init__(self, window: int | None) -> None:
        self._cut = None if window is None else window - 1
        self.num_decodes = 0
        self._whole = self._short = 0
        self._num_growing = 0  # sequences whose position lies below the cut
        self._full: dict[int, int] = {}  # by step: sequences that reach the cut in it

    @property
    def both(self) -> tuple[int, int]:
        """The whole sum, and that of the cut positions."""
        return self._whole, self._whole if self._cut is None else self._short

    def next_step(self, step: int, leaving: list[int], joining: list[int]) -> None:
        """From ``step`` to the one behind it: some fed these positions last, others begin at those."""
        for position in leaving:
            self._leave(step, position)
        self._whole += self.num_decodes
        self._short += self._num_growing
        self._num_growing -= self._full.pop(step + 1, 0)
        for position in joining:
            self._join(step + 1, position)

    def _join(self, step: int, position: int) -> None:
        """A sequence decodes from ``step`` on."""
        self.num_decodes += 1
        self._whole += position
        if self._cut is not None:
            self._short += min(position, self._cut)
            if position < self._cut:
                self._num_growing += 1
                full = step + self._cut - position
                self._full[full] = self._full.get(full, 0) + 1

    def _leave(self, step: int, position: int) -> None:
        """A sequence that fed ``position`` in ``step`` is done."""
        self.num_decodes -= 1
        self._whole -= position
        if self._cut is not None:
            self._short -= min(position, self._cut)
            if position < self._cut:
                self._num_growing -= 1
                self._full[step + self._cut - position] -= 1


def timed_schedule(
    requests: RequestShapes, engine: Engine, num_blocks: int | None, window: int | None, clock: StepClock
) -> tuple[Schedule, int]:
    """The plan of requests in the order they arrive, and when it ends; ``num_blocks`` None: room for all."""
    needed = -(-(requests.prompt_tokens + requests.output_tokens) // engine.kv_block_tokens)
    columns = (requests.arrival_ns, requests.prompt_tokens, requests.output_tokens, needed)
    arrival, prompt, output, blocks = (array("q", column.tobytes()) for column in columns)
    count = len(arrival)
    least_free = total = free = num_blocks if num_blocks is not None else int(needed.sum())
    first_step, chunks, idle = array("q", bytes(8 * count)), array("q"), array("q")
    prefilling: list[tuple[int, int]] = []
    finishes, sums = Finishes(), PositionSums(window)
    num_arrived = next_waiting = num_done = step = now_ns = 0
    while num_done < count:
        while num_arrived < count and arrival[num_arrived] <= now_ns:
            num_arrived += 1
        if not (prefilling or sums.num_decodes) and next_waiting == num_arrived:
            idle.extend((step, arrival[num_arrived] - now_ns))
            now_ns = arrival[num_arrived]
            continue
        budget = engine.max_num_batched_tokens - sums.num_decodes
        continuing: list[tuple[int, int]] = []
        pieces: list[tuple[int, int]] = []
        for request, done in prefilling:
            tokens = min(prompt[request] - done, budget)
            if tokens:
                chunks.extend((request, step, done, tokens))
                pieces.append((tokens, done))
                budget -= tokens
            continuing.append((request, done + tokens))
        running = sums.num_decodes + len(continuing)
        while next_waiting < num_arrived and budget > 0 and running < engine.max_num_seqs:
            if blocks[next_waiting] > free:
                break
            tokens = min(prompt[next_waiting], budget)
            chunks.extend((next_waiting, step, 0, tokens))
            pieces.append((tokens, 0))
            budget -= tokens
            free -= blocks[next_waiting]
            continuing.append((next_waiting, tokens))
            next_waiting += 1
            running += 1
        least_free = min(least_free, free)
        ended = [request for request, done in continuing if done == prompt[request]]
        prefilling = continuing[len(ended) :]  # prompts complete in the order they were admitted in
        now_ns += clock.duration_ns(sums.num_decodes, sums.both, pieces, [prompt[request] - 1 for request in ended])
        for request in ended:
            first_step[request] = step
            finishes.add(step + output[request] - 1, request)
        done_now = finishes.pop(step)
        num_done += len(done_now)
        free += sum(blocks[request] for request in done_now)
        # A request of one token is done with its prompt and never decodes.
        leaving = [prompt[request] + output[request] - 2 for request in done_now if output[request] > 1]
        sums.next_step(step, leaving, [prompt[request] for request in ended if output[request] > 1])
        step += 1
    return _schedule(requests, (first_step, chunks, idle), step, total - least_free), now_ns


def _schedule(
    requests: RequestShapes, found: tuple["array[int]", "array[int]", "array[int]"], num_steps: int, peak_blocks: int
) -> Schedule:
    first: Column = np.frombuffer(found[0], dtype=np.int64)
    chunks = np.frombuffer(found[1], dtype=np.int64).reshape(-1, 4).T.copy()
    idle = np.frombuffer(found[2], dtype=np.int64).reshape(-1, 2).T.copy()
    return Schedule(
        prompt_tokens=requests.prompt_tokens,
        output_tokens=requests.output_tokens,
        first_step=first,
        arrival_step=np.full(len(first), -1, dtype=np.int64),
        chunk_request=chunks[0],
        chunk_step=chunks[1],
        chunk_start=chunks[2],
        chunk_tokens=chunks[3],
        peak_blocks=peak_blocks,
        num_steps=num_steps,
        block_steps=schedule_columns.BLOCK_STEPS,
        running=running_by_block(first, first + requests.output_tokens - 1, num_steps),
        arrival_ns=requests.arrival_ns,
        idle_step=idle[0],
        idle_ns=idle[1],
    )
