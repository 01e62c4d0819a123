"""A chain of dependent reads by one program of a GPU. Importing this module needs triton.

Written for Triton's interpreter as well, so its logic is tested where there is no GPU.
"""

import torch
import triton  # pyright: ignore[reportMissingImports]  # comes with torch for CUDA
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit(do_not_specialize=["num_hops"])
def _chase(words, place, num_hops):  # type: ignore[no-untyped-def]
    """Follow ``words`` from ``place [1] int64`` for ``num_hops`` reads and leave there where that leads."""
    at = tl.load(place)
    for _ in range(num_hops):
        at = tl.load(words + at)
    tl.store(place, at)


def launch_chase(words: torch.Tensor, place: torch.Tensor, num_hops: int) -> None:
    """Enqueue ``num_hops`` dependent reads of ``words [n] int64``; ``place [1] int64`` holds where they go on."""
    # the decorator makes the function a launcher with options of its own
    _chase[(1,)](words, place, num_hops, num_warps=1)  # pyright: ignore[reportIndexIssue, reportCallIssue]
