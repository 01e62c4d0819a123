"""From the options of ``tiercast doctor`` to its findings."""

from dataclasses import dataclass
from pathlib import Path

from tiercast_cli import inputs
from tiercast_plan.doctor import Check, Need, check_host, check_profile, is_healthy, need_of
from tiercast_plan.host_facts import read_host_facts
from tiercast_profiles import store
from tiercast_profiles.errors import BadInput, CheckFailed
from tiercast_profiles.head_sizes import table_rows


@dataclass(frozen=True, slots=True)
class Examination:
    """What was examined for what, and every check."""

    machine: str
    need: Need
    is_healthy: bool
    checks: tuple[Check, ...]


def examine(*, scenario: str | None, model: str | None, copies: int, hardware: str | None, disk: str) -> Examination:
    """Run every check.

    Raises:
        BadInput: a scenario and a model together, copies without a model, or a name that is not known.
    """
    if scenario is not None and model is not None:
        raise BadInput("give a scenario or --model, not both: a scenario names its model")
    if copies != 1 and model is None:
        raise BadInput(f"--copies {copies} belongs to --model; a scenario has placement.replication")
    if not Path(disk).is_dir():
        raise BadInput(f"--disk {disk!r} is not a folder; give one on the drive that would hold the tables")
    names = [] if hardware is None else inputs.hardware_names(hardware)
    if len(names) > 1:
        raise BadInput(f"--hardware {hardware!r} names {len(names)} machines; give one")
    profile = store.load_hardware(names[0]) if names else None
    need = Need("this machine" if profile is None else profile.name)
    if scenario is not None:
        need = need_of(inputs.resolve(scenario, names[0] if names else None))
    elif model is not None:
        need = _need_of_tables(model, copies)
    checks = check_host(read_host_facts(Path(disk)), need) if profile is None else check_profile(profile, need)
    return Examination("this machine" if profile is None else profile.name, need, is_healthy(checks), checks)


def check_healthy(examination: Examination) -> None:
    """Fail where a required check does.

    Raises:
        CheckFailed: naming the checks.
    """
    if not examination.is_healthy:
        names = [check.check_id for check in examination.checks if check.status == "fail" and check.is_required]
        raise CheckFailed(f"{examination.machine} cannot serve {examination.need.what}: {', '.join(names)}")


def _need_of_tables(name: str, copies: int) -> Need:
    """The tables of a model in pinned, shared host memory."""
    engram = store.load_model(name).engram
    size = sum(table_rows(engram)) * engram.row_bytes * copies
    return Need(
        what=f"{name}, {copies} x tables in host memory",
        host_bytes=size,
        shm_bytes=size,
        pinned_bytes=size,
        num_copies=copies,
        is_spread_over_numa=True,
    )
