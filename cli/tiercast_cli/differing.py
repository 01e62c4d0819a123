"""The two sides of a difference: scenarios are predicted, records are read, and both are priced."""

import datetime
from collections.abc import Sequence
from pathlib import Path

from tiercast_cli import inputs
from tiercast_plan.cost import CostReport, cost_per_mtok
from tiercast_plan.difference import Difference, Side, difference
from tiercast_plan.documents import Documents
from tiercast_plan.settings import points
from tiercast_profiles import store
from tiercast_profiles.errors import BadInput, NoDevicePrice, TiercastError
from tiercast_profiles.record import RunRecord
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_sim.simulate import simulate


def find(before: str, after: str, sets: Sequence[str], profile: str | None) -> Difference:
    """Both sides, set against each other; ``sets`` change the second.

    Raises:
        BadInput: a side is neither a scenario nor a record, or ``sets`` are given for a record.
    """
    ours, theirs = side(before, (), profile), side(after, sets, profile)
    if ours.name == theirs.name and sets:
        label = ", ".join(sets)
        return difference(ours, Side(label, theirs.record, theirs.cost, theirs.resolved, theirs.cost_problem))
    return difference(ours, theirs)


def side(name_or_path: str, sets: Sequence[str], profile: str | None) -> Side:
    """One side by name or path."""
    record = read_record(name_or_path)
    if record is None:
        scenario = inputs.load_scenario(name_or_path)
        if profile is not None:
            scenario = scenario.model_copy(update={"hardware": profile})
        point = points(scenario, sets, ())[0]
        if point.scenario.hardware == scenario.hardware:  # says how to make a profile that is not there
            inputs.resolve_scenario(point.scenario, name_or_path)
        resolved: ResolvedScenario | None = Documents(today()).resolve(point.scenario, point.documents)
        assert resolved is not None
        record = simulate(resolved, keep_samples=False)
    elif sets:
        raise BadInput(f"--set {sets[0]}: {name_or_path} is a record, which is finished; give a scenario")
    else:
        resolved = documents_of(record)
    cost, problem = priced(record, resolved)
    return Side(Path(name_or_path).name, record, cost, resolved, problem)


def read_record(name_or_path: str) -> RunRecord | None:
    """The record in a JSON file, or None where the file is something else or no file."""
    path = Path(name_or_path)
    if path.suffix != ".json" or not path.is_file():
        return None
    data = store.read_mapping(path)
    return store.parse(RunRecord, data, name_or_path) if {"kind", "metrics"} <= set(data) else None


def documents_of(record: RunRecord) -> ResolvedScenario | None:
    """The documents a record was made with, or None where they are not at hand or have changed since."""
    try:
        resolved = store.resolve(record.scenario)
    except TiercastError:
        return None
    return resolved if resolved.sha256 == record.scenario_sha256 else None


def priced(record: RunRecord, resolved: ResolvedScenario | None) -> tuple[CostReport | None, str | None]:
    """What a record costs, or None and the reason."""
    if resolved is None:
        where = f"hardware {record.scenario.hardware}, model {record.scenario.model}, prices {record.scenario.prices}"
        return None, f"no price: the documents of the record ({where}) are not at hand as they were"
    try:
        return cost_per_mtok(resolved, record, today=today()), None
    except (NoDevicePrice, BadInput) as error:
        return None, f"no price: {error}"


def today() -> datetime.date:
    """The day that prices are aged against."""
    return datetime.datetime.now(tz=datetime.UTC).date()
