"""Tables in their tiers: device memory, (pinned) host memory, or a file.

Every table of a layer holds the same rows (``content.expected_rows``); only the place and the layout differ.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.head_sizes import table_rows
from tiercast_profiles.model import Engram, RowLayout
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_runtime.content import expected_rows
from tiercast_runtime.device import num_cores
from tiercast_runtime.host_pages import MemoryRequest, ObtainedMemory
from tiercast_runtime.memory import HostBlock, obtained, require_bytes
from tiercast_runtime.row_source import ComputedRows, RowSource
from tiercast_runtime.rows import part_widths, to_parts
from tiercast_runtime.shared_pages import make_shared
from tiercast_runtime.table_file import TableFile, open_or_write, place_in_checkpoint
from tiercast_runtime.threads import submit_all

__all__ = ["FileTable", "HostTable", "MemoryTable", "ResidentTable", "Table", "build_tables", "expected_rows"]

_FILL_ROWS = 65_536


class Table:
    """The rows of one Engram layer, somewhere. ``num_rows`` may be set lower or higher than the model's by a probe.

    A rank's part of a table starts at ``first_row`` of the whole one; its row ids start at 0 all the same.
    ``source`` gives the rows; by default they are those anyone can recompute.
    """

    def __init__(
        self,
        engram: Engram,
        layer_index: int,
        layout: RowLayout,
        num_rows: int | None,
        first_row: int = 0,
        *,
        source: RowSource | None = None,
    ) -> None:
        self.engram = engram
        self.layer_index = layer_index
        self.layout: RowLayout = layout
        self.first_row = first_row
        self.source: RowSource = ComputedRows(engram, layer_index) if source is None else source
        self.num_rows = table_rows(engram)[layer_index] - first_row if num_rows is None else num_rows

    @property
    def part_widths(self) -> tuple[int, ...]:
        """Bytes per row of each array of the layout."""
        return part_widths(self.engram, self.layout)

    @property
    def size_bytes(self) -> int:
        """Bytes the rows occupy."""
        return self.num_rows * sum(self.part_widths)

    @property
    def label(self) -> str:
        """How messages name this table."""
        rows = f"{self.num_rows:,} rows" + (f" from row {self.first_row:,}" if self.first_row else "")
        return f"the table of layer {self.engram.layer_ids[self.layer_index]} ({rows}, {self.layout})"

    def close(self) -> None:
        """Give the memory or the file back."""


class MemoryTable(Table):
    """A table a program can index: ``parts`` are ``[num_rows, width] uint8`` tensors, one per array of the layout."""

    parts: tuple[torch.Tensor, ...] = ()
    obtained: ObtainedMemory | None = None  # of host memory only, as the kernel says it is
    is_pinned: bool = False  # host memory that a GPU may read

    def fill(self, store: Callable[[int, tuple[npt.NDArray[np.uint8], ...]], None], num_threads: int) -> None:
        """Compute the content chunk by chunk and hand each chunk, cut by layout, to ``store(first_row, parts)``."""

        def one(first: int) -> None:
            content = self.source.read(self.first_row + first, min(_FILL_ROWS, self.num_rows - first))
            store(first, to_parts(self.engram, self.layout, content))

        with ThreadPoolExecutor(num_threads) as pool:
            calls = [partial(one, first) for first in range(0, self.num_rows, _FILL_ROWS)]
            pending = submit_all(pool, calls, "a thread that fills a table")
            try:
                for done in pending:
                    done.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


class HostTable(MemoryTable):
    """A table in host memory, in huge pages where granted; pinned and mapped where a GPU reads it.

    With ``is_shared`` the memory is of files without a name, whose descriptors are ``shared``: another process that has
    them maps the same table by giving them as ``shared``, and finds it filled.
    """

    def __init__(
        self,
        engram: Engram,
        layer_index: int,
        layout: RowLayout,
        *,
        is_pinned: bool = False,
        num_rows: int | None = None,
        first_row: int = 0,
        source: RowSource | None = None,
        memory: MemoryRequest | None = None,
        is_shared: bool = False,
        shared: Sequence[int] | None = None,
    ) -> None:
        super().__init__(engram, layer_index, layout, num_rows, first_row, source=source)
        is_filled = shared is not None
        if not is_filled and (memory is None or not memory.is_from_pool):
            require_bytes(self.size_bytes, torch.device("cpu"), self.label)
        self._blocks: list[HostBlock] = []
        self._owned: list[int] = []
        sizes = [self.num_rows * width for width in self.part_widths]
        try:
            if is_shared:
                for size in sizes:
                    self._owned.append(make_shared(size, memory or MemoryRequest(), self.label))
                shared = self._owned
            self.shared = [] if shared is None else list(shared)
            descriptors: Sequence[int | None] = self.shared or [None] * len(sizes)
            for size, descriptor in zip(sizes, descriptors, strict=True):
                self._blocks.append(HostBlock(size, memory, descriptor))
        except BaseException:
            self.close()
            raise
        arrays = [
            block.array.reshape(self.num_rows, width)
            for block, width in zip(self._blocks, self.part_widths, strict=True)
        ]

        def store(first: int, parts: tuple[npt.NDArray[np.uint8], ...]) -> None:
            for array, part in zip(arrays, parts, strict=True):
                array[first : first + len(part)] = part

        if not is_filled:
            self.fill(store, num_cores())
        if is_pinned:
            try:
                for block in self._blocks:
                    block.pin()
            except BaseException:
                # a block that stayed registered after its memory went back would let the GPU write into what comes next
                del arrays
                self.close()
                raise
        self.is_pinned = is_pinned
        self.obtained = obtained(self._blocks)
        self.parts = tuple(torch.from_numpy(array) for array in arrays)

    def close(self) -> None:
        """Unpin and let go of the memory."""
        self.parts = ()
        for block in self._blocks:
            block.close()
        while self._owned:
            os.close(self._owned.pop())


class ResidentTable(MemoryTable):
    """A table in the memory of the device that computes: HBM on a GPU, DRAM where the CPU is the device."""

    def __init__(
        self,
        engram: Engram,
        layer_index: int,
        layout: RowLayout,
        device: torch.device,
        *,
        num_rows: int | None = None,
        first_row: int = 0,
        source: RowSource | None = None,
        memory: MemoryRequest | None = None,
    ) -> None:
        super().__init__(engram, layer_index, layout, num_rows, first_row, source=source)
        self.device = device
        self._host: HostTable | None = None
        if device.type == "cpu":
            self._host = HostTable(
                engram,
                layer_index,
                layout,
                num_rows=self.num_rows,
                first_row=first_row,
                source=self.source,
                memory=memory,
            )
            self.obtained = self._host.obtained
            self.parts = self._host.parts
            return
        require_bytes(self.size_bytes, device, self.label)
        parts = tuple(torch.empty(self.num_rows, width, dtype=torch.uint8, device=device) for width in self.part_widths)

        def store(first: int, chunk: tuple[npt.NDArray[np.uint8], ...]) -> None:
            for tensor, part in zip(parts, chunk, strict=True):
                tensor[first : first + len(part)].copy_(torch.from_numpy(np.ascontiguousarray(part)))

        self.fill(store, num_cores())
        torch.cuda.synchronize(device)
        self.parts = parts

    def close(self) -> None:
        """Let go of the memory."""
        self.parts = ()
        if self._host is not None:
            self._host.close()


class FileTable(Table):
    """A table in a safetensors file in ``folder``: reused when it already holds these rows, else written whole.

    Rows of a checkpoint that stores this layout are read where they are, and nothing is written.
    """

    def __init__(
        self,
        engram: Engram,
        layer_index: int,
        layout: RowLayout,
        folder: Path,
        *,
        num_rows: int | None = None,
        first_row: int = 0,
        source: RowSource | None = None,
    ) -> None:
        super().__init__(engram, layer_index, layout, num_rows, first_row, source=source)
        placed = place_in_checkpoint(engram, layout, first_row, self.source)
        self.is_in_checkpoint = placed is not None
        self.file: TableFile = placed or open_or_write(
            engram, layer_index, layout, self.num_rows, folder, first_row=first_row, source=self.source
        )

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path


def build_tables(
    resolved: ResolvedScenario,
    device: torch.device,
    folder: Path,
    sources: Sequence[RowSource] | None = None,
    memory: MemoryRequest | None = None,
    *,
    is_shared: bool = False,
    shared: Sequence[Sequence[int]] | None = None,
) -> list[Table]:
    """All tables of a scenario in the tier it names; none for tier ``none``.

    ``sources`` gives the rows of each layer; by default they are those anyone can recompute.
    ``memory`` says what tables in host memory are made of.
    ``is_shared`` makes those of tier ``dram`` in memory that other processes can map, and pins nothing; ``shared`` maps
    tables that another process has made so, by the descriptors of each.

    Raises:
        BadInput: ``memory`` asks for something and no table is in host memory.
        InfeasibleScenario: the tables do not fit where they should go.
        FileProblem: a table file cannot be written or is damaged.
        MissingCapability: the runtime cannot serve that tier.
    """
    engram, tier, layout = resolved.model.engram, resolved.placement.tier, resolved.placement.row_layout
    layers = range(len(engram.layer_ids))
    given: Sequence[RowSource | None] = [None] * len(layers) if sources is None else sources
    if tier in ("cxl", "pool"):
        raise MissingCapability(
            f"the runtime has no {tier} tier; it runs none, hbm, dram and nvme (simulate knows all)"
        )
    is_in_host_memory = tier == "dram" or (tier == "hbm" and device.type == "cpu")
    if memory is not None and memory != MemoryRequest() and not is_in_host_memory:
        raise BadInput(
            f"page size and NUMA node are of tables in host memory; tier {tier} on a {device.type} device has none: "
            "leave them out or use tier dram"
        )
    if tier == "none":
        return []
    if tier == "nvme":
        return [FileTable(engram, layer, layout, folder, source=given[layer]) for layer in layers]
    total_bytes = sum(table_rows(engram)) * engram.stored_row_bytes(layout)
    if shared is None and (memory is None or not memory.is_from_pool):
        place = device if tier == "hbm" else torch.device("cpu")
        require_bytes(total_bytes, place, f"the {len(layers)} Engram tables of {resolved.model.name!r}")
    tables: list[Table] = []
    try:
        for layer in layers:
            if tier == "hbm":
                tables.append(ResidentTable(engram, layer, layout, device, source=given[layer], memory=memory))
            else:
                # host threads gather from any memory; only a GPU that reads by itself needs it pinned
                is_pinned = resolved.placement.path == "uva" and not is_shared
                tables.append(
                    HostTable(
                        engram,
                        layer,
                        layout,
                        is_pinned=is_pinned,
                        source=given[layer],
                        memory=memory,
                        is_shared=is_shared,
                        shared=None if shared is None else shared[layer],
                    )
                )
    except BaseException:
        for table in tables:
            table.close()
        raise
    return tables
