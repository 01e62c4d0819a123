"""How many rows the caches of a run hold, how much memory they take, and whose."""

from dataclasses import dataclass

from tiercast_profiles.errors import BadInput
from tiercast_profiles.hardware import HOST_DRIVEN_PATHS
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import gib_to_bytes
from tiercast_runtime.cache import INDEX_BYTES_PER_SLOT, cache_geometry


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Row slots per Engram layer, and bytes of rows and index of all layers; all 0 without a cache.

    A cache lies in the memory of whoever moves the rows: the host's for paths it drives, the device's for the others.
    """

    num_slots_per_layer: int
    size_bytes: int
    is_on_device: bool = False


def plan_cache(resolved: ResolvedScenario) -> CachePlan:
    """Caches of a scenario: ``cache_gib`` of rows, shared evenly by the Engram layers (Assumption A12).

    The index comes on top, 16 bytes a row.

    Raises:
        BadInput: the room of a layer is less than one row.
    """
    placement, engram = resolved.placement, resolved.model.engram
    if placement.cache_gib <= 0:
        return CachePlan(0, 0)
    num_layers = len(engram.layer_ids)
    row_bytes = engram.stored_row_bytes(placement.row_layout)
    num_slots = gib_to_bytes(placement.cache_gib) // num_layers // row_bytes
    if num_slots < 1:
        raise BadInput(
            f"placement.cache_gib={placement.cache_gib:g} is less than one row of {row_bytes} bytes for each of "
            f"{num_layers} Engram layers; give more, or 0 for no cache"
        )
    num_sets, num_ways = cache_geometry(num_slots)
    num_slots = num_sets * num_ways
    size_bytes = num_layers * num_slots * (row_bytes + INDEX_BYTES_PER_SLOT)
    return CachePlan(num_slots, size_bytes, is_on_device=placement.path not in HOST_DRIVEN_PATHS)
