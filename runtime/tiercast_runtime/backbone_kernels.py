"""Kernels of the decoder on a GPU: norm, rotation with the KV write, SwiGLU, and attention of decoding rows.

Importing this module needs triton. Each replaces several launches of torch, which cost more than their arithmetic at
decode sizes; all take sizes that change from step to step from device memory, so a captured graph may hold them.
Written for Triton's interpreter as well, so the logic is tested where there is no GPU.
"""

# A launch takes plain numbers where the kernel's signature says constexpr; triton's types do not know that.
# pyright: reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false
# ruff: noqa: N803, PLR0917  # capitals: compile-time constants, as triton code has them; a kernel's arguments are wires

import torch
import triton  # pyright: ignore[reportMissingImports]  # comes with torch for CUDA
import triton.language as tl  # pyright: ignore[reportMissingImports]

_BLOCK_TOKENS = 64  # cached tokens one pass of decode attention reads
_MIN_DOT_ROWS = 16  # tl.dot multiplies tiles of at least this many rows and columns
_MAX_SPLITS = 16
_PROGRAMS_WANTED = 528  # four per multiprocessor of an H100/H200: enough reads in flight to fill the memory
_HEADS_PER_PROGRAM = 8
_INNER_BLOCK = 1024


@triton.jit(do_not_specialize=["row_stride"])  # type: ignore[untyped-decorator]  # triton ships no types
def _rms_norm(  # type: ignore[no-untyped-def]
    values, out, row_stride, eps, WIDTH: tl.constexpr, BRANCHES: tl.constexpr, BLOCK: tl.constexpr
):
    """One row: the sum of its branches over the root of that sum's mean square."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    is_column = column < WIDTH
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for branch in tl.static_range(BRANCHES):
        total += tl.load(values + row * row_stride + branch * WIDTH + column, mask=is_column, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(total * total, axis=0) / WIDTH + eps)
    tl.store(out + row * WIDTH + column, (total * scale).to(out.dtype.element_ty), mask=is_column)


def rms_norm(hidden: torch.Tensor, eps: float) -> torch.Tensor:
    """Normed mean of the branches of ``hidden [n, branches, width]``, ``[n, width]``; eps as for one branch."""
    num_rows, branches, width = hidden.shape
    out = torch.empty((num_rows, width), dtype=hidden.dtype, device=hidden.device)
    # The norm does not see the scale of its input, eps aside: a sum serves for a mean.
    block = triton.next_power_of_2(width)
    _rms_norm[(num_rows,)](
        hidden, out, hidden.stride(0), eps * branches**2, WIDTH=width, BRANCHES=branches, BLOCK=block, num_warps=8
    )
    return out


# Slots, positions and lengths are pieces of one buffer of a step and begin where the pieces before them end.
@triton.jit(do_not_specialize_on_alignment=["slots", "positions"])  # type: ignore[untyped-decorator]
def _rotate_and_store(  # type: ignore[no-untyped-def]
    qkv,
    rope,
    cache,
    slots,
    positions,
    qkv_stride,
    slot_stride,
    head_stride,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
):
    """HEADS heads of one token: queries are rotated in place, keys rotated into the cache, values copied there."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, HALF_BLOCK)
    is_head = head < Q_HEADS + 2 * KV_HEADS
    is_there = is_head[:, None] & (pair < HALF)[None, :]
    position = tl.load(positions + token)
    slot = tl.load(slots + token)
    source = qkv + token * qkv_stride + head[:, None] * (2 * HALF) + 2 * pair[None, :]
    even = tl.load(source, mask=is_there, other=0.0).to(tl.float32)
    odd = tl.load(source + 1, mask=is_there, other=0.0).to(tl.float32)
    angle = rope + token * (2 * HALF) + 2 * pair
    cosine = tl.load(angle, mask=pair < HALF, other=0.0)[None, :]
    sine = tl.load(angle + 1, mask=pair < HALF, other=0.0)[None, :]
    is_value = (head >= Q_HEADS + KV_HEADS)[:, None]
    first = tl.where(is_value, even, even * cosine - odd * sine).to(qkv.dtype.element_ty)
    second = tl.where(is_value, odd, even * sine + odd * cosine).to(qkv.dtype.element_ty)
    is_query = is_there & (head < Q_HEADS)[:, None]
    tl.store(source, first, mask=is_query)
    tl.store(source + 1, second, mask=is_query)
    is_cached = is_there & (head >= Q_HEADS)[:, None]
    place = slot * slot_stride + (head - Q_HEADS).to(tl.int64)[:, None] * head_stride + position * (2 * HALF)
    target = cache + place + 2 * pair[None, :]
    tl.store(target, first, mask=is_cached)
    tl.store(target + 1, second, mask=is_cached)


