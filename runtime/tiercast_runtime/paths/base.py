"""What every lookup path promises, and the rows it hands over."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from tiercast_profiles.errors import BadInput


@dataclass(frozen=True, slots=True)
class CacheWork:
    """What a lookup past a cache of the device leaves to be done and to be read once the device has come that far.

    ``keep`` enqueues the keeping of the rows that were missing, behind their use. ``before`` and ``after`` are host
    copies ``[1] int64`` of how many rows were missing in all lookups before this one and up to it.
    """

    keep: Callable[[], None]
    before: torch.Tensor
    after: torch.Tensor


@dataclass(frozen=True, slots=True)
class StagedRows:
    """The rows of one lookup, on the device that computes, always in the packed form ``decode_rows`` takes.

    ``rows`` is ``[n, row_bytes] uint8``. Without ``inverse`` it is in token-major order, ``n = T·R``. With ``inverse``
    (``[T, R] int64``) the row of token t, column r is ``rows[inverse[t, r]]``: duplicates were read once.
    ``num_rows`` counts what the tokens asked for, ``num_rows_read`` what the tier delivered, ``num_rows_hit`` those
    asked for that a cache had before the lookup, duplicates included. Behind a cache of the device the two are known
    later (``counts``), and ``num_rows_read`` is the most it can be.
    """

    rows: torch.Tensor
    inverse: torch.Tensor | None
    num_rows: int
    num_rows_read: int
    num_rows_hit: int = 0
    cache_work: CacheWork | None = None

    def keep(self) -> None:
        """Enqueue what the cache has to do behind the rows; on the stream the lookup was made on, before the next."""
        if self.cache_work is not None:
            self.cache_work.keep()

    def counts(self) -> tuple[int, int]:
        """Rows read and rows hit, once the device has passed the lookup."""
        if self.cache_work is None:
            return self.num_rows_read, self.num_rows_hit
        num_missing = int(self.cache_work.after[0]) - int(self.cache_work.before[0])
        return num_missing, self.num_rows - num_missing


@runtime_checkable
class LookupPath(Protocol):
    """Fetches the rows of one lookup from one tier.

    A path has one caller at a time: the compute thread or the prefetcher's worker, which may take turns.
    ``is_host_driven`` says whether the host moves the rows (and must block for it) or only enqueues device work.
    """

    name: str
    device: torch.device
    is_host_driven: bool

    @property
    def facts(self) -> Mapping[str, str | int | float | bool]:
        """What a record should say about this path: read mode, depth, threads, grid."""
        ...

    def fetch(self, layer_index: int, row_ids: torch.Tensor) -> StagedRows:
        """Fetch the rows ``row_ids [T, R] int64`` of one layer's table.

        On a CPU this returns when the rows are there. On a GPU the device work is enqueued on the current stream.
        Staged rows stay valid until the second next fetch of the same layer.

        Raises:
            BadInput: a row id outside the table.
            FileProblem: a table file that is short or cannot be read.
        """
        ...

    def clear_cache(self) -> None:
        """Forget the rows of a cache in front of the tier; does nothing where there is none."""
        ...

    def fill_cache(self, layer_index: int, row_ids: npt.NDArray[np.int64]) -> None:
        """Fill the layer's empty cache with rows ``row_ids [n]``, hottest first; does nothing where there is none."""
        ...

    def check(self) -> None:
        """Raise what a fetch on the device could not raise when it was enqueued; waits for nothing."""
        ...

    def close(self) -> None:
        """Give back threads, files and staging memory; a second call does nothing."""
        ...


def check_row_ids(row_ids: torch.Tensor, num_rows: int) -> None:
    """Refuse ids outside ``0 … num_rows − 1``: an address is never wrapped or clamped into a wrong row.

    Raises:
        BadInput: wrong type or shape, or an id out of range.
    """
    if row_ids.dtype != torch.int64 or row_ids.ndim != 2:
        raise BadInput(f"row_ids is {row_ids.dtype} with {row_ids.ndim} dimensions; must be int64 [tokens, rows]")
    if row_ids.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(row_ids))
    if low < 0 or high >= num_rows:
        raise BadInput(f"row ids span {low} … {high}; the table has rows 0 … {num_rows - 1}")
