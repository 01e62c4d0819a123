"""Memory that one probe after another uses.

A page touched for the first time is slow on a virtual machine: its host has to find one too, at a few hundred MB/s.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from tiercast_runtime.host_pages import MemoryRequest, transparent_policy
from tiercast_runtime.memory import HostBlock, allowed_host_bytes, available_host_bytes
from tiercast_runtime.probes.numa import node_cores

KEPT_RATIO = 0.25  # of the memory that may be taken: what other probes need must stay free


@dataclass(frozen=True, slots=True)
class LentBlock:
    """The first bytes of a kept block: ``array [num_bytes] uint8``, with whatever the last probe left in it."""

    kept: HostBlock
    num_bytes: int

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """The bytes; none once the block was given back."""
        return self.kept.array[: self.num_bytes]

    def huge_page_ratio(self) -> float | None:
        """As :meth:`HostBlock.huge_page_ratio`, of the whole kept block."""
        return self.kept.huge_page_ratio()


class KeptMemory:
    """Lends host memory and keeps one block of it, the last, unless that is larger than ``most_bytes``.

    With the default it keeps nothing. Close it, or use it in a ``with`` statement.
    """

    def __init__(self, most_bytes: int = 0) -> None:
        self._most_bytes = most_bytes
        self._block: HostBlock | None = None
        self._request = MemoryRequest()

    @classmethod
    def of_this_host(cls) -> Self:
        """Keeps up to a quarter of free memory, or of what is allowed; nothing where memory has several nodes.

        There, a block lies where its first user touched it, which may not be where the next one wants it.
        """
        free, allowed = available_host_bytes(), allowed_host_bytes()
        most = free if allowed is None else min(free, allowed)
        return cls(int(most * KEPT_RATIO) if len(node_cores()) < 2 else 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def holds(self, num_bytes: int, request: MemoryRequest | None = None) -> bool:
        """Whether a loan of this size and kind takes no new memory."""
        return (
            self._block is not None
            and num_bytes <= len(self._block.array)
            and _is_as_good(self._request, request or MemoryRequest())
        )

    @contextmanager
    def lent(self, num_bytes: int, request: MemoryRequest | None = None) -> Iterator[LentBlock]:
        """A block of this size; one loan at a time.

        Raises:
            BadInput, InfeasibleScenario, MissingCapability: as :class:`HostBlock`.
        """
        if not self.holds(num_bytes, request):
            self.close()
            self._request = request or MemoryRequest()
            self._block = HostBlock(num_bytes, self._request)
        block = self._block
        assert block is not None, "just made where there was none"
        try:
            yield LentBlock(block, num_bytes)
        finally:
            if len(block.array) > self._most_bytes:
                self.close()

    def close(self) -> None:
        """Give back what is kept."""
        if self._block is not None:
            self._block.close()
            self._block = None


def _is_as_good(kept: MemoryRequest, wanted: MemoryRequest) -> bool:
    """Whether memory asked for in one way is what another way would have got."""
    if kept == wanted:
        return True
    is_huge = {kept.page_size, wanted.page_size} <= {None, "thp"} and kept.numa_node == wanted.numa_node
    return is_huge and transparent_policy() in ("always", "madvise")
