"""Gather sweeps by the GPU: the arms' own table at full size, then pages, orders, memory node and device memory."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from gpu_evidence.context import Context
from gpu_evidence.plan import Case
from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.gather import GatherSweep, RowOrder
from tiercast_profiles.units import GIB, MIB
from tiercast_runtime.probes.sweep_device import (
    GPU_PLAN,
    Chase,
    DeviceArm,
    Gatherer,
    device_round_trip_ns,
    gatherer,
    sweep_device,
    with_round_trip,
)
from tiercast_runtime.probes.sweep_grid import Arm, SweepPlan
from tiercast_runtime.probes.sweep_host import placed_block
from tiercast_runtime.probes.sweep_ids import RowSource, text_rows
from tiercast_runtime.probes.telemetry import node_of
from tiercast_runtime.probes.timing import Effort, seconds
from tiercast_runtime.table import HostTable

BLOCK_BYTES = 16 * GIB  # of the sweeps beside that of the arms' table: past the reach of a GPU's address translation
TABLE_EFFORT = Effort(seconds(60), num_warm_ups=0, min_rounds=5, max_rounds=9)
EFFORT = Effort(seconds(25), num_warm_ups=0, min_rounds=5, max_rounds=9)
LEAST_HUGE_RATIO = 0.5  # of a table that was to be in huge pages, to be called so
BRIEF_PLAN = SweepPlan(
    payloads=((64,), (256,), (264,), (256, 8)),
    few_payloads=((64,), (264,)),
    num_rows=(16, 64, 256),
    min_footprint_bytes=MIB,
    max_footprint_bytes=4 * MIB,
    num_workers=(16, 64),
)
BRIEF_EFFORT = Effort(0, num_warm_ups=0, min_rounds=2, max_rounds=2)
Pages = Literal["4k", "thp", "1g"]


def table_case() -> Case:
    """The sweep over the arms' table, in the process that has filled and pinned it."""
    return Case("arms", "sweep-table", 110, sweep_table, needs_tables=True)


def cases(context: Context) -> list[Case]:
    """Sweeps that need memory of their own."""
    if context.is_rehearsal:
        return [Case("sweep", "uva-thp", 5, host_case("thp", ("random", "sorted", "text")))]
    return [
        Case("sweep", "uva-thp", 100, host_case("thp", ("random", "sorted", "text"))),
        Case("sweep", "uva-4k", 60, host_case("4k", ("random",))),
        Case("sweep", "device", 45, device_case),
        Case("sweep", "uva-1g", 60, host_case("1g", ("random",))),
        Case("sweep", "uva-remote", 60, host_case("thp", ("random",), is_remote=True)),
    ]


def sweep_table(context: Context) -> dict[str, Any]:
    """All payloads over the memory of the arms' largest table, from 64 MiB to all of it."""
    context.drop_resident()
    tables = [table for table in context.host_tables() if isinstance(table, HostTable)]
    largest = max(tables, key=lambda table: table.parts[0].numel())
    block = largest.parts[0].reshape(-1)
    huge_ratio = None if largest.obtained is None else largest.obtained.huge_ratio
    pages: Pages = "4k" if huge_ratio is not None and huge_ratio < LEAST_HUGE_RATIO else "thp"
    arm = DeviceArm("uva", pages, huge_page_ratio=huge_ratio)
    found = _sweep(context, block, arm, RowSource("random"), is_long=True)
    return keep(context, "table", [found])


