"""Row gathers from memory: path cpu_gather beside NumPy's and torch's own, on the same table with the same ids.

Whatever can write into memory made before does so, into two pieces in turn, as a lookup must: its rows stay while the
next is fetched. Each sample has ids that were never asked for before; where a call
takes microseconds, a sample is several calls in a row, each with ids of its own.
"""

from collections.abc import Callable
from itertools import cycle

import numpy as np
import numpy.typing as npt
import torch

from figures import Figures
from tiercast_profiles.rng import stream
from tiercast_runtime.memory import HostBlock
from tiercast_runtime.paths.cpu_gather import CpuGatherPath
from tiercast_runtime.probes.gather import BlockTable, fill_random, random_ids
from tiercast_runtime.probes.timing import Effort, collect, seconds, timed, to_us

COUNTS = (1, 8, 24, 96, 768, 3072, 24_576, 196_608)
TABLES = ((264, 2 << 30), (256, 2 << 30), (512, 2 << 30), (264, 4 << 30))  # row bytes, table bytes
ROWS_PER_SAMPLE = 768
MAX_CALLS = 64
OURS = "ours: cpu_gather"
UNCHECKED = "numpy.take, ids unchecked"
Way = Callable[[torch.Tensor], object]


def ways_of(table: BlockTable, count: int) -> tuple[dict[str, Way], CpuGatherPath]:
    """Each way from ids ``[1, count]`` to rows."""
    rows, path = table.parts[0], CpuGatherPath([table], torch.device("cpu"), num_threads=1)
    arrays = rows.numpy()
    shape = (count, rows.shape[1])

    def turns() -> Callable[[], torch.Tensor]:
        """Two buffers of a way's own: one that another way has just written would still be in a cache."""
        return cycle([torch.empty(shape, dtype=torch.uint8) for _ in range(2)]).__next__

    def array_turns() -> Callable[[], npt.NDArray[np.uint8]]:
        return cycle([np.empty(shape, dtype=np.uint8) for _ in range(2)]).__next__

    next_out, next_array, next_unchecked = turns(), array_turns(), array_turns()
    # A bag takes floating-point rows only, so the same bytes are given as float32. It adds each row to zero, which
    # turns -0.0 into 0.0: its time counts, its bytes are not compared.
    words, starts = rows.view(torch.float32), torch.arange(count)
    ways: dict[str, Way] = {
        OURS: lambda ids: path.fetch(0, ids).rows,
        "torch.index_select": lambda ids: torch.index_select(rows, 0, ids[0], out=next_out()),
        "numpy.take": lambda ids: np.take(arrays, ids[0].numpy(), axis=0, out=next_array()),
        UNCHECKED: lambda ids: np.take(arrays, ids[0].numpy(), axis=0, out=next_unchecked(), mode="clip"),
        "torch F.embedding": lambda ids: torch.nn.functional.embedding(ids[0], rows),
        "torch EmbeddingBag": lambda ids: torch.nn.functional.embedding_bag(ids[0], words, starts, mode="sum"),
    }
    return ways, path


def measure(figures: Figures, table: BlockTable, table_bytes: int, count: int) -> None:
    generator = stream(0, "bench-gather")
    ways, path = ways_of(table, count)
    ids = random_ids(generator, table.num_rows, count)
    expected = torch.from_numpy(table.parts[0].numpy()[ids[0].numpy()])
    for name, way in ways.items():
        found = way(ids)
        found = found if isinstance(found, torch.Tensor) else torch.from_numpy(np.asarray(found))
        assert "Bag" in name or torch.equal(found, expected), f"{name} gave other rows"
    num_calls = max(1, min(MAX_CALLS, ROWS_PER_SAMPLE // count))
    asked: list[torch.Tensor] = []

    def prepare() -> None:
        asked[:] = [random_ids(generator, table.num_rows, count) for _ in range(num_calls)]

    def sample(way: Way) -> Callable[[], None]:
        def calls() -> None:
            for one in asked:
                way(one)

        return calls

    cases = [timed(name, sample(way), prepare) for name, way in ways.items()]
    spreads = {
        spread.key: to_us(spread).scaled(1 / num_calls) for spread in collect(cases, Effort(seconds(1.5), 2, 15))
    }
    row_bytes = table.parts[0].shape[1]
    figures.compare(
        f"{count:,} rows of {row_bytes} B, {table_bytes >> 30} GiB",
        spreads,
        unit="µs",
        ours=OURS,
        target_ratio=1.0,
    )
    path.close()


def main() -> None:
    figures = Figures("Gather of scattered rows from host memory, one thread")
    torch.set_num_threads(1)
    with torch.inference_mode():
        for row_bytes, table_bytes in TABLES:
            block = HostBlock(table_bytes)
            fill_random(block.array)
            table = BlockTable(torch.from_numpy(block.array), row_bytes)
            for count in COUNTS:
                measure(figures, table, table_bytes, count)
            del table
            block.close()
    figures.finish()


if __name__ == "__main__":
    main()