def rotate_and_store(
    qkv: torch.Tensor,
    rope: torch.Tensor,
    cache: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    num_heads: int,
) -> None:
    """Rotate queries in place and write rotated keys, and values, into the cache.

    Args:
        qkv: ``[n, (num_heads + 2 × kv_heads) × head_dim]``.
        rope: ``[n, 1, head_dim / 2] complex64``.
        cache: ``[slots, 2 × kv_heads, context, head_dim]`` of one layer, contiguous in the last two dimensions.
        slots: ``[n] int64``.
        positions: ``[n] int64``.
        num_heads: query heads.
    """
    half, kv_heads = cache.shape[3] // 2, cache.shape[1] // 2
    grid = (len(qkv), triton.cdiv(num_heads + 2 * kv_heads, _HEADS_PER_PROGRAM))
    _rotate_and_store[grid](
        qkv,
        torch.view_as_real(rope),
        cache,
        slots,
        positions,
        qkv.stride(0),
        cache.stride(0),
        cache.stride(1),
        Q_HEADS=num_heads,
        KV_HEADS=kv_heads,
        HALF=half,
        HALF_BLOCK=triton.next_power_of_2(half),
        HEADS=_HEADS_PER_PROGRAM,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _silu_mul(gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column = column < WIDTH
    gate = tl.load(gate_up + row * 2 * WIDTH + column, mask=is_column, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + column, mask=is_column, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + column, (gate / (1.0 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=is_column)


def silu_mul(gate_up: torch.Tensor, out: torch.Tensor) -> None:
    """``out [n, width] = silu(gate) × up`` of ``gate_up [n, 2 × width]``, both contiguous."""
    num_rows, width = out.shape
    _silu_mul[num_rows, triton.cdiv(width, _INNER_BLOCK)](gate_up, out, WIDTH=width, BLOCK=_INNER_BLOCK)


@triton.jit(do_not_specialize_on_alignment=["slots", "lengths"])  # type: ignore[untyped-decorator]
def _attend_splits(  # type: ignore[no-untyped-def]
    queries,
    cache,
    slots,
    lengths,
    sums,
    weights,
    scale,
    query_stride,
    slot_stride,
    head_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Program (row, kv head, split): attention of one group of heads to one piece of its sequence."""
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    length = tl.load(lengths + row).to(tl.int32)
    slot = tl.load(slots + row)
    member, column = tl.arange(0, ROWS), tl.arange(0, DIM_BLOCK)
    is_member = member < GROUP
    is_column = column < HEAD_DIM
    source = queries + row * query_stride + (kv_head * GROUP + member)[:, None] * HEAD_DIM + column[None, :]
    query = tl.load(source, mask=is_member[:, None] & is_column[None, :], other=0.0)
    keys = cache + slot * slot_stride + kv_head * head_stride
    values = keys + KV_HEADS * head_stride
    piece = tl.cdiv(tl.cdiv(length, SPLITS), TOKENS) * TOKENS
    first = split * piece
    stop = tl.minimum(first + piece, length)
    highest = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    mixed = tl.zeros([ROWS, DIM_BLOCK], dtype=tl.float32)
    for start in range(first, stop, TOKENS):
        token = start + tl.arange(0, TOKENS)
        is_token = token < stop
        is_read = is_token[:, None] & is_column[None, :]
        place = token.to(tl.int64)[:, None] * HEAD_DIM + column[None, :]
        key = tl.load(keys + place, mask=is_read, other=0.0)
        value = tl.load(values + place, mask=is_read, other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(is_token[None, :], score, float("-inf"))
        raised = tl.maximum(highest, tl.max(score, axis=1))
        share = tl.exp(score - raised[:, None])
        shrink = tl.exp(highest - raised)
        total = total * shrink + tl.sum(share, axis=1)
        mixed = mixed * shrink[:, None] + tl.dot(share.to(value.dtype), value, input_precision="ieee")
        highest = raised
    part = ((row * KV_HEADS + kv_head) * SPLITS + split) * GROUP + member
    tl.store(sums + part[:, None] * HEAD_DIM + column[None, :], mixed, mask=is_member[:, None] & is_column[None, :])
    tl.store(weights + part * 2, highest, mask=is_member)
    tl.store(weights + part * 2 + 1, total, mask=is_member)


@triton.jit  # type: ignore[untyped-decorator]
def _join_splits(  # type: ignore[no-untyped-def]
    sums,
    weights,
    out,
    out_stride,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Program (row, head): the pieces of one head, each by its share of the softmax; an empty piece has none."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    split, column = tl.arange(0, SPLITS), tl.arange(0, DIM_BLOCK)
    part = ((row * KV_HEADS + head // GROUP) * SPLITS + split) * GROUP + head % GROUP
    highest, total = tl.load(weights + part * 2), tl.load(weights + part * 2 + 1)
    share = tl.exp(highest - tl.max(highest, axis=0))
    is_column = column < HEAD_DIM
    mixed = tl.load(sums + part[:, None] * HEAD_DIM + column[None, :], mask=is_column[None, :], other=0.0)
    result = tl.sum(mixed * share[:, None], axis=0) / tl.sum(total * share, axis=0)
    tl.store(out + row * out_stride + head * HEAD_DIM + column, result.to(out.dtype.element_ty), mask=is_column)


def num_splits(num_rows: int, kv_heads: int) -> int:
    """Pieces a sequence is cut into, a power of two: more where few sequences would leave multiprocessors idle."""
    wanted = -(-_PROGRAMS_WANTED // max(1, num_rows * kv_heads))
    return min(_MAX_SPLITS, 1 << (wanted - 1).bit_length())


def attend(
    queries: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor, lengths: torch.Tensor, out: torch.Tensor
) -> None:
    """Attention of one new token per sequence to its own cached tokens, no more: nothing is padded.

    Args:
        queries: ``[n, heads × head_dim]``, rotated; rows may be strided.
        cache: ``[slots, 2 × kv_heads, context, head_dim]``: keys, then values.
        slots: ``[n] int64``.
        lengths: ``[n] int64``, tokens to attend to, at least 1.
        out: ``[n, heads × head_dim]``.
    """
    num_rows, kv_heads, head_dim = len(queries), cache.shape[1] // 2, cache.shape[3]
    num_heads = out.shape[1] // head_dim
    group, splits = num_heads // kv_heads, num_splits(num_rows, kv_heads)
    dim_block = max(_MIN_DOT_ROWS, triton.next_power_of_2(head_dim))
    pieces = (num_rows, kv_heads, splits, group)
    sums = torch.empty((*pieces, head_dim), dtype=torch.float32, device=queries.device)
    weights = torch.empty((*pieces, 2), dtype=torch.float32, device=queries.device)
    _attend_splits[num_rows, kv_heads, splits](
        queries,
        cache,
        slots,
        lengths,
        sums,
        weights,
        head_dim**-0.5,
        queries.stride(0),
        cache.stride(0),
        cache.stride(1),
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        DIM_BLOCK=dim_block,
        ROWS=max(_MIN_DOT_ROWS, triton.next_power_of_2(group)),
        TOKENS=_BLOCK_TOKENS,
        SPLITS=splits,
    )
    _join_splits[num_rows, num_heads](
        sums,
        weights,
        out,
        out.stride(0),
        GROUP=group,
        HEAD_DIM=head_dim,
        DIM_BLOCK=dim_block,
        KV_HEADS=kv_heads,
        SPLITS=splits,
    )
