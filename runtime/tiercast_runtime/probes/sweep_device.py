"""The gather sweep of a GPU: rows by its own kernel out of pinned host memory, or out of its own, by rows in flight.

The sweep differs from that of the host in who gathers. A sample is the device's time of one gather between two events
that are enqueued while the device is still filling a buffer: the launch is not in it, and the fill has driven the rows
of earlier gathers out of the cache. ``num_workers`` of a point are the rows that all programs of the kernel hold in
flight. The gathered rows are compared with the block before anything is timed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from tiercast_profiles.gather import GatherSweep, MemoryPlace, PageKind
from tiercast_profiles.units import GIB, MIB
from tiercast_runtime.paths.uva import require_uva, rows_per_program
from tiercast_runtime.probes.block_content import WrongRows
from tiercast_runtime.probes.device_timer import MOST_RETRIES, DeviceTimer, Timed
from tiercast_runtime.probes.round_trip import lay_ring
from tiercast_runtime.probes.sweep_grid import Spot, SweepPlan, as_point
from tiercast_runtime.probes.sweep_host import assemble_sweep, measure_spots, parts_of
from tiercast_runtime.probes.sweep_ids import RowSource
from tiercast_runtime.probes.timing import Case, Effort, rounded

Bytes = npt.NDArray[np.uint8]
Launch = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int], None]
Chase = Callable[[torch.Tensor, torch.Tensor, int], None]

GPU_PLAN = SweepPlan(
    num_rows=(64, 1024, 8192, 65_536),
    max_footprint_bytes=1024 * GIB,
    footprint_step=5,  # 64 MiB … 39 GiB, and then the whole of a table of 93 to 97 GiB
    num_workers=(512, 2048, 8192, 32_768),
    max_row_total_bytes=64 * MIB,
)
NUM_HOPS, NUM_CHASES = 2000, 7


@dataclass(frozen=True, slots=True)
class DeviceArm:
    """One way to gather: whose memory, in which pages, at which node; with all payloads or the few.

    ``huge_page_ratio`` is the share of the memory that really is in huge pages; None where the kernel does not say.
    """

    path: Literal["device", "uva"]
    pages: PageKind
    place: MemoryPlace = "local"
    is_full: bool = True
    huge_page_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Gatherer:
    """Who gathers and how it is timed.

    ``launch(table, ids, out, complaints, programs)`` enqueues ``out[i] = table[ids[i]]``; ``timed`` gives the time in
    ns of what a function enqueues.
    """

    device: torch.device
    launch: Launch
    timed: Timed


def gatherer(device: torch.device) -> Gatherer:
    """The runtime's kernel on a GPU, by events behind a fill.

    Raises:
        MissingCapability: no CUDA GPU, or no triton.
    """
    require_uva(device)
    from tiercast_runtime.paths.uva_kernel import launch_gather

    return Gatherer(device, launch_gather, DeviceTimer(device))


def sweep_device(
    block: torch.Tensor, arm: DeviceArm, plan: SweepPlan, effort: Effort, source: RowSource, *, by: Gatherer
) -> GatherSweep:
    """Sweep one arm over a filled block and fit its model.

    Args:
        block: ``[size] uint8``, pinned for ``uva``, on the device for ``device``; as large as the largest footprint.
        arm: path, pages, place, and how many payloads.
        plan: coordinates; ``num_workers`` are rows in flight.
        effort: of the rounds over the points.
        source: draws row ids in its order.
        by: who gathers.

    Raises:
        WrongRows: a gather delivered wrong bytes, or met an id outside its table.
    """
    complaints = torch.zeros(1, dtype=torch.int32, pin_memory=by.device.type == "cuda")
    spots = plan.coarse(plan.footprints(block.numel()), plan.num_workers, is_full=arm.is_full)
    times = measure_spots(spots, plan, effort, lambda spot: _case(spot, block, source, by, complaints))
    if int(complaints[0]):
        raise WrongRows("a gather of the sweep met an id outside its table; nothing it timed can be trusted")
    unique = {spot: rounded(source.unique_ratio(spot)) for spot in times}
    blank = GatherSweep(
        path=arm.path,
        pages=arm.pages,
        order=source.order,
        place=arm.place,
        huge_page_ratio=arm.huge_page_ratio,
        unique_row_ratio=unique[spots[-1]],
        points=(as_point(spots[0], times[spots[0]], is_out=False),),
    )
    return assemble_sweep(blank, times, source.num_distinct_rows, unique)


def with_round_trip(sweep: GatherSweep, round_trip: float) -> GatherSweep:
    """The sweep with the time of a dependent read, and how many reads its fitted model has outstanding."""
    times = {
        Spot(point.piece_bytes, point.footprint_bytes, point.num_rows, point.num_workers): point.samples_us
        for point in sweep.points
    }
    unique = {
        Spot(point.piece_bytes, point.footprint_bytes, point.num_rows, point.num_workers): point.unique_row_ratio
        for point in sweep.points
    }
    distinct = None if sweep.model is None else sweep.model.num_distinct_rows
    return assemble_sweep(sweep.model_copy(update={"round_trip_ns": round_trip}), times, distinct, unique)


def device_round_trip_ns(block: Bytes, device: torch.device, timed: Timed, chase: Chase) -> float:
    """Median time of a dependent read by the GPU, in ns; overwrites some of the block's content.

    Args:
        block: ``[size] uint8``, pinned; a ring of places is laid through all of it.
        device: who reads.
        timed: as in :class:`Gatherer`.
        chase: ``launch_chase`` of ``chase_kernel``.
    """
    usable = len(block) // 8 * 8
    # never the same place twice, also where the host was late
    first = lay_ring(block[:usable].view(np.int64), NUM_HOPS * (NUM_CHASES + 1 + MOST_RETRIES))
    place = torch.full((1,), first, dtype=torch.int64, device=device)
    words = torch.from_numpy(block[:usable].view(np.int64))  # pinned: the GPU reads it where it lies
    samples = sorted(timed(lambda: chase(words, place, NUM_HOPS)) / NUM_HOPS for _ in range(NUM_CHASES + 1))
    return rounded(samples[len(samples) // 2])


def _case(spot: Spot, block: torch.Tensor, source: RowSource, by: Gatherer, complaints: torch.Tensor) -> Case[Spot]:
    parts = parts_of(block, spot)
    table_rows = len(parts[0])
    out = [torch.empty((spot.num_rows, size), dtype=torch.uint8, device=by.device) for size in spot.piece_bytes]
    programs = max(1, spot.num_workers // rows_per_program(spot.num_rows))

    def gather(ids: torch.Tensor) -> None:
        for part, target in zip(parts, out, strict=True):
            by.launch(part, ids, target, complaints, programs)

    ids = torch.from_numpy(source.draw(spot, table_rows))
    gather(ids.to(by.device))
    for part, target in zip(parts, out, strict=True):
        if not torch.equal(target.cpu(), part[ids.to(part.device)].cpu()):
            raise WrongRows("a gather delivered other rows than were asked for; nothing it times can be trusted")

    def case() -> list[tuple[Spot, float]]:
        fresh = torch.from_numpy(source.draw(spot, table_rows)).to(by.device)
        return [(spot, by.timed(lambda: gather(fresh)))]

    return case
