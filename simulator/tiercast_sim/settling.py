"""How a decode batch comes to rest behind prompts, from what the profile measured of it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiercast_profiles.hardware import Settling
from tiercast_sim.schedule_columns import Column, Schedule

MAX_STEPS = 24
"""Steps behind which a batch counts as settled: nine tenths a step, the slowest decay a probe may find, leave a tenth
of what there was."""

Shares = npt.NDArray[np.float64]


@dataclass(slots=True)
class Unsettled:
    """What a replica knows of itself: steps since the last with prompts, and the most prompt tokens of such a step.

    Steps with prompts that follow one another before the batch has settled count as their largest.
    """

    steps_since: int = MAX_STEPS + 1
    chunk_tokens: int = 0

    def note(self, prefill_tokens: int) -> None:
        """A step with so many prompt tokens comes next."""
        if prefill_tokens == 0:
            self.steps_since = min(self.steps_since + 1, MAX_STEPS + 1)
            return
        known = self.chunk_tokens if self.steps_since < MAX_STEPS else 0
        self.steps_since, self.chunk_tokens = 0, max(known, prefill_tokens)


class SettlingShares:
    """By how much of itself a decode step is longer than a settled one.

    Assumption A98: the share falls by a constant factor a step, and grows with the tokens of the prompts up to those of
    the measured chunk. Between measured batches both numbers are linear in the sequences, beyond them constant.
    """

    def __init__(self, settling: Settling) -> None:
        self._chunk_tokens = settling.chunk_tokens
        self._counts = [float(point.num_sequences) for point in settling.points]
        self._first = [point.first_ratio for point in settling.points]
        self._decay = [point.decay_ratio for point in settling.points]
        self._rows: dict[int, list[float]] = {}

    def of(self, num_sequences: int, unsettled: Unsettled) -> float:
        """Share of one step of so many decoding sequences and no prompt."""
        if unsettled.steps_since > MAX_STEPS or unsettled.steps_since == 0:
            return 0.0
        return self._row(num_sequences)[unsettled.steps_since] * min(1.0, unsettled.chunk_tokens / self._chunk_tokens)

    def column(self, num_decodes: Column, steps_since: Column, chunk_tokens: Column) -> Shares:
        """Shares of many steps, equal to :meth:`of` to the last bit; 0 in steps with prompts."""
        shares = np.zeros(len(num_decodes))
        is_unsettled = (steps_since > 0) & (steps_since <= MAX_STEPS) & (num_decodes > 0)
        for count in np.unique(num_decodes[is_unsettled]).tolist():
            chosen = is_unsettled & (num_decodes == count)
            by_step = np.array(self._row(count))[steps_since[chosen]]
            shares[chosen] = by_step * np.minimum(1.0, chunk_tokens[chosen] / self._chunk_tokens)
        return shares

    def _row(self, num_sequences: int) -> list[float]:
        """By steps since prompts: the share behind a chunk as large as the measured one; entry 0 is never asked for."""
        known = self._rows.get(num_sequences)
        if known is None:
            first = float(np.interp(num_sequences, self._counts, self._first))
            decay = float(np.interp(num_sequences, self._counts, self._decay))
            known = self._rows[num_sequences] = [0.0, *(first * decay**turn for turn in range(MAX_STEPS))]
        return known


def unsettled_columns(schedule: Schedule) -> tuple[Column, Column]:
    """Of every step of a plan what :class:`Unsettled` says once it was noted: steps since prompts, their tokens."""
    num_steps = schedule.num_steps
    prefill = np.bincount(schedule.chunk_step, schedule.chunk_tokens, minlength=num_steps).astype(np.int64)
    places = np.flatnonzero(prefill)
    steps = np.arange(num_steps, dtype=np.int64)
    last = np.searchsorted(places, steps, side="right") - 1  # of each step the last with prompts, −1 for none
    has_prompts = last >= 0
    since = np.full(num_steps, MAX_STEPS + 1, dtype=np.int64)
    since[has_prompts] = np.minimum(steps[has_prompts] - places[last[has_prompts]], MAX_STEPS + 1)
    tokens = np.zeros(num_steps, dtype=np.int64)
    if len(places):
        # Between two steps with prompts the batch settled where MAX_STEPS steps or more lie: a new group begins.
        group = np.concatenate(([0], np.cumsum(np.diff(places) > MAX_STEPS)))
        above = int(prefill.max()) + 1
        most = np.maximum.accumulate(prefill[places] + group * above) - group * above
        tokens[has_prompts] = most[last[has_prompts]]
    return since, tokens
