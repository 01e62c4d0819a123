"""The last few folded ids of every running sequence, so that tokens can be hashed as they come, chunk by chunk.

A row id depends on a token and on the ``max_order − 1`` tokens before it. An engine that no longer holds those (it
sees one chunk or one decode step at a time) keeps an :class:`NgramHistory`, one slot per running sequence:

- *Chunked prefill, decode*: ``append(slot, ids)`` gives the windows of the new tokens, for ``EngramHasher.row_ids``.
- *A new sequence in a used slot*: ``reset(slot)`` first.
- *Prefix-cache hit*: the cached tokens are not computed, but the first new one looks back at them:
  ``reset(slot, cached_ids)``, whole or only their end.
- *Image span*: append ``DEAD`` for each of its positions; no n-gram crosses it (v41).
- *Draft rejection*: append the drafts with the token that they follow, verify, then ``rollback(slot, num_rejected)``.
  ``max_rollback_tokens`` is the longest draft.

The state is a few integers per sequence and lives on the host, as the scheduler does. Nothing here imports torch.
"""

import numpy as np
import numpy.typing as npt

from tiercast_profiles.errors import BadInput
from tiercast_runtime.hashing import DEAD, build_windows


class NgramHistory:
    """Recent folded ids per slot, with a bounded way back.

    Args:
        num_slots: sequences that can run at once.
        max_order: the longest n-gram; a window has this many ids.
        max_rollback_tokens: most tokens that can be taken back since the last ``reset``; 0 where nothing is drafted.

    Raises:
        BadInput: a number that is too small.
    """

    def __init__(self, num_slots: int, max_order: int, max_rollback_tokens: int = 0) -> None:
        for name, value, least in (
            ("num_slots", num_slots, 1),
            ("max_order", max_order, 1),
            ("max_rollback_tokens", max_rollback_tokens, 0),
        ):
            if value < least:
                raise BadInput(f"{name}={value}; must be at least {least}")
        self.max_order = max_order
        self.max_rollback_tokens = max_rollback_tokens
        # Per slot the look-back of the next token, and before it what a rollback would uncover.
        self._num_kept = max_order - 1 + max_rollback_tokens
        self._kept = np.full((num_slots, self._num_kept), DEAD, dtype=np.int64)
        self._num_revocable = np.zeros(num_slots, dtype=np.int64)

    def append(self, slot: int, folded_ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Windows ``[count, max_order] int64`` of the next ``count`` tokens of a sequence, which are then remembered.

        ``folded_ids`` is ``[count] int64``, ``DEAD`` for a position that has no token.

        Raises:
            BadInput: no such slot, or ids that are not one row of whole numbers from −1 up.
        """
        self._check_slot(slot)
        new = _checked_ids(folded_ids)
        joined = np.concatenate([self._kept[slot], new])
        windows = build_windows(joined, self._num_kept, len(new), self.max_order)
        self._kept[slot] = joined[len(new) :]
        self._num_revocable[slot] = min(int(self._num_revocable[slot]) + len(new), self.max_rollback_tokens)
        return windows

    def rollback(self, slot: int, num_tokens: int) -> None:
        """Forget the last ``num_tokens`` tokens of a sequence, as if they had never been appended.

        Raises:
            BadInput: no such slot, or more tokens than can be taken back; nothing is then forgotten.
        """
        self._check_slot(slot)
        allowed = int(self._num_revocable[slot])
        if not 0 <= num_tokens <= allowed:
            raise BadInput(
                f"rollback of {num_tokens} tokens in slot {slot}; 0 … {allowed} can be taken back "
                f"(max_rollback_tokens={self.max_rollback_tokens}, fewer just after a reset or another rollback)"
            )
        # What moves in at the old end is out of reach: every token taken back shortens the way back by one.
        kept = self._kept[slot, : self._num_kept - num_tokens].copy()
        self._kept[slot, :num_tokens] = DEAD
        self._kept[slot, num_tokens:] = kept
        self._num_revocable[slot] = allowed - num_tokens

    def reset(self, slot: int, prefix_ids: npt.ArrayLike = ()) -> None:
        """Start a new sequence in a slot, after ``prefix_ids`` where its first tokens come from a prefix cache.

        Of the prefix the last ``max_order − 1`` ids matter; it cannot be rolled back.

        Raises:
            BadInput: no such slot, or ids that are not one row of whole numbers from −1 up.
        """
        self._check_slot(slot)
        prefix = _checked_ids(prefix_ids)
        self._kept[slot] = DEAD
        count = min(len(prefix), self._num_kept)
        self._kept[slot, self._num_kept - count :] = prefix[len(prefix) - count :]
        self._num_revocable[slot] = 0

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < len(self._kept):
            raise BadInput(f"slot {slot}; slots are 0 … {len(self._kept) - 1}")


def _checked_ids(folded_ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
    ids = np.asarray(folded_ids)
    if ids.size == 0 and ids.ndim == 1:
        return np.empty(0, dtype=np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or int(ids.min()) < DEAD:
        raise BadInput(f"folded ids are {ids.dtype} {list(ids.shape)}; must be one row of whole numbers from {DEAD} up")
    return ids.astype(np.int64)
