"""The oracle: the published lookup in plain Python and NumPy, sharing no code with the fast implementation.

Written from the description of the reference code (arXiv 2601.07372 §2.2, ``engram_demo_v1.py``) and of the V4.1
production dialect (vLLM docs/features/engram.md). It is slow on purpose: every slot, head and token is a loop a reader
can check by hand. Tests compare everything fast with it, bit for bit.
"""

import numpy as np
import numpy.typing as npt

from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.model import Engram

_INT64_MAX = 2**63 - 1
_LAYER_SEED_STEP = 10007
_DEAD = -1


def multipliers(engram: Engram) -> list[list[int]]:
    """One odd multiplier per look-back for each Engram layer.

    They are drawn small enough that a folded id times its multiplier stays below 2**63. Of the dialects known here
    ``demo`` and ``v41`` publish this rule and ``qwen4exp`` is assumed to share it.

    Raises:
        MissingCapability: the dialect hashes in another way that is not known.
    """
    if engram.dialect not in ("demo", "v41", "qwen4exp"):
        raise MissingCapability(f"the hash of the {engram.dialect} dialect is not known")
    largest_order = max(engram.ngram_orders)
    half_bound = max(1, (_INT64_MAX // engram.compressed_vocab_size) // 2)
    drawn = []
    for layer_id in engram.layer_ids:
        generator = np.random.default_rng(engram.hash_seed + _LAYER_SEED_STEP * layer_id)
        halves = generator.integers(0, half_bound, size=largest_order, dtype=np.int64)
        drawn.append([2 * int(half) + 1 for half in halves])
    return drawn


def primes_from(start: int, count: int, taken: set[int]) -> list[int]:
    """The first ``count`` primes at or above ``start`` that are not ``taken``, by a segmented sieve."""
    found: list[int] = []
    low, width = max(start, 2), 4096
    while len(found) < count:
        high = low + width
        is_prime = np.ones(width, dtype=bool)
        for divisor in range(2, int(high**0.5) + 2):
            first = max(divisor * divisor, -(-low // divisor) * divisor)
            is_prime[max(first - low, 0) :: divisor] = False
        found += [low + int(i) for i in np.flatnonzero(is_prime) if low + int(i) not in taken]
        low = high
    return found[:count]


def moduli(engram: Engram) -> list[list[list[int]]]:
    """Rows of every head, ``[layer][order][head]``: primes, no prime used twice in the whole model.

    Raises:
        MissingCapability: the dialect does not size its heads by primes.
    """
    if engram.dialect not in ("demo", "v41", "qwen4exp"):
        raise MissingCapability(f"the {engram.dialect} dialect does not size its heads by primes")
    taken: set[int] = set()
    layers = []
    for _ in engram.layer_ids:
        orders = []
        for start in engram.rows_per_head:
            heads = primes_from(start, engram.num_heads_per_order, taken)
            taken.update(heads)
            orders.append(heads)
        layers.append(orders)
    return layers


def _signed64(value: int) -> int:
    """Python's unbounded integer as the int64 that wraparound arithmetic would hold."""
    return (value + 2**63) % 2**64 - 2**63


def _look_backs(engram: Engram, window: list[int], folded_pad_id: int) -> list[int]:
    """The ids that are hashed for one position: blocked slots replaced by the pad id.

    In v41 a dead slot blocks every farther one too; the demo, and by assumption qwen4exp, pad slot by slot.
    """
    ids, is_blocked = [], False
    for folded_id in window:
        is_dead = folded_id == _DEAD
        is_blocked = is_dead or (is_blocked and engram.dialect == "v41")
        ids.append(folded_pad_id if is_blocked else folded_id)
    return ids


def row_ids(engram: Engram, windows: npt.NDArray[np.int64], folded_pad_id: int | None = None) -> npt.NDArray[np.int64]:
    """Row ids ``[layers, tokens, rows_per_token]`` of windows ``[tokens, max_order]``, one Python step at a time.

    ``folded_pad_id`` is the *folded* id that blocked slots take. The default reads ``engram.pad_token_id`` as already
    folded; a caller with a folding table passes ``table[pad_token_id]``.
    """
    if windows.ndim != 2 or windows.shape[1] != max(engram.ngram_orders):
        raise BadInput(f"windows has shape {list(windows.shape)}; must be [tokens, {max(engram.ngram_orders)}]")
    pad = engram.pad_token_id if folded_pad_id is None else folded_pad_id
    result = np.zeros((len(engram.layer_ids), len(windows), engram.num_rows_per_token), dtype=np.int64)
    for layer, (factors, orders) in enumerate(zip(multipliers(engram), moduli(engram), strict=True)):
        for token, window in enumerate(windows.tolist()):
            ids = _look_backs(engram, window, pad)
            mix = _signed64(ids[0] * factors[0])
            offset, column = 0, 0
            for order, heads in zip(engram.ngram_orders, orders, strict=True):
                mix ^= _signed64(ids[order - 1] * factors[order - 1])
                for modulus in heads:
                    result[layer, token, column] = offset + mix % modulus
                    offset, column = offset + modulus, column + 1
    return result


def _e4m3(code: int) -> float:
    """Value of one E4M3 code (OCP 8-bit floating point, "FN" variant: no infinities, NaN at all ones)."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 0xF, code & 0x7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) * 2.0 ** (exponent - 10)


def _to_bf16(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Round to the nearest bfloat16, ties to even, and widen again."""
    with np.errstate(over="ignore", invalid="ignore"):
        bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    result = np.where(np.isnan(values), np.uint64(0x7FC00000), rounded).astype(np.uint32)
    return result.view(np.float32)


def decode_rows(engram: Engram, rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Values ``[n, row_values] float32`` of packed rows ``[n, row_bytes] uint8``.

    The v41 dialect rounds what it dequantises to bfloat16; the result is widened to float32 either way.
    """
    if rows.ndim != 2 or rows.shape[1] != engram.row_bytes:
        raise BadInput(f"rows has shape {list(rows.shape)}; must be [n, {engram.row_bytes}]")
    values = rows[:, : engram.value_bytes].copy()
    scales = rows[:, engram.value_bytes :].copy()
    if engram.row_format == "bf16":
        wide_bits: npt.NDArray[np.uint32] = values.view("<u2").astype(np.uint32) << np.uint32(16)
        result: npt.NDArray[np.float32] = wide_bits.view(np.float32)
        return result
    if engram.row_format == "fp8_block32":
        codes = np.array([_e4m3(code) for code in range(256)])
        factors = np.array([2.0 ** (code - 127) if code < 255 else float("nan") for code in range(256)])
        wide, factor = codes[values], factors[scales]
    else:
        with np.errstate(invalid="ignore"):  # a scale may be a signalling NaN
            wide, factor = values.view(np.int8).astype(np.float64), scales.view("<f4").astype(np.float64)
    product = wide * np.repeat(factor, 32, axis=1)
    if engram.dialect == "v41":
        return _to_bf16(product)
    with np.errstate(over="ignore"):
        narrow: npt.NDArray[np.float32] = product.astype(np.float32)
    return narrow