def host_case(pages: Pages, orders: tuple[RowOrder, ...], *, is_remote: bool = False) -> Callable[[Context], Any]:
    """A case that sweeps a fresh block of pinned host memory, in one order after the other."""

    def run(context: Context) -> dict[str, Any]:
        place: Literal["local", "remote"] = "remote" if is_remote else "local"
        found, lacking = [], []
        size = 4 * MIB if context.is_rehearsal else min(BLOCK_BYTES, context.room.host_bytes // 4)
        with placed_block(size, Arm(pages, is_remote=is_remote), near=node_of(context.device)) as block:
            if context.device.type == "cuda":
                block.pin()
            content = torch.from_numpy(block.array)
            for order in orders:
                try:
                    source = RowSource(order, text_rows(context.model()) if order == "text" else None)
                except (MissingCapability, BadInput) as error:
                    lacking.append(f"{order}: {error}")
                    continue
                arm = DeviceArm("uva", pages, place, is_full=False, huge_page_ratio=block.huge_page_ratio())
                found.append(_sweep(context, content, arm, source, is_long=False))
            with _by(context) as by:
                trip = device_round_trip_ns(block.array, context.device, by.timed, _chase(context))
        numbers = keep(context, f"{pages}-{place}", [with_round_trip(sweep, trip) for sweep in found])
        return numbers | {"round_trip_ns": trip} | ({"lacking": "; ".join(lacking)} if lacking else {})

    return run


def device_case(context: Context) -> dict[str, Any]:
    """The same rows out of the device's own memory."""
    size = min(BLOCK_BYTES, context.room.device_bytes // 4)
    block = torch.randint(0, 256, (size,), dtype=torch.uint8, device=context.device)
    found = _sweep(context, block, DeviceArm("device", "device", is_full=False), RowSource("random"), is_long=False)
    return keep(context, "device", [found])


def keep(context: Context, name: str, sweeps: list[GatherSweep]) -> dict[str, Any]:
    """Write sweeps for the profile, and say how fast and how well fitted they are."""
    numbers: dict[str, Any] = {}
    for sweep in sweeps:
        context.write(f"gathers/{name}-{sweep.order}.json", sweep.model_dump_json())
        wide = [p for p in sweep.points if p.piece_bytes in {(256,), (264,)}]
        numbers[f"{sweep.order}_best_gb_per_s"] = max(
            sum(p.piece_bytes) * p.num_rows / p.time_us / 1e3 for p in wide or sweep.points
        )
        if sweep.score is not None:
            numbers[f"{sweep.order}_held_out_median"] = sweep.score.held_out_median_ratio
            numbers[f"{sweep.order}_held_out_p90"] = sweep.score.held_out_p90_ratio
    return numbers


def kept_sweeps(context: Context) -> list[GatherSweep]:
    """All sweeps so far; of two with one label the one with more points."""
    best: dict[str, GatherSweep] = {}
    for path in sorted((context.out / "gathers").glob("*.json")):
        sweep = GatherSweep.model_validate_json(path.read_text(encoding="utf-8"))
        if sweep.label not in best or len(sweep.points) > len(best[sweep.label].points):
            best[sweep.label] = sweep
    return [best[label] for label in sorted(best)]


def _sweep(context: Context, block: torch.Tensor, arm: DeviceArm, source: RowSource, *, is_long: bool) -> GatherSweep:
    if context.is_rehearsal:
        plan, effort = BRIEF_PLAN, BRIEF_EFFORT
    else:
        plan, effort = GPU_PLAN, TABLE_EFFORT if is_long else EFFORT
    with _by(context) as by:
        return sweep_device(block, arm, plan, effort, source, by=by)


@contextmanager
def _by(context: Context) -> Iterator[Gatherer]:
    """The GPU's kernel, or in a rehearsal the CPU's indexing on the host's clock; its buffer goes back afterwards."""
    yield _rehearsed(context.device) if context.is_rehearsal else gatherer(context.device)
    context.free()


def _rehearsed(device: torch.device) -> Gatherer:
    def launch(
        table: torch.Tensor, ids: torch.Tensor, out: torch.Tensor, _complaints: torch.Tensor, _programs: int
    ) -> None:
        torch.index_select(table, 0, ids, out=out)

    def timed(work: Callable[[], None]) -> float:
        start_ns = time.perf_counter_ns()
        work()
        return float(max(1, time.perf_counter_ns() - start_ns))

    return Gatherer(device, launch, timed)


def _chase(context: Context) -> Chase:
    """The GPU's chain of reads, or in a rehearsal the CPU's."""
    if context.device.type == "cuda":
        from tiercast_runtime.probes.chase_kernel import launch_chase

        return launch_chase

    def follow(words: torch.Tensor, place: torch.Tensor, num_hops: int) -> None:
        at = int(place[0])
        for _ in range(num_hops):
            at = int(words[at])
        place[0] = at

    return follow
