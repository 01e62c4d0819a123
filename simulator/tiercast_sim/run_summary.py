"""What the answers of a record need of a run, added up once: a run need not keep its steps for it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiercast_profiles.record import Samples
from tiercast_profiles.stats import SampleStatistics
from tiercast_sim.step import StepLog
from tiercast_sim.time_spread import Cases, Column


@dataclass(frozen=True, slots=True)
class RunSummary:
    """Sums over a run.

    ``elapsed_ns`` is run start to last finish, ``step_ns`` the length of all steps, ``decoding_ns`` that of each times
    the sequences that decoded in it. ``stall_ns_by_layer`` has an entry per Engram layer; ``busy_ns`` holds by replica
    the time its devices computed and the time its lookups were served. ``median_decode`` is the step of median length
    among those that only decode, or among all where none does.
    """

    statistics: SampleStatistics
    num_requests: int
    prompt_tokens: int
    output_tokens: int
    elapsed_ns: int
    step_ns: int
    rows_read: int
    decoding_ns: int
    stall_ns_by_layer: tuple[int, ...]
    busy_ns: dict[int, tuple[int, int]]
    median_decode: StepLog

    @property
    def mean_batch(self) -> float:
        """Sequences that decoded at once, weighted by time."""
        return self.decoding_ns / self.elapsed_ns


def summary_of(
    samples: Samples, steps: Sequence[StepLog], num_layers: int, cases: Cases, tokens_per_decode: int
) -> RunSummary:
    """The sums over steps that were kept, of all replicas; ``cases`` say how far their compute lies apart."""
    requests, columns = samples.requests, samples.steps
    stalls = [0] * num_layers
    busy: dict[int, tuple[int, int]] = {}
    for step in steps:
        for index, layer in enumerate(step.layers):
            stalls[index] += layer.stall_ns
        compute_ns, lookup_ns = busy.get(step.replica, (0, 0))
        busy[step.replica] = (compute_ns + step.duration_ns - step.stall_ns, lookup_ns + step.lookup_ns)
    decoding = zip(columns.decode_sequences, columns.duration_ns, strict=True)
    return RunSummary(
        statistics=SampleStatistics(samples, _lengths_ns(steps, cases, tokens_per_decode)),
        num_requests=len(requests.finish_ns),
        prompt_tokens=sum(requests.prompt_tokens),
        output_tokens=sum(requests.output_tokens),
        elapsed_ns=max(requests.finish_ns),
        step_ns=sum(columns.duration_ns),
        rows_read=sum(columns.rows_read),
        decoding_ns=sum(count * ns for count, ns in decoding),
        stall_ns_by_layer=tuple(stalls),
        busy_ns=dict(sorted(busy.items())),
        median_decode=median_decode_step(steps),
    )


def _lengths_ns(steps: Sequence[StepLog], cases: Cases, tokens_per_decode: int) -> Column | None:
    if not cases.are_known:
        return None
    num_tokens = np.array([step.prefill_tokens + step.decode_sequences * tokens_per_decode for step in steps])
    else_ns = np.array([step.pre_ns + step.stall_ns for step in steps])
    return cases.lengths_ns(num_tokens, np.array([step.duration_ns for step in steps]) - else_ns, else_ns)


def median_decode_step(steps: Sequence[StepLog]) -> StepLog:
    """The step of median length among those that only decode, or among all where none does."""
    only_decode = [step for step in steps if step.prefill_tokens == 0] or list(steps)
    ordered = sorted(only_decode, key=lambda step: (step.duration_ns, step.start_ns))
    return ordered[(len(ordered) - 1) // 2]
