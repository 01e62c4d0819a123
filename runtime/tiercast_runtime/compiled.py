"""Loops over rows and tokens, compiled for this CPU when they are first wanted. Importing this needs numba.

NumPy and torch cost a microsecond or more a call, and the lookup of a decode step is a few calls. What is here does a
whole lookup, or all hashes of a step, in one call without the interpreter lock. Callers go through
:mod:`tiercast_runtime.host_loops`, which has the NumPy form for machines without numba.

Arguments are plain numbers: to hand over an address costs a tenth of what handing over an array does. The caller keeps
the memory alive, and answers for shape, type and contiguity.
"""

# An intrinsic is called without the context that its definition takes; numba's types do not know that.
# pyright: reportCallIssue=false

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# The first line of a row ahead is asked for; the processor brings the rest itself. Of few rows the one 16 ahead, into
# the first cache; of many, whose copies leave the second-level cache, the one 8 ahead into that cache. Rows out of
# 2 GiB, one x86 core, without, the first way, the second, and with all lines of a row asked for: 24,576 rows of 256 B
# 1.36, 1.30, 1.18 and 1.28 ms; of 264 B 1.86, 1.62, 1.50 and 1.69 ms; of 512 B 2.51, 2.48, 2.37 and 2.59 ms.
_ROWS_AHEAD, _ROWS_AHEAD_OF_MANY = 16, 8
_MANY_BYTES = 2 << 20

_BYTE_POINTER = ir.IntType(8).as_pointer()


# Any: what numba hands to an intrinsic has no types
@intrinsic  # type: ignore[untyped-decorator]
def _load(_context: Any, address: Any, index: Any) -> Any:
    """Number ``index`` of an array of int64 at ``address``."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        array = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load(builder.gep(array, [arguments[1]]))

    return types.int64(address, index), generate


@intrinsic  # type: ignore[untyped-decorator]
def _store(_context: Any, address: Any, index: Any, value: Any) -> Any:
    """Set number ``index`` of an array of int64 at ``address``."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        array = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        builder.store(arguments[2], builder.gep(array, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(address, index, value), generate


@intrinsic  # type: ignore[untyped-decorator]
def _copy(_context: Any, target: Any, source: Any, num_bytes: Any) -> Any:
    """``memcpy``."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        ends = [builder.inttoptr(end, _BYTE_POINTER) for end in arguments[:2]]
        cgutils.raw_memcpy(builder, *ends, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(target, source, num_bytes), generate


def _prefetch_into(level: int) -> Any:
    """Ask for the cache line at an address, into the first or second level; an address not mapped is ignored."""

    @intrinsic  # type: ignore[untyped-decorator]
    def prefetch(_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            number = ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [_BYTE_POINTER, number, number, number])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            for_reading, locality, is_data = number(0), number(4 - level), number(1)
            builder.call(function, [builder.inttoptr(arguments[0], _BYTE_POINTER), for_reading, locality, is_data])
            return context.get_dummy_value()

        return types.void(address), generate

    return prefetch


_prefetch_near, _prefetch_far = _prefetch_into(1), _prefetch_into(2)


@numba.njit("int64(int64,int64,int64,int64,int64,int64,int64,int64)", nogil=True)  # type: ignore[untyped-decorator]
def gather(  # noqa: PLR0917  # a loop's arguments are its wires
    ids: int, count: int, table: int, num_rows: int, row_stride: int, num_bytes: int, out: int, out_stride: int
) -> int:
    """Copy the first ``num_bytes`` of row ``ids[i]`` of a table to ``out + i * out_stride``.

    Every id is looked at before anything is written.

    Returns:
        −1, or the place of the first id outside ``0 … num_rows − 1``; nothing was then written.
    """
    for place in range(count):
        row = _load(ids, place)
        if row < 0 or row >= num_rows:
            return place
    are_many = count * num_bytes > _MANY_BYTES
    distance = _ROWS_AHEAD_OF_MANY if are_many else _ROWS_AHEAD
    for place in range(count):
        ahead = place + distance
        if ahead < count:
            first = table + _load(ids, ahead) * row_stride
            if are_many:
                _prefetch_far(first)
            else:
                _prefetch_near(first)
        _copy(out + place * out_stride, table + _load(ids, place) * row_stride, num_bytes)
    return -1


PLAN_HEADER = 6  # numbers of a hash plan that come before its arrays


@numba.njit("int64(int64,int64,int64,int64)", nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def hash_windows(windows: int, num_tokens: int, plan: int, out: int) -> int:
    """Row ids ``[layers, tokens, columns]`` of windows ``[tokens, max_order]``, all int64, into ``out``.

    ``plan`` is what does not depend on the tokens, int64 one after the other: layers, max_order, heads, vocabulary,
    pad, whether a dead slot blocks farther ones; then multipliers ``[layers, max_order]``, head sizes and first rows
    ``[layers, columns]``. Products of a folded id and its multiplier stay below 2**63, so they are unsigned here.

    Returns:
        −1, or the place of the first id that is neither DEAD nor in the vocabulary; what was written is then void.
    """
    num_layers, max_order, num_heads = _load(plan, 0), _load(plan, 1), _load(plan, 2)
    vocab_size, pad, blocks_farther = _load(plan, 3), _load(plan, 4), _load(plan, 5)
    columns = (max_order - 1) * num_heads
    multipliers = plan + 8 * PLAN_HEADER
    sizes = multipliers + 8 * num_layers * max_order
    offsets = sizes + 8 * num_layers * columns
    for place in range(num_tokens * max_order):
        if _load(windows, place) < -1 or _load(windows, place) >= vocab_size:
            return place
    for layer in range(num_layers):
        for token in range(num_tokens):
            target = (layer * num_tokens + token) * columns
            is_blocked = False
            mix = np.uint64(0)
            for slot in range(max_order):
                folded = _load(windows, token * max_order + slot)
                is_dead = folded < 0
                is_blocked = is_dead or (is_blocked and blocks_farther != 0)
                factor = np.uint64(_load(multipliers, layer * max_order + slot))
                mix ^= np.uint64(pad if is_blocked else folded) * factor
                if slot == 0:
                    continue
                for column in range((slot - 1) * num_heads, slot * num_heads):
                    size = np.uint64(_load(sizes, layer * columns + column))
                    row = np.int64(mix % size) + _load(offsets, layer * columns + column)
                    _store(out, target + column, row)
    return -1
