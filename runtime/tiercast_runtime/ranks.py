"""``parallel.tensor`` above 1: one process per rank, lookups shared out over them, one record.

What is shared out are the lookups: each rank fetches its own columns, and an all-gather gives every rank all rows. The
backbone and the Engram module are whole on every rank, which all compute the same tokens; a record says so in its
warnings and never counts compute as shared.

Where the tables of tier ``dram`` lie follows ``placement.replication`` (Assumption A17): ``per_node`` is one copy in
memory that all ranks map, ``per_rank`` a whole copy in each, ``none`` a share in each. Shared memory has no name: it
goes with the last process that maps it, however that ended, and ranks end when this process does.
"""

import hashlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch

from tiercast_profiles import errors
from tiercast_profiles.errors import MissingCapability, TiercastError
from tiercast_profiles.hardware import Tier
from tiercast_profiles.record import RunRecord
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_runtime.checkpoint import Checkpoint
from tiercast_runtime.device import num_cores
from tiercast_runtime.engine import EngineRun
from tiercast_runtime.host_pages import MemoryRequest
from tiercast_runtime.shard import HeadShard
from tiercast_runtime.table import HostTable, Table, build_tables

_END_TIMEOUT_S = 20.0
NOT_SHARED_OUT = (
    "compute is not sharded: the ranks share the lookups out and each computes the whole model; step times are not "
    "those of tensor-parallel compute"
)


@dataclass(frozen=True, slots=True)
class RankReport:
    """What one rank says of itself at the end of its runs."""

    rank: int
    device: str
    columns: str
    table_bytes: int
    memory_bytes: Mapping[Tier, int]
    tokens_sha256: str


