"""Where the time of the steps went, in whole nanoseconds that sum exactly to the steps' own length."""

from collections.abc import Sequence

PARTS = (
    "host overhead",
    "draft model",
    "hash",
    "lookup issue",
    "embed",
    "layers",
    "attention decode",
    "attention prefill",
    "Engram module",
    "head",
    "all-reduce",
    "rows over ranks",
    "settling behind prompts",
    "waiting for launches",
)
"""Parts of a step's compute, in the order :meth:`Ledger.book` takes them."""
GATHER = "gather on device"
SLOWED = "slowed by lookups"


class Ledger:
    """Adds up the compute of all steps that were priced, of all replicas."""

    def __init__(self) -> None:
        self._parts_ns = [0.0] * len(PARTS)
        self.priced_ns = 0
        self.gather_ns = 0

    def book(self, parts_ns: Sequence[float]) -> None:
        """Add one step's compute by part, in the order of :data:`PARTS`."""
        self._parts_ns = [known + part for known, part in zip(self._parts_ns, parts_ns, strict=True)]

    def close(self, priced_ns: int, gather_ns: int) -> None:
        """Add what the same step was priced at in whole nanoseconds, and its gathers on the device (in both)."""
        self.priced_ns += priced_ns
        self.gather_ns += gather_ns

    def breakdown(self, step_ns: int, stall_ns_by_layer: dict[int, int]) -> dict[str, int]:
        """Parts of ``step_ns``, the length of all steps; those of zero are left out.

        What compute and stalls do not explain is time that lookups beside compute took from it (Assumption A14).
        """
        parts: dict[str, int] = dict(
            zip(PARTS, apportion(self.priced_ns - self.gather_ns, self._parts_ns), strict=True)
        )
        parts[GATHER] = self.gather_ns
        parts |= {f"stall layer {layer_id}": stall_ns for layer_id, stall_ns in stall_ns_by_layer.items()}
        parts[SLOWED] = step_ns - sum(parts.values())
        assert parts[SLOWED] >= 0, f"parts exceed the steps by {-parts[SLOWED]} ns"
        return {name: part_ns for name, part_ns in parts.items() if part_ns}


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """``total`` in whole parts as near to the weights' shares as can be (largest remainder).

    Raises:
        ValueError: when there is something to divide and no weight is above zero.
    """
    whole = sum(weights)
    if total == 0:
        return [0] * len(weights)
    if whole <= 0:
        raise ValueError(f"cannot divide {total} by weights that sum to {whole}")
    exact = [total * weight / whole for weight in weights]
    parts = [int(share) for share in exact]
    by_remainder = sorted(range(len(parts)), key=lambda index: (parts[index] - exact[index], index))
    short = total - sum(parts)
    if short < 0:  # totals beyond 2**53 ns lose whole nanoseconds in the shares: take them from the largest part
        parts[max(range(len(parts)), key=lambda index: parts[index])] += short
        return parts
    for index in by_remainder[: min(short, len(parts))]:
        parts[index] += 1
    parts[max(range(len(parts)), key=lambda index: parts[index])] += max(0, short - len(parts))
    return parts
