"""Probes: what this machine really does, measured apart from any run, as the profile the simulator reads.

Importing this package does not import torch; calling :func:`profile_machine` does.
"""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tiercast_profiles.errors import MissingCapability

if TYPE_CHECKING:
    from tiercast_profiles.hardware import HardwareProfile
    from tiercast_profiles.model import ModelSpec

__all__ = ["profile_machine"]


def profile_machine(
    *,
    quick: bool,
    models: "list[ModelSpec]",
    folder: Path,
    progress: Callable[[str, float], None] | None = None,
    date: datetime.date | None = None,
    memory_bytes: int | None = None,
    output: Path | None = None,
    is_resumed: bool = False,
    is_in_turns: bool = False,
) -> "HardwareProfile":
    """Measure this machine.

    Args:
        quick: fewer points and repeats; the same probes.
        models: whose layers are timed, where the runtime can run them, and whose row sizes the lookups are timed at.
        folder: where the storage probes may put their files; they are removed again, also on failure. Its file
            system is the one that gets measured.
        progress: called with what is being measured and the share done, 0 … 1.
        date: date of the evidence; today by default.
        memory_bytes: most host memory that a table or the buffers of a copy may take; half of what is free by default.
        output: where the caller will write the profile; unless ``quick``, finished sweeps are kept in a file beside it
            (``.partial``) until the caller removes that, so that an interrupted run can go on.
        is_resumed: take the sweeps of that file instead of repeating them.
        is_in_turns: the probes take turns with something else and are in no hurry; a quick profile times layers more
            often then.

    Raises:
        MissingCapability: this machine does not say how much memory it has.
        InfeasibleScenario: what ``memory_bytes`` allows is too little to measure memory and not a cache.
        FileProblem: ``folder`` cannot be written, or there is nothing to resume.
        BadInput: the file to resume from is of another machine or other options.
    """
    from tiercast_runtime.memory import available_host_bytes, host_bytes_allowed
    from tiercast_runtime.probes.profile import measure

    try:
        allowed = available_host_bytes() // 2 if memory_bytes is None else memory_bytes
    except OSError:
        raise MissingCapability("this system does not say how much memory is free; give memory_bytes") from None
    with host_bytes_allowed(allowed):
        return measure(
            quick=quick,
            models=models,
            folder=folder,
            progress=progress,
            date=date,
            memory_bytes=memory_bytes,
            output=output,
            is_resumed=is_resumed,
            is_in_turns=is_in_turns,
        )
