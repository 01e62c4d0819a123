"""Where table files are kept."""

import os
from pathlib import Path

from tiercast_profiles.errors import FileProblem
from tiercast_profiles.scenario import ResolvedScenario


def default_table_folder() -> Path:
    """Where table files are kept: ``$XDG_CACHE_HOME/tiercast/tables``, or ``~/.cache/tiercast/tables``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "tiercast" / "tables"


def table_folder(folder: Path | None) -> Path:
    """The folder for table files, the default one without a name, made where it is not there.

    Raises:
        FileProblem: it cannot be made.
    """
    chosen = default_table_folder() if folder is None else folder
    try:
        chosen.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileProblem(f"{chosen}: cannot be made ({error.strerror or error}); give another folder") from None
    return chosen


def prepared_folder(folder: Path | None, resolved: ResolvedScenario) -> Path:
    """The folder for table files, made if the tier needs it."""
    if resolved.placement.tier == "nvme":
        return table_folder(folder)
    return default_table_folder() if folder is None else folder
