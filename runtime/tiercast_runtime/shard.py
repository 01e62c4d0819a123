"""Which part of the tables one tensor-parallel rank holds when the hash heads are shared out.

As vLLM does it (24 columns over TP ranks, docs/features/engram.md): each rank owns equally many neighbouring columns.
Columns are order-major, head-minor, and a layer's table is its heads one after another in the same order, so the rows
a rank owns are one unbroken range of the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from tiercast_profiles.errors import BadInput
from tiercast_profiles.head_sizes import head_sizes
from tiercast_profiles.model import Engram, RowLayout
from tiercast_runtime.host_pages import MemoryRequest
from tiercast_runtime.row_source import RowSource
from tiercast_runtime.table import FileTable, HostTable, ResidentTable, Table


def shard_counts(engram: Engram) -> tuple[int, ...]:
    """The numbers of ranks that the columns of this Engram can be shared among: the divisors of their number."""
    columns = engram.num_rows_per_token
    return tuple(count for count in range(1, columns + 1) if columns % count == 0)


@dataclass(frozen=True, slots=True)
class HeadShard:
    """The columns and rows of one rank.

    Raises:
        BadInput: a rank outside the group, or a number of ranks that does not divide the columns.
    """

    engram: Engram
    rank: int
    num_ranks: int

    def __post_init__(self) -> None:
        allowed = shard_counts(self.engram)
        if self.num_ranks not in allowed:
            raise BadInput(
                f"num_ranks={self.num_ranks}: {self.engram.num_rows_per_token} columns (orders × heads) do not divide "
                f"evenly; allowed are {', '.join(map(str, allowed))}"
            )
        if not 0 <= self.rank < self.num_ranks:
            raise BadInput(f"rank={self.rank}; must be 0 … {self.num_ranks - 1}")

    @property
    def columns(self) -> range:
        """The columns of the row ids that this rank looks up."""
        width = self.engram.num_rows_per_token // self.num_ranks
        return range(self.rank * width, (self.rank + 1) * width)

    def rows(self, layer_index: int) -> range:
        """The rows of the layer's table that this rank owns, as ids in the whole table."""
        sizes = [size for order in head_sizes(self.engram)[layer_index] for size in order]
        return range(sum(sizes[: self.columns.start]), sum(sizes[: self.columns.stop]))

    def local_ids(self, layer_index: int, row_ids: torch.Tensor) -> torch.Tensor:
        """Ids ``[T, columns of this rank] int64`` in this rank's table, from ids ``[T, R] int64`` in the whole one.

        Ids on a GPU are not looked at here, as that would wait for it; the path refuses what is outside its table.

        Raises:
            BadInput: wrong type or shape, or an id that is not this rank's.
        """
        num_columns = self.engram.num_rows_per_token
        if row_ids.dtype != torch.int64 or row_ids.ndim != 2 or row_ids.shape[1] != num_columns:
            raise BadInput(f"row_ids is {row_ids.dtype} {list(row_ids.shape)}; must be int64 [tokens, {num_columns}]")
        own, rows = row_ids[:, self.columns.start : self.columns.stop], self.rows(layer_index)
        if own.device.type == "cpu" and own.numel():
            low, high = (int(bound) for bound in torch.aminmax(own))
            if low < rows.start or high >= rows.stop:
                raise BadInput(
                    f"row ids of columns {self.columns.start} … {self.columns.stop - 1} span {low} … {high}; "
                    f"rank {self.rank} of {self.num_ranks} has rows {rows.start} … {rows.stop - 1}"
                )
        return own - rows.start


def build_shard_tables(
    shard: HeadShard,
    tier: Literal["hbm", "dram", "nvme"],
    layout: RowLayout,
    device: torch.device,
    folder: Path,
    *,
    is_pinned: bool = False,
    sources: Sequence[RowSource] | None = None,
    memory: MemoryRequest | None = None,
) -> list[Table]:
    """The tables of all layers with the rows of one rank only. ``folder`` is where tier ``nvme`` keeps its files.

    ``sources`` gives the rows of each layer's whole table; by default they are those anyone can recompute.
    ``memory`` says what tables in host memory are made of.

    Raises:
        InfeasibleScenario: the rows do not fit where they should go.
        FileProblem: a table file cannot be written or is damaged.
    """
    tables: list[Table] = []
    engram = shard.engram
    for layer in range(len(engram.layer_ids)):
        source = None if sources is None else sources[layer]
        first, count = shard.rows(layer).start, len(shard.rows(layer))
        if tier == "hbm":
            tables.append(
                ResidentTable(
                    engram, layer, layout, device, num_rows=count, first_row=first, source=source, memory=memory
                )
            )
        elif tier == "dram":
            tables.append(
                HostTable(
                    engram,
                    layer,
                    layout,
                    is_pinned=is_pinned,
                    num_rows=count,
                    first_row=first,
                    source=source,
                    memory=memory,
                )
            )
        else:
            tables.append(FileTable(engram, layer, layout, folder, num_rows=count, first_row=first, source=source))
    return tables
