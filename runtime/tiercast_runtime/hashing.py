"""From token ids to row ids: which rows of which table a step needs, known before any layer has run.

Windows are ``[num_tokens, max_order] int64``: column 0 is the folded id of the token, column k the folded id k
positions earlier, ``DEAD`` (−1) where there is none. Row ids are ``[num_engram_layers, num_tokens, rows_per_token]
int64``, indices into that layer's own table, columns order-major then head.

Importing this module does not import torch; only ``EngramHasher`` does.
"""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tiercast_profiles.errors import BadInput
from tiercast_profiles.head_sizes import head_sizes
from tiercast_profiles.model import Engram

if TYPE_CHECKING:
    import torch

DEAD = -1
_LAYER_SEED_STEP = 10007
_CHUNK_TOKENS = 256  # arrays of V4.1's 48 columns stay below what malloc maps anew at every call
_INT64, _UINT64 = np.dtype(np.int64), np.dtype(np.uint64)
_largest, _running_xor = np.maximum.reduce, np.bitwise_xor.accumulate
_SMALL_TOKENS = 32


def hash_multipliers(engram: Engram) -> npt.NDArray[np.int64]:
    """Odd multipliers ``[layers, max_order] int64``, drawn per layer as the reference code draws them.

    Raises:
        MissingCapability: the dialect's hash is not known.
    """
    engram.require_hash()
    return _draw(engram.layer_ids, engram.ngram_orders[-1], engram.compressed_vocab_size, engram.hash_seed)


