"""From the name of a path to the path."""

from collections.abc import Sequence

import torch

from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_runtime.cache_plan import check_cached_path, plan_cache
from tiercast_runtime.memory import require_bytes
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
    cache = plan_cache(resolved)
    if cache.size_bytes:
        check_cached_path(resolved)
        require_bytes(cache.size_bytes, torch.device("cpu"), f"placement.cache_gib={resolved.placement.cache_gib:g}")
    if name == "uva":
        require_uva(device)
        return UvaPath([table for table in tables if isinstance(table, HostTable)], device)
    if name == "device":
        return DevicePath([table for table in tables if isinstance(table, MemoryTable)], device)
    if name == "cpu_gather":
        return CpuGatherPath(
            [table for table in tables if isinstance(table, MemoryTable)], device, cache_slots=cache.num_slots_per_layer
        )
    if name == "disk":
        return DiskPath(
            [table for table in tables if isinstance(table, FileTable)], device, cache_slots=cache.num_slots_per_layer
        )
    raise MissingCapability(f"the runtime has no path {name!r}; it has device, uva, cpu_gather and disk")
