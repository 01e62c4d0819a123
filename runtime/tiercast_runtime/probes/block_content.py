"""What fills the blocks that gathers read: bytes that tell every row from every other."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from tiercast_profiles.errors import TiercastError
from tiercast_profiles.rng import stream
from tiercast_profiles.units import MIB
from tiercast_runtime.device import num_cores
from tiercast_runtime.probes.numa import node_cores

FILL_PIECE_BYTES = 4 * MIB  # small enough to stay in a cache


class WrongRows(TiercastError):
    """A lookup path delivered other rows than were asked for."""


def fill_random(array: npt.NDArray[np.uint8]) -> None:
    """Fill a block with bytes that tell every row from every other: random ones, changed by another key per piece.

    All cores fill, since on a virtual machine untouched pages come slowly; but one thread where memory has several
    nodes, so that every page lies on the node of that one.
    """
    generator = stream(0, "probe-bytes")
    words = array[: len(array) // 8 * 8].view(np.uint64)
    piece = generator.integers(0, 1 << 63, size=min(len(words), FILL_PIECE_BYTES // 8), dtype=np.uint64)
    starts = range(0, len(words), max(1, len(piece)))
    keys = generator.integers(0, 1 << 63, size=len(starts), dtype=np.uint64)

    def fill(share: range) -> None:
        for number in share:
            target = words[starts[number] : starts[number] + len(piece)]
            np.bitwise_xor(piece[: len(target)], keys[number], out=target)

    num_threads = num_cores() if len(node_cores()) < 2 else 1
    shares = [range(len(starts) * i // num_threads, len(starts) * (i + 1) // num_threads) for i in range(num_threads)]
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(fill, shares))
