"""A file read once from end to end, so that what is read of it later comes from one kind of block."""

from pathlib import Path

import numpy as np

from tiercast_profiles.units import MIB
from tiercast_runtime.aio import RowReader

THROUGH_BYTES, THROUGH_DEPTH = 1 * MIB, 8


def read_through(path: Path) -> None:
    """Read a file once from end to end, past the page cache where that can be.

    The host of a virtual drive keeps what was read or written lately in its own memory, and a block that it does not
    have takes several times as long. Random reads of a file of which it has some would be of both kinds, in shares that
    change as they go on. A drive without such a host does not care.

    Raises:
        FileProblem: the file cannot be read.
    """
    reader = RowReader(path, depth=THROUGH_DEPTH)
    try:
        offsets = np.arange(0, path.stat().st_size // THROUGH_BYTES * THROUGH_BYTES, THROUGH_BYTES)
        for first in range(0, len(offsets), THROUGH_DEPTH):
            reader.read_blocks(offsets[first : first + THROUGH_DEPTH], THROUGH_BYTES)
    finally:
        reader.close()
