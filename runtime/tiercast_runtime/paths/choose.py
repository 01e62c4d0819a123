"""From the name of a path to the path."""

from collections.abc import Sequence

import torch

from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_runtime.cache_plan import plan_cache
from tiercast_runtime.memory import require_bytes
from tiercast_runtime.paths.base import LookupPath
from tiercast_runtime.paths.cached import CachedPath
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
    slots, policy = cache.num_slots_per_layer, resolved.placement.cache_policy
    if cache.size_bytes:
        place = device if cache.is_on_device else torch.device("cpu")
        require_bytes(cache.size_bytes, place, f"placement.cache_gib={resolved.placement.cache_gib:g}")
    if name == "uva":
        require_uva(device)
        host_tables = [table for table in tables if isinstance(table, HostTable)]
        path = UvaPath(host_tables, device)
        return CachedPath(path, host_tables, cache_slots=slots, policy=policy) if slots else path
    if name == "device":
        return DevicePath([table for table in tables if isinstance(table, MemoryTable)], device)
    if name == "cpu_gather":
        memory_tables = [table for table in tables if isinstance(table, MemoryTable)]
        return CpuGatherPath(memory_tables, device, cache_slots=slots, cache_policy=policy)
    if name == "disk":
        file_tables = [table for table in tables if isinstance(table, FileTable)]
        polls = device.type == "cpu" and resolved.placement.prefetch == "off"
        return DiskPath(file_tables, device, cache_slots=slots, cache_policy=policy, polls=polls)
    raise MissingCapability(f"the runtime has no path {name!r}; it has device, uva, cpu_gather and disk")
