"""From the name of a path to the path."""

from collections.abc import Sequence

import torch

from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_runtime.paths.base import LookupPath
from tiercast_runtime.paths.cpu_gather import CpuGatherPath
from tiercast_runtime.paths.device import DevicePath
from tiercast_runtime.paths.disk import DiskPath
from tiercast_runtime.paths.uva import UvaPath, require_uva
from tiercast_runtime.table import FileTable, HostTable, MemoryTable, Table


def choose_path(resolved: ResolvedScenario, tables: Sequence[Table], device: torch.device) -> LookupPath:
    """See :func:`tiercast_runtime.paths.open_path`."""
    name = resolved.placement.path
    if name is None:
        raise BadInput("tier 'none' has no tables, so there is no lookup path to open")
    if resolved.placement.cache_gib > 0:
        raise MissingCapability(
            f"cache_gib={resolved.placement.cache_gib}: the runtime has no hot-row cache; use 0, or simulate"
        )
    if name == "uva":
        require_uva(device)
        return UvaPath([table for table in tables if isinstance(table, HostTable)], device)
    if name == "device":
        return DevicePath([table for table in tables if isinstance(table, MemoryTable)], device)
    if name == "cpu_gather":
        return CpuGatherPath([table for table in tables if isinstance(table, MemoryTable)], device)
    if name == "disk":
        return DiskPath([table for table in tables if isinstance(table, FileTable)], device)
    raise MissingCapability(f"the runtime has no path {name!r}; it has device, uva, cpu_gather and disk")
