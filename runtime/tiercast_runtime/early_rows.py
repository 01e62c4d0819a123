"""Rows that were looked up a step ahead (prefetch ``prev_step``): kept until a step takes them, then put in place."""

from collections import deque
from dataclasses import dataclass

import torch

from tiercast_runtime.paths.base import StagedRows


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of ``num_tokens`` tokens: in token order, or with ``inverse`` ``[num_tokens, R] int64`` into ``rows``.

    ``is_cut``: ``rows`` may have rows that none of these tokens asks for. ``is_borrowed``: they lie where the lookup
    put them, which a later lookup will use again.
    """

    rows: torch.Tensor
    inverse: torch.Tensor | None
    num_tokens: int
    is_cut: bool = False
    is_borrowed: bool = False

    def front(self, num_tokens: int, rows_per_token: int) -> "_Piece":
        """The first tokens alone."""
        if self.inverse is None:
            return _Piece(self.rows[: num_tokens * rows_per_token], None, num_tokens)
        return _Piece(self.rows, self.inverse[:num_tokens], num_tokens, is_cut=True).compact()

    def back(self, num_tokens: int, rows_per_token: int) -> "_Piece":
        """The last tokens alone."""
        if self.inverse is None:
            rows = self.rows[len(self.rows) - num_tokens * rows_per_token :]
            return _Piece(rows, None, num_tokens, is_borrowed=self.is_borrowed)
        inverse = self.inverse[self.num_tokens - num_tokens :]
        return _Piece(self.rows, inverse, num_tokens, is_cut=True, is_borrowed=self.is_borrowed)

    def compact(self) -> "_Piece":
        """Without rows nobody asks for, which a later decode would pay for."""
        if self.inverse is None or not self.is_cut:
            return self
        return _Piece(self.rows.index_select(0, self.inverse.reshape(-1)), None, self.num_tokens)

    def owned(self) -> "_Piece":
        """The same in memory of its own."""
        if not self.is_borrowed:
            return self
        inverse = None if self.inverse is None else self.inverse.clone()
        return _Piece(self.rows.clone(), inverse, self.num_tokens, self.is_cut)


class HeldRows:
    """Rows of one layer that were looked up ahead and that no step has taken, first token first."""

    def __init__(self) -> None:
        self._pieces: deque[_Piece] = deque()

    @property
    def num_tokens(self) -> int:
        """Tokens whose rows are held."""
        return sum(piece.num_tokens for piece in self._pieces)

    def add(self, staged: StagedRows, num_tokens: int) -> None:
        """Put the rows of a lookup behind those held; they still lie where the lookup put them."""
        self._pieces.append(_Piece(staged.rows, staged.inverse, num_tokens, is_borrowed=True))

    def merge(self, own: StagedRows | None, first: int, num_early: int, shape: tuple[int, int]) -> StagedRows:
        """The rows of a step: held ones for ``num_early`` tokens from token ``first`` on, ``own`` for the others.

        What stays held is moved to memory of its own, so the lookup's place may be used again.

        Args:
            own: rows of the tokens that were not looked up ahead; None where there are none.
            first: number of own tokens before the early ones.
            num_early: tokens whose rows are taken from the front.
            shape: tokens of the step, rows per token.
        """
        num_tokens, rows_per_token = shape
        early = self._take(num_early, rows_per_token)
        if own is not None and not early:
            return own
        parts = list(early)
        num_read = sum(len(piece.rows) for piece in early)
        if own is not None:
            piece = _Piece(own.rows, own.inverse, num_tokens - num_early)
            num_behind = piece.num_tokens - first
            num_read += own.num_rows_read
            if own.inverse is None:
                parts = [piece.front(first, rows_per_token), *early, piece.back(num_behind, rows_per_token)]
            else:
                return _indexed(piece, first, early, shape, num_read)
        if all(part.inverse is None for part in parts):
            rows = parts[0].rows if len(parts) == 1 else torch.cat([part.rows for part in parts])
            return StagedRows(rows, None, num_tokens * rows_per_token, num_read)
        return _indexed(None, 0, parts, shape, num_read)

    def clear(self) -> None:
        """Forget everything held."""
        self._pieces.clear()

    def _take(self, num_tokens: int, rows_per_token: int) -> list[_Piece]:
        taken = []
        while num_tokens > 0:
            assert self._pieces, "a token counts as early only when its rows are held"
            piece = self._pieces.popleft()
            if piece.num_tokens > num_tokens:
                self._pieces.appendleft(piece.back(piece.num_tokens - num_tokens, rows_per_token))
                piece = piece.front(num_tokens, rows_per_token)
            taken.append(piece.compact())
            num_tokens -= piece.num_tokens
        self._pieces = deque(piece.owned() for piece in self._pieces)
        return taken


def _indexed(own: _Piece | None, first: int, early: list[_Piece], shape: tuple[int, int], num_read: int) -> StagedRows:
    """Pieces in token order, addressed by an inverse; ``own`` gives the tokens before and behind the early ones."""
    num_tokens, rows_per_token = shape
    places, base = [], 0
    parts = early if own is None else [own, *early]
    for part in parts:
        inverse = part.inverse
        if inverse is None:
            inverse = torch.arange(len(part.rows), device=part.rows.device).view(part.num_tokens, rows_per_token)
        places.append(inverse + base)
        base += len(part.rows)
    if own is not None:
        places = [places[0][:first], *places[1:], places[0][first:]]
    rows = torch.cat([part.rows for part in parts])
    return StagedRows(rows, torch.cat(places), num_tokens * rows_per_token, num_read)
