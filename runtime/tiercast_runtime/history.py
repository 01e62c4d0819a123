"""The last few folded ids of every running sequence, so that tokens can be hashed as they come, step by step.

A row id depends on a token and on the ``max_order − 1`` tokens before it, which may have come in an earlier chunk or
step. One :class:`NgramHistory` keeps them for all sequences: a few integers per slot of the KV cache, each at its
position modulo what a slot holds, as the convolution keeps its state.

- *Chunked prefill, decode*: ``append`` gives the windows of the new tokens, for ``EngramHasher.row_ids``.
- *A new sequence in a used slot* starts at position 0, before which there is nothing: what is left there is forgotten.
- *Draft rejection* needs no call: the next step starts behind the last accepted token and writes over the others.
- *A prefix-cache hit*: append the cached tokens too, and leave their windows.
- *A sequence that changes slots*: ``move``.
- *Image span*: append ``DEAD`` for each of its positions; no n-gram crosses it (v41).

It lives on the host, where the tokens of a step are known before it starts. A captured step reads its windows from
static inputs, which are loaded from here before a replay. Nothing here imports torch.
"""

import numpy as np
import numpy.typing as npt

from tiercast_profiles.errors import BadInput
from tiercast_runtime.hashing import DEAD, build_windows

Ids = npt.NDArray[np.int64]
_largest = np.maximum.reduce


class NgramHistory:
    """Recent folded ids per slot; a slot gets its room when it is first used.

    Args:
        max_order: the longest n-gram; a window has this many ids.
        num_draft_tokens: most tokens of a step that the next one may write over.

    Raises:
        BadInput: a number that is too small.
    """

    def __init__(self, max_order: int, num_draft_tokens: int = 0) -> None:
        if max_order < 1 or num_draft_tokens < 0:
            raise BadInput(
                f"max_order={max_order}, num_draft_tokens={num_draft_tokens}; must be at least 1, and not negative"
            )
        self.max_order = max_order
        # Drafts, and twice what a token looks back at: what a new sequence's first tokens find where positions below 0
        # would lie is still DEAD when they come. A power of two: a mask finds the place of a position.
        self._num_kept = 1 << max(0, 2 * (max_order - 1) + num_draft_tokens - 1).bit_length()
        self._kept = np.full(self._num_kept, DEAD, dtype=np.int64)  # one slot behind the other
        self._look_back = np.arange(max_order)
        self._looks: dict[int, Ids] = {}

    def append(self, slots: Ids, starts: Ids, folded_ids: Ids) -> Ids:
        """Windows of the next tokens of some sequences, which are then remembered.

        Args:
            slots: ``[n] int64``, each once.
            starts: ``[n] int64``, position of the first token of each. All before it was appended; up to
                ``num_draft_tokens`` of the tokens appended last may be written over.
            folded_ids: ``[n, count] int64``, ``DEAD`` for a position that has no token.

        Returns:
            ``[n, count, max_order] int64``: of each token its own id, then those before it, nearest first.
        """
        num_sequences, count = folded_ids.shape
        if not num_sequences:
            return np.empty((0, count, self.max_order), np.int64)
        firsts = slots * self._num_kept
        self._make_room(int(_largest(firsts)))
        if not starts.all():
            self._kept.reshape(-1, self._num_kept)[slots[starts == 0]] = DEAD
        if count <= self._num_kept - self.max_order:
            return self._append_few(firsts, starts, folded_ids)
        rows = [self._append_many(*each) for each in zip(firsts.tolist(), starts.tolist(), folded_ids, strict=True)]
        return np.stack(rows)

    def _append_few(self, firsts: Ids, starts: Ids, folded_ids: Ids) -> Ids:
        """Steps that decode: so few tokens that all they look back at is kept when the last of them is."""
        num_sequences, count = folded_ids.shape
        look = self._looks.get(count)
        if look is None:
            look = self._looks[count] = (np.arange(count)[:, None] - self._look_back).reshape(-1)
        places = starts[:, None] + look
        places &= self._num_kept - 1
        places += firsts[:, None]
        self._kept[places[:, :: self.max_order]] = folded_ids
        return self._kept.take(places).reshape(num_sequences, count, self.max_order)

    def _append_many(self, first: int, start: int, folded_ids: Ids) -> Ids:
        """A chunk of one prompt: windows ``[count, max_order]``."""
        num_before, mask = self.max_order - 1, self._num_kept - 1
        known = np.concatenate((self._kept[first + (start - self._look_back[:0:-1] & mask)], folded_ids))
        last = np.arange(start + len(folded_ids) - self._num_kept, start + len(folded_ids))
        self._kept[first + (last & mask)] = known[-self._num_kept :]
        return build_windows(known, num_before, len(folded_ids), self.max_order)

    def move(self, source: int, target: int) -> None:
        """Give the sequence of one slot another."""
        self._make_room(max(source, target) * self._num_kept)
        kept = self._kept.reshape(-1, self._num_kept)
        kept[target] = kept[source]

    def _make_room(self, first: int) -> None:
        """Room for the slot whose ids begin at ``first``, and for as many more."""
        if first >= len(self._kept):
            size = 2 * (first + self._num_kept)
            self._kept = np.concatenate((self._kept, np.full(size - len(self._kept), DEAD, dtype=np.int64)))
