"""Row gathers: the time of one lookup by row size and number of rows, through the runtime's own lookup paths.

Every sample draws fresh random rows of a block of memory many times the last cache, so rows come from memory.
The rows that arrive are compared with the block once per case, before any timing.

Assumption A38: for a path the host drives (``cpu_gather``, ``disk``) the time ends with the rows in host staging. On
a GPU the copy over the link follows; its time is that of the link probes and is not part of the curve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tiercast_profiles.hardware import LookupCurve, LookupPath, LookupPoint, ProbeResult, Tier
from tiercast_profiles.head_sizes import table_rows
from tiercast_profiles.model import Engram
from tiercast_profiles.rng import stream
from tiercast_runtime.memory import HostBlock, allowed_host_bytes, available_host_bytes, require_bytes
from tiercast_runtime.paths.base import LookupPath as RuntimePath
from tiercast_runtime.paths.base import StagedRows
from tiercast_runtime.paths.cpu_gather import default_gather_threads
from tiercast_runtime.paths.device import DevicePath
from tiercast_runtime.paths.uva import UvaPath
from tiercast_runtime.probes.block_content import WrongRows, fill_random
from tiercast_runtime.probes.device_timer import DeviceTimer, Timed
from tiercast_runtime.probes.fit import as_quantities
from tiercast_runtime.probes.timing import (
    Case,
    Effort,
    Spread,
    collect,
    probe_result,
    rounded,
    to_us,
)
from tiercast_runtime.table import MemoryTable

CPU_LINE_BYTES = 64
GPU_SECTOR_BYTES = 32  # the unit a GPU reads memory in, its own or the host's
SWEEP_ROWS = (1, 16, 96, 512, 3072)
FAR_SMALLER = 4  # a table so many times smaller than the sweep's is another case: the last cache may hold it

GatherKey = tuple[LookupPath, int, int, int]  # path, row bytes, rows, footprint bytes


@dataclass(frozen=True, slots=True)
class GatherPlan:
    """What to sweep: pairs of row bytes and numbers of rows, over tables of each footprint."""

    sizes: tuple[tuple[int, tuple[int, ...]], ...]
    footprints_bytes: tuple[int, ...]


def gather_plans(
    engrams: Sequence[Engram], row_bytes: Sequence[int], tokens: Sequence[int], footprints_bytes: tuple[int, ...]
) -> list[GatherPlan]:
    """A sweep over row sizes, with the numbers of rows that these many tokens of the models need.

    A model whose own table is far smaller than the footprints gets its numbers of rows from a table of that size, in a
    plan of its own: a table that the last cache holds is read several times as fast as one that it does not.
    Of the footprints, which ascend, it takes those that host memory may hold here, and at least the first.
    """
    allowed = allowed_host_bytes()
    kept = tuple(size for size in footprints_bytes if allowed is None or size <= allowed) or footprints_bytes[:1]
    wanted: dict[int, set[int]] = {size: set(SWEEP_ROWS) for size in row_bytes}
    own: dict[tuple[int, int], set[int]] = {}
    for engram in engrams:
        counts = {engram.num_rows_per_token * count for count in tokens} | set(SWEEP_ROWS)
        far = wanted.setdefault(engram.row_bytes, set(SWEEP_ROWS))
        own_bytes = max(table_rows(engram)) * engram.row_bytes
        if own_bytes * FAR_SMALLER <= min(kept):
            own.setdefault((own_bytes, engram.row_bytes), set()).update(counts)
        else:
            far.update(counts)
    plans = [GatherPlan(tuple((size, tuple(sorted(counts))) for size, counts in sorted(wanted.items())), kept)]
    plans += [
        GatherPlan(((size, tuple(sorted(counts))),), (own_bytes,)) for (own_bytes, size), counts in sorted(own.items())
    ]
    return plans


def footprint_bytes(least_bytes: int, last_level_cache_bytes: int | None, num_caches: int) -> int:
    """Size of the table to gather from: so many last caches where that is more.

    But at most a quarter of free memory, and what is allowed.
    """
    wanted, free = max(least_bytes, num_caches * (last_level_cache_bytes or 0)), available_host_bytes()
    allowed = allowed_host_bytes()
    return min(wanted, free // 4, free if allowed is None else allowed)


def engram_of_row_bytes(row_bytes: int) -> Engram:
    """An Engram whose packed rows have this size; a path sees bytes, not formats."""
    is_plain = row_bytes % 2 == 0
    return Engram(
        dialect="v41",
        layer_ids=(0,),
        ngram_orders=(2,),
        num_heads_per_order=1,
        rows_per_head=(2,),
        row_values=row_bytes // 2 if is_plain else row_bytes // 33 * 32,
        row_format="bf16" if is_plain else "fp8_block32",
        compressed_vocab_size=2,
        pad_token_id=0,
        hash_seed=0,
    )


class BlockTable(MemoryTable):
    """A block of bytes seen as the rows of a table: one block serves every row size. Pinning it is the caller's."""

    def __init__(self, block: torch.Tensor, row_bytes: int, *, is_pinned: bool = False) -> None:
        super().__init__(engram_of_row_bytes(row_bytes), 0, "packed", num_rows=block.numel() // row_bytes)
        self.parts = (block[: self.num_rows * row_bytes].view(self.num_rows, row_bytes),)
        self.is_pinned = is_pinned


def measure_device_gather(
    plan: GatherPlan, path_name: LookupPath, device: torch.device, effort: Effort
) -> list[Spread[GatherKey]]:
    """Gathers by a GPU: ``device`` from its own memory, ``uva`` from pinned host memory.

    The time is the device's, as in a captured step: the launch is not in it, and rows of earlier gathers have left the
    cache (:class:`DeviceTimer`).

    Raises:
        WrongRows: a path delivered wrong bytes.
        InfeasibleScenario: a table does not fit.
        MissingCapability: host memory cannot be pinned, or triton is missing.
    """
    spreads: list[Spread[GatherKey]] = []
    timed = DeviceTimer(device)
    for size in plan.footprints_bytes:
        require_bytes(size, device if path_name == "device" else torch.device("cpu"), "the table of the gather probe")
        block: HostBlock | None = None
        opened: list[RuntimePath] = []
        try:
            if path_name == "device":
                content = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
            else:
                block = HostBlock(size)
                fill_random(block.array)
                block.pin()
                content = torch.from_numpy(block.array)
            cases = []
            for row_bytes, counts in plan.sizes:
                table = BlockTable(content, row_bytes, is_pinned=block is not None)
                path: RuntimePath = DevicePath([table], device) if block is None else UvaPath([table], device)
                opened.append(path)
                cases += [_device_case((path_name, row_bytes, count, size), path, table, timed) for count in counts]
            spreads += [to_us(spread) for spread in collect(cases, effort)]
        finally:
            torch.cuda.synchronize(device)
            for path in opened:
                path.close()
            if block is not None:
                block.close()
    return spreads


def curve_from(
    spreads: Sequence[Spread[GatherKey]],
    tier: Tier,
    granularity_bytes: int,
    fastest_gb_per_s: float,
    means: Mapping[GatherKey, float] | None = None,
) -> tuple[LookupCurve, tuple[ProbeResult, ...]]:
    """The curve of one path, and its probes: every point's samples, and how far the fitted parameters miss them.

    ``means`` are taken for the points where they are given, else those of each point's samples.
    """
    means = {spread.key: spread.mean for spread in spreads} if means is None else means
    path = spreads[0].key[0]
    points = tuple(
        LookupPoint(
            num_rows=count,
            row_bytes=row_bytes,
            footprint_bytes=size,
            time_us=rounded(mean),
            low_us=rounded(min(spread.low, mean)),
            high_us=rounded(max(spread.high, mean)),
        )
        for spread in spreads
        for mean, (_, row_bytes, count, size) in [(means[spread.key], spread.key)]
    )
    largest = max(point.footprint_bytes for point in points)
    far = [point for point in points if point.footprint_bytes * FAR_SMALLER >= largest]  # not those a cache holds
    fit, quantities = as_quantities(far, granularity_bytes, fastest_gb_per_s)
    curve = LookupCurve(
        tier=tier,
        path=path,
        is_calibrated=True,
        fixed_us=quantities["fixed_us"],
        row_ns=quantities["row_ns"],
        bandwidth_gb_per_s=quantities["bandwidth_gb_per_s"],
        read_granularity_bytes=granularity_bytes,
        removes_duplicates=path == "disk",
        points=points,
    )
    probes = [
        probe_result(
            f"lookup.{tier}.{path}", spread, "us", {"row_bytes": size, "rows": count, "footprint_bytes": footprint}
        )
        for spread in spreads
        for _, size, count, footprint in [spread.key]
    ]
    residual = ProbeResult(
        name=f"lookup.{tier}.{path}.fit",
        parameters={"points": len(far), "what": "root mean square of (fitted - measured) / measured"},
        unit="ratio",
        samples=(rounded(fit.residual_ratio),),
        status="ok",
    )
    return curve, (*probes, residual)


def random_ids(generator: np.random.Generator, num_rows: int, count: int, *, distinct: bool = False) -> torch.Tensor:
    """Row ids ``[1, count] int64``."""
    if distinct:
        return torch.from_numpy(generator.choice(num_rows, size=(1, count), replace=False))
    return torch.from_numpy(generator.integers(0, num_rows, size=(1, count), dtype=np.int64))


def check_rows(staged: StagedRows, expected: torch.Tensor) -> None:
    """Compare staged rows with the expected ``[n, row_bytes]``.

    Raises:
        WrongRows: when a byte differs.
    """
    rows = staged.rows if staged.inverse is None else staged.rows[staged.inverse.reshape(-1)]
    if not torch.equal(rows.cpu(), expected.cpu()):
        raise WrongRows("a lookup path delivered other rows than were asked for; nothing it times can be trusted")


def default_threads(device: torch.device) -> int:
    """Gather threads the runtime gives ``cpu_gather`` beside this device."""
    return default_gather_threads(device)


def _device_case(key: GatherKey, path: RuntimePath, table: MemoryTable, timed: Timed) -> Case[GatherKey]:
    name, row_bytes, count, size = key
    generator = stream(0, f"gather/{name}/{row_bytes}/{count}/{size}")
    ids = random_ids(generator, table.num_rows, count)
    content = table.parts[0]
    check_rows(path.fetch(0, ids.to(path.device)), content[ids[0].to(content.device)])
    path.check()

    def case() -> list[tuple[GatherKey, float]]:
        fresh = random_ids(generator, table.num_rows, count).to(path.device)
        return [(key, timed(lambda: path.fetch(0, fresh)))]

    return case