@lru_cache(maxsize=32)
def _draw(layer_ids: tuple[int, ...], max_order: int, vocab_size: int, seed: int) -> npt.NDArray[np.int64]:
    bound = max(1, (np.iinfo(np.int64).max // vocab_size) // 2)
    generators = [np.random.default_rng(seed + _LAYER_SEED_STEP * layer_id) for layer_id in layer_ids]
    return np.stack([rng.integers(0, bound, size=max_order, dtype=np.int64) for rng in generators]) * 2 + 1


def head_moduli(engram: Engram) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Prime and first row of every head, each ``[layers, orders, heads] int64``."""
    return _moduli(head_sizes(engram))


@lru_cache(maxsize=32)
def _moduli(
    head_sizes_by_layer: tuple[tuple[tuple[int, ...], ...], ...],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    sizes = np.array(head_sizes_by_layer, dtype=np.int64)
    flat = sizes.reshape(len(sizes), -1)
    offsets = np.cumsum(flat, axis=1) - flat
    return sizes, offsets.reshape(sizes.shape)


def build_windows(folded_ids: npt.NDArray[np.int64], start: int, count: int, max_order: int) -> npt.NDArray[np.int64]:
    """Windows ``[count, max_order]`` of the positions ``start … start + count − 1`` of one sequence.

    ``folded_ids`` is the sequence from its first token on, at least ``start + count`` long; before it all is DEAD.

    Raises:
        BadInput: when the positions are not all inside the sequence.
    """
    if not 0 <= start <= start + count <= len(folded_ids):
        raise BadInput(f"positions {start} … {start + count - 1} are not in a sequence of {len(folded_ids)} tokens")
    windows = np.full((count, max_order), DEAD, dtype=np.int64)
    for look_back in range(max_order):
        num_missing = min(max(look_back - start, 0), count)
        windows[num_missing:, look_back] = folded_ids[start + num_missing - look_back : start + count - look_back]
    return windows


def check_windows(engram: Engram, windows: npt.NDArray[np.int64]) -> None:
    """Refuse windows of the wrong shape or with ids outside the folded vocabulary.

    Raises:
        BadInput: names what was given and what is allowed.
    """
    max_order = engram.ngram_orders[-1]
    if windows.ndim != 2 or windows.shape[1] != max_order or windows.dtype != np.int64:
        raise BadInput(f"windows is {windows.dtype} {list(windows.shape)}; must be int64 [tokens, {max_order}]")
    if windows.size and not (int(windows.min()) >= DEAD and int(windows.max()) < engram.compressed_vocab_size):
        raise BadInput(
            f"folded ids span {int(windows.min())} … {int(windows.max())}; allowed are {DEAD} (none) and "
            f"0 … {engram.compressed_vocab_size - 1}"
        )


def numpy_row_ids(
    engram: Engram, windows: npt.NDArray[np.int64], folded_pad_id: int | None = None
) -> npt.NDArray[np.int64]:
    """Row ids ``[layers, tokens, rows_per_token]`` of windows, with NumPy alone.

    Assumption A30: the schema's ``pad_token_id`` is the *folded* id that blocked slots take, unless the caller gives
    ``folded_pad_id`` (the reference code folds a raw pad id first).

    Raises:
        BadInput: windows of the wrong shape, or ids outside the folded vocabulary.
        MissingCapability: the dialect's hash is not known.
    """
    return NumpyHasher(engram, folded_pad_id).row_ids(windows)


class NumpyHasher:
    """Hashes windows with NumPy alone; everything that does not depend on the tokens is prepared here, once.

    A decode step hashes a few tokens, so what counts is the number of array operations: five where no slot is dead.
    A folded id times its multiplier stays below 2**63, so the arithmetic is unsigned, whose remainder is cheaper.

    Args:
        engram: the tables.
        folded_pad_id: the folded id that blocked slots take; by default ``engram.pad_token_id`` (A30).

    Raises:
        MissingCapability: the dialect's hash is not known.
    """

    def __init__(self, engram: Engram, folded_pad_id: int | None = None) -> None:
        engram.require_hash()
        self.engram = engram
        self._pad = np.int64(engram.pad_token_id if folded_pad_id is None else folded_pad_id)
        self._blocks_farther = engram.rules.blocks_farther
        # A pad id outside the vocabulary may overflow: then signed arithmetic, as the reference code has it.
        vocab_size = engram.compressed_vocab_size
        dtype = np.dtype(np.uint64 if 0 <= self._pad < vocab_size else np.int64)
        self._dtype = dtype
        self._multipliers = hash_multipliers(engram)[:, None, :].astype(dtype)
        num_layers, self._num_columns = len(engram.layer_ids), engram.num_rows_per_token
        sizes, offsets = (part.reshape(num_layers, 1, -1).astype(dtype) for part in head_moduli(engram))
        # Of the running hashes of a token, the one of each column: every head of an order shares its order's.
        self._order_of_column = np.repeat(np.arange(1, engram.ngram_orders[-1]), engram.num_heads_per_order)
        # Few tokens get operands of the full shape: one long loop beats many that are as long as a token has columns.
        self._operands = [
            (np.tile(sizes, (1, count, 1)), np.tile(offsets, (1, count, 1))) for count in range(_SMALL_TOKENS + 1)
        ]
        self._sizes, self._offsets = sizes, offsets
        self._vocab_size = np.uint64(vocab_size)
        self._max_order = engram.ngram_orders[-1]

    def row_ids(self, windows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Row ids ``[layers, tokens, rows_per_token]`` of windows ``[tokens, max_order] int64``.

        Raises:
            BadInput: windows of the wrong shape, or ids outside the folded vocabulary.
        """
        num_tokens = len(windows)
        if windows.shape != (num_tokens, self._max_order) or windows.dtype is not _INT64 or not num_tokens:
            check_windows(self.engram, windows)
        # As unsigned numbers DEAD and every other negative id are the largest: one comparison finds them all.
        elif _largest(windows.view(_UINT64), None) >= self._vocab_size:
            check_windows(self.engram, windows)
            windows = self._padded(windows)
        ids = windows.view(self._dtype)
        if num_tokens <= _SMALL_TOKENS:
            return self._hash(ids, *self._operands[num_tokens])
        rows = np.empty((len(self._multipliers), num_tokens, self._num_columns), dtype=np.int64)
        for first in range(0, num_tokens, _CHUNK_TOKENS):
            chunk = slice(first, first + _CHUNK_TOKENS)
            rows[:, chunk] = self._hash(ids[chunk], self._sizes, self._offsets)
        return rows

    def _padded(self, windows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The windows with the pad id in every blocked slot."""
        is_blocked = windows == DEAD
        if self._blocks_farther:
            is_blocked = np.logical_or.accumulate(is_blocked, axis=1)
        return np.where(is_blocked, self._pad, windows)

    # Any: signed or unsigned, see __init__
    def _hash(self, ids: npt.NDArray[Any], sizes: npt.NDArray[Any], offsets: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        # The order-n hash is the exclusive or of the first n products.
        rows = _running_xor(ids * self._multipliers, 2).take(self._order_of_column, 2)
        rows %= sizes
        rows += offsets
        return rows.view(_INT64)


# Steps of at most this many tokens are hashed into a buffer. Of more tokens the memory that the allocator hands out was
# freed a moment ago and is in the caches, and a buffer is not: 8,192 tokens take 1.5 ms anew and 2.6 ms into a buffer.
MAX_BUFFERED_TOKENS = 64


@dataclass(frozen=True, slots=True)
class RowIdBuffer:
    """Memory for the row ids of steps of one size: each hash into it writes over the one before.

    ``row_ids``: ``[layers, num_tokens, rows_per_token] int64``, contiguous, in the memory of the CPU at ``address``.
    ``EngramHasher.buffer`` makes one.
    """

    num_tokens: int
    row_ids: "torch.Tensor"
    address: int

    def check(self, num_tokens: int) -> None:
        """Refuse another number of tokens.

        Raises:
            BadInput: with both numbers.
        """
        if num_tokens != self.num_tokens:
            raise BadInput(f"out has room for the row ids of {self.num_tokens} tokens; windows has {num_tokens}")


class EngramHasher:
    """Hashes the windows of a step into row ids of all Engram layers at once, on a CPU or a GPU.

    On a GPU one Triton kernel does it where triton is installed; ``has_kernel`` says whether it does. On a CPU one
    call of a compiled loop does it where numba is installed, else NumPy.
    """

    def __init__(self, engram: Engram, device: "torch.device", folded_pad_id: int | None = None) -> None:
        import torch

        from tiercast_runtime.compiled_hash import CompiledHasher

        self.engram = engram
        self.device = device
        self.has_kernel = device.type == "cuda" and importlib.util.find_spec("triton") is not None
        self._pad = engram.pad_token_id if folded_pad_id is None else folded_pad_id
        self._on_host = NumpyHasher(engram, folded_pad_id)
        self._compiled = CompiledHasher.find(engram, self._pad) if device.type == "cpu" else None
        sizes, offsets = head_moduli(engram)
        self._multipliers = torch.from_numpy(hash_multipliers(engram).copy()).to(device)
        self._sizes = torch.from_numpy(sizes).to(device)
        self._offsets = torch.from_numpy(offsets).to(device)

    def buffer(self, num_tokens: int) -> RowIdBuffer:
        """Memory for the row ids of this many tokens, for ``row_ids`` on a CPU."""
        import torch

        shape = (len(self.engram.layer_ids), num_tokens, self.engram.num_rows_per_token)
        row_ids = torch.from_numpy(np.empty(shape, np.int64))
        return RowIdBuffer(num_tokens, row_ids, row_ids.data_ptr())

    def row_ids(self, windows: "torch.Tensor", out: RowIdBuffer | None = None) -> "torch.Tensor":
        """Row ids ``[layers, tokens, rows_per_token] int64`` of windows ``[tokens, max_order] int64``.

        On a CPU they go into ``out`` when given, which spares a decode step the making of a tensor. On a GPU the
        allocator hands the same memory out again by itself, and in the order of the streams: ``out`` is for CPUs only.

        Raises:
            BadInput: windows of another shape or type or, on the CPU, with ids outside the folded vocabulary; an
                ``out`` for another number of tokens.
        """
        if not windows.is_cpu:
            assert out is None, "a buffer lies in the memory of the CPU"
            return self.kernel_row_ids(windows) if self.has_kernel else self.torch_row_ids(windows)
        if self._compiled is not None:
            return self._compiled.row_ids(windows, out)
        import torch

        # a decode step hashes a few tokens: NumPy needs 8 µs where torch's dispatch of the same takes 70 µs
        found = torch.from_numpy(self._on_host.row_ids(windows.numpy()))
        if out is None:
            return found
        out.check(len(windows))
        return out.row_ids.copy_(found)

    def kernel_row_ids(self, windows: "torch.Tensor", out: "torch.Tensor | None" = None) -> "torch.Tensor":
        """The same by one kernel launch, without waiting for it; into ``out`` when given. Needs triton.

        Ids outside the folded vocabulary cannot leave the table (the modulus bounds them), so they are not looked for.

        Raises:
            BadInput: windows or ``out`` of another shape or type.
        """
        from tiercast_runtime.hash_kernel import launch_hash

        return launch_hash(
            windows,
            self._multipliers,
            self._sizes,
            self._offsets,
            pad=self._pad,
            blocks_farther=self.engram.rules.blocks_farther,
            out=out,
        )

    def torch_row_ids(self, windows: "torch.Tensor") -> "torch.Tensor":
        """The same in torch operations alone, on any device and without waiting for it.

        Ids outside the folded vocabulary cannot leave the table (the modulus bounds them), so they are not looked for.
        """
        import torch

        max_order = self.engram.ngram_orders[-1]
        if windows.ndim != 2 or windows.shape[1] != max_order or windows.dtype != torch.int64:
            raise BadInput(f"windows is {windows.dtype} {list(windows.shape)}; must be int64 [tokens, {max_order}]")
        is_blocked = windows == DEAD
        if self.engram.rules.blocks_farther:
            is_blocked = torch.cumsum(is_blocked, dim=1) > 0
        products = windows.masked_fill(is_blocked, self._pad)[None] * self._multipliers[:, None, :]
        mix = products[:, :, 0]
        mixes = []
        for look_back in range(1, max_order):
            mix = torch.bitwise_xor(mix, products[:, :, look_back])
            mixes.append(mix)
        rows = torch.remainder(torch.stack(mixes, dim=2)[..., None], self._sizes[:, None]).add_(self._offsets[:, None])
        result: torch.Tensor = rows.reshape(len(self.engram.layer_ids), len(windows), self.engram.num_rows_per_token)
        return result
