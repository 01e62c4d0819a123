"""One rank of a bench: ``python -m tiercast_runtime.rank_process``. Started by ``ranks``; never by hand.

Reads its order as one line of JSON, says how it goes in lines of JSON, and ends when the pipe it read from closes,
however the other side ended.
"""

import json
import os
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tiercast_profiles.errors import TiercastError
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_runtime.bench import bench_engine
from tiercast_runtime.checkpoint import Checkpoint
from tiercast_runtime.device import describe, set_compute_threads
from tiercast_runtime.engine import Engine
from tiercast_runtime.host_pages import MemoryRequest
from tiercast_runtime.measured_record import memory_bytes
from tiercast_runtime.ranks import RankReport, tokens_sha256
from tiercast_runtime.saying import Say, say_on_stdout
from tiercast_runtime.shard import HeadShard, build_shard_tables
from tiercast_runtime.sharded_lookup import Team, join_group
from tiercast_runtime.table import Table, build_tables


def main() -> None:
    """Do what the order says."""
    say = say_on_stdout()
    order: dict[str, Any] = json.loads(sys.stdin.buffer.readline())  # Any: what ``ranks`` wrote
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        _work(order, say)
    except TiercastError as error:
        say({"problem": type(error).__name__, "text": str(error)})
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # a broken group would wait for the dead


def _work(order: dict[str, Any], say: Say) -> None:  # Any: as above
    resolved = ResolvedScenario.model_validate_json(order["resolved"])
    rank, num_ranks = int(order["rank"]), int(order["num_ranks"])
    if resolved.hardware.device.kind == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    num_threads = set_compute_threads(int(order["num_threads"]))
    memory = None if order["memory"] is None else MemoryRequest(**order["memory"])
    checkpoint = None if order["checkpoint"] is None else Checkpoint(Path(order["checkpoint"]), resolved.model)
    folder, scratch = Path(order["folder"]), Path(order["scratch"])
    group = join_group(rank, num_ranks, f"file://{scratch}/meet", device)
    shard = None if resolved.placement.tier == "none" else HeadShard(resolved.model.engram, rank, num_ranks)
    tables, holds_whole = _tables(
        resolved, device, folder, shard, checkpoint=checkpoint, memory=memory, shared=order["shared"]
    )
    try:
        with Engine(
            resolved,
            device,
            folder,
            tables=tables,
            checkpoint=checkpoint,
            memory=memory,
            team=Team(shard, group, holds_whole=holds_whole),
        ) as engine:

            def report(share: float) -> None:
                if rank == 0:
                    say({"progress": share})

            record, runs = bench_engine(engine, int(order["repeats"]), num_threads, report)
            if rank == 0:
                (scratch / "record.json").write_text(record.to_json(), encoding="utf-8")
            columns = "none" if shard is None else f"{shard.columns.start} … {shard.columns.stop - 1}"
            told = RankReport(
                rank=rank,
                device=describe(device),
                columns=columns,
                table_bytes=engine.table_bytes,
                memory_bytes=memory_bytes(resolved, engine),
                tokens_sha256=tokens_sha256(runs),
            )
            dist.barrier(group)
        say({"report": asdict(told)})
    finally:
        for table in tables:
            table.close()


def _tables(
    resolved: ResolvedScenario,
    device: torch.device,
    folder: Path,
    shard: HeadShard | None,
    *,
    checkpoint: Checkpoint | None,
    memory: MemoryRequest | None,
    shared: list[list[int]],
) -> tuple[list[Table], bool]:
    """This rank's tables, and whether they are whole ones of which it uses its columns."""
    if shard is None:
        return [], False
    placement = resolved.placement
    layers = range(len(resolved.model.engram.layer_ids))
    sources = None if checkpoint is None else [checkpoint.rows(layer) for layer in layers]
    is_pinned = placement.path == "uva"
    if placement.tier == "hbm" or placement.replication == "none":
        tier = placement.tier
        assert tier in ("hbm", "dram", "nvme"), "others are refused before"
        made = build_shard_tables(
            shard, tier, placement.row_layout, device, folder, is_pinned=is_pinned, sources=sources, memory=memory
        )
        return made, False
    if placement.replication == "per_rank" and placement.tier == "nvme":
        folder = folder / f"rank-{shard.rank}"
        folder.mkdir(exist_ok=True)
    return build_tables(resolved, device, folder, sources, memory, shared=shared or None), True


def _end_with_the_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
