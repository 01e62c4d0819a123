"""A placement's speed in closed form: two steps in plain arithmetic stand for a whole run.

In a closed loop with C requests per replica of P prompt and O output tokens, every request takes O steps and one
prompt, so C/O prompts come in per step. The mean step is a mix of one without prompts and one with as many as come at
once; a request's next token takes the mean step, its first one half of a mean step and then the step with its prompt.
Assumption A28: replicas of a host do not hinder each other here, no row repeats, and a cache has nothing; the
simulation of the finalists knows better, and the search says how far the two were apart.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from tiercast_profiles.document import Bound
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import NS_PER_MS, NS_PER_S
from tiercast_profiles.workload import Request
from tiercast_sim.closed_form import Speeds, WorkerState, run_step
from tiercast_sim.compute import ComputeModel
from tiercast_sim.costs import StepCosts
from tiercast_sim.interference import interference_speeds
from tiercast_sim.links import lone_speed
from tiercast_sim.memory import replicas_per_host
from tiercast_sim.time_spread import mean_stalls_ns
from tiercast_sim.work import Chunk, StepPlan, StepWork


@dataclass(frozen=True, slots=True)
class Estimate:
    """Means at one load of a whole host; rates count all its replicas."""

    concurrency_per_replica: int
    ttft_ms: float
    tpot_ms: float
    stall_ms_per_step: float
    output_tokens_per_s: float
    total_tokens_per_s: float


class Estimator:
    """Estimates of one placement at any concurrency; ``prompt`` and ``output`` are mean tokens of a request."""

    def __init__(self, resolved: ResolvedScenario, prompt: int, output: int, bound: Bound = "nominal") -> None:
        self._resolved = resolved
        self._prompt, self._output = prompt, output
        self._num_replicas = min(resolved.scenario.parallel.num_replicas, replicas_per_host(resolved))
        self._costs = StepCosts(resolved, bound, 0, ComputeModel(resolved, bound), None)
        self._compute_speed, self._lookup_speed, _ = interference_speeds(resolved, bound)

    def at(self, concurrency: int) -> Estimate:
        """The steady state with so many requests on each replica."""
        budget = self._resolved.scenario.engine.max_num_batched_tokens
        decodes = min(concurrency, budget)
        room = max(1, budget - decodes)
        prompts_per_step = decodes / self._output
        num_prompts = max(1, min(math.ceil(prompts_per_step), room // self._prompt or 1))
        num_chunks = -(-self._prompt // room)  # a prompt longer than the budget takes several steps
        share = prompts_per_step / num_prompts * num_chunks
        # A prompt that arrives as another request ends is not known a step early; its later chunks and a queue are.
        is_known_early = num_chunks > 1 or share > 1
        bare_ns, bare_stall_ns = self._step_ns(decodes, 0, is_known_early)
        mixed_ns, mixed_stall_ns = self._step_ns(decodes, num_prompts, is_known_early)
        if share > 1:  # prompts come faster than one step's budget takes them: every step is full, and O steps are more
            step_ns, stall_ns, steps_per_token = float(mixed_ns), float(mixed_stall_ns), share
        else:
            step_ns = (1 - share) * bare_ns + share * mixed_ns
            stall_ns = (1 - share) * bare_stall_ns + share * mixed_stall_ns
            steps_per_token = 1.0
        token_ns = step_ns * steps_per_token
        output_per_s = self._num_replicas * concurrency / token_ns * NS_PER_S
        return Estimate(
            concurrency_per_replica=concurrency,
            ttft_ms=(step_ns / 2 + num_chunks * mixed_ns) / NS_PER_MS,
            tpot_ms=token_ns / NS_PER_MS,
            stall_ms_per_step=stall_ns / NS_PER_MS,
            output_tokens_per_s=output_per_s,
            total_tokens_per_s=output_per_s * (self._prompt + self._output) / self._output,
        )

    def _step_ns(self, decodes: int, num_prompts: int, is_known_early: bool) -> tuple[int, int]:
        """Length and stall of a step that follows one like it: rows its prompts could ask for early are on their way.

        Decode batches count as settled, whatever prompts came before.
        """
        position = self._prompt + self._output // 2
        running = [Request(0, 0, self._prompt, self._output)] * decodes  # who decodes matters to nobody here
        is_early = is_known_early and self._costs.wants_upcoming
        num_steps = 2 if is_early else 1
        plans = [
            StepPlan(running, [position] * decodes, self._chunks(1 + wave * num_prompts, num_prompts))
            for wave in range(num_steps + 1)
        ]
        state = WorkerState()
        duration_ns = stall_ns = 0
        for plan, upcoming in pairwise(plans):
            self._costs.settle()
            work = self._costs.price(plan, upcoming.chunks if is_early else ())
            prefetch = self._resolved.placement.prefetch
            outcome = run_step(work, prefetch, state, self._speeds(work))
            duration_ns, stall_ns = outcome.duration_ns, sum(outcome.stall_ns)
            in_the_mean_ns = max(stall_ns, *mean_stalls_ns(work, prefetch, self._lookup_speed), 0)
            duration_ns, stall_ns = duration_ns + in_the_mean_ns - stall_ns, in_the_mean_ns
        return duration_ns, stall_ns

    def _chunks(self, first_id: int, num_prompts: int) -> tuple[Chunk, ...]:
        room = self._resolved.scenario.engine.max_num_batched_tokens
        tokens = min(self._prompt, max(1, room // max(1, num_prompts)))
        return tuple(
            Chunk(Request(first_id + index, 0, tokens, self._output), 0, tokens) for index in range(num_prompts)
        )

    def _speeds(self, work: StepWork) -> Speeds:
        lookups = self._costs.lookups
        if lookups is None or not work.lookups:
            return Speeds()
        slowest = max(work.lookups, key=lambda lookup: lookup.rate_bytes_per_s)
        share = lone_speed(slowest.usage, slowest.rate_bytes_per_s, lookups.capacities())
        return Speeds(self._compute_speed, self._lookup_speed, share)
