"""Whether a gather sweep still holds at the end of a profile: a few of its points timed once more.

A sweep takes seconds, and within seconds a machine that others share may look steady at a speed it does not keep.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from tiercast_profiles.errors import InfeasibleScenario, MissingCapability
from tiercast_profiles.gather import GatherSweep
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.quantiles import median
from tiercast_profiles.units import GIB
from tiercast_runtime.probes.kept_memory import KeptMemory
from tiercast_runtime.probes.sweep_grid import Arm, Spot
from tiercast_runtime.probes.sweep_host import placed_block, time_again
from tiercast_runtime.probes.sweep_ids import RowSource, text_rows
from tiercast_runtime.probes.timing import Effort, rounded

NUM_AGAIN = 16
LEAST_ROUNDS = 3  # half of those of the sweep do: what is told is the median of all points
MAX_AGAIN_BYTES = 1 * GIB  # larger blocks take longer to fill than to time


def with_drift(
    sweeps: Sequence[GatherSweep], model: ModelSpec, effort: Effort, memory: KeptMemory | None = None
) -> list[GatherSweep]:
    """The sweeps of the host in their order, each with its drift where it could be timed again.

    The last are timed first: theirs is the block that ``memory`` kept when they were swept.

    Args:
        sweeps: as they were measured; those of a GPU pass through.
        model: whose rows the text order asks for.
        effort: of the sweeps; points are timed again for half as many rounds.
        memory: lends the blocks.

    Raises:
        WrongRows: a gather delivered wrong bytes.
    """
    rounds = max(LEAST_ROUNDS, effort.min_rounds // 2)
    effort = replace(effort, min_rounds=rounds, max_rounds=rounds)
    groups = [list(group) for _, group in groupby(sweeps, key=lambda sweep: (sweep.pages, sweep.place))]
    again = [_drifted(same, model, effort, memory) for same in reversed(groups)]
    return [sweep for same in reversed(again) for sweep in same]


def _drifted(same: list[GatherSweep], model: ModelSpec, effort: Effort, memory: KeptMemory | None) -> list[GatherSweep]:
    """Sweeps of one kind of block, each with its drift."""
    pages, is_remote = same[0].pages, same[0].place == "remote"
    chosen = [points_again(sweep) for sweep in same]
    largest = max((spot.footprint_bytes for spots in chosen for spot in spots), default=0)
    if pages == "device" or not largest or any(sweep.path != "cpu_gather" for sweep in same):
        return same
    again = list(same)
    try:
        with placed_block(largest, Arm(pages, is_remote=is_remote), memory) as block:
            for index, (sweep, spots) in enumerate(zip(same, chosen, strict=True)):
                if not spots:  # not one point was stable: there is nothing to compare with
                    continue
                arm = Arm(pages, sweep.order, is_remote=is_remote, num_threads=sweep.num_threads or 1)
                source = RowSource(arm.order, text_rows(model) if arm.order == "text" else None)
                times = time_again(block, arm, spots, effort, source)
                again[index] = sweep.model_copy(update={"drift_ratio": drift_ratio(sweep, times)})
    except (MissingCapability, InfeasibleScenario):
        pass  # memory that was there is gone: what was not timed again has no drift to state
    return again


def points_again(sweep: GatherSweep) -> list[Spot]:
    """Stable points spread over the sweep, of tables that are filled quickly."""
    spots = [
        Spot(point.piece_bytes, point.footprint_bytes, point.num_rows, point.num_workers)
        for point in sweep.points
        if not point.is_unstable and point.footprint_bytes <= MAX_AGAIN_BYTES
    ]
    return spots[:: max(1, len(spots) // NUM_AGAIN)]


def drift_ratio(sweep: GatherSweep, times_us: dict[Spot, float]) -> float:
    """Median of (again − first) ÷ first."""
    first = {(p.piece_bytes, p.footprint_bytes, p.num_rows, p.num_workers): p.time_us for p in sweep.points}
    ratios = [
        again_us / first[spot.piece_bytes, spot.footprint_bytes, spot.num_rows, spot.num_workers] - 1
        for spot, again_us in times_us.items()
    ]
    return rounded(median(ratios))
