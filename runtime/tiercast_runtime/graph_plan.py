"""Which steps run as captured graphs: batch sizes worth a capture, and the pieces of a step between its lookups."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from tiercast_profiles.hardware import HOST_DRIVEN_PATHS
from tiercast_profiles.scenario import GraphMode, ResolvedPlacement
from tiercast_runtime.decode_attention import has_kernels

MAX_GRAPH_ROWS = 1024  # a larger decode batch keeps the GPU busy for longer than its launches take
# Up to 64 rows in steps of 8, up to 256 of 16, up to 512 of 32, then of 64: few captures, little padding.
_STEPS = ((64, 8), (256, 16), (512, 32), (MAX_GRAPH_ROWS, 64))


def bucket_sizes(max_rows: int) -> tuple[int, ...]:
    """Batch sizes to capture for batches of up to ``max_rows``, ascending; the largest batch has one of its own."""
    sizes = {1, 2, 4}
    first = 0
    for last, step in _STEPS:
        sizes.update(range(first + step, last + 1, step))
        first = last
    largest = min(max_rows, MAX_GRAPH_ROWS)
    return tuple(sorted({size for size in sizes if size < largest} | {largest}))


def bucket_for(num_rows: int, sizes: Sequence[int]) -> int | None:
    """The smallest captured size that holds a batch; None when all are too small."""
    return next((size for size in sizes if size >= num_rows), None)


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
