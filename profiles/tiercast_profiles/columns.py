"""Samples of a run as NumPy columns: what a record holds as tuples, eight bytes a number and ready for arithmetic.

Runs that nobody asked the raw samples of stay in this form; a record is built from it only when it is to keep them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from tiercast_profiles.record import RequestSamples, Samples, StepSamples

Column = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RequestColumns:
    """As :class:`RequestSamples`, each ``[num_requests] int64``."""

    arrival_ns: Column
    first_token_ns: Column
    finish_ns: Column
    prompt_tokens: Column
    output_tokens: Column


@dataclass(frozen=True, slots=True)
class StepSampleColumns:
    """As :class:`StepSamples`, each ``[num_steps] int64``; ``rows_hit`` is empty without a cache."""

    start_ns: Column
    duration_ns: Column
    prefill_tokens: Column
    decode_sequences: Column
    stall_ns: Column
    lookup_ns: Column
    rows: Column
    rows_read: Column
    rows_hit: Column


def joined(parts: Sequence[StepSampleColumns]) -> StepSampleColumns:
    """Steps one part after another."""
    names = [one.name for one in fields(StepSampleColumns)]
    return StepSampleColumns(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True, slots=True)
class SampleColumns:
    """As :class:`Samples`."""

    requests: RequestColumns
    steps: StepSampleColumns

    def to_samples(self) -> Samples:
        """The same numbers as a record keeps them."""
        requests, steps = self.requests, self.steps
        return Samples(
            requests=RequestSamples(
                arrival_ns=tuple(requests.arrival_ns.tolist()),
                first_token_ns=tuple(requests.first_token_ns.tolist()),
                finish_ns=tuple(requests.finish_ns.tolist()),
                prompt_tokens=tuple(requests.prompt_tokens.tolist()),
                output_tokens=tuple(requests.output_tokens.tolist()),
            ),
            steps=StepSamples(
                start_ns=tuple(steps.start_ns.tolist()),
                duration_ns=tuple(steps.duration_ns.tolist()),
                prefill_tokens=tuple(steps.prefill_tokens.tolist()),
                decode_sequences=tuple(steps.decode_sequences.tolist()),
                stall_ns=tuple(steps.stall_ns.tolist()),
                lookup_ns=tuple(steps.lookup_ns.tolist()),
                rows=tuple(steps.rows.tolist()),
                rows_read=tuple(steps.rows_read.tolist()),
                rows_hit=tuple(steps.rows_hit.tolist()),
            ),
        )


@dataclass(frozen=True, slots=True)
class StepTotals:
    """Steps added up; only their lengths stay apart, in any order: ``duration_ns`` ``[num_steps] int64``.

    ``rows_hit`` is None without a cache.
    """

    duration_ns: Column
    stall_ns: int
    lookup_ns: int
    rows: int
    rows_read: int
    rows_hit: int | None


@dataclass(frozen=True, slots=True)
class SampleTotals:
    """What the statistics of a run need of its samples."""

    requests: RequestColumns
    steps: StepTotals
