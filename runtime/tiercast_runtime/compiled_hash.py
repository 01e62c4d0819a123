"""The hash of a step as one call of a compiled loop, for CPUs. Importing this module imports torch, not numba."""

import numpy as np
import torch

from tiercast_profiles.model import Engram
from tiercast_runtime.hashing import RowIdBuffer, check_windows, hash_multipliers, head_moduli
from tiercast_runtime.host_loops import compiled_loops

_INT64, _TORCH_INT64 = np.dtype(np.int64), torch.int64


class CompiledHasher:
    """Row ids of windows in CPU memory, for ``EngramHasher``. ``find`` makes one where it can be had.

    What does not depend on the tokens lies in one array, so a call hands over four numbers. Of the time of one token
    40 % goes into making the tensor of the result, which a buffer saves, and less than a tenth into the arithmetic.
    """

    def __init__(self, engram: Engram, folded_pad_id: int) -> None:
        loops = compiled_loops()
        assert loops is not None, "CompiledHasher.find says whether there is a compiled loop"
        self._loop = loops.hash_windows
        self._engram = engram
        self._max_order = engram.ngram_orders[-1]
        self._num_layers, self._num_columns = len(engram.layer_ids), engram.num_rows_per_token
        header = [self._num_layers, self._max_order, engram.num_heads_per_order, engram.compressed_vocab_size]
        header += [folded_pad_id, int(engram.rules.blocks_farther)]
        assert len(header) == loops.PLAN_HEADER, "the loop reads this many"
        arrays = (np.array(header), hash_multipliers(engram), *head_moduli(engram))
        self._plan = np.concatenate([array.reshape(-1) for array in arrays]).astype(np.int64)
        self._plan_address = int(self._plan.ctypes.data)

    @classmethod
    def find(cls, engram: Engram, folded_pad_id: int) -> "CompiledHasher | None":
        """None where numba is missing, or where the pad id is none of the vocabulary: its product may overflow."""
        if compiled_loops() is None or not 0 <= folded_pad_id < engram.compressed_vocab_size:
            return None
        return cls(engram, folded_pad_id)

    def row_ids(self, windows: torch.Tensor, out: RowIdBuffer | None = None) -> torch.Tensor:
        """Row ids ``[layers, tokens, rows_per_token] int64`` of windows ``[tokens, max_order] int64``.

        Raises:
            BadInput: windows of the wrong shape or type, or ids outside the folded vocabulary; a buffer of another
                number of tokens.
        """
        shape = windows.shape  # asked once: each look at a tensor costs a tenth of the hash of a token
        if windows.dtype is not _TORCH_INT64 or len(shape) != 2 or shape[1] != self._max_order:
            check_windows(self._engram, windows.numpy())
        if not windows.is_contiguous():
            windows = windows.contiguous()
        num_tokens = shape[0]
        if out is None:
            # NumPy makes the memory and torch takes it over: 0.6 µs where torch.empty takes 1.5 µs.
            rows = torch.from_numpy(np.empty((self._num_layers, num_tokens, self._num_columns), _INT64))
            address = rows.data_ptr()
        else:
            out.check(num_tokens)
            rows, address = out.row_ids, out.address
        if self._loop(windows.data_ptr(), num_tokens, self._plan_address, address) >= 0:
            check_windows(self._engram, windows.numpy())
            raise AssertionError("the loop refused windows that are right")
        return rows
