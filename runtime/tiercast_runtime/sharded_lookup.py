"""Lookups shared out over ranks: each fetches its own columns, then an all-gather gives every rank all rows.

vLLM places the tables this way under tensor parallelism (docs/features/engram.md). What travels here are the packed
rows: T × R × row bytes end on every rank, of which a rank sends its 1/N.

The ranks exchange a few numbers too: what they are about to gather, and whether each has its rows. So a rank whose file
is damaged, or that is at another step, ends in one line on every rank and not in a hang, a crash of gloo (which ends
the process where messages differ in size) or in wrong rows. These numbers go through gloo on the host, on a GPU too,
where waiting for the device would stop the step. Between CPUs they head a message of always the same size that has
room for the rows of a small lookup: a decode step then makes one collective a lookup, not two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from tiercast_profiles.errors import BadInput, MissingCapability, TiercastError
from tiercast_runtime.paths.base import LookupPath, StagedRows
from tiercast_runtime.shard import HeadShard

DEFAULT_TIMEOUT_S = 60.0
_NOTE = ("num_tokens", "layer_index", "checksum", "num_rows_read", "num_rows_hit", "is_ready")
_NOTE_BYTES = 8 * len(_NOTE)
_MESSAGE_BYTES = 16 * 1024  # 61 rows of 264 B; larger lookups make a second collective


def join_group(
    rank: int, num_ranks: int, init_method: str, device: torch.device, timeout_s: float = DEFAULT_TIMEOUT_S
) -> dist.ProcessGroup:
    """The group of all ranks: gloo between CPUs, NCCL between GPUs with gloo beside it for the host.

    ``init_method`` is ``file://PATH`` or ``tcp://HOST:PORT``, the same for every rank. ``timeout_s`` bounds this call
    and each later collective. Leave with ``torch.distributed.destroy_process_group()``.

    Raises:
        MissingCapability: this torch has no such backend.
        TiercastError: the other ranks did not come in time.
    """
    if not dist.is_available() or not dist.is_gloo_available():
        raise MissingCapability("this torch has no torch.distributed with gloo; install one that has, or use one rank")
    is_gpu = device.type == "cuda"
    if is_gpu and not dist.is_nccl_available():
        raise MissingCapability("this torch has no NCCL, which ranks on GPUs need; install one that has")
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if is_gpu else "gloo",
            init_method=init_method,
            rank=rank,
            world_size=num_ranks,
            timeout=timedelta(seconds=timeout_s),
        )
    except RuntimeError as error:
        raise TiercastError(
            f"rank {rank} could not join the {num_ranks} ranks at {init_method} within {timeout_s:g} s "
            f"({_first_line(error)}); start all ranks with the same address"
        ) from None
    group = dist.group.WORLD
    assert group is not None, "the group was just made"
    return group


@dataclass(frozen=True, slots=True)
class Team:
    """This rank's place among the ranks of a run: its columns, the group, and whether its tables are whole ones.

    ``shard`` is None where there are no tables.
    """

    shard: HeadShard | None
    group: dist.ProcessGroup
    holds_whole: bool = False

    def share(self, path: LookupPath) -> "ShardedLookup":
        """The path over all ranks' columns."""
        assert self.shard is not None, "a path has tables"
        return ShardedLookup(path, self.shard, self.group, holds_whole=self.holds_whole)

    def agree_ns(self, elapsed_ns: int) -> int:
        """Rank 0's time: what depends on it (which requests have arrived) is then the same on every rank.

        Raises:
            TiercastError: another rank has ended.
        """
        time_ns = torch.tensor([elapsed_ns], dtype=torch.int64)
        try:
            dist.broadcast(time_ns, 0, group=self.group)
        except RuntimeError as error:
            raise TiercastError(f"another rank has ended or did not answer in time ({_first_line(error)})") from None
        return int(time_ns)


