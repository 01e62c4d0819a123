"""Lookup paths: how rows travel from the tier that holds them to the device that computes.

``open_path`` picks the path a resolved scenario names. Importing this package does not import torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from tiercast_profiles.scenario import ResolvedScenario
    from tiercast_runtime.paths.base import LookupPath
    from tiercast_runtime.table import Table

__all__ = ["open_path"]


def open_path(resolved: "ResolvedScenario", tables: "Sequence[Table]", device: "torch.device") -> "LookupPath":
    """The lookup path of a scenario over tables that :func:`tiercast_runtime.table.build_tables` made.

    Raises:
        BadInput: the scenario has no tables (tier ``none``).
        MissingCapability: this machine or the runtime lacks the path.
    """
    from tiercast_runtime.paths.choose import choose_path

    return choose_path(resolved, tables, device)
