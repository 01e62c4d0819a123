"""How decode batches come to rest behind a prompt: steps timed one after another behind a chunk, and the law in them.

A chunk's activations take weights and keys out of the caches nearest to the cores; the decode steps behind it bring
them back a part at a time. On two cores of one server the first step behind a chunk of 257 tokens was a tenth to two
fifths longer than the tenth step, on those of another a thirtieth at most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tiercast_profiles.hardware import ProbeResult, Settling, SettlingPoint
from tiercast_profiles.quantiles import MAX_MEDIANS
from tiercast_runtime.probes.timing import rounded

NUM_SETTLING_STEPS = 10
DECAY_RATIO = 0.67
"""Of what a step behind a chunk takes more, the part that the next one still does.

Fitted, over the rounds of a suite, it was 0.68 to 0.78 on one machine, where batches take long to settle, and 0.36 and
0.56 on another, where they hardly do (``settling`` of the profiles in validation/two-core-xeon/suite and
validation/two-core-epyc/suite). A few rows do not say it: fitted to three of each batch it was anything, and the
largest took whatever the machine slowed down by within a row for settling.
"""
MAX_CHUNK_TOKENS = 257  # a larger chunk of a grid takes long and disturbs little more


@dataclass(frozen=True, slots=True)
class SettlingFit:
    """Behind a chunk a step takes ``first_us`` × ``decay_ratio`` ** k more, whatever its batch.

    ``error_us`` is the standard error of the first, out of how far rows lie apart; None with a single row.
    """

    first_us: float
    error_us: float | None
    decay_ratio: float = DECAY_RATIO


def fit_settling(rows_us: Mapping[int, Sequence[Sequence[float]]]) -> SettlingFit:
    """The law nearest to rows of steps behind a chunk, by least squares with a level of its own for each row.

    A row is set against itself and not against settled steps timed at another moment: a shared machine changes by more
    between the two than a batch settles. What is brought back is much the same for all batches, most of it weights, so
    that all rows say one time; what disturbs a row grows with its steps, so that rows count by the inverse square of
    their level. No step counts for more than three medians of its row.

    Args:
        rows_us: by sequences, some rows of as many steps each.
    """
    rows = np.array([row for count in sorted(rows_us) for row in rows_us[count]], dtype=np.float64)
    levels = np.median(rows, axis=1, keepdims=True)
    powers = np.power(DECAY_RATIO, np.arange(rows.shape[1], dtype=np.float64))
    powers -= powers.mean()
    firsts = (np.minimum(rows, MAX_MEDIANS * levels) - levels) @ powers / (powers @ powers)
    weights = levels[:, 0] ** -2 / np.sum(levels**-2)
    first = float(weights @ firsts)
    error = None
    if len(rows) > 1:
        error = float(np.sqrt(np.sum((weights * (firsts - first)) ** 2) * len(rows) / (len(rows) - 1)))
    return SettlingFit(max(0.0, first), error)


def settling_of(fit: SettlingFit, settled_us: Mapping[int, float], chunk_tokens: int) -> Settling:
    """The law beside a table that says what a settled step of each batch computes."""
    points = tuple(
        SettlingPoint(
            num_sequences=count,
            first_ratio=rounded(fit.first_us / settled_us[count]),
            decay_ratio=fit.decay_ratio,
        )
        for count in sorted(settled_us)
    )
    return Settling(chunk_tokens=chunk_tokens, points=points)


def settling_probes(
    rows_us: Mapping[int, Sequence[Sequence[float]]], fit: SettlingFit, chunk_tokens: int, model: str
) -> tuple[ProbeResult, ...]:
    """What was timed: per batch the mean compute of each step in a row."""
    found: dict[str, str | int | float] = {"first_us": rounded(fit.first_us), "decay_ratio": fit.decay_ratio}
    if fit.error_us is not None:
        found["error_us"] = rounded(fit.error_us)
    return tuple(
        ProbeResult(
            name="layers.settling",
            parameters={
                "model": model,
                "tokens": count,
                "chunk_tokens": chunk_tokens,
                "what": "mean compute of each step behind a chunk, in order",
                "rows": len(rows_us[count]),
                **found,
            },
            unit="us",
            samples=tuple(rounded(float(time_us)) for time_us in np.mean(rows_us[count], axis=0)),
            status="ok",
        )
        for count in sorted(rows_us)
    )
