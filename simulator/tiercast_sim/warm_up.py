"""How long until the page cache holds its share of a drive's rows, and what serving is like before and after."""

import math

from tiercast_profiles.document import Bound
from tiercast_profiles.record import PageCacheUse
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import GB, NS_PER_S
from tiercast_sim.checked import positive
from tiercast_sim.memory import drive_bytes, page_cache_bytes
from tiercast_sim.metrics import Runs, at_each, band, optional_band


def page_cache_use(resolved: ResolvedScenario, warm: Runs, cold: Runs) -> PageCacheUse:
    """What the page cache holds, what it takes to get there, and what serving would be without it.

    Assumption A83: by its own traffic a host brings in one page for each row it reads from the drive, pages evenly, so
    that a share r of them is resident after −ln(1 − r) × pages reads at the cold run's rate. Reading them ahead takes
    their bytes at the drive's bandwidth.
    """
    hardware, ratio = resolved.hardware, resolved.placement.page_cache_residency_ratio
    assert hardware.nvme is not None, "a tier without a profile entry was refused before"
    size = max(page_cache_bytes(resolved))
    drive = hardware.nvme.read_bandwidth_gb_per_s
    num_pages = max(drive_bytes(resolved)) / hardware.host.page_size_bytes
    ahead: dict[Bound, float] = {}
    by_traffic: dict[Bound, float | None] = {}
    for bound, result in cold.items():
        ahead[bound] = size / (positive(drive, bound, "nvme.read_bandwidth_gb_per_s") * GB)
        num_read = result.summary.rows_read
        seconds = result.summary.elapsed_ns / NS_PER_S
        # Rows of every host together; the fullest has the largest share of the pages and as much of the reads.
        reads_per_s = num_read / seconds / result.memory.num_hosts
        by_traffic[bound] = -math.log1p(-ratio) * num_pages / reads_per_s if ratio < 1 and reads_per_s > 0 else None
    throughput = at_each(cold, lambda result: result.summary.statistics.output_tokens_per_s)
    return PageCacheUse(
        residency_ratio=ratio,
        host_resident_bytes=size,
        read_ahead_s=band(ahead),
        by_traffic_s=optional_band(by_traffic),
        cold_output_tokens_per_s=band(throughput),
        warm_output_tokens_per_s=band(at_each(warm, lambda r: r.summary.statistics.output_tokens_per_s)),
    )
