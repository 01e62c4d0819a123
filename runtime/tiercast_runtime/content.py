"""What is written in the tables: numbers anyone can recompute, row by row.

Trained rows are not needed to measure where rows live; rows whose every byte is known are needed to prove that the
right ones arrived. The bytes come from a counter hash (splitmix64) of layer, row and word, shaped into valid codes:
finite values, scales that keep a row's values around one.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from tiercast_profiles.model import Engram

CONTENT_VERSION = 1
CHUNK_ROWS = 2048  # half a MiB of 264-byte rows: the passes over a chunk stay in the second-level cache

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def content_seed(engram: Engram, layer_index: int) -> int:
    """64-bit seed of one layer's rows."""
    name = f"tiercast-rows-{CONTENT_VERSION}/{engram.hash_seed}/{engram.layer_ids[layer_index]}/{engram.row_format}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def expected_rows(engram: Engram, layer_index: int, row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Content ``[n, row_bytes] uint8`` of the given rows, packed, whatever layout the table has."""
    num_value_words = -(-engram.value_bytes // 8)
    num_words = num_value_words + -(-engram.scale_bytes // 8)
    seed = np.uint64(content_seed(engram, layer_index))
    result = np.empty((len(row_ids), engram.row_bytes), dtype=np.uint8)
    for first in range(0, len(row_ids), CHUNK_ROWS):
        chunk = row_ids[first : first + CHUNK_ROWS].astype(np.uint64)
        counters = chunk[:, None] * np.uint64(num_words) + np.arange(1, num_words + 1, dtype=np.uint64)
        words = _splitmix64(counters, seed)
        _shape_words(engram, words[:, :num_value_words], words[:, num_value_words:])
        target = result[first : first + CHUNK_ROWS]
        octets = words.view(np.uint8)
        target[:, : engram.value_bytes] = octets[:, : engram.value_bytes]
        target[:, engram.value_bytes :] = octets[:, num_value_words * 8 :][:, : engram.scale_bytes]
    return result


def _splitmix64(counters: npt.NDArray[np.uint64], seed: np.uint64) -> npt.NDArray[np.uint64]:
    """The splitmix64 sequence at the given positions (Steele, Lea, Flood 2014); overwrites its input."""
    words, shifted = counters, np.empty_like(counters)
    words *= _GOLDEN
    words += seed
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        np.right_shift(words, np.uint64(shift), out=shifted)
        words ^= shifted
        words *= factor
    np.right_shift(words, np.uint64(31), out=shifted)
    words ^= shifted
    return words


def _every_byte(byte: int) -> np.uint64:
    return np.uint64(int.from_bytes(bytes([byte] * 8), "little"))


def _shape_words(engram: Engram, values: npt.NDArray[np.uint64], scales: npt.NDArray[np.uint64]) -> None:
    """Turn random words into valid codes of the row format, in place."""
    if engram.row_format == "bf16":
        # sign, 3 exponent bits and mantissa stay random; the exponent starts at 120: magnitudes 2**-7 … 2**1
        values &= np.uint64(0x83FF83FF83FF83FF)
        values |= np.uint64(0x3C003C003C003C00)
    elif engram.row_format == "fp8_block32":
        # The NaN codes 0x7F and 0xFF lose their lowest bit: 0x7F + 1 carries into the sign position, nothing else does.
        carries = ((values & _every_byte(0x7F)) + _every_byte(0x01)) & _every_byte(0x80)
        values ^= carries >> np.uint64(7)
        scales &= _every_byte(0x03)  # scale codes 117 … 120: 2**-10 … 2**-7
        scales += _every_byte(117)
    else:
        # fp32 scales of about 2**-9 … 2**-7: sign 0, exponent 118 or 119, mantissa random
        scales &= np.uint64(0x00FFFFFF00FFFFFF)
        scales |= np.uint64(0x3B0000003B000000)