def bench_ranks(
    resolved: ResolvedScenario,
    *,
    repeats: int,
    folder: Path,
    progress: Callable[[float], None] | None = None,
    checkpoint: Path | None = None,
    memory: MemoryRequest | None = None,
) -> RunRecord:
    """Serve the scenario's workload on ``parallel.tensor`` ranks of this machine; the record is that of rank 0.

    Arguments as for :func:`tiercast_runtime.bench.bench`; ``folder`` exists.

    Raises:
        BadInput: the columns do not divide over so many ranks, or what a rank raised.
        MissingCapability: fewer GPUs than ranks, or what a rank raised.
        TiercastError: a rank ended, or the ranks computed different tokens.
    """
    num_ranks = resolved.scenario.parallel.tensor
    if resolved.placement.tier != "none":
        HeadShard(resolved.model.engram, 0, num_ranks)
    if resolved.hardware.device.kind == "cuda" and torch.cuda.device_count() < num_ranks:
        raise MissingCapability(
            f"parallel.tensor={num_ranks}: this machine has {torch.cuda.device_count()} GPUs that torch can use; lower "
            "it or simulate"
        )
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiercast-ranks-")))
        tables = _common_tables(resolved, folder, checkpoint, memory)
        for table in tables:
            stack.callback(table.close)
        shared = [table.shared for table in tables if isinstance(table, HostTable)]
        order = {
            "resolved": resolved.model_dump_json(),
            "num_ranks": num_ranks,
            "scratch": str(scratch),
            "folder": str(folder),
            "repeats": repeats,
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "memory": None if memory is None else asdict(memory),
            "shared": shared,
            "num_threads": max(1, (num_cores() - 1) // num_ranks),
        }
        processes = []
        for rank in range(num_ranks):
            processes.append(_start(order | {"rank": rank}, [fd for fds in shared for fd in fds]))
            stack.callback(_end, processes[-1])
        reports = _listen(processes, progress)
        record = RunRecord.model_validate_json((scratch / "record.json").read_bytes())
    if len({report.tokens_sha256 for report in reports}) > 1:
        raise TiercastError("the ranks computed different tokens; their devices or builds of torch differ")
    return _with_ranks(resolved, record, reports, is_shared=bool(tables))


def tokens_sha256(runs: Sequence[EngineRun]) -> str:
    """Hash of what some runs computed."""
    return hashlib.sha256(json.dumps([run.token_ids for run in runs]).encode()).hexdigest()


def _common_tables(
    resolved: ResolvedScenario, folder: Path, checkpoint: Path | None, memory: MemoryRequest | None
) -> list[Table]:
    """The one copy that all ranks use, made before they start; empty where each has its own."""
    placement = resolved.placement
    if placement.replication not in ("per_node", "per_numa") or placement.tier not in ("dram", "nvme"):
        return []
    layers = range(len(resolved.model.engram.layer_ids))
    opened = None if checkpoint is None else Checkpoint(checkpoint, resolved.model)
    sources = None if opened is None else [opened.rows(layer) for layer in layers]
    # Not pinned here: every rank that has a GPU registers the memory with it.
    return build_tables(resolved, torch.device("cpu"), folder, sources, memory, is_shared=True)


def _start(order: Mapping[str, object], descriptors: list[int]) -> "subprocess.Popen[bytes]":
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "tiercast_runtime.rank_process"],
            stdin=subprocess.PIPE,  # stays open: its end tells the rank that this process is gone
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=descriptors,
            start_new_session=True,  # Ctrl-C is this side's to handle
        )
    except OSError as error:
        raise MissingCapability(
            f"rank {order['rank']} could not be started ({error}); lower parallel.tensor, or allow this process more "
            "(ulimit -u, or the container's limit)"
        ) from None
    assert process.stdin is not None, "a pipe was asked for"
    try:
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it has ended: its output says so
    return process


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(timeout=_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _readers(
    processes: "list[subprocess.Popen[bytes]]",
    said: "queue.SimpleQueue[tuple[int, bytes | None]]",
    errors_said: list[list[bytes]],
) -> list[threading.Thread]:
    """Threads that put every line of every rank, and None at its end, into ``said``; they run already."""

    def read(rank: int, stream: IO[bytes]) -> None:
        for line in stream:
            said.put((rank, line))
        said.put((rank, None))

    threads = []
    for rank, process in enumerate(processes):
        assert process.stdout is not None, "a pipe was asked for"
        assert process.stderr is not None, "a pipe was asked for"
        threads.append(threading.Thread(target=read, args=(rank, process.stdout), daemon=True))
        threads.append(threading.Thread(target=errors_said[rank].extend, args=(process.stderr,), daemon=True))
    for thread in threads:
        thread.start()
    return threads


def _listen(processes: "list[subprocess.Popen[bytes]]", progress: Callable[[float], None] | None) -> list[RankReport]:
    """What the ranks report at their ends.

    Raises:
        TiercastError: of the class the rank that failed first by itself had; or a rank ended without a word.
    """
    said: queue.SimpleQueue[tuple[int, bytes | None]] = queue.SimpleQueue()
    errors_said: list[list[bytes]] = [[] for _ in processes]
    threads = _readers(processes, said, errors_said)
    reports: dict[int, RankReport] = {}
    problems: list[TiercastError] = []
    silent: list[int] = []
    num_open = len(processes)
    while num_open:
        rank, line = said.get()
        if line is not None:
            message: dict[str, Any] = json.loads(line)  # Any: what a rank wrote
            if "problem" in message:
                kind = getattr(errors, message["problem"], TiercastError)
                text = f"rank {rank}: {message['text']}"
                problems.append(kind(text))
            elif "report" in message:
                reports[rank] = RankReport(**message["report"])
            elif progress is not None:
                progress(float(message["progress"]))
            continue
        num_open -= 1
        if rank not in reports and not problems:
            silent.append(rank)
        if silent or problems:
            # the others wait for this rank in a collective: end them rather than wait for its time limit
            for process in processes:
                if process.stdin is not None:
                    process.stdin.close()
    for thread in threads:
        thread.join()
    own = [problem for problem in problems if type(problem) is not TiercastError]  # not "another rank has ended"
    if silent:
        last = (b"".join(errors_said[silent[0]]).decode("utf-8", errors="replace").strip().splitlines() or [""])[-1]
        code = processes[silent[0]].wait(timeout=_END_TIMEOUT_S)
        raise TiercastError(f"rank {silent[0]} ended with code {code} before its work was done{last and f' ({last})'}")
    if problems:
        raise (own or problems)[0]
    return [reports[rank] for rank in range(len(processes))]


def _with_ranks(
    resolved: ResolvedScenario, record: RunRecord, reports: list[RankReport], *, is_shared: bool
) -> RunRecord:
    """Rank 0's record with all ranks named, their memory summed and what is not shared out said."""
    placement = resolved.placement
    memory = dict.fromkeys(record.metrics.memory_bytes, 0)
    for report in reports:
        for tier, size in report.memory_bytes.items():
            memory[tier] = memory.get(tier, 0) + size
    num_copies = len(reports) if placement.replication == "per_rank" and placement.tier in ("dram", "nvme") else 1
    if is_shared and placement.tier != "none":
        memory[placement.tier] -= (len(reports) - 1) * reports[0].table_bytes
    facts: dict[str, str | int | float | bool] = {
        **record.provenance.facts,
        "num_ranks": len(reports),
        "ranks_share": "lookups",
        "table_copies": num_copies,
        **{
            f"rank_{report.rank}": f"{report.device}; columns {report.columns}; {report.table_bytes} bytes of tables"
            for report in reports
        },
    }
    provenance = record.provenance.model_copy(
        update={"facts": facts, "warnings": (*record.provenance.warnings, NOT_SHARED_OUT)}
    )
    metrics = record.metrics.model_copy(update={"memory_bytes": memory})
    return record.model_copy(update={"provenance": provenance, "metrics": metrics})
