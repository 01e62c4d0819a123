"""What a report is made of: records, sweeps and row-reuse curves, read from files or predicted from scenarios."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tiercast_cli import differing, inputs
from tiercast_cli.text_locality import TextLocality
from tiercast_plan.cost import CostReport
from tiercast_plan.sweep import SweepRow
from tiercast_profiles import store
from tiercast_profiles.errors import BadInput, FileProblem
from tiercast_profiles.record import RunRecord
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_sim.simulate import simulate

_KINDS = (
    "a record (simulate or bench with -o), rows of a sweep (what-if with -o), or row reuse of a text (locality with -o)"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One run of the report: its name, its record, what it costs, and its documents where they are at hand."""

    name: str
    record: RunRecord
    cost: CostReport | None
    cost_problem: str | None
    resolved: ResolvedScenario | None


@dataclass(frozen=True, slots=True)
class NamedRows:
    """The rows of one sweep under the name of their file."""

    name: str
    rows: tuple[SweepRow, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything a report shows."""

    entries: list[Entry] = field(default_factory=list)
    sweeps: list[NamedRows] = field(default_factory=list)
    localities: list[TextLocality] = field(default_factory=list)


def gather(names: Sequence[str], report: Callable[[str, float], None]) -> Contents:
    """Read or predict each; names of entries are made different where files share one.

    Raises:
        BadInput: a file is none of the kinds a report knows, or a name is no scenario.
        FileProblem: a file cannot be read.
    """
    found = Contents()
    for index, name in enumerate(names):
        report(name, index / len(names))
        path = Path(name)
        if path.suffix == ".json" and path.is_file():
            _add_file(found, path, _label(path, names))
        else:
            _add_scenario(found, name)
    return found


def _label(path: Path, names: Sequence[str]) -> str:
    """The name of a file, with its folder where another file of the report has the same name."""
    is_shared = sum(Path(name).name == path.name for name in names) > 1
    return f"{path.parent.name}/{path.stem}" if is_shared else path.stem


def _add_file(found: Contents, path: Path, label: str) -> None:
    data = _read(path)
    if isinstance(data, dict) and {"kind", "metrics"} <= set(data):
        record = store.parse(RunRecord, data, str(path))
        resolved = differing.documents_of(record)
        found.entries.append(Entry(label, record, *differing.priced(record, resolved), resolved))
    elif isinstance(data, list) and data and all(isinstance(row, dict) and "settings" in row for row in data):
        rows = tuple(store.parse(SweepRow, row, f"{path}: row {index}") for index, row in enumerate(data))
        found.sweeps.append(NamedRows(label, rows))
    elif isinstance(data, dict) and "reuse" in data:
        try:
            found.localities.append(TypeAdapter(TextLocality).validate_python(data))
        except ValidationError as error:
            raise BadInput(f"{path}: not row reuse as locality writes it ({error.error_count()} problems)") from None
    else:
        raise BadInput(f"{path}: nothing a report can show; give {_KINDS}, or a scenario")


def _read(path: Path) -> Any:  # Any: whatever the file holds
    if path.stat().st_size > store.MAX_FILE_BYTES:
        raise FileProblem(f"{path}: larger than {store.MAX_FILE_BYTES >> 20} MiB; not a file this tool writes")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileProblem(f"{path}: not complete JSON ({str(error).splitlines()[0]})") from None
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read ({error.strerror or error})") from None


def _add_scenario(found: Contents, name: str) -> None:
    resolved = inputs.resolve(name)
    record = simulate(resolved)
    found.entries.append(Entry(Path(name).name, record, *differing.priced(record, resolved), resolved))
