"""What fills the blocks that gathers read: bytes that tell every row from every other."""

import numpy as np
import numpy.typing as npt

from tiercast_profiles.errors import TiercastError
from tiercast_profiles.rng import stream
from tiercast_profiles.units import MIB

FILL_PIECE_BYTES = 4 * MIB  # small enough to stay in a cache


class WrongRows(TiercastError):
    """A lookup path delivered other rows than were asked for."""


def fill_random(array: npt.NDArray[np.uint8]) -> None:
    """Fill a block with bytes that tell every row from every other: random ones, changed by another key per piece."""
    generator = stream(0, "probe-bytes")
    words = array[: len(array) // 8 * 8].view(np.uint64)
    piece = generator.integers(0, 1 << 63, size=min(len(words), FILL_PIECE_BYTES // 8), dtype=np.uint64)
    for first in range(0, len(words), max(1, len(piece))):
        target = words[first : first + len(piece)]
        key = generator.integers(0, 1 << 63, dtype=np.uint64)
        np.bitwise_xor(piece[: len(target)], key, out=target)
