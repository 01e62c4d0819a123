"""Running the probes for a command: where their files go and how their progress is shown."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tiercast_cli.output import progress
from tiercast_profiles.store import load_model

if TYPE_CHECKING:
    from tiercast_profiles.hardware import HardwareProfile
    from tiercast_profiles.record import Metric
    from tiercast_runtime.probes.pace import Pace


def probe(
    models: Sequence[str],
    *,
    quick: bool,
    folder: Path | None = None,
    memory_bytes: int | None = None,
    output: str | None = None,
    is_resumed: bool = False,
) -> "HardwareProfile":
    """Probe this machine; the files that the storage probe reads live in ``folder`` or a temporary one.

    ``output`` is where the profile will go; sweeps of a full run that end before it are kept beside it.

    Raises:
        UnknownModel: a model is neither shipped nor a file.
        FileProblem: the folder cannot be written.
    """
    specs = [load_model(name) for name in models]
    from tiercast_runtime.probes import profile_machine
    from tiercast_runtime.scratch import scratch_folder

    target = None if output is None else Path(output)

    with progress("profile") as report:

        def run(place: Path) -> "HardwareProfile":
            return profile_machine(
                quick=quick,
                models=specs,
                folder=place,
                progress=report,
                memory_bytes=memory_bytes,
                output=target,
                is_resumed=is_resumed,
            )

        if folder is not None:
            return run(folder)
        # beside the work, not in /tmp, which is memory on many machines and would be probed as a drive
        with scratch_folder(Path.cwd()) as temporary:
            return run(temporary)


def forget_partial(output: str) -> None:
    """Remove what was kept of unfinished runs, now that the profile is written."""
    from tiercast_runtime.probes.partial import side_file

    side_file(Path(output)).unlink(missing_ok=True)


def decode_step_ms(model: str) -> "Metric":
    """Time of one fixed decode step on this machine now; shows a drift of its speed, corrects nothing."""
    from tiercast_runtime.probes.drift import decode_step_ms as measure

    return measure(load_model(model))


@contextmanager
def pace_of(profile: "HardwareProfile", model: str) -> "Iterator[Pace]":
    """Reference steps that say, whenever asked, how fast this machine is beside its profile."""
    from tiercast_runtime.bench import table_folder
    from tiercast_runtime.device import set_compute_threads
    from tiercast_runtime.probes.pace import Pace

    set_compute_threads()
    with Pace(load_model(model), profile, table_folder(None)) as pace:
        yield pace
