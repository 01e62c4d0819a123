"""Staging memory: where the host puts rows before the device reads them.

Each layer has two slots that take turns, so the rows of one lookup stay untouched while the next is fetched, and memory
stays bounded. On a GPU the slots are pinned and an event guards each: a slot is refilled only when its copy has left.
On the CPU the slot itself is what the device reads; there is no copy to make and none is made.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from tiercast_profiles.errors import MissingCapability
from tiercast_profiles.units import format_bytes
from tiercast_runtime.paths.base import StagedRows

SLOTS_PER_LAYER = 2


@dataclass(slots=True)
class Slot:
    """One staging buffer; grows to the largest lookup it has held."""

    width: int
    is_pinned: bool
    buffer: torch.Tensor = field(init=False)
    event: torch.cuda.Event | None = None
    address: int = 0
    handed: StagedRows | None = None  # what the last lookup was given; lookups of one size get it again
    _view: torch.Tensor = field(init=False)
    _view_rows: int = 0

    def __post_init__(self) -> None:
        self.buffer = self._view = torch.empty((0, self.width), dtype=torch.uint8)

    def rows(self, num_rows: int) -> torch.Tensor:
        """The first ``num_rows`` rows, after the copy that last read them has ended.

        Raises:
            MissingCapability: the memory is refused, most often for the locked-memory limit of a container.
        """
        if self.event is not None:
            self.event.synchronize()
            self.event = None
        if num_rows == self._view_rows:  # cutting a tensor takes longer than gathering the rows of a token
            return self._view
        if num_rows > len(self.buffer):
            capacity = 1 << (num_rows - 1).bit_length()
            self.buffer = self._allocate(capacity)
            self.address = self.buffer.data_ptr()
        self._view, self._view_rows = self.buffer[:num_rows], num_rows
        return self._view

    def release(self) -> None:
        """Let go of the memory once no copy reads it."""
        self.rows(0)
        self.handed = None
        self.buffer = self._view = torch.empty((0, self.width), dtype=torch.uint8)

    def _allocate(self, num_rows: int) -> torch.Tensor:
        try:
            if not self.is_pinned:  # NumPy asks for huge pages where memory is large, torch does not
                return torch.from_numpy(np.empty((num_rows, self.width), dtype=np.uint8))
            return torch.empty((num_rows, self.width), dtype=torch.uint8, pin_memory=True)
        except (RuntimeError, MemoryError) as error:
            num_bytes, reason = num_rows * self.width, (str(error).splitlines() or ["out of memory"])[0]
            raise MissingCapability(
                f"cannot get {format_bytes(num_bytes)} of {'pinned ' if self.is_pinned else ''}staging memory "
                f"({reason}); raise the locked-memory limit (ulimit -l) or lower engine.max_num_batched_tokens"
            ) from None


class StagingRing:
    """Two slots per layer and the copy to the device."""

    def __init__(self, num_layers: int, width: int, device: torch.device) -> None:
        self._device = device
        is_pinned = device.type == "cuda"
        self._slots = [[Slot(width, is_pinned) for _ in range(SLOTS_PER_LAYER)] for _ in range(num_layers)]
        self._turns = [0] * num_layers

    def next_slot(self, layer_index: int) -> Slot:
        """The slot whose turn it is."""
        self._turns[layer_index] = (self._turns[layer_index] + 1) % SLOTS_PER_LAYER
        return self._slots[layer_index][self._turns[layer_index]]

    def to_device(self, slot: Slot, rows: torch.Tensor) -> torch.Tensor:
        """The rows on the device: one asynchronous copy on the current stream of a GPU, the slot itself on the CPU."""
        if self._device.type == "cpu":
            return rows
        copied = rows.to(self._device, non_blocking=True)
        slot.event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        slot.event.record()
        return copied

    def close(self) -> None:
        """Let go of the memory once no copy reads it."""
        for slots in self._slots:
            for slot in slots:
                slot.release()


def host_ids(row_ids: torch.Tensor) -> npt.NDArray[np.int64]:
    """Row ids, ``[T, R]`` or of several layers, as a flat NumPy array.

    Ids on a GPU are copied here, and the current stream is waited for.
    """
    ids: npt.NDArray[np.int64] = row_ids.detach().to("cpu").reshape(-1).numpy()
    return ids
