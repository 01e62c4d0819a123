"""Memory that one probe after another uses.

A page touched for the first time is slow on a virtual machine: its host has to find one too, at a few hundred MB/s.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from tiercast_runtime.host_pages import MemoryRequest, transparent_policy
from tiercast_runtime.memory import HostBlock, allowed_host_bytes, available_host_bytes
from tiercast_runtime.probes.numa import node_cores

KEPT_RATIO = 0.3  # of the memory that may be taken: what other probes need must stay free


@dataclass(frozen=True, slots=True)
class LentBlock:
    """The first bytes of a kept block: ``array [num_bytes] uint8``, with whatever the last probe left in it."""

    kept: HostBlock
    num_bytes: int

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """The bytes; none once the block was given back."""
        return self.kept.array[: self.num_bytes]

    def pin(self) -> None:
        """As :meth:`HostBlock.pin`, of the whole kept block, once; it stays pinned until the lender gives it back."""
        self.kept.pin()

    def huge_page_ratio(self) -> float | None:
        """As :meth:`HostBlock.huge_page_ratio`, of the whole kept block."""
        return self.kept.huge_page_ratio()


class KeptMemory:
    """Lends host memory and keeps a block of each kind of pages, the last ones that take ``most_bytes`` together.

    With the default it keeps nothing. Close it, or use it in a ``with`` statement.
    """

    def __init__(self, most_bytes: int = 0) -> None:
        self._most_bytes = most_bytes
        self._kept: list[tuple[MemoryRequest, HostBlock]] = []  # the last one made comes last

    @classmethod
    def of_this_host(cls) -> Self:
        """Keeps up to three tenths of free memory, or of what is allowed; nothing where memory has several nodes.

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
        return self._find(num_bytes, request or MemoryRequest()) is not None

    def reserve(self, num_bytes: int) -> None:
        """Make the next loan one of a block this large, where one may be kept: no part of it is then touched twice.

        Raises:
            InfeasibleScenario: as :class:`HostBlock`.
        """
        if num_bytes <= self._most_bytes and not self.holds(num_bytes):
            self._make(num_bytes, MemoryRequest())

    @contextmanager
    def lent(self, num_bytes: int, request: MemoryRequest | None = None) -> Iterator[LentBlock]:
        """A block of this size; one loan at a time.

        Raises:
            BadInput, InfeasibleScenario, MissingCapability: as :class:`HostBlock`.
        """
        wanted = request or MemoryRequest()
        block = self._find(num_bytes, wanted) or self._make(num_bytes, wanted)
        try:
            yield LentBlock(block, num_bytes)
        finally:
            if len(block.array) > self._most_bytes:
                self._give_back([block])

    def close(self) -> None:
        """Give back what is kept."""
        self._give_back([block for _, block in self._kept])

    def _find(self, num_bytes: int, wanted: MemoryRequest) -> HostBlock | None:
        """A kept block that will do."""
        for request, block in self._kept:
            if num_bytes <= len(block.array) and _is_as_good(request, wanted):
                return block
        return None

    def _make(self, num_bytes: int, wanted: MemoryRequest) -> HostBlock:
        """A new block, for which those of its kind go, and the oldest others that leave no room for it."""
        self._give_back([block for request, block in self._kept if _is_as_good(request, wanted)])
        while self._kept and num_bytes + sum(len(block.array) for _, block in self._kept) > self._most_bytes:
            self._give_back([self._kept[0][1]])
        made = HostBlock(num_bytes, wanted)
        self._kept.append((wanted, made))
        return made

    def _give_back(self, blocks: Sequence[HostBlock]) -> None:
        for block in blocks:
            block.close()
        self._kept = [(request, kept) for request, kept in self._kept if not any(kept is gone for gone in blocks)]


def _is_as_good(kept: MemoryRequest, wanted: MemoryRequest) -> bool:
    """Whether memory asked for in one way is what another way would have got."""
    if kept == wanted:
        return True
    is_huge = {kept.page_size, wanted.page_size} <= {None, "thp"} and kept.numa_node == wanted.numa_node
    return is_huge and transparent_policy() in ("always", "madvise")
