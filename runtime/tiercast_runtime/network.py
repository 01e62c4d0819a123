"""What a step computes with: the weights, and the lookups that feed its Engram layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tiercast_runtime.backbone import Backbone
from tiercast_runtime.hashing import EngramHasher
from tiercast_runtime.layer import EngramLayer
from tiercast_runtime.paths.base import LookupPath
from tiercast_runtime.prefetch import Prefetcher
from tiercast_runtime.scheduler import SlotMove


@dataclass(frozen=True, slots=True)
class Network:
    """Weights and lookups of one run. ``rope_table`` is ``[positions, head_dim / 2] complex64``.

    ``engram_layers`` in layer order; ``hasher``, ``path`` and ``prefetcher`` are None where there are no tables.
    ``pad_slot`` is a slot of the KV cache that no sequence gets.
    """

    backbone: Backbone
    num_layers: int
    rope_table: torch.Tensor
    engram_layers: tuple[EngramLayer, ...]
    hasher: EngramHasher | None
    path: LookupPath | None
    prefetcher: Prefetcher | None
    max_order: int
    row_bytes: int
    rows_per_token: int
    pad_slot: int

    def move(self, moves: Sequence[SlotMove]) -> None:
        """Move what sequences keep between steps from slot to slot, in the order given."""
        for move in moves:
            self.backbone.move_slot(move.source, move.target, move.num_tokens)
            for layer in self.engram_layers:
                if layer.convolution is not None:
                    layer.convolution.move_slot(move.source, move.target)
