"""How long others would say a step waits for its rows: their published descriptions, written anew for the comparison.

All take the same step: its compute time, the bytes its lookups move, the rate of the link or drive. None of them has a
fixed time a read, a limit of reads per second or a queue, which is what they are compared for.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tiercast_profiles.units import NS_PER_S

UVM_DIVISOR = 10


@dataclass(frozen=True, slots=True)
class PlainStep:
    """What a formula may know of one step; bytes of all Engram layers, rate in bytes per second."""

    compute_ns: int
    moved_bytes: int
    rate_bytes_per_s: float
    num_engram_layers: int
    num_layers: int
    is_prefetched: bool

    @property
    def memory_ns(self) -> float:
        """Time the bytes take at the rate."""
        return self.moved_bytes / self.rate_bytes_per_s * NS_PER_S


def bytes_over_link(step: PlainStep) -> float:
    """Bytes ÷ bandwidth, added to the step, as back-of-envelope estimates do."""
    return step.memory_ns


def torchrec_planner(step: PlainStep) -> float:
    """TorchRec's embedding planner: a tenth of the link without prefetch; with it the link, always blocking.

    ``UVM = PCIe / 10``; with ``prefetch_pipeline`` a term misses × dim × bytes ÷ PCIe that always blocks, because the
    planner does not know the dense time that could hide it (torchrec 1.8: planner/constants.py, planner/types.py).
    """
    return step.memory_ns if step.is_prefetched else step.memory_ns * UVM_DIVISOR


def perfect_overlap(step: PlainStep) -> float:
    """GenZ's ``model_offload``: a step takes the longer of its own time and the offloaded bytes' time."""
    return max(0.0, step.memory_ns - step.compute_ns)


def block_overlap(step: PlainStep) -> float:
    """Calculon's exposed offload time: max(0, memory − compute) block by block, each with one layer's compute."""
    memory_ns = step.memory_ns / step.num_engram_layers
    return step.num_engram_layers * max(0.0, memory_ns - step.compute_ns / step.num_layers)


FORMULAS: dict[str, Callable[[PlainStep], float]] = {
    "bytes ÷ link": bytes_over_link,
    "TorchRec planner (UVM ÷ 10, blocking prefetch)": torchrec_planner,
    "perfect overlap (GenZ)": perfect_overlap,
    "max(0, memory − compute) by block (Calculon)": block_overlap,
}
