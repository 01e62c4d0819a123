"""A lookup shared out over ranks, beside the same in one process and beside the all-gather of the same bytes alone.

Ranks are processes of this machine over gloo; with GPUs the same code runs over NCCL. ``--record FILE`` keeps the
figures.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from tiercast_profiles.rng import stream
from tiercast_profiles.stats import median, quantile
from tiercast_profiles.store import load_model
from tiercast_runtime.hashing import EngramHasher
from tiercast_runtime.paths.base import LookupPath
from tiercast_runtime.paths.cpu_gather import CpuGatherPath
from tiercast_runtime.shard import HeadShard, build_shard_tables
from tiercast_runtime.sharded_lookup import ShardedLookup, all_gather, join_group
from write_record import write_record

CPU = torch.device("cpu")
NUM_RANKS = 2
NUM_TOKENS = (1, 8, 64, 512, 2048)
REPEATS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--meet", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.rank is not None:
        timed = rank_times(options.rank, options.meet)
        if options.rank == 0:
            print(json.dumps(timed))
        return
    alone = single_times()
    with tempfile.TemporaryDirectory() as folder:
        arguments = [sys.executable, __file__, "--meet", f"file://{folder}/meet", "--rank"]
        environment = {"GLOO_SOCKET_IFNAME": "lo", **os.environ}
        ranks = [
            subprocess.Popen([*arguments, str(rank)], stdout=subprocess.PIPE, text=True, env=environment)
            for rank in range(NUM_RANKS)
        ]
        said = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "a rank failed"
    sharded = json.loads(said[0])
    show(alone, sharded)
    if options.record is not None:
        lookups = [
            {"num_tokens": count, "single_process": alone[str(count)], **sharded[str(count)]} for count in NUM_TOKENS
        ]
        figures: dict[str, object] = {"quartiles_us": lookups}
        write_record(
            options.record, figures, num_ranks=NUM_RANKS, backend="gloo", repeats=REPEATS, torch=str(torch.__version__)
        )


def single_times() -> dict[str, list[float]]:
    engram = load_model("tiny").engram
    path = CpuGatherPath(build_shard_tables(HeadShard(engram, 0, 1), "dram", "packed", CPU, Path()), CPU)
    found = {str(count): timed(lambda ids: path.fetch(0, ids), asked(count)) for count in NUM_TOKENS}
    path.close()
    return found


def rank_times(rank: int, meet: str) -> dict[str, dict[str, list[float]]]:
    engram = load_model("tiny").engram
    group = join_group(rank, NUM_RANKS, meet, CPU)
    shard = HeadShard(engram, rank, NUM_RANKS)
    path: LookupPath = ShardedLookup(
        CpuGatherPath(build_shard_tables(shard, "dram", "packed", CPU, Path()), CPU), shard, group
    )
    whole = CpuGatherPath(build_shard_tables(HeadShard(engram, 0, 1), "dram", "packed", CPU, Path()), CPU)
    found = {}
    for count in NUM_TOKENS:
        ids = asked(count)
        assert torch.equal(path.fetch(0, ids[0]).rows, whole.fetch(0, ids[0]).rows), "the rows are those of one process"
        own = torch.zeros(count * len(shard.columns) * engram.row_bytes, dtype=torch.uint8)
        every = torch.empty(NUM_RANKS * len(own), dtype=torch.uint8)
        found[str(count)] = {
            "sharded": timed(lambda one: path.fetch(0, one), ids),
            "all_gather_alone": timed(lambda _, every=every, own=own: all_gather(every, own, group), ids),
        }
    dist.barrier(group)
    path.close()
    whole.close()
    dist.destroy_process_group()
    return found


def asked(num_tokens: int) -> list[torch.Tensor]:
    """Row ids of other random tokens for each repeat: the same on every rank, never twice."""
    engram = load_model("tiny").engram
    generator = stream(num_tokens, "bench-sharded")
    shape = (REPEATS * num_tokens, engram.ngram_orders[-1])
    windows = torch.from_numpy(generator.integers(0, engram.compressed_vocab_size, shape))
    return list(EngramHasher(engram, CPU).row_ids(windows)[0].split(num_tokens))


def timed(work: Callable[[torch.Tensor], object], ids: list[torch.Tensor]) -> list[float]:
    """Lower quartile, median and upper quartile in µs."""
    work(ids[0])
    taken = []
    for one in ids:
        begin = time.perf_counter_ns()
        work(one)
        taken.append((time.perf_counter_ns() - begin) / 1e3)
    return [round(value, 1) for value in (quantile(taken, 0.25), median(taken), quantile(taken, 0.75))]


def show(alone: dict[str, list[float]], sharded: dict[str, dict[str, list[float]]]) -> None:
    row_bytes, columns = load_model("tiny").engram.row_bytes, load_model("tiny").engram.num_rows_per_token
    print(f"{NUM_RANKS} ranks over gloo, {columns} rows of {row_bytes} bytes a token; median us [quartiles]")
    print(
        "tokens        one process      shared out over ranks          all-gather alone   shared / alone, / all-gather"
    )
    for count in NUM_TOKENS:
        one, both = alone[str(count)], sharded[str(count)]
        shared, gather = both["sharded"], both["all_gather_alone"]
        texts = [f"{m:8.0f} [{low:.0f} .. {high:.0f}]" for low, m, high in (one, shared, gather)]
        print(f"{count:6}  " + "  ".join(f"{text:>24}" for text in texts), end="")
        print(f"   x{shared[1] / one[1]:.1f}  x{shared[1] / gather[1]:.2f}")


if __name__ == "__main__":
    main()
