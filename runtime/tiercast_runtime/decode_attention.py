"""Attention of decoding rows that say on the device where their tokens lie: one kernel on a GPU, torch elsewhere."""

import importlib
import importlib.util
from typing import Any

import torch
from torch.nn import functional


def has_kernels(device: torch.device) -> bool:
    """Whether the decoder's Triton kernels run on this device."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def decoder_kernels(device: torch.device) -> Any:  # Any: a module that only machines with triton can import
    """The module ``backbone_kernels`` where its kernels run, else None."""
    return importlib.import_module("tiercast_runtime.backbone_kernels") if has_kernels(device) else None


def attend_decode(
    queries: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor, lengths: torch.Tensor, out: torch.Tensor
) -> None:
    """Attend with ``queries [n, heads × head_dim]`` to the first ``lengths [n]`` tokens in ``slots [n]`` of a layer.

    ``cache`` is ``[slots, 2 × kv_heads, context, head_dim]``: keys, then values. ``out`` is ``[n, heads × head_dim]``.
    """
    kernels = decoder_kernels(queries.device)
    if kernels is None:
        attend_in_torch(queries, cache, slots, lengths, out)
    else:
        kernels.attend(queries, cache, slots, lengths, out)


def attend_in_torch(
    queries: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor, lengths: torch.Tensor, out: torch.Tensor
) -> None:
    """The same in torch operations of sizes that do not depend on the lengths; copies the cache of every row."""
    count, kv_heads, head_dim = len(queries), cache.shape[1] // 2, cache.shape[3]
    used = cache.index_select(0, slots)
    is_seen = torch.arange(cache.shape[2], device=cache.device) < lengths[:, None]
    grouped = queries.reshape(count, kv_heads, -1, head_dim)
    attended = functional.scaled_dot_product_attention(
        grouped, used[:, :kv_heads], used[:, kv_heads:], attn_mask=is_seen[:, None, None]
    )
    out.copy_(attended.reshape(out.shape))
