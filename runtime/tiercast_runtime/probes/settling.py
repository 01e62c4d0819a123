"""How decode batches come to rest behind a prompt: steps timed one after another behind a chunk, and the law in them.

A chunk's activations take weights and keys out of the caches nearest to the cores; the decode steps behind it bring
them back a part at a time. On two cores of a server the first step behind a chunk of 257 tokens was a tenth to two
fifths longer than the tenth step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiercast_profiles.hardware import ProbeResult, Settling, SettlingPoint
from tiercast_runtime.probes.timing import rounded

NUM_SETTLING_STEPS = 10
DECAYS = tuple(round(0.02 * number, 2) for number in range(15, 46))  # 0.30 to 0.90 a step
MAX_CHUNK_TOKENS = 257  # a larger chunk of a grid takes long and disturbs little more


@dataclass(frozen=True, slots=True)
class SettlingFit:
    """Times by step, a + b × decay^k: ``settled`` is a, ``first_ratio`` b ÷ a; ``residual_ratio`` is in shares of a."""

    settled: float
    first_ratio: float
    decay_ratio: float
    residual_ratio: float


def fit_settling(times: Sequence[float]) -> SettlingFit:
    """The law nearest to the times of steps in a row behind a chunk, by least squares over the decays allowed.

    A batch that the chunk does not slow (b below zero) has ``first_ratio`` 0.
    """
    values, turns = np.array(times), np.arange(len(times))
    found: list[SettlingFit] = []
    for decay in DECAYS:
        powers = np.vstack((np.ones(len(times)), decay**turns)).T
        (settled, first), *_ = np.linalg.lstsq(powers, values, rcond=None)
        if first < 0 or settled <= 0:
            continue
        missed = (powers @ (settled, first) - values) / settled
        residual = float(np.sqrt(np.mean(missed**2)))
        found.append(SettlingFit(float(settled), float(first / settled), decay, residual))
    if not found:
        mean = float(values.mean())
        return SettlingFit(mean, 0.0, DECAYS[0], float(np.std(values)) / mean)
    return min(found, key=lambda fit: fit.residual_ratio)


def settling_of(
    times_us: dict[int, tuple[float, ...]], chunk_tokens: int, model: str, *, has_engram: bool
) -> tuple[Settling | None, tuple[ProbeResult, ...]]:
    """How each batch settles, and the probes that say so.

    Args:
        times_us: by sequences, mean compute of the steps in a row behind a chunk.
        chunk_tokens: of that chunk.
        model: whose layers ran.
        has_engram: whether its Engram layers ran among them.
    """
    points, probes = [], []
    for count in sorted(times_us):
        fit = fit_settling(times_us[count])
        point = SettlingPoint(
            num_sequences=count, first_ratio=rounded(fit.first_ratio), decay_ratio=rounded(fit.decay_ratio)
        )
        points.append(point)
        probes.append(
            ProbeResult(
                name="layers.settling" if has_engram else "layers.plain.settling",
                parameters={
                    "model": model,
                    "tokens": count,
                    "chunk_tokens": chunk_tokens,
                    "what": "mean compute of each step behind a chunk, in order",
                    "residual_ratio": rounded(fit.residual_ratio),
                },
                unit="us",
                samples=tuple(rounded(time_us) for time_us in times_us[count]),
                status="ok",
            )
        )
    return (Settling(chunk_tokens=chunk_tokens, points=tuple(points)) if points else None), tuple(probes)
