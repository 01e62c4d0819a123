"""Clock, heat and energy of the host's processors while a probe runs. Read from ``/sys``, each value on its own."""

from pathlib import Path

from tiercast_profiles.hardware import Reading
from tiercast_runtime.probes.telemetry import Status

_CPUS = "sys/devices/system/cpu"
_RAPL = "sys/class/powercap"
KHZ_PER_MHZ = 1e3
UJ_PER_J = 1e6


def read_host_counters(root: Path = Path("/")) -> dict[str, Reading]:
    """Mean core clock, thermal throttle events of all packages, and energy of all packages since boot.

    ``root`` is where ``sys`` lies. Energy has been root's alone since CVE-2020-8694: ``no_permission``, not zero.
    """
    return {
        "cpu_clock": _mean(root, f"{_CPUS}/cpu[0-9]*/cpufreq/scaling_cur_freq", "MHz", KHZ_PER_MHZ),
        "cpu_throttles": _throttles(root),
        "cpu_energy": _sum(root, f"{_RAPL}/*-rapl:[0-9]/energy_uj", "J", UJ_PER_J),
    }


def energy_range_j(root: Path = Path("/")) -> float | None:
    """The energy at which the counters of all packages wrap, None where it is not known or packages differ."""
    values, status = _numbers(root, f"{_RAPL}/*-rapl:[0-9]/max_energy_range_uj")
    return values[0] / UJ_PER_J if status == "ok" and len(set(values)) == 1 else None


def _throttles(root: Path) -> Reading:
    """Events of each package once: all cores of a package show the same count."""
    counts: dict[str, int] = {}
    for path in sorted(root.glob(f"{_CPUS}/cpu[0-9]*/thermal_throttle/package_throttle_count")):
        package = path.parent.parent / "topology/physical_package_id"
        try:
            counts[package.read_text(encoding="ascii").strip()] = int(path.read_text(encoding="ascii"))
        except PermissionError:
            return Reading(value=None, unit="count", status="no_permission")
        except (OSError, ValueError):
            return Reading(value=None, unit="count", status="error")
    if not counts:
        return Reading(value=None, unit="count", status="not_supported")
    return Reading(value=float(sum(counts.values())), unit="count", status="ok")


def _mean(root: Path, pattern: str, unit: str, divisor: float) -> Reading:
    values, status = _numbers(root, pattern)
    value = sum(values) / len(values) / divisor if values and status == "ok" else None
    return Reading(value=value, unit=unit, status=status)


def _sum(root: Path, pattern: str, unit: str, divisor: float) -> Reading:
    values, status = _numbers(root, pattern)
    return Reading(value=sum(values) / divisor if status == "ok" else None, unit=unit, status=status)


def _numbers(root: Path, pattern: str) -> tuple[list[int], Status]:
    """Whole numbers in files, with a status: one file that cannot be read makes the sum unknown."""
    try:
        values = [int(path.read_text(encoding="ascii")) for path in sorted(root.glob(pattern))]
    except PermissionError:
        return [], "no_permission"
    except (OSError, ValueError):
        return [], "error"
    return values, "ok" if values else "not_supported"
