"""Weights of one Engram layer as a checkpoint has them, widened to what the runtime computes with."""

from dataclasses import dataclass

import torch

from tiercast_profiles.errors import FileProblem
from tiercast_profiles.model import SCALE_BLOCK_VALUES
from tiercast_runtime.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class EngramWeights:
    """All float32: ``projection [inputs, outputs]``, ``q_weight`` and ``k_weight [num_branches, hidden_size]``."""

    projection: torch.Tensor
    q_weight: torch.Tensor
    k_weight: torch.Tensor


def load_weights(checkpoint: Checkpoint, layer_index: int) -> EngramWeights:
    """The weights of one layer, on the host.

    Each value of ``wkv`` is its E4M3 code × 2**(scale code − 127), one scale for every square of 32 × 32.

    Raises:
        FileProblem: a file that cannot be read, or a weight that is not a number.
    """
    engram, backbone = checkpoint.model.engram, checkpoint.model.backbone
    inputs, outputs = engram.embedding_values, engram.projection_outputs(backbone)
    codes = torch.from_numpy(checkpoint.tensor(layer_index, "wkv.weight")).view(torch.float8_e4m3fn)
    exponents = torch.from_numpy(checkpoint.tensor(layer_index, "wkv.scale")).float() - 127
    exponents[exponents == 128] = float("nan")  # scale code 255 (OCP E8M0)
    blocks = torch.exp2(exponents).view(-1, -(-inputs // SCALE_BLOCK_VALUES))
    wide = codes.view(outputs, inputs).float()
    for first in range(0, outputs, SCALE_BLOCK_VALUES):  # a band at a time: the scales are never spread out whole
        scales = blocks[first // SCALE_BLOCK_VALUES].repeat_interleave(SCALE_BLOCK_VALUES)[:inputs]
        wide[first : first + SCALE_BLOCK_VALUES] *= scales
    shape = (backbone.num_branches, backbone.hidden_size)
    q_weight, k_weight = (
        torch.from_numpy(checkpoint.tensor(layer_index, name)).view(torch.bfloat16).float().view(shape)
        for name in ("q_weight", "k_weight")
    )
    for name, weight in (("wkv", wide), ("q_weight", q_weight), ("k_weight", k_weight)):
        if not bool(torch.isfinite(weight).all()):
            raise FileProblem(
                f"{checkpoint.path}: {name} of layer {engram.layer_ids[layer_index]} has values that are not finite"
            )
    return EngramWeights(wide.t().contiguous(), q_weight, k_weight)
