"""Row gathers from memory: the runtime's paths beside a fancy index in NumPy and a bare torch index_select."""

import numpy as np
import torch

from tiercast_profiles.rng import stream
from tiercast_runtime.memory import HostBlock
from tiercast_runtime.paths.cpu_gather import CpuGatherPath
from tiercast_runtime.paths.device import DevicePath
from tiercast_runtime.probes.gather import BlockTable, fill_random, random_ids
from tiercast_runtime.probes.timing import Effort, collect, seconds, timed

ROW_BYTES = 264
COUNTS = (96, 768, 3072)
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
        "torch.index_select": lambda ids: torch.index_select(rows, 0, ids[0]),
    }
    generator = stream(0, "bench-gather")
    print(f"rows of {ROW_BYTES} B out of {BLOCK_BYTES >> 20} MiB, one thread, fresh ids; median µs [quartiles]")
    for count in COUNTS:
        ids = random_ids(generator, table.num_rows, count)
        expected = torch.from_numpy(rows.numpy()[ids[0].numpy()])
        assert all(torch.equal(way(ids), expected) for way in ways.values()), "a way returned other rows"
        holder = {"ids": ids}

        def prepare(holder=holder, count=count):
            holder["ids"] = random_ids(generator, table.num_rows, count)

        cases = [timed(name, lambda way=way, h=holder: way(h["ids"]), prepare) for name, way in ways.items()]
        spreads = {spread.key: spread for spread in collect(cases, Effort(seconds(2), 3, 21, 200))}
        plain = spreads["numpy rows[ids]"].value
        for name, spread in spreads.items():
            low, value, high = (np.array([spread.low, spread.value, spread.high]) / 1e3).round(1)
            print(f"{count:6} rows  {name:24} {value:8} [{low} .. {high}]  numpy/this {plain / spread.value:.2f}")
    device.close()
    gather.close()


if __name__ == "__main__":
    main()
