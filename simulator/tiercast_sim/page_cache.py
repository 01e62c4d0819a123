"""Rows of a drive that the host has in its page cache: what their lookups take."""

from tiercast_profiles.document import Bound
from tiercast_profiles.errors import MissingCapability
from tiercast_profiles.hardware import LookupCurve
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_sim.lookup import CurveTimes, bytes_moved


class PartlyResident:
    """Times of a drive's lookups whose rows are in the page cache with a given chance each, independently.

    Assumption A82: rows in the page cache take what the host needs to gather them from its memory, behind those read
    from the drive, and one fixed time is paid: the drive's where anything is read from it. A lookup takes its mean over
    the chances, which is silent about lookups that happen to miss more.
    """

    def __init__(self, resolved: ResolvedScenario, bound: Bound, drive: CurveTimes, footprint_bytes: int) -> None:
        self.resident_ratio = resolved.placement.page_cache_residency_ratio
        self._drive = drive
        self._memory = drive
        if self.resident_ratio > 0:
            self._memory = CurveTimes(_gather_curve(resolved), bound, footprint_bytes)

    def time_ns(self, num_rows: int, pieces: tuple[int, ...]) -> float:
        """Mean time of a lookup of ``num_rows`` rows, alone."""
        if self.resident_ratio == 0 or num_rows == 0:
            return self._drive.time_ns(num_rows, pieces)
        some_missing = 1 - self.resident_ratio**num_rows
        resident_ns = self._memory.time_ns(num_rows * self.resident_ratio, pieces)
        time_ns = resident_ns - some_missing * min(resident_ns, self._memory.fixed_ns)
        if some_missing > 0:
            missing = num_rows * (1 - self.resident_ratio) / some_missing  # where any is
            time_ns += some_missing * self._drive.time_ns(missing, pieces)
        return time_ns

    def bytes_of_resident(self, pieces: tuple[int, ...]) -> int:
        """Bytes of memory one resident row moves."""
        return sum(bytes_moved(piece, self._memory.curve.read_granularity_bytes) for piece in pieces)


def _gather_curve(resolved: ResolvedScenario) -> LookupCurve:
    hardware = resolved.hardware
    found = hardware.curve("dram", "cpu_gather")
    if found is None and hardware.device.kind == "cpu":
        found = hardware.curve("hbm", "device")  # a CPU as device gathers from its own memory
    if found is None:
        raise MissingCapability(
            f"placement.page_cache_residency_ratio={resolved.placement.page_cache_residency_ratio:g} needs a curve for "
            f"dram by path cpu_gather, which {hardware.name!r} lacks; set it to 0"
        )
    return found
