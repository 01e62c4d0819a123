"""The hash of a step as one call of a compiled loop, for CPUs. Importing this module imports torch, not numba."""

import numpy as np
import torch

from tiercast_profiles.model import Engram
from tiercast_runtime.hashing import check_windows, hash_multipliers, head_moduli
from tiercast_runtime.host_loops import compiled_loops


class CompiledHasher:
    """Row ids of windows in CPU memory, for ``EngramHasher``. ``find`` makes one where it can be had.

    What does not depend on the tokens lies in one array, so a call hands over four numbers. A decode step of one token
    takes about as long as torch needs to make the tensor of its result.
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

    def row_ids(self, windows: torch.Tensor) -> torch.Tensor:
        """Row ids ``[layers, tokens, rows_per_token] int64`` of windows ``[tokens, max_order] int64``.

        Raises:
            BadInput: windows of the wrong shape or type, or ids outside the folded vocabulary.
        """
        if windows.dtype is not torch.int64 or windows.ndim != 2 or windows.shape[1] != self._max_order:
            check_windows(self._engram, windows.numpy())
        whole = windows.contiguous()
        num_tokens = whole.shape[0]
        rows = torch.empty((self._num_layers, num_tokens, self._num_columns), dtype=torch.int64)
        if self._loop(whole.data_ptr(), num_tokens, self._plan_address, rows.data_ptr()) >= 0:
            check_windows(self._engram, windows.numpy())
            raise AssertionError("the loop refused windows that are right")
        return rows
