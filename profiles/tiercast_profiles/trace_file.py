"""Request traces from files: when requests came and how long they were, as published traces write it.

Two forms are read. JSON lines as Mooncake publishes them, one object a line: ``timestamp`` (ms), ``input_length``,
``output_length`` and optionally ``hash_ids``, one id for each :data:`HASH_BLOCK_TOKENS` prompt tokens, equal where the
prompt up to the end of that block is equal. CSV as Azure publishes it: ``TIMESTAMP`` (date and time),
``ContextTokens``, ``GeneratedTokens``. Further fields are left alone.
"""

import csv
import datetime
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tiercast_profiles.errors import BadInput, FileProblem
from tiercast_profiles.units import NS_PER_MS, NS_PER_US

HASH_BLOCK_TOKENS = 512
MAX_TRACE_TOKENS = 10_000_000
MAX_TIMESTAMP_MS = 1e15
CSV_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class TraceLine(NamedTuple):
    """One request of a trace; ``arrival_ns`` counts from the first arrival."""

    arrival_ns: int
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...]


def read_trace(file: str, limit: int | None) -> tuple[TraceLine, ...]:
    """The first ``limit`` requests of a trace file (all without one), in order of arrival.

    Raises:
        FileProblem: the file is missing, unreadable, not text, or holds no request.
        BadInput: a line is not a request; the message names file, line, field and value.
    """
    return _read(file, limit, file_stamp(file))


def trace_sha256(file: str, limit: int | None) -> str:
    """Identity of the requests that :func:`read_trace` gives, wherever the file lies."""
    return hashlib.sha256(repr(read_trace(file, limit)).encode()).hexdigest()


def file_stamp(file: str) -> tuple[int, int]:
    """Size and time of change, which tell whether what was read before still holds.

    Raises:
        FileProblem: there is no such file.
    """
    try:
        found = Path(file).stat()
    except OSError as error:
        raise FileProblem(f"trace {file}: cannot be read ({error.strerror or error})") from None
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=2)
def _read(file: str, limit: int | None, _stamp: tuple[int, int]) -> tuple[TraceLine, ...]:
    path = Path(file)
    try:
        with path.open(encoding="utf-8", newline="") as text:
            lines = _csv_lines(file, text) if path.suffix.lower() == ".csv" else _json_lines(file, text)
            found = list(itertools.islice(lines, limit))
    except UnicodeDecodeError:
        raise FileProblem(f"trace {file}: not a UTF-8 text file") from None
    except OSError as error:
        raise FileProblem(f"trace {file}: cannot be read ({error.strerror or error})") from None
    if not found:
        raise FileProblem(f"trace {file}: holds no request")
    start_ns = min(line.arrival_ns for line in found)
    found.sort(key=lambda line: line.arrival_ns)  # stable: equal times keep the order of the file
    return tuple(line._replace(arrival_ns=line.arrival_ns - start_ns) for line in found)


def _json_lines(file: str, text: TextIO) -> Iterator[TraceLine]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        where = f"trace {file}, line {number}"
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            raise BadInput(f"{where}: not JSON; one object a line, as Mooncake's traces") from None
        if not isinstance(data, dict):
            raise BadInput(f"{where}: holds {type(data).__name__}; one object a line, as Mooncake's traces")
        missing = [name for name in ("timestamp", "input_length", "output_length") if name not in data]
        if missing:
            raise BadInput(f"{where}: no {missing[0]}; needed are timestamp (ms), input_length, output_length")
        prompt = _tokens(where, "input_length", data["input_length"])
        yield TraceLine(
            _milliseconds(where, data["timestamp"]),
            prompt,
            _tokens(where, "output_length", data["output_length"]),
            _hash_ids(where, data.get("hash_ids", []), prompt),
        )


def _csv_lines(file: str, text: TextIO) -> Iterator[TraceLine]:
    rows = csv.DictReader(text)
    try:
        missing = [name for name in CSV_COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise BadInput(f"trace {file}, line 1: no column {missing[0]}; needed are {', '.join(CSV_COLUMNS)}")
        for row in rows:
            where = f"trace {file}, line {rows.line_num}"
            yield TraceLine(
                _date(where, row["TIMESTAMP"]),
                _tokens(where, "ContextTokens", _whole(row["ContextTokens"])),
                _tokens(where, "GeneratedTokens", _whole(row["GeneratedTokens"])),
                (),
            )
    except csv.Error as error:
        raise BadInput(f"trace {file}, line {rows.line_num}: not CSV ({error})") from None


def _whole(text: str | None) -> int | str | None:
    """The whole number a field spells, or the field itself, which is then refused by name."""
    try:
        return int(text or "")
    except ValueError:
        return text


def _tokens(where: str, name: str, value: Any) -> int:  # Any: whatever the line held
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_TRACE_TOKENS:
        raise BadInput(f"{where}: {name}={value!r}; must be a whole number from 1 to {MAX_TRACE_TOKENS}")
    return value


def _milliseconds(where: str, value: Any) -> int:  # Any: whatever the line held
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not 0 <= value <= MAX_TIMESTAMP_MS:
        raise BadInput(f"{where}: timestamp={value!r}; must be milliseconds from 0 to {MAX_TIMESTAMP_MS:g}")
    nanoseconds: int = round(value * NS_PER_MS)
    return nanoseconds


def _date(where: str, value: str | None) -> int:
    try:
        date = datetime.datetime.fromisoformat(value or "")
    except ValueError:
        raise BadInput(
            f"{where}: TIMESTAMP={value!r}; must be a date and time such as 2023-11-16 18:15:46.68"
        ) from None
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (date - epoch) // datetime.timedelta(microseconds=1) * NS_PER_US


def _hash_ids(where: str, value: Any, prompt_tokens: int) -> tuple[int, ...]:  # Any: whatever the line held
    if not isinstance(value, list) or not all(isinstance(part, int) for part in value):
        raise BadInput(f"{where}: hash_ids must be a list of whole numbers")
    if len(value) > -(-prompt_tokens // HASH_BLOCK_TOKENS):
        raise BadInput(
            f"{where}: {len(value)} hash_ids for {prompt_tokens} tokens; at most one for each {HASH_BLOCK_TOKENS}"
        )
    return tuple(value)
