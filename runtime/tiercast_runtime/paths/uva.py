"""Path ``uva``: the GPU itself reads rows out of pinned host memory over the link."""

import ctypes
import importlib.util
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_runtime.paths.base import StagedRows
from tiercast_runtime.table import MemoryTable

_DEVICE_POINTER_ATTRIBUTE = 3  # CU_POINTER_ATTRIBUTE_DEVICE_POINTER of the CUDA driver
_MAPPING_STRIDE_BYTES = 256 << 20  # no smaller than what is registered at a time would be
_ROWS_PER_PROGRAM = 16
_ROWS_PER_PROGRAM_SMALL = 2  # tiny batches: more programs, so more reads in flight (vLLM #57893 chose the same two)
_SMALL_LOOKUP_ROWS = 512
_WORD_TYPES = ((8, torch.int64), (4, torch.int32), (2, torch.int16), (1, torch.uint8))


def require_uva(device: torch.device) -> None:
    """Refuse where no GPU can read host memory.

    Raises:
        MissingCapability: no CUDA GPU, or no triton.
    """
    if device.type != "cuda":
        raise MissingCapability("path uva needs a CUDA GPU that reads pinned host memory; here use cpu_gather")
    if importlib.util.find_spec("triton") is None:
        raise MissingCapability("path uva needs triton, which comes with torch for CUDA; install it or use cpu_gather")


def rows_per_program(num_ids: int) -> int:
    """Rows that one program has in flight at once."""
    return _ROWS_PER_PROGRAM_SMALL if num_ids <= _SMALL_LOOKUP_ROWS else _ROWS_PER_PROGRAM


def as_words(rows: torch.Tensor) -> torch.Tensor:
    """Rows ``[n, width] uint8`` seen as the widest words that width, stride and address allow: fewer, wider loads."""
    width, stride = rows.shape[1], rows.stride(0)
    for size, dtype in _WORD_TYPES:
        if width % size == 0 and stride % size == 0 and rows.data_ptr() % size == 0:
            return rows.view(dtype)
    raise AssertionError("every width is a multiple of one byte")


def device_address(host_address: int) -> int:
    """The address at which the GPU sees a byte of pinned host memory.

    Raises:
        MissingCapability: the driver does not know the byte as pinned memory.
    """
    found = ctypes.c_uint64()
    driver = ctypes.CDLL("libcuda.so.1")
    status = driver.cuPointerGetAttribute(
        ctypes.byref(found), ctypes.c_int(_DEVICE_POINTER_ATTRIBUTE), ctypes.c_uint64(host_address)
    )
    if status != 0:
        raise MissingCapability(
            f"the GPU cannot read host memory at {host_address:#x} (CUDA driver error {status}); it is not pinned: "
            "use path cpu_gather"
        )
    return found.value


def check_mapping(part: torch.Tensor, address_of: Callable[[int], int] = device_address) -> None:
    """Refuse a table whose separately pinned pieces do not follow each other where the GPU sees them.

    The kernel adds a row's distance to the table's first address; with a gap in between it would read other memory.

    Raises:
        MissingCapability: naming the distance at which the gap is.
    """
    if part.numel() == 0:
        return
    base, size = part.data_ptr(), (part.shape[0] - 1) * part.stride(0) + part.shape[1]
    first = address_of(base)
    for distance in (*range(_MAPPING_STRIDE_BYTES, size, _MAPPING_STRIDE_BYTES), size - 1):
        if address_of(base + distance) - first != distance:
            raise MissingCapability(
                f"the GPU sees a table of {size:,} bytes in pieces (at {distance:,}); use path cpu_gather"
            )


class UvaPath:
    """A Triton gather over mapped host memory.

    ``num_programs`` bounds the grid. Few programs keep the streaming multiprocessors for the compute beside it; the
    default is half of them (facts: engines halve the grid of a background gather).
    """

    name = "uva"
    is_host_driven = False

    def __init__(self, tables: Sequence[MemoryTable], device: torch.device, num_programs: int | None = None) -> None:
        require_uva(device)
        assert all(table.is_pinned for table in tables), "a GPU reads only pinned host memory"
        if num_programs is not None and num_programs < 1:
            raise BadInput(f"num_programs={num_programs}; must be at least 1")
        self.device = device
        self._tables = tuple(tables)
        num_units = torch.cuda.get_device_properties(device).multi_processor_count
        self._num_programs = max(1, num_units // 2) if num_programs is None else num_programs
        # Pinned, so the kernel's rare complaint costs no copy and the host reads it without one.
        self._complaints = torch.zeros(1, dtype=torch.int32, pin_memory=True)
        parts = {part.data_ptr(): part for table in self._tables for part in table.parts}  # layers may share a table
        for part in parts.values():
            check_mapping(part)

    @property
    def tables(self) -> tuple[MemoryTable, ...]:
        """The tables it reads, by layer."""
        return self._tables

    @property
    def facts(self) -> Mapping[str, str | int | float | bool]:
        """Upper bound of the gather's grid."""
        return {"uva_num_programs": self._num_programs}

    def fetch(self, layer_index: int, row_ids: torch.Tensor) -> StagedRows:
        """See ``LookupPath.fetch``. An id outside the table is not read; ``check`` raises once the kernel has run."""
        flat = row_ids.to(self.device).reshape(-1).contiguous()
        width = self._tables[layer_index].engram.row_bytes
        rows = torch.empty((flat.numel(), width), dtype=torch.uint8, device=self.device)
        self.gather_missing(layer_index, flat, rows)
        return StagedRows(rows, None, num_rows=flat.numel(), num_rows_read=flat.numel())

    def gather_missing(self, layer_index: int, row_ids: torch.Tensor, rows: torch.Tensor) -> None:
        """See ``CacheableGather.gather_missing``."""
        from tiercast_runtime.paths.uva_kernel import launch_gather

        table, first = self._tables[layer_index], 0
        for part in table.parts:
            width = min(part.shape[1], table.engram.row_bytes - first)
            target = rows[:, first : first + width]
            launch_gather(part[:, :width], row_ids, target, self._complaints, self._num_programs)
            first += width

    def clear_cache(self) -> None:
        """This path has no cache."""

    def fill_cache(self, layer_index: int, row_ids: npt.NDArray[np.int64]) -> None:
        """This path has no cache."""

    def check(self) -> None:
        """Raise when a finished gather met an id outside its table.

        Raises:
            BadInput: some row id was out of range; the rows of that step are void.
        """
        if int(self._complaints[0]):
            self._complaints.zero_()
            raise BadInput("a row id lies outside its table; the rows of this step are void")

    def close(self) -> None:
        """Drop the tables; their owner closes them."""
        self._tables = ()
