"""What Linux says of the slot a GPU sits in: NUMA node, link, IOMMU and power saving. Read from ``/sys``."""

from collections.abc import Mapping
from pathlib import Path

from tiercast_profiles.hardware import Reading

_GT_PER_S = {"2.5": 1, "5.0": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}  # PCI Express Base: rate per generation


def bus_folder(bus_id: str) -> str:
    """The sysfs name of a device: NVML writes an eight-digit domain in capitals, Linux four digits in lower case."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{domain[-4:]}:{rest}"


def read_slot(bus_id: str | None, root: Path = Path("/")) -> dict[str, Reading]:
    """Readings of the slot; ``root`` is where ``sys`` lies.

    Without a bus id, without ``/sys`` (not Linux, or a container that hides it) all are ``not_supported``. A NUMA node
    of -1 means that the firmware does not say.
    """
    folder = None if bus_id is None else root / "sys/bus/pci/devices" / bus_folder(bus_id)
    return {
        "slot_numa_node": _node(folder),
        "slot_local_cpus": _text(folder, "local_cpulist", ""),
        "slot_link_generation": _generation(folder, "current_link_speed"),
        "slot_link_generation_max": _generation(folder, "max_link_speed"),
        "slot_link_width": _number(folder, "current_link_width", "lanes"),
        "slot_link_width_max": _number(folder, "max_link_width", "lanes"),
        "slot_iommu": _text(folder, "iommu_group/type", ""),
        "slot_aspm_l1": _text(folder, "link/l1_aspm", ""),
    }


def slot_node(readings: Mapping[str, Reading]) -> int | None:
    """The NUMA node of the slot out of a device's readings; None where it is not known."""
    reading = readings.get("slot_numa_node")
    return int(reading.value) if reading is not None and isinstance(reading.value, int | float) else None


def _text(folder: Path | None, name: str, unit: str) -> Reading:
    if folder is None:
        return Reading(value=None, unit=unit, status="not_supported")
    try:
        text = (folder / name).read_text(encoding="ascii", errors="replace").strip()
    except PermissionError:
        return Reading(value=None, unit=unit, status="no_permission")
    except (FileNotFoundError, NotADirectoryError):
        return Reading(value=None, unit=unit, status="not_supported")
    except OSError:
        return Reading(value=None, unit=unit, status="error")
    return Reading(value=text or None, unit=unit, status="ok" if text else "not_supported")


def _number(folder: Path | None, name: str, unit: str) -> Reading:
    reading = _text(folder, name, unit)
    if reading.status != "ok":
        return reading
    text = str(reading.value)
    return Reading(value=float(text), unit=unit, status="ok") if text.isdecimal() else _unknown(unit)


def _node(folder: Path | None) -> Reading:
    reading = _text(folder, "numa_node", "node")
    if reading.status != "ok":
        return reading
    text = str(reading.value)
    return Reading(value=float(text), unit="node", status="ok") if text.isdecimal() else _unknown("node")


def _generation(folder: Path | None, name: str) -> Reading:
    reading = _text(folder, name, "gen")
    if reading.status != "ok":
        return reading
    generation = _GT_PER_S.get(str(reading.value).partition(" ")[0])
    return _unknown("gen") if generation is None else Reading(value=float(generation), unit="gen", status="ok")


def _unknown(unit: str) -> Reading:
    return Reading(value=None, unit=unit, status="not_supported")
