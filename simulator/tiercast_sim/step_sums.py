"""Sums over the steps of a run, from step logs or from columns: what the answers of a record are made of."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tiercast_sim.run import RunResult
from tiercast_sim.step_table import StepTable

Numbers = Sequence[int] | npt.NDArray[np.int64]


def total(values: Numbers) -> int:
    """Exact sum of whole numbers."""
    return int(values.sum()) if isinstance(values, np.ndarray) else sum(values)


def elapsed_ns(result: RunResult) -> int:
    """From run start to the last finish."""
    finish = result.data.requests.finish_ns
    return int(finish.max()) if isinstance(finish, np.ndarray) else max(finish)


def stalls_by_layer(result: RunResult, num_layers: int) -> list[int]:
    """Stall of every Engram layer over all steps."""
    if isinstance(result.steps, StepTable):
        known = [int(stall_ns) for stall_ns in result.steps.layers.stall_ns.sum(axis=1)]
        return known + [0] * (num_layers - len(known))
    stalls = [0] * num_layers
    for step in result.steps:
        for index, layer in enumerate(step.layers):
            stalls[index] += layer.stall_ns
    return stalls


def busy_by_replica(result: RunResult) -> dict[int, tuple[int, int]]:
    """Time each replica's devices computed, and time its lookups were served."""
    steps = result.data.steps
    if isinstance(result.steps, StepTable):
        return {0: (total(steps.duration_ns) - total(steps.stall_ns), total(steps.lookup_ns))}
    busy: dict[int, tuple[int, int]] = {}
    for step in result.steps:
        compute_ns, lookup_ns = busy.get(step.replica, (0, 0))
        busy[step.replica] = (compute_ns + step.duration_ns - step.stall_ns, lookup_ns + step.lookup_ns)
    return dict(sorted(busy.items()))


def mean_batch(result: RunResult) -> float:
    """Sequences that decoded at once, weighted by time."""
    steps = result.data.steps
    weighted = sum(n * ns for n, ns in zip(_whole(steps.decode_sequences), _whole(steps.duration_ns), strict=True))
    return weighted / elapsed_ns(result)


def _whole(values: Numbers) -> Sequence[int]:
    """As Python's whole numbers, whose products cannot overflow."""
    return values.tolist() if isinstance(values, np.ndarray) else values