class ShardedLookup:
    """A lookup path over the columns of all ranks. Every rank makes the same lookups in the same order.

    Args:
        path: how this rank fetches from its own tables (``shard.build_shard_tables``).
        shard: which columns those are.
        group: the ranks; all of them take part in every lookup.
        holds_whole: the path's tables are whole ones, of which this rank uses its columns.

    Raises:
        BadInput: the shard is not this rank's part of this group.
    """

    is_host_driven = True  # the ranks' agreement blocks the host

    def __init__(
        self, path: LookupPath, shard: HeadShard, group: dist.ProcessGroup, *, holds_whole: bool = False
    ) -> None:
        rank, num_ranks = dist.get_rank(group), dist.get_world_size(group)
        if (shard.rank, shard.num_ranks) != (rank, num_ranks):
            raise BadInput(
                f"the shard is rank {shard.rank} of {shard.num_ranks}; this process is rank {rank} of {num_ranks}"
            )
        # not the inner name: the prefetcher treats "device" as compute, and this one talks to other ranks
        self.name = f"sharded_{path.name}"
        self.device = path.device
        self._path = path
        self._shard = shard
        self._group = group
        layers = range(len(shard.engram.layer_ids))
        self._message = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8)
        self._messages = torch.empty((num_ranks, _MESSAGE_BYTES), dtype=torch.uint8)
        # ids of the shard start at 0; in a whole table its rows start behind those of the ranks before
        self._first_rows = [shard.rows(layer).start if holds_whole else 0 for layer in layers]

    @property
    def facts(self) -> Mapping[str, str | int | float | bool]:
        """The inner path's facts, and how the columns are shared out."""
        return {
            **self._path.facts,
            "shard_num_ranks": self._shard.num_ranks,
            "shard_columns_per_rank": len(self._shard.columns),
            "shard_backend": "nccl" if self.device.type == "cuda" else "gloo",
        }

    def fetch(self, layer_index: int, row_ids: torch.Tensor) -> StagedRows:
        """See ``LookupPath.fetch``: the same ``row_ids [T, R]`` of the whole table on every rank, all rows back.

        ``num_rows_read`` is what the tiers of all ranks delivered together, ``num_rows_hit`` what their caches had.

        Raises:
            BadInput: an id of this rank's columns that is not in its rows.
            FileProblem: a table file of this rank that is short or cannot be read.
            TiercastError: another rank failed, makes another lookup, or has ended.
        """
        staged, problem = None, None
        try:
            own_ids = self._shard.local_ids(layer_index, row_ids)
            staged = self._path.fetch(layer_index, own_ids + self._first_rows[layer_index])
            staged.keep()
        except TiercastError as error:
            problem = error
        own = None if staged is None else _in_order(staged)
        notes = self._exchange(self._note(layer_index, row_ids, staged), own)
        num_read, num_hit = self._agree(layer_index, notes, has_rows=staged is not None)
        if problem is not None:
            raise problem
        assert own is not None, "a fetch without an error has rows"
        rows = self._gather(own, len(row_ids))
        return StagedRows(rows, None, num_rows=row_ids.numel(), num_rows_read=num_read, num_rows_hit=num_hit)

    def _note(self, layer_index: int, row_ids: torch.Tensor, staged: StagedRows | None) -> torch.Tensor:
        """What this rank is about to gather, ``[len(_NOTE)] int64``."""
        # reading ids on a GPU would wait for it; there the checksum stays 0
        checksum = int(row_ids.sum()) if row_ids.device.type == "cpu" and not row_ids.is_floating_point() else 0
        if staged is not None and staged.cache_work is not None and self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # the count of hits is the device's
        own = (0, 0, 0) if staged is None else (*staged.counts(), 1)
        return torch.tensor([len(row_ids), layer_index, checksum, *own], dtype=torch.int64)

    def _exchange(self, note: torch.Tensor, own: torch.Tensor | None) -> list[list[int]]:
        """The notes of all ranks; between CPUs the rows of each come with its note where the message has room."""
        if self.device.type == "cuda":
            notes = torch.empty((self._shard.num_ranks, len(_NOTE)), dtype=torch.int64)
            self._collect(notes, note)
        else:
            self._message[:_NOTE_BYTES] = note.view(torch.uint8)
            if own is not None and self._has_room(own):
                self._message[_NOTE_BYTES : _NOTE_BYTES + own.numel()] = own.reshape(-1)
            self._collect(self._messages, self._message)
            notes = self._messages[:, :_NOTE_BYTES].contiguous().view(torch.int64)
        by_rank: list[list[int]] = notes.tolist()
        return by_rank

    def _has_room(self, own: torch.Tensor) -> bool:
        return self.device.type == "cpu" and own.numel() <= _MESSAGE_BYTES - _NOTE_BYTES

    def _agree(self, layer_index: int, notes: list[list[int]], *, has_rows: bool) -> tuple[int, int]:
        """Compare what the ranks are about to gather; rows they have read and hit together."""
        for column, name in enumerate(_NOTE[:3]):
            values = [note[column] for note in notes]
            if len(set(values)) > 1:
                raise TiercastError(
                    f"the ranks do not make the same lookup: {name} by rank is {', '.join(map(str, values))}; "
                    f"all ranks must run the same step"
                )
        failed = [rank for rank, note in enumerate(notes) if not note[5]]
        if failed and has_rows:
            raise TiercastError(
                f"rank {failed[0]} could not fetch its columns of layer {self._layer_id(layer_index)}; "
                f"its own message says why"
            )
        return sum(note[3] for note in notes), sum(note[4] for note in notes)

    def _gather(self, own: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """Packed rows ``[T·R, row_bytes]`` in the order of the whole row ids, from each rank's own."""
        width, num_ranks = self._shard.engram.row_bytes, self._shard.num_ranks
        if num_tokens == 0 or num_ranks == 1:
            return own
        if self._has_room(own):
            by_rank = self._messages[:, _NOTE_BYTES : _NOTE_BYTES + own.numel()]
        else:
            by_rank = torch.empty((num_ranks, own.numel()), dtype=torch.uint8, device=own.device)
            self._collect(by_rank, own.reshape(-1))
        # columns of a rank are neighbours, so token, rank, column is the order of the whole; the copy is the caller's
        ordered = by_rank.view(num_ranks, num_tokens, -1, width).transpose(0, 1)
        return ordered.contiguous().view(-1, width)

    def _collect(self, target: torch.Tensor, own: torch.Tensor) -> None:
        try:
            all_gather(target.view(-1), own, self._group)
        except RuntimeError as error:
            raise TiercastError(
                f"rank {self._shard.rank} of {self._shard.num_ranks}: another rank has ended or did not answer in time "
                f"({_first_line(error)}); end all ranks and start again"
            ) from None

    def _layer_id(self, layer_index: int) -> int:
        return self._shard.engram.layer_ids[layer_index]

    def check(self) -> None:
        """What the inner path has to say."""
        self._path.check()

    def clear_cache(self) -> None:
        """Empty this rank's own cache; every rank empties its own."""
        self._path.clear_cache()

    def fill_cache(self, layer_index: int, row_ids: npt.NDArray[np.int64]) -> None:
        """Fill this rank's own cache with those of ``row_ids [n]``, rows of the whole table, that are this rank's."""
        rows = self._shard.rows(layer_index)
        own_ids = row_ids[(row_ids >= rows.start) & (row_ids < rows.stop)] - rows.start
        self._path.fill_cache(layer_index, own_ids + self._first_rows[layer_index])

    def close(self) -> None:
        """Close the inner path; the group stays its owner's."""
        self._path.close()


def all_gather(target: torch.Tensor, own: torch.Tensor, group: dist.ProcessGroup) -> None:
    """Every rank's ``own`` one behind the other in ``target``, under the name this torch has for it.

    ``all_gather_into_tensor`` is deprecated since torch 2.13, which calls it ``all_gather_single``.
    """
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    getattr(dist, name)(target, own, group=group)


def _in_order(staged: StagedRows) -> torch.Tensor:
    """This rank's rows ``[T·columns, row_bytes]``, duplicates expanded."""
    return staged.rows if staged.inverse is None else staged.rows.index_select(0, staged.inverse.reshape(-1))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
