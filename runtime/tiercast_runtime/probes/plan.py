"""What the probes measure and for how long: a quick plan and a full one. What is stable earlier stops earlier."""

from dataclasses import dataclass, replace

from tiercast_profiles.units import GIB, MIB
from tiercast_runtime.probes.interference import SIZE_MIXES, Mix
from tiercast_runtime.probes.layers import LayerGrid
from tiercast_runtime.probes.sweep_grid import SweepPlan
from tiercast_runtime.probes.sweep_stage import SweepStage
from tiercast_runtime.probes.timing import Effort, seconds


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """Sizes and efforts of all probes.

    ``copy_bytes`` and ``footprint_bytes`` are least sizes, raised where the last cache is large; ``num_footprints``
    counts footprints on a CPU, each four times the one before. ``gpu_footprints_bytes`` reach past the cache of a GPU
    and past the reach of its address translation. ``row_bytes`` are the row sizes of the sweep beside those of the
    models. ``sweep`` is the gather sweep of the host. Efforts: ``copies`` is per thread count, or per rate of a GPU and
    as much again for its smaller copies together, ``reads`` for each of the moments a drive is timed, ``disk`` for all
    of them, ``host_cache`` for all row sizes together, ``interference`` per path (``mixes``: the steps it is also
    measured at one by one).
    ``num_caches``: the footprint in last caches; each further one costs its first touch, seconds on a virtual machine.
    """

    copy_bytes: int
    footprint_bytes: int
    num_footprints: int
    gpu_footprints_bytes: tuple[int, ...]
    file_bytes: int
    row_bytes: tuple[int, ...]
    tokens: tuple[int, ...]
    grid: LayerGrid
    copies: Effort
    rates: Effort
    gather: Effort
    sweep: SweepStage
    reads: Effort
    disk: Effort
    host_cache: Effort
    layers: Effort
    overhead: Effort
    interference: Effort
    numa: Effort
    mixes: tuple[Mix, ...] = ()
    num_caches: int = 4


# The grids are dense where continuous batching lives: a few decoding sequences, and decode plus chunk in between.
# Chunks are of odd sizes, as prompts and what decoding sequences leave of a step's budget are: kernels work in tiles,
# and a chunk of a multiple of 16 tokens costs up to a quarter less attention than its neighbours.
QUICK = ProbePlan(
    copy_bytes=256 * MIB,
    footprint_bytes=256 * MIB,
    num_footprints=1,
    gpu_footprints_bytes=(1 * GIB, 8 * GIB),
    file_bytes=256 * MIB,
    row_bytes=(64, 1024),
    tokens=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    grid=LayerGrid(
        sequences=(1, 2, 4, 6, 8, 12, 16, 32),
        contexts=(16, 128, 512),
        chunks=(15, 29, 51, 91, 151, 203, 257),
        starts=(0, 128),
    ),
    copies=Effort(seconds(0.4), num_warm_ups=1, min_rounds=5, max_rounds=20),
    rates=Effort(seconds(0.4), num_warm_ups=1, min_rounds=5, max_rounds=20),
    gather=Effort(seconds(1.6), num_warm_ups=1, min_rounds=9, max_rounds=60),
    sweep=SweepStage(
        SweepPlan(num_rows=(16, 128, 1024)), Effort(0, num_warm_ups=0, min_rounds=6, max_rounds=6), is_quick=True
    ),
    reads=Effort(seconds(0.6), num_warm_ups=1, min_rounds=3, max_rounds=20),
    disk=Effort(seconds(3.0), num_warm_ups=1, min_rounds=9, max_rounds=60),
    host_cache=Effort(seconds(1.0), num_warm_ups=1, min_rounds=7, max_rounds=60),
    layers=Effort(seconds(23.0), num_warm_ups=1, min_rounds=3, max_rounds=40),  # four rounds, in slow hours three
    overhead=Effort(seconds(0.5), num_warm_ups=3, min_rounds=7, max_rounds=60),
    interference=Effort(seconds(1.5), num_warm_ups=1, min_rounds=5, max_rounds=60),
    numa=Effort(seconds(1.0), num_warm_ups=1, min_rounds=7, max_rounds=20),
)
# In turns with runs nobody waits for the probes. Cores of a shared machine change between two speeds, a third apart,
# every second or few: three samples of a size may all have met the slower one, nine hardly do.
IN_TURNS = replace(QUICK, layers=Effort(seconds(70.0), num_warm_ups=1, min_rounds=9, max_rounds=40))
FULL = ProbePlan(
    copy_bytes=512 * MIB,  # nvbandwidth's own size, so that both can be read side by side
    footprint_bytes=256 * MIB,
    num_footprints=2,
    gpu_footprints_bytes=(1 * GIB, 8 * GIB, 24 * GIB),
    file_bytes=1 * GIB,
    row_bytes=(64, 128, 256, 512, 1024, 4096),
    tokens=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    grid=LayerGrid(
        sequences=(1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64),
        contexts=(16, 64, 128, 192, 256, 384, 512, 1024),
        chunks=(7, 15, 29, 51, 71, 91, 117, 151, 203, 257, 387, 517),
        starts=(0, 64, 192, 512),
    ),
    copies=Effort(seconds(3.0), num_warm_ups=2, min_rounds=11, max_rounds=60),
    rates=Effort(seconds(4.0), num_warm_ups=2, min_rounds=9, max_rounds=60),
    gather=Effort(seconds(12.0), num_warm_ups=2, min_rounds=15, max_rounds=100),
    sweep=SweepStage(
        SweepPlan(max_footprint_bytes=64 * GIB),
        Effort(0, num_warm_ups=1, min_rounds=15, max_rounds=15),
        is_quick=False,
    ),
    reads=Effort(seconds(2.5), num_warm_ups=1, min_rounds=5, max_rounds=40),
    disk=Effort(seconds(15.0), num_warm_ups=1, min_rounds=11, max_rounds=100),
    host_cache=Effort(seconds(4.0), num_warm_ups=1, min_rounds=11, max_rounds=60),
    layers=Effort(seconds(90.0), num_warm_ups=1, min_rounds=5, max_rounds=60),
    overhead=Effort(seconds(2.0), num_warm_ups=3, min_rounds=21, max_rounds=100),
    interference=Effort(seconds(8.0), num_warm_ups=2, min_rounds=15, max_rounds=100),
    numa=Effort(seconds(3.0), num_warm_ups=2, min_rounds=11, max_rounds=40),
    mixes=SIZE_MIXES,
    num_caches=8,
)
