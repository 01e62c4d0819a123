"""The hash as one kernel: row ids of all Engram layers of a step in a single launch. Importing this needs triton.

In torch operations the same takes some fifteen launches, and each costs more than the arithmetic of a decode step.
Written for Triton's interpreter as well, so its logic is tested where there is no GPU.
"""

# A launch takes plain numbers where the kernel's signature says constexpr; triton's types do not know that.
# pyright: reportArgumentType=false

import torch
import triton  # pyright: ignore[reportMissingImports]  # comes with torch for CUDA
import triton.language as tl  # pyright: ignore[reportMissingImports]

from tiercast_profiles.errors import BadInput

_TOKENS_PER_PROGRAM = 32


# Numbers that change from step to step are not specialised on, nor where in a step's buffer the windows begin: neither
# a graph capture nor a measured step may meet a first compilation.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["num_tokens", "pad", "token_stride", "slot_stride"],
    do_not_specialize_on_alignment=["windows"],
)
def _hash_windows(  # type: ignore[no-untyped-def]  # noqa: PLR0917  # a kernel's arguments are its wires
    windows,
    multipliers,
    sizes,
    offsets,
    out,
    num_tokens,
    pad,
    token_stride,
    slot_stride,
    MAX_ORDER: tl.constexpr,  # noqa: N803  # capitals: compile-time constants, as triton code has them
    HEADS: tl.constexpr,  # noqa: N803
    PADDED_HEADS: tl.constexpr,  # noqa: N803
    BLOCKS_FARTHER: tl.constexpr,  # noqa: N803
    TOKENS: tl.constexpr,  # noqa: N803
):
    """Program (i, layer) hashes TOKENS tokens for one layer; the order-n hash grows out of the order-(n − 1) hash."""
    layer = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    is_token = token < num_tokens
    head = tl.arange(0, PADDED_HEADS)
    is_head = head < HEADS
    is_written = is_token[:, None] & is_head[None, :]
    columns = (MAX_ORDER - 1) * HEADS
    target = out + (layer * num_tokens + token)[:, None] * columns
    is_blocked = token < 0
    mix = tl.zeros([TOKENS], dtype=tl.int64)
    for look_back in tl.static_range(MAX_ORDER):
        folded = tl.load(windows + token * token_stride + look_back * slot_stride, mask=is_token, other=0)
        is_dead = folded == -1
        if BLOCKS_FARTHER:  # noqa: SIM108  # decided at compile time; Triton takes a plain if for that
            is_blocked = is_blocked | is_dead
        else:
            is_blocked = is_dead
        mix = mix ^ (tl.where(is_blocked, pad, folded) * tl.load(multipliers + layer * MAX_ORDER + look_back))
        if look_back > 0:
            column = (look_back - 1) * HEADS + head
            size = tl.load(sizes + layer * columns + column, mask=is_head, other=1)
            first = tl.load(offsets + layer * columns + column, mask=is_head, other=0)
            # % keeps the sign of the mix here, as in C; NumPy's has the sign of the modulus, so lift the negative ones
            rest = mix[:, None] % size[None, :]
            rest = tl.where(rest < 0, rest + size[None, :], rest)
            tl.store(target + column[None, :], rest + first[None, :], mask=is_written)


def launch_hash(
    windows: torch.Tensor,
    multipliers: torch.Tensor,
    sizes: torch.Tensor,
    offsets: torch.Tensor,
    *,
    pad: int,
    blocks_farther: bool,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Enqueue the hash on the current stream and return the row ids; nothing waits for the device.

    The first call for a model compiles; after it the launch can be captured in a CUDA graph, with ``out`` given or not.

    Args:
        windows: ``[tokens, max_order] int64`` of folded ids, −1 for a dead slot; any strides.
        multipliers: ``[layers, max_order] int64``.
        sizes: ``[layers, orders, heads] int64``, the prime of every head.
        offsets: ``[layers, orders, heads] int64``, the first row of every head.
        pad: folded id that a blocked slot takes.
        blocks_farther: whether a dead slot also blocks every farther one (v41), or itself alone (demo).
        out: contiguous ``[layers, tokens, orders × heads] int64`` to write into; made here when None.

    Raises:
        BadInput: windows of the wrong shape or type, or an ``out`` that the row ids do not fit.
    """
    num_layers, max_order = multipliers.shape
    if windows.ndim != 2 or windows.shape[1] != max_order or windows.dtype != torch.int64:
        raise BadInput(f"windows is {windows.dtype} {list(windows.shape)}; must be int64 [tokens, {max_order}]")
    heads = sizes.shape[2]
    shape = (num_layers, len(windows), (max_order - 1) * heads)
    if out is None:
        out = torch.empty(shape, dtype=torch.int64, device=windows.device)
    elif out.shape != shape or out.dtype != torch.int64 or out.device != windows.device or not out.is_contiguous():
        raise BadInput(
            f"out is {out.dtype} {list(out.shape)} on {out.device}; "
            f"must be contiguous int64 {list(shape)} on {windows.device}"
        )
    if len(windows) == 0:
        return out
    grid = (triton.cdiv(len(windows), _TOKENS_PER_PROGRAM), num_layers)
    # Triton launches on the current device; for the tensors of the interpreter this does nothing
    with torch.cuda.device_of(windows):  # type: ignore[no-untyped-call]
        _hash_windows[grid](  # pyright: ignore[reportIndexIssue]  # the decorator makes it a launcher
            windows,
            multipliers,
            sizes,
            offsets,
            out,
            len(windows),
            pad,
            windows.stride(0),
            windows.stride(1),
            MAX_ORDER=max_order,
            HEADS=heads,
            PADDED_HEADS=triton.next_power_of_2(heads),
            BLOCKS_FARTHER=blocks_farther,
            TOKENS=_TOKENS_PER_PROGRAM,
        )
    return out
