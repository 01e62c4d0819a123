"""Which steps run as captured graphs, and the pieces of a step between its lookups."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from tiercast_profiles.hardware import HOST_DRIVEN_PATHS
from tiercast_profiles.scenario import GraphMode, ResolvedPlacement
from tiercast_runtime.decode_attention import has_kernels


def pieces(num_layers: int, engram_layers: Sequence[int]) -> tuple[range, ...]:
    """Decoder layers of each piece: a piece ends where rows are needed, and the next starts with that Engram layer."""
    bounds = (0, *engram_layers, num_layers)
    return tuple(range(first, last) for first, last in pairwise(bounds))


def runnable_mode(placement: ResolvedPlacement, *, has_ranks: bool = False) -> tuple[GraphMode, str]:
    """The graph mode a placement is run in, and why where it is not the one asked for.

    Rows that the host moves, and rows looked up a step ahead, come from outside the step: a whole-step graph cannot
    wait for them, so the step is cut at its Engram layers.
    """
    if placement.graph_mode != "full":
        return placement.graph_mode, ""
    if has_ranks and placement.tier != "none":
        return "piecewise", "the ranks agree on each lookup on the host"
    if placement.path in HOST_DRIVEN_PATHS:
        return "piecewise", f"path {placement.path!r} is driven by the host"
    if placement.prefetch == "prev_step" and placement.path not in (None, "device"):
        return "piecewise", "prefetch 'prev_step' brings rows from the step before"
    if placement.cache_gib > 0:
        return "piecewise", "a row cache decides at run time what is read"
    return "full", ""


def graph_mode_here(
    placement: ResolvedPlacement,
    device: torch.device,
    *,
    has_backend: bool = False,
    has_ranks: bool = False,
    has_drafts: bool = False,
) -> tuple[GraphMode, str]:
    """The graph mode a placement is run in on this device, and why where it is not the one asked for."""
    mode, reason = runnable_mode(placement, has_ranks=has_ranks)
    if mode != "eager" and has_drafts:
        return "eager", "steps that verify drafts are not captured"
    if mode != "eager" and not has_backend and not has_kernels(device):
        # without the kernels attention has another shape at every length, which no graph can hold
        return "eager", "graphs need a CUDA device and triton"
    return mode, reason
