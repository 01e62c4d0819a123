"""The gather kernel of path ``uva``. Importing this module needs triton.

Written for Triton's interpreter as well, so its logic is tested where there is no GPU.
"""

# A launch takes plain numbers where the kernel's signature says constexpr; triton's types do not know that.
# pyright: reportArgumentType=false

import torch
import triton  # pyright: ignore[reportMissingImports]  # comes with torch for CUDA
import triton.language as tl  # pyright: ignore[reportMissingImports]

from tiercast_runtime.cache_torch import SKIP_ROW
from tiercast_runtime.paths.uva import as_words, rows_per_program


# The number of ids changes from step to step: without this a lookup of another parity would compile in mid-run.
@triton.jit(do_not_specialize=["num_ids"])  # type: ignore[untyped-decorator]  # triton ships no types
def _gather_rows(  # type: ignore[no-untyped-def]  # noqa: PLR0917  # a kernel's arguments are its wires
    table,
    ids,
    out,
    complaints,
    num_ids,
    num_rows,
    table_stride,
    out_stride,
    NUM_WORDS: tl.constexpr,  # noqa: N803  # capitals: compile-time constants, as triton code has them
    MAIN_WORDS: tl.constexpr,  # noqa: N803
    TAIL_WORDS: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    SKIP: tl.constexpr,  # noqa: N803
):
    """Each program copies ROWS rows at a time, strided over the grid: a power-of-two body, then the tail (scales)."""
    for first in range(tl.program_id(0) * ROWS, num_ids, tl.num_programs(0) * ROWS):
        places = first + tl.arange(0, ROWS)
        is_asked = places < num_ids
        row = tl.load(ids + places, mask=is_asked, other=0)
        is_valid = is_asked & (row >= 0) & (row < num_rows)
        tl.store(complaints + places * 0, 1, mask=is_asked & (is_valid == 0) & (row != SKIP))
        source = table + row[:, None] * table_stride
        target = out + places.to(tl.int64)[:, None] * out_stride
        body = tl.arange(0, MAIN_WORDS)[None, :]
        words = tl.load(source + body, mask=is_valid[:, None])
        # The tail is read before the body is stored: no compiler moves a load past a store that may be its source.
        if TAIL_WORDS > 0:
            tail = MAIN_WORDS + tl.arange(0, TAIL_WORDS)[None, :]
            is_tail = is_valid[:, None] & (tail < NUM_WORDS)
            tail_words = tl.load(source + tail, mask=is_tail)
            tl.store(target + tail, tail_words, mask=is_tail)
        tl.store(target + body, words, mask=is_valid[:, None])


def launch_gather(
    table: torch.Tensor, ids: torch.Tensor, out: torch.Tensor, complaints: torch.Tensor, max_programs: int
) -> None:
    """Enqueue ``out[i] = table[ids[i]]`` on the current stream.

    ``table [rows, width] uint8`` lies in pinned host memory (Triton asks the driver for the address the GPU sees),
    ``ids [n] int64`` and ``out [n, width] uint8`` on the device; ``complaints [1] int32`` becomes 1 when an id is
    outside the table; its row is then left unwritten, as is, without complaint, that of ``SKIP_ROW``.
    """
    if ids.numel() == 0:
        return
    source, target = as_words(table), as_words(out)
    if source.dtype != target.dtype:  # the narrower of the two fits both
        narrow = min(source.dtype, target.dtype, key=lambda dtype: dtype.itemsize)
        source, target = table.view(narrow), out.view(narrow)
    num_words = source.shape[1]
    main_words = 1 << (num_words.bit_length() - 1)
    num_left = num_words - main_words
    tail_words = 1 << (num_left - 1).bit_length() if num_left else 0
    num_rows_each = rows_per_program(ids.numel())
    grid = (min(max_programs, triton.cdiv(ids.numel(), num_rows_each)),)
    _gather_rows[grid](  # pyright: ignore[reportIndexIssue]  # the decorator makes it a launcher
        source,
        ids,
        target,
        complaints,
        ids.numel(),
        len(source),
        source.stride(0),
        target.stride(0),
        NUM_WORDS=num_words,
        MAIN_WORDS=main_words,
        TAIL_WORDS=tail_words,
        ROWS=num_rows_each,
        SKIP=SKIP_ROW,
    )
