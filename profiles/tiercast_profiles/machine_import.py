"""A hardware profile from files that other tools wrote, over a base for what they do not say."""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tiercast_profiles.anchors import is_same_product
from tiercast_profiles.errors import BadInput, FileProblem
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.machine_reports import Stated, read_report
from tiercast_profiles.store import MAX_FILE_BYTES, parse


@dataclass(frozen=True, slots=True)
class Report:
    """One file: what it states, and the day of its evidence."""

    path: str
    stated: tuple[Stated, ...]
    date: datetime.date


def read_reports(paths: Sequence[str], date: datetime.date | None = None) -> tuple[Report, ...]:
    """The files, dated by ``date`` or by when each was last changed.

    Raises:
        FileProblem: a file is missing, too large, not text.
        BadInput: no known tool wrote it, or it holds nothing of use.
    """
    return tuple(_read(path, date) for path in paths)


def build_profile(reports: Sequence[Report], base: HardwareProfile | None, name: str) -> HardwareProfile:
    """The profile: every number of the files with its file as source, the rest from the base with the base's sources.

    Raises:
        BadInput: two files state the same value, a file is of another product than the base, or there is no base and
            the files do not say all that a profile needs.
    """
    by_path: dict[str, Report] = {}
    for report in reports:
        for item in report.stated:
            other = by_path.setdefault(item.path, report)
            if other is not report and not _agrees(other, item):
                raise BadInput(f"{report.path}: states {item.path}, and so does {other.path}; give one of the two")
    if base is None:
        raise BadInput(_needs_base(by_path))
    body: dict[str, Any] = base.model_dump(mode="json")  # Any: a document before its schema has seen it
    files = ", ".join(Path(report.path).name for report in reports)
    body |= {"name": name, "description": f"{base.name} with figures from {files}. Base: {base.description}"}
    for number, report in enumerate(reports, start=1):
        for item in report.stated:
            if by_path[item.path] is report:
                _state(body, item, report, number, base)
    body["sources"] = {key: body["sources"][key] for key in dict.fromkeys(body["evidence"].values())}
    return parse(HardwareProfile, body, f"profile from {files}")


def _read(path: str, date: datetime.date | None) -> Report:
    file = Path(path)
    try:
        status = file.stat()
        if status.st_size > MAX_FILE_BYTES:
            raise FileProblem(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB; not the output of a known tool")
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileProblem(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise FileProblem(f"{path}: not a UTF-8 text file") from None
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read ({error.strerror or error})") from None
    day = date or datetime.datetime.fromtimestamp(status.st_mtime, tz=datetime.UTC).date()
    return Report(path, read_report(text, path), day)


def _agrees(other: Report, item: Stated) -> bool:
    return any(said.path == item.path and said.value == item.value for said in other.stated)


def _needs_base(stated: dict[str, Report]) -> str:
    body: dict[str, Any] = {}  # Any: nested mappings of what is stated
    for path in stated:
        section, _, key = path.partition(".")
        body.setdefault(section, {})[key] = 1
    try:
        HardwareProfile.model_validate(body)
    except ValidationError as error:
        head = {"schema_version", "name", "description", "sources", "evidence", "calibration"}
        lacking = [".".join(map(str, p["loc"])) for p in error.errors() if p["type"] == "missing"]
        shown = [path for path in lacking if path not in head]
        more = f" and {len(shown) - 6} more" if len(shown) > 6 else ""
        return (
            f"the files do not say {', '.join(shown[:6])}{more}; "
            "give --base NAME, the machine that states them (tiercast hardware list)"
        )
    raise AssertionError("a profile without sources is never valid")


def _state(
    body: dict[str, Any], item: Stated, report: Report, number: int, base: HardwareProfile
) -> None:  # Any: above
    """Put one stated value into the document, its evidence with it."""
    section, _, key = item.path.partition(".")
    if body.get(section) is None:
        raise BadInput(f"{report.path}: states {item.path}, but base {base.name!r} has no {section}; give another base")
    if item.path == "device.product_name":
        if not is_same_product(str(item.value), base.device.product_name):
            raise BadInput(
                f"{report.path}: is of {item.value!r}, base {base.name!r} of {base.device.product_name!r}; "
                "give the base of the same product"
            )
        body[section][key] = item.value
        return
    is_whole = isinstance(item.value, int)
    value: object = item.value if is_whole else _rounded(float(item.value))
    if item.low is not None and item.high is not None and item.low < item.high:
        value = {"value": value, "low": _rounded(item.low), "high": _rounded(item.high)}
    body[section][key] = value
    inside = [path for path in body["evidence"] if path == item.path or path.startswith(f"{item.path}.")]
    for path in inside:
        del body["evidence"][path]
    source = f"file-{number}-{re.sub(r'[^a-z0-9]+', '-', item.what.lower()).strip('-')}"
    body["evidence"][item.path] = source
    body["sources"][source] = {
        "kind": "measured",
        "mark": "M",
        "source": f"{item.what}, in {Path(report.path).name}",
        "date": report.date.isoformat(),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
