"""Where the rows of a table come from when it is filled: computed, or read from a checkpoint."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tiercast_profiles.model import Engram
from tiercast_runtime.content import CONTENT_VERSION, content_seed, expected_rows
from tiercast_runtime.safetensors_file import TensorPlace


class RowSource(Protocol):
    """The rows of one layer's whole table, any range of them, as often as asked, from several threads at once."""

    @property
    def identity(self) -> Mapping[str, str]:
        """What tells these rows from others of the same shape; written into a table file's header."""
        ...

    @property
    def tag(self) -> str:
        """The same in a few characters, for file names; empty for computed rows."""
        ...

    @property
    def places(self) -> tuple[TensorPlace, ...]:
        """The values and, where there are some, the scales on disk; empty where the rows are in no file."""
        ...

    def read(self, first_row: int, count: int) -> npt.NDArray[np.uint8]:
        """Packed rows ``[count, row_bytes] uint8`` from ``first_row`` on.

        Raises:
            FileProblem: a file that cannot be read or ends too early.
        """
        ...


class ComputedRows:
    """The rows anyone can recompute (:mod:`tiercast_runtime.content`)."""

    tag = ""
    places: tuple[TensorPlace, ...] = ()

    def __init__(self, engram: Engram, layer_index: int) -> None:
        self._engram, self._layer_index = engram, layer_index
        self.identity = {
            "content_version": str(CONTENT_VERSION),
            "content_seed": str(content_seed(engram, layer_index)),
        }

    def read(self, first_row: int, count: int) -> npt.NDArray[np.uint8]:
        """See ``RowSource.read``."""
        return expected_rows(self._engram, self._layer_index, np.arange(first_row, first_row + count, dtype=np.int64))
