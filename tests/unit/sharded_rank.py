"""One rank of test_sharded_lookup.py: ``sharded_rank.py RANK NUM_RANKS FOLDER STORY``; says what it saw as JSON."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from tiercast_profiles.errors import TiercastError
from tiercast_profiles.store import load_model
from tiercast_runtime import reference
from tiercast_runtime.content import expected_rows
from tiercast_runtime.paths.base import LookupPath
from tiercast_runtime.paths.cpu_gather import CpuGatherPath
from tiercast_runtime.paths.disk import DiskPath
from tiercast_runtime.prefetch import Prefetcher
from tiercast_runtime.shard import HeadShard, build_shard_tables
from tiercast_runtime.sharded_lookup import ShardedLookup, join_group

CPU = torch.device("cpu")
TINY = load_model("tiny").engram.model_copy(update={"rows_per_head": (401, 401, 401)})  # its columns, fewer rows
DEMO = TINY.model_copy(
    update={
        "dialect": "demo",
        "ngram_orders": (2, 3),
        "rows_per_head": (401, 401),
        "row_format": "bf16",
        "conv_kernel_size": 4,
    }
)


MANY = 150  # tokens whose rows do not come with the first message


def open_path(engram, name, rank, num_ranks, folder, group):
    shard = HeadShard(engram, rank, num_ranks)
    tables = build_shard_tables(shard, "nvme" if name == "disk" else "dram", "split", CPU, folder)
    inner = DiskPath(tables, CPU, depth=8) if name == "disk" else CpuGatherPath(tables, CPU)
    return ShardedLookup(inner, shard, group)


def row_ids(engram, num_tokens):
    """What the oracle hashes; the last token repeats the first, so that there are duplicates."""
    generator = np.random.default_rng(num_tokens)
    windows = generator.integers(-1, engram.compressed_vocab_size, (num_tokens, engram.ngram_orders[-1]))
    if num_tokens > 1:
        windows[-1] = windows[0]
    return torch.from_numpy(reference.row_ids(engram, windows))


def same(engram, layer, ids, staged):
    assert staged.inverse is None
    expected = expected_rows(engram, layer, ids[layer].numpy().reshape(-1))
    assert np.array_equal(staged.rows.numpy(), expected), "rows differ from the oracle's"
    return [staged.num_rows, staged.num_rows_read]


def rows_story(rank, num_ranks, folder, group):
    seen = {}
    for engram in (TINY, DEMO):
        for name in ("cpu_gather", "disk"):
            path = open_path(engram, name, rank, num_ranks, folder, group)
            assert isinstance(path, LookupPath)
            for num_tokens in (0, 1, 7, MANY, 7):
                ids = row_ids(engram, num_tokens)
                counts = [same(engram, layer, ids, path.fetch(layer, ids[layer])) for layer in (0, 1)]
                distinct = [len(np.unique(one.numpy())) for one in ids]
                asked = ids[0].numel()
                assert counts == [[asked, unique if name == "disk" else asked] for unique in distinct]
            prefetcher = Prefetcher(path, "step_entry")
            prefetcher.begin_step(ids)
            for layer in (0, 1):
                same(engram, layer, ids, prefetcher.rows_for(layer))
            prefetcher.close()
            seen[f"{engram.dialect} {name}"] = path.facts["shard_columns_per_rank"]
            path.close()
    return seen


def trouble_story(rank, num_ranks, folder, group):
    path = open_path(TINY, "cpu_gather", rank, num_ranks, folder, group)
    ids, texts = row_ids(TINY, 7), []

    def attempt(layer, asked):
        try:
            path.fetch(layer, asked)
        except TiercastError as error:
            texts.append(f"{type(error).__name__}: {error}")

    attempt(0, ids[0][: 7 - rank])  # another number of tokens on each rank
    attempt(rank, ids[0])  # another layer
    attempt(0, row_ids(TINY, MANY)[0] if rank else ids[0])  # rows with the note on one rank, behind it on the other
    wrong = ids[0].clone()
    wrong[3, 0] = HeadShard(TINY, 0, num_ranks).rows(0).stop  # a row of the next rank in a column of rank 0
    attempt(0, wrong)
    same(TINY, 0, ids, path.fetch(0, ids[0]))  # an error leaves the group in step
    if rank == 1:
        print(json.dumps(texts), flush=True)
        os._exit(0)  # no goodbye: as a crash would
    attempt(0, ids[0])
    print(json.dumps(texts), flush=True)
    os._exit(0)  # the group is broken: leaving it in order would wait for the dead


def main():
    rank, num_ranks, folder, story = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    group = join_group(rank, num_ranks, f"file://{folder}/meet", CPU, timeout_s=30)
    seen = (rows_story if story == "rows" else trouble_story)(rank, num_ranks, folder, group)
    dist.destroy_process_group()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
