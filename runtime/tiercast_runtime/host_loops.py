"""The loops of :mod:`tiercast_runtime.compiled` where numba is installed, NumPy's where it is not."""

import ctypes
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import numpy as np
import numpy.typing as npt

from tiercast_profiles.errors import BadInput


@cache
def compiled_loops() -> ModuleType | None:
    """The compiled loops; None where numba is missing or refuses the installed NumPy. Takes half a second once."""
    try:
        from tiercast_runtime import compiled
    except ImportError:
        return None
    return compiled


class RowGather:
    """Gathers rows of one table: its parts side by side, ``row_bytes`` of them (the padding of a row is left out).

    Args:
        parts: ``[num_rows, width] uint8`` each, one C-contiguous array per array of the layout.
        row_bytes: bytes of a gathered row.
        label: how an error names the table.
    """

    def __init__(self, parts: Sequence[npt.NDArray[np.uint8]], row_bytes: int, label: str = "the table") -> None:
        assert all(part.flags.c_contiguous and part.dtype == np.uint8 for part in parts), "parts must be plain arrays"
        self.row_bytes, self.label = row_bytes, label
        self.num_rows = len(parts[0])
        self._parts = tuple(parts)  # kept alive: the compiled loop knows addresses only
        self._places: list[tuple[int, int, int, int]] = []
        first = 0
        for part in parts:
            width = min(part.shape[1], row_bytes - first)
            self._places.append((part.ctypes.data, part.shape[1], width, first))
            first += width
        loops = compiled_loops()
        self._loop = None if loops is None else loops.gather

    @property
    def is_compiled(self) -> bool:
        """Whether the compiled loop does it."""
        return self._loop is not None

    def at_addresses(self, ids: int, count: int, out: int) -> None:
        """Rows of the ``count`` int64 ids at ``ids`` into ``out``, ``row_bytes`` each, both C-contiguous.

        For a compiled gather only; the caller keeps the memory alive.

        Raises:
            BadInput: an id outside the table; nothing was then written.
        """
        assert self._loop is not None, "no compiled loop here"
        for table, stride, width, first in self._places:
            bad = self._loop(ids, count, table, self.num_rows, stride, width, out + first, self.row_bytes)
            if bad >= 0:
                raise self._outside(ctypes.c_int64.from_address(ids + 8 * bad).value, bad)

    def gather(self, ids: npt.NDArray[np.int64], target: npt.NDArray[np.uint8]) -> None:
        """Rows ``ids [n]`` into ``target [n, row_bytes]``.

        Raises:
            BadInput: an id outside the table; nothing was then written.
        """
        if self._loop is not None and ids.flags.c_contiguous and target.flags.c_contiguous:
            self.at_addresses(ids.ctypes.data, len(ids), target.ctypes.data)
            return
        # as unsigned numbers negative ids are the largest: one pass finds both kinds
        if len(ids) and np.maximum.reduce(ids.view(np.uint64)) >= self.num_rows:
            bad = int(np.flatnonzero((ids < 0) | (ids >= self.num_rows))[0])
            raise self._outside(int(ids[bad]), bad)
        for part, (_, _, width, first) in zip(self._parts, self._places, strict=True):
            if part.shape[1] == self.row_bytes and target.flags.c_contiguous:
                # ids were checked; "clip" only spares NumPy the buffered copy that "raise" makes
                np.take(part, ids, axis=0, out=target, mode="clip")
            else:
                # a take of its own and a copy: half the time of part[ids], and of a take into a target with gaps
                target[:, first : first + width] = np.take(part, ids, axis=0, mode="clip")[:, :width]

    def _outside(self, row_id: int, place: int) -> BadInput:
        return BadInput(
            f"row id {row_id} (number {place} of the lookup) lies outside {self.label}: "
            f"the table has rows 0 … {self.num_rows - 1}"
        )
