"""What has been done: one JSON file, written anew after every case, so that a call that is cut off loses one case."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_ATTEMPTS = 2


@dataclass(slots=True)
class State:
    """Cases by key ``stage/name``: status ``done``, ``failed``, ``lacking`` (the machine or the
    runtime lacks what it needs) or ``running``, attempts, message, numbers.

    A case found ``running`` by a later process was cut off, and one that is ``lacking`` may find what it lacked: both
    are tried once more and then given up.
    """

    path: Path
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "State":
        """The state kept in ``path``; empty where there is none."""
        return cls(path, json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else {})

    def is_pending(self, key: str) -> bool:
        """Whether a case is still to be run."""
        entry = self.cases.get(key)
        if entry is None:
            return True
        return entry["status"] in ("running", "lacking") and entry["attempts"] < MAX_ATTEMPTS

    def begin(self, key: str) -> None:
        """A case starts."""
        attempts = self.cases.get(key, {}).get("attempts", 0) + 1
        self.cases[key] = {"status": "running", "attempts": attempts, "message": "cut off while it ran"}
        self._write()

    def end(self, key: str, status: str, seconds: float, message: str, numbers: dict[str, Any]) -> None:
        """A case ended as ``done``, ``failed`` or ``lacking``."""
        self.cases[key].update(status=status, seconds=round(seconds, 1), message=message, numbers=numbers)
        self._write()

    def forget_failed(self) -> None:
        """Let cases that failed or were given up run again."""
        self.cases = {key: entry for key, entry in self.cases.items() if entry["status"] == "done"}
        self._write()

    def forget(self, key: str) -> None:
        """Let a case run again, whatever it ended as."""
        self.cases.pop(key, None)

    def numbers(self, key: str) -> dict[str, Any] | None:
        """What a case found, if it is done."""
        entry = self.cases.get(key)
        return entry["numbers"] if entry is not None and entry["status"] == "done" else None

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps({"cases": self.cases}, indent=1), encoding="utf-8")
        os.replace(temporary, self.path)  # noqa: PTH105  # replace, which rename is not everywhere
