"""How decode batches come to rest behind a prompt: steps timed one after another behind a chunk, and the law in them.

A chunk's activations take weights and keys out of the caches nearest to the cores; the decode steps behind it bring
them back a part at a time. On two cores of a server the first step behind a chunk of 257 tokens was a tenth to two
fifths longer than the tenth step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tiercast_profiles.hardware import ProbeResult, Settling, SettlingPoint
from tiercast_runtime.probes.timing import rounded

NUM_SETTLING_STEPS = 10
DECAYS = tuple(round(0.02 * number, 2) for number in range(15, 46))  # 0.30 to 0.90 a step
MAX_CHUNK_TOKENS = 257  # a larger chunk of a grid takes long and disturbs little more


@dataclass(frozen=True, slots=True)
class SettlingFit:
    """Shares by step, ``first_ratio`` × ``decay_ratio`` ** k; ``residual_ratio`` is the root mean square of misses."""

    first_ratio: float
    decay_ratio: float
    residual_ratio: float


def fit_settling(shares: Sequence[float]) -> SettlingFit:
    """The law nearest to how much longer than settled steps in a row behind a chunk are, by least squares.

    A batch that the chunk does not slow has ``first_ratio`` 0.
    """
    values, turns = np.array(shares), np.arange(len(shares))
    found: list[SettlingFit] = []
    for decay in DECAYS:
        powers = decay**turns
        first = max(0.0, float(powers @ values / (powers @ powers)))
        residual = float(np.sqrt(np.mean((first * powers - values) ** 2)))
        found.append(SettlingFit(first, decay, residual))
    return min(found, key=lambda fit: fit.residual_ratio)


def settling_of(
    times_us: Mapping[int, tuple[float, ...]],
    settled_us: Mapping[int, float],
    chunk_tokens: int,
    model: str,
    *,
    has_engram: bool,
) -> tuple[Settling | None, tuple[ProbeResult, ...]]:
    """How each batch settles, and the probes that say so.

    Args:
        times_us: by sequences, mean compute of the steps in a row behind a chunk.
        settled_us: by sequences, what the table says such a step computes: shares are of that, so that both together
            give the times that were measured.
        chunk_tokens: of that chunk.
        model: whose layers ran.
        has_engram: whether its Engram layers ran among them.
    """
    points, probes = [], []
    for count in sorted(times_us):
        fit = fit_settling([time_us / settled_us[count] - 1 for time_us in times_us[count]])
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
                    "settled_us": rounded(settled_us[count]),
                    "residual_ratio": rounded(fit.residual_ratio),
                },
                unit="us",
                samples=tuple(rounded(time_us) for time_us in times_us[count]),
                status="ok",
            )
        )
    return (Settling(chunk_tokens=chunk_tokens, points=tuple(points)) if points else None), tuple(probes)
