"""Row formats and layouts: what the bytes of a row mean, and how a table cuts them up.

A *packed* row is its values followed by its block scales (264 bytes for V4.1: 256 E4M3 codes, 8 E8M0 exponents).
Layouts: ``packed`` stores that; ``padded`` adds zeros up to a multiple of 64 bytes; ``split`` keeps values and scales
in two arrays, as checkpoints often do.
"""

from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from tiercast_profiles.errors import BadInput
from tiercast_profiles.model import SCALE_BLOCK_VALUES, Engram, RowLayout

# E4M3 code × 2**(scale − 127) is a bfloat16 number without rounding for these scale codes: the smallest step of a code
# is 2**−9, bfloat16 reaches down to 2**−133; the largest code is below 2**9, bfloat16 ends below 2**128.
_EXACT_SCALE_CODES = (3, 246)
_TABLE_LOOKUP_ROWS = 512  # up to here a 256-entry table is faster than arithmetic, which makes more passes
_SIGN_AND_CODE = -0x4080  # bits 15 and 13…7 of an int16: where an E4M3 code sits inside a float16


def part_widths(engram: Engram, layout: RowLayout) -> tuple[int, ...]:
    """Bytes per row of each array a table of this layout is made of."""
    if layout == "split" and engram.scale_bytes:
        return (engram.value_bytes, engram.scale_bytes)
    return (engram.stored_row_bytes(layout),)


def to_parts(engram: Engram, layout: RowLayout, packed: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], ...]:
    """Packed rows ``[n, row_bytes]`` as the arrays a table of this layout stores."""
    widths = part_widths(engram, layout)
    if len(widths) == 2:
        return packed[:, : widths[0]], packed[:, widths[0] :]
    if widths[0] == engram.row_bytes:
        return (packed,)
    return (np.pad(packed, ((0, 0), (0, widths[0] - engram.row_bytes))),)


def from_parts(engram: Engram, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Packed rows ``[n, row_bytes] uint8`` from the arrays of any layout; a view where no copy is needed."""
    if len(parts) == 2:
        return torch.cat(parts, dim=1)
    return parts[0] if parts[0].shape[1] == engram.row_bytes else parts[0][:, : engram.row_bytes]


def decode_rows(engram: Engram, rows: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Values ``[n, row_values]`` of packed rows ``[n, row_bytes] uint8``, on the device of the rows.

    The v41 dialect rounds what it dequantises to bfloat16 (facts: the production module does); ``dtype`` is what the
    caller computes in. The result equals ``reference.decode_rows`` bit for bit.

    Raises:
        BadInput: rows of another shape or type.
    """
    if rows.dtype != torch.uint8 or rows.ndim != 2 or rows.shape[1] != engram.row_bytes:
        raise BadInput(f"rows is {rows.dtype} {list(rows.shape)}; must be uint8 [n, {engram.row_bytes}]")
    if len(rows) == 0:
        return torch.empty((0, engram.row_values), dtype=dtype, device=rows.device)
    values, scales = rows[:, : engram.value_bytes], rows[:, engram.value_bytes :]
    if engram.row_format == "bf16":
        return values.view(torch.bfloat16).to(dtype)
    if engram.row_format == "fp8_block32" and rows.device.type == "cpu":
        return _fp8_on_cpu(values, scales, engram.rules.rounds_to_bf16).to(dtype)
    if engram.row_format == "fp8_block32":
        factors = _e8m0_values_on(rows.device)[scales.int()]
        decoded = _scaled(values.view(torch.float8_e4m3fn).float(), factors)
    else:
        decoded = _scaled(values.view(torch.int8).float(), scales.view(torch.float32))
    return (decoded.bfloat16() if engram.rules.rounds_to_bf16 else decoded).to(dtype)


def _scaled(values: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return values.view(*factors.shape, SCALE_BLOCK_VALUES).mul_(factors[:, :, None]).view(values.shape)


def _fp8_on_cpu(values: torch.Tensor, scales: torch.Tensor, rounds_to_bf16: bool) -> torch.Tensor:
    """The fastest way for the number of rows: it lies between arrival of the rows and the Engram layer.

    Measured on one x86 core: 96 rows by table 0.05 ms, by arithmetic 0.12 ms; 3072 rows by table 1.3 ms, by arithmetic
    0.5 ms; ``float8_e4m3fn.float()`` 0.2 and 5 ms.
    """
    codes, factors = values.numpy(), scales.numpy()
    low, high = _EXACT_SCALE_CODES
    is_exact = bool(low <= factors.min() <= factors.max() <= high)
    if is_exact and len(codes) > _TABLE_LOOKUP_ROWS and codes.max() < 0xFF and codes.view(np.int8).max() < 0x7F:
        # E4M3 as float16: the same bits one exponent bias (2**8) lower, subnormals included; NaN codes were excluded.
        halves = values.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(_SIGN_AND_CODE)
        wide = np.take(_e8m0_values(bias=8), factors, mode="clip")
        return _scaled(halves.view(torch.float16).float(), torch.from_numpy(wide))
    decoded = np.take(_e4m3_values(), codes, mode="clip")
    blocks = decoded.reshape(*factors.shape, SCALE_BLOCK_VALUES)
    with np.errstate(over="ignore"):
        blocks *= np.take(_e8m0_values(), factors, mode="clip")[:, :, None]
    result = torch.from_numpy(decoded)
    return result if is_exact or not rounds_to_bf16 else result.bfloat16()


@cache
def _e4m3_values() -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    return values


@cache
def _e8m0_values(bias: int = 0) -> npt.NDArray[np.float32]:
    """2**(code − 127 + bias) as float32: code 0 is the subnormal 2**−127, code 255 is NaN (OCP E8M0)."""
    with np.errstate(over="ignore"):
        factors = np.exp2(np.arange(256, dtype=np.float64) - 127 + bias).astype(np.float32)
    factors[255] = np.nan
    return factors


@cache
def _e8m0_values_on(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(_e8m0_values()).to(device)
