"""How decode batches come to rest behind a prompt: steps timed one after another behind a chunk, and the law in them.

A chunk's activations take weights and keys out of the caches nearest to the cores; the decode steps behind it bring
them back a part at a time. On two cores of a server the first step behind a chunk of 257 tokens was a tenth to two
fifths longer than the tenth step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiercast_profiles.hardware import ProbeResult, Settling, SettlingPoint
from tiercast_runtime.probes.timing import rounded

NUM_SETTLING_STEPS = 10
DECAYS = tuple(round(0.02 * number, 2) for number in range(15, 46))  # 0.30 to 0.90 a step
MAX_CHUNK_TOKENS = 257  # a larger chunk of a grid takes long and disturbs little more


@dataclass(frozen=True, slots=True)
class SettlingFit:
    """Behind a chunk a step takes ``first_us`` × ``decay_ratio`` ** k more, by sequences of its batch."""

    first_us: Mapping[int, float]
    decay_ratio: float


def fit_settling(rows_us: Mapping[int, Sequence[Sequence[float]]]) -> SettlingFit:
    """The law nearest to rows of steps behind a chunk, by least squares with a level of its own for each row.

    A row is set against itself and not against settled steps timed at another moment: a shared machine changes by more
    between the two than a batch settles. What is brought back is much the same for batches of about one size, so that
    each has the rows of its neighbours too; the decay is one for all.

    Args:
        rows_us: by sequences, some rows of as many steps each.
    """
    counts = sorted(rows_us)
    shapes = {count: _shape(rows_us[count]) for count in counts}
    wide = {
        count: np.mean([shapes[near] for near in counts[max(0, place - 1) : place + 2]], axis=0)
        for place, count in enumerate(counts)
    }
    found: list[tuple[float, SettlingFit]] = []
    for decay in DECAYS:
        missed, firsts = 0.0, {}
        for count, values in wide.items():
            powers = _centred(np.power(decay, np.arange(len(values), dtype=np.float64)))
            first = max(0.0, float(powers @ values / (powers @ powers)))
            missed += float(np.sum((first * powers - values) ** 2))
            firsts[count] = first
        found.append((missed, SettlingFit(firsts, decay)))
    return min(found, key=lambda pair: pair[0])[1]


def _shape(rows: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """How a batch's steps differ from the level of their row: medians over the rows, around their mean."""
    values = np.array(rows, dtype=np.float64)
    return _centred(np.median(values - np.median(values, axis=1, keepdims=True), axis=0))


def _centred(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    centred: npt.NDArray[np.float64] = values - values.mean()
    return centred


def settling_of(fit: SettlingFit, settled_us: Mapping[int, float], chunk_tokens: int) -> Settling:
    """The law beside a table that says what a settled step of each batch computes."""
    points = tuple(
        SettlingPoint(
            num_sequences=count,
            first_ratio=rounded(fit.first_us[count] / settled_us[count]),
            decay_ratio=rounded(fit.decay_ratio),
        )
        for count in sorted(fit.first_us)
    )
    return Settling(chunk_tokens=chunk_tokens, points=points)


def settling_probes(
    rows_us: Mapping[int, Sequence[Sequence[float]]], fit: SettlingFit, chunk_tokens: int, model: str
) -> tuple[ProbeResult, ...]:
    """What was timed: per batch the mean compute of each step in a row."""
    return tuple(
        ProbeResult(
            name="layers.settling",
            parameters={
                "model": model,
                "tokens": count,
                "chunk_tokens": chunk_tokens,
                "what": "mean compute of each step behind a chunk, in order",
                "rows": len(rows_us[count]),
                "first_us": rounded(fit.first_us[count]),
                "decay_ratio": rounded(fit.decay_ratio),
            },
            unit="us",
            samples=tuple(rounded(float(time_us)) for time_us in np.mean(rows_us[count], axis=0)),
            status="ok",
        )
        for count in sorted(rows_us)
    )
