"""Row gathers from memory: the runtime's paths beside NumPy's and torch's own."""

import numpy as np
import torch

from tiercast_profiles.rng import stream
from tiercast_runtime.memory import HostBlock
from tiercast_runtime.paths.cpu_gather import CpuGatherPath
from tiercast_runtime.paths.device import DevicePath
from tiercast_runtime.probes.gather import BlockTable, fill_random, random_ids
from tiercast_runtime.probes.timing import Effort, collect, seconds, timed

ROW_BYTES = 264
COUNTS = (24, 96, 768, 3072)
BLOCK_BYTES = 256 << 20


def main() -> None:
    torch.set_num_threads(1)
    block = HostBlock(BLOCK_BYTES)
    fill_random(block.array)
    table = BlockTable(torch.from_numpy(block.array), ROW_BYTES)
    rows = table.parts[0]
    cpu = torch.device("cpu")
    device, gather = DevicePath([table], cpu), CpuGatherPath([table], cpu)
    ways = {
        "ours: device path": lambda ids: device.fetch(0, ids).rows,
        "ours: cpu_gather path": lambda ids: gather.fetch(0, ids).rows,
        "numpy rows[ids]": lambda ids: torch.from_numpy(rows.numpy()[ids[0].numpy()]),
        "numpy.take": lambda ids: torch.from_numpy(np.take(rows.numpy(), ids[0].numpy(), axis=0)),
        "torch.index_select": lambda ids: torch.index_select(rows, 0, ids[0]),
        "torch F.embedding": lambda ids: torch.nn.functional.embedding(ids[0], rows),
        "torch EmbeddingBag": lambda ids: bag(ids[0][:, None]),
    }
    # A bag takes floating-point rows only, so the same bytes are given as float32. It adds each row to zero, which
    # turns -0.0 into 0.0: its time counts, its bytes are not compared.
    words = rows.view(torch.float32)
    bag_module = torch.nn.EmbeddingBag.from_pretrained(words, mode="sum")

    def bag(ids):
        with torch.inference_mode():
            return bag_module(ids).view(torch.uint8)

    generator = stream(0, "bench-gather")
    print(f"rows of {ROW_BYTES} B out of {BLOCK_BYTES >> 20} MiB, one thread, fresh ids; median µs [quartiles]")
    for count in COUNTS:
        ids = random_ids(generator, table.num_rows, count)
        expected = torch.from_numpy(rows.numpy()[ids[0].numpy()])
        assert all(torch.equal(way(ids), expected) for name, way in ways.items() if "Bag" not in name), "other rows"
        holder = {"ids": ids}

        def prepare(holder=holder, count=count):
            holder["ids"] = random_ids(generator, table.num_rows, count)

        cases = [timed(name, lambda way=way, h=holder: way(h["ids"]), prepare) for name, way in ways.items()]
        spreads = {spread.key: spread for spread in collect(cases, Effort(seconds(2), 3, 21, 200))}
        best = min(spread.value for name, spread in spreads.items() if not name.startswith("ours"))
        for name, spread in spreads.items():
            low, value, high = (np.array([spread.low, spread.value, spread.high]) / 1e3).round(1)
            print(f"{count:6} rows  {name:24} {value:8} [{low} .. {high}]  best other/this {best / spread.value:.2f}")
    device.close()
    gather.close()


if __name__ == "__main__":
    main()
