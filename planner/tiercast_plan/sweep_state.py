"""What a sweep has finished so far, on disk: a killed sweep goes on where it was.

One JSON line per finished point behind a first line that says which sweep it is. Lines are appended and flushed as
points end; a last line that a kill cut short is dropped.
"""

import datetime
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tiercast_profiles.document import canonical_json
from tiercast_profiles.errors import FileProblem
from tiercast_profiles.store import write_text

FORMAT = "tiercast sweep state 1"


class SweepState:
    """Finished points by key, and the day the sweep began, against which prices are aged."""

    def __init__(self, file: IO[str], done: dict[str, dict[str, Any]], today: datetime.date | None) -> None:
        self._file = file
        self.done = done
        self.today = today

    def add(self, finished: Iterable[tuple[str, dict[str, Any]]]) -> None:  # Any: an outcome as JSON
        """Keep finished points.

        Raises:
            FileProblem: the disk is full.
        """
        try:
            # Keys are not sorted: an outcome comes back with its mappings in the order they had.
            self._file.writelines(
                json.dumps({"key": key, "outcome": outcome}, allow_nan=False) + "\n" for key, outcome in finished
            )
            self._file.flush()
        except OSError as error:
            raise FileProblem(f"{self._file.name}: cannot be written ({error.strerror or error})") from None


@contextmanager
def sweep_state(path: str | Path, sweep_sha256: str, today: datetime.date | None) -> Iterator[SweepState]:
    """Open the state of a sweep, or begin one.

    Raises:
        FileProblem: the file is of another sweep or no state of one, or cannot be read or written.
    """
    path = Path(path)
    head = {"format": FORMAT, "sweep": sweep_sha256, "today": None if today is None else today.isoformat()}
    done: dict[str, dict[str, Any]] = {}
    try:
        kept = _whole_lines(path)
        if kept:
            first, *rest = kept
            head = _header(path, first, sweep_sha256)
            for number, line in enumerate(rest, 2):
                entry = _entry(path, number, line)
                done[entry["key"]] = entry["outcome"]
            write_text(path, "\n".join(kept) + "\n")  # whole or not at all: a full disk must not cost what was done
        with path.open("a", encoding="utf-8") as file:
            if not kept:
                file.truncate(0)
                file.write(canonical_json(head) + "\n")
                file.flush()
            began = head["today"]
            yield SweepState(file, done, None if began is None else datetime.date.fromisoformat(began))
    except OSError as error:
        raise FileProblem(f"{path}: cannot be used as a state file ({error.strerror or error})") from None


def _whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise FileProblem(f"{path}: not the state of a sweep; give another file") from None
    return text.split("\n")[:-1]  # what stands behind the last line end was cut short


def _header(path: Path, line: str, sweep_sha256: str) -> dict[str, Any]:
    head: dict[str, Any] = {}
    with suppress(ValueError):
        head = json.loads(line)
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise FileProblem(f"{path}: not the state of a sweep; give another file")
    if head["sweep"] != sweep_sha256:
        raise FileProblem(
            f"{path}: the state of another sweep (other scenario, documents, settings or version); "
            "give another file, or delete it to begin anew"
        )
    return head


def _entry(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = json.loads(line)
        if isinstance(entry["key"], str) and isinstance(entry["outcome"], dict):
            return entry
    except (ValueError, KeyError, TypeError):
        pass
    raise FileProblem(f"{path}: line {number} is damaged; delete the file to begin anew")
