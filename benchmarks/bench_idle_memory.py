"""Rows of tables in memory that nothing has read for a while, beside the same of tables whose pages were touched.

On a machine of its own both take the same. Where the host of a virtual machine takes away what lies still, the first
touch of a page is slow, and the second is not.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch

from figures import Figures
from tiercast_profiles.rng import stream
from tiercast_profiles.units import MIB, NS_PER_S
from tiercast_runtime.device import set_compute_threads
from tiercast_runtime.host_loops import RowGather
from tiercast_runtime.idle_memory import Touch
from tiercast_runtime.memory import HostBlock
from tiercast_runtime.probes.timing import Spread

NUM_TABLES, TABLE_BYTES, ROW_BYTES = (
    32,
    121 * MIB,
    264,
)  # half of them are touched; in all about half of what a suite takes
LOOKUP_ROWS, LOOKUPS = 300, 2
WAITS_S, ROUNDS = (5, 10, 20, 40), 3
FLUSH_VALUES = 16 << 20  # 64 MiB, computed with before each lookup as the layers of a step are

Samples = dict[str, list[float]]


class _Tables:
    """Filled tables, and lookups of random rows in them."""

    def __init__(self) -> None:
        self._blocks = [HostBlock(TABLE_BYTES) for _ in range(NUM_TABLES)]
        self._num_rows = TABLE_BYTES // ROW_BYTES
        self._gathers = []
        for place, block in enumerate(self._blocks):
            block.array[:] = place
            rows = block.array[: self._num_rows * ROW_BYTES].reshape(self._num_rows, ROW_BYTES)
            self._gathers.append(RowGather([rows], ROW_BYTES, f"table {place}"))
        self._all, self._kept = Touch(), Touch()
        for place, block in enumerate(self._blocks):
            self._all.watch(block)
            if place % 2 == 0:
                self._kept.watch(block)
        self._generator = stream(0, "idle memory")
        self._flushed = torch.ones(FLUSH_VALUES)
        self._target = np.empty((LOOKUP_ROWS, ROW_BYTES), dtype=np.uint8)

    def stand_still(self, seconds: float) -> None:
        """Compute for so long; half of the tables are touched every two seconds, the others lie still."""
        self._all()
        ends_ns = time.perf_counter_ns() + round(seconds * NS_PER_S)
        while time.perf_counter_ns() < ends_ns:
            self._flushed.add_(1)
            self._kept()

    def look_up(self) -> Samples:
        """Mean time of a row in ns: of rows that are touched for the first time and at once again, table by table."""
        found: Samples = {"touched": [], "left alone": [], "left alone, again": []}
        for place, gather in enumerate(self._gathers):
            kept = place % 2 == 0
            for _ in range(LOOKUPS):
                ids = self._generator.integers(0, self._num_rows, LOOKUP_ROWS)
                first_ns, again_ns = self._time(gather, ids), self._time(gather, ids)
                assert (self._target == place).all(), "rows of another table"
                found["touched" if kept else "left alone"].append(first_ns)
                if not kept:
                    found["left alone, again"].append(again_ns)
        return found

    def _time(self, gather: RowGather, ids: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> float:
        self._flushed.add_(1)
        begin_ns = time.perf_counter_ns()
        gather.gather(ids, self._target)
        return (time.perf_counter_ns() - begin_ns) / LOOKUP_ROWS


def main() -> None:
    figures = Figures("Rows of tables in memory that stood still")
    set_compute_threads()
    tables = _Tables()
    figures.note(
        f"{NUM_TABLES} tables of {TABLE_BYTES // MIB} MiB in huge pages, {LOOKUPS} lookups of {LOOKUP_ROWS} rows of "
        f"{ROW_BYTES} B in each, {ROUNDS} rounds"
    )
    found: dict[int, Samples] = {wait: {} for wait in WAITS_S}
    for _ in range(ROUNDS):
        for wait in WAITS_S:
            tables.stand_still(wait)
            for way, samples in tables.look_up().items():
                found[wait].setdefault(way, []).extend(samples)
    for wait, by_way in found.items():
        spreads = {way: Spread(way, tuple(samples)) for way, samples in by_way.items()}
        figures.compare(f"after {wait} s", spreads, unit="ns", ours="touched", aside=("left alone, again",))
        figures.note(f"after {wait} s, mean and worst: {', '.join(_said(way, by_way[way]) for way in by_way)}")
    figures.finish()


def _said(way: str, samples: Sequence[float]) -> str:
    return f"{way} {sum(samples) / len(samples):.0f} and {max(samples):.0f} ns"


if __name__ == "__main__":
    main()
