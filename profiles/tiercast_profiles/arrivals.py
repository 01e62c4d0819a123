"""When requests arrive by chance: gaps of a gamma law, and sources that switch on and off."""

import numpy as np
import numpy.typing as npt

from tiercast_profiles.rng import stream
from tiercast_profiles.units import NS_PER_S

Times = npt.NDArray[np.float64]


def gaps_ns(count: int, requests_per_s: float, burstiness: float, seed: int) -> Times:
    """Gaps before each of ``count`` arrivals, ``[count] float64``.

    A gamma law of shape ``burstiness`` and mean 1 / rate, as vLLM's ``--burstiness``: 1 is a Poisson process, less
    comes in bursts, more is steadier; the coefficient of variation is 1 / sqrt(burstiness).
    """
    generator = stream(seed, "arrivals")
    mean_ns = NS_PER_S / requests_per_s
    if burstiness == 1:
        return generator.exponential(mean_ns, size=count)
    return generator.gamma(burstiness, mean_ns / burstiness, size=count)


def switched(busy_ns: Times, mean_on_s: float, mean_off_s: float, seed: int) -> Times:
    """Ascending times on a clock that runs only while a source is on, as times on the wall.

    Both spells are exponential (a Markov-modulated process of two states); the source is on at the start.
    """
    generator = stream(seed, "on-off")
    ends: list[Times] = []
    total = 0.0
    num_spells = max(16, int(busy_ns[-1] / (mean_on_s * NS_PER_S)))
    while total <= busy_ns[-1]:
        spells = generator.exponential(mean_on_s * NS_PER_S, size=num_spells)
        ends.append(total + np.cumsum(spells))
        total = float(ends[-1][-1])
    on_ends = np.concatenate(ends)
    pauses = np.cumsum(generator.exponential(mean_off_s * NS_PER_S, size=len(on_ends)))
    num_pauses = np.searchsorted(on_ends, busy_ns)
    waited: Times = np.concatenate(([0.0], pauses))[num_pauses]
    return busy_ns + waited
