"""Where things go: results to stdout, talk and progress to stderr, files whole or not at all."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import typer


def plain(value: object) -> object:
    """A result as JSON-ready values; money stays exact decimal text."""
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (Decimal, Path)):
        return str(value)
    tolist = getattr(value, "tolist", None)  # NumPy arrays and scalars
    return tolist() if tolist is not None else value


def to_json(value: object) -> str:
    """A result as indented JSON with sorted keys: same result, same bytes."""
    return json.dumps(plain(value), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def emit(result: object, view: Callable[[], None], *, as_json: bool) -> None:
    """Print a result: as JSON when asked for, as the tables of ``view`` otherwise.

    A record prints its own canonical JSON, the bytes that ``-o`` writes.
    """
    if as_json:
        canonical = getattr(result, "to_json", None)
        typer.echo(to_json(result) if canonical is None else canonical(), nl=False)
    else:
        view()


def save(path: str | Path, text: str) -> None:
    """Write a whole file or none, and say so.

    Raises:
        FileProblem: the folder is missing or the disk is full; no partial file is left behind.
    """
    from tiercast_profiles.store import write_text

    write_text(path, text)
    say(f"wrote {path}")


def make_folder(path: Path) -> None:
    """Create a folder for results.

    Raises:
        FileProblem: when it cannot be created.
    """
    from tiercast_profiles.errors import FileProblem

    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileProblem(f"{path}: cannot be created ({error.strerror or error})") from None


def check_writable(*paths: str | None, reads: Sequence[str | None] = ()) -> None:
    """Fail before a long run, not after it, when one of its output files could not be written.

    ``reads`` are names or files that the run takes its input from.

    Raises:
        FileProblem: the folder is missing or closed to writing, the path is a folder itself, two outputs share a file,
            or an output would replace an input.
    """
    from tiercast_profiles.errors import FileProblem

    taken = {os.path.realpath(path): "is read by the same command" for path in reads if path and Path(path).is_file()}
    for path in paths:
        if path is None:
            continue
        target = Path(path)
        if not target.parent.is_dir():
            raise FileProblem(f"{path}: cannot be written (folder {target.parent} does not exist)")
        if target.is_dir():
            raise FileProblem(f"{path}: cannot be written (Is a directory)")
        if not os.access(target.parent, os.W_OK):
            raise FileProblem(f"{path}: cannot be written (no permission in folder {target.parent})")
        if target.exists() and not target.is_file():
            continue  # a device or a pipe takes what comes
        place = os.path.realpath(path)
        if place in taken:
            raise FileProblem(f"{path}: cannot be written (it {taken[place]}); give another file")
        taken[place] = "is another output of the same command"


def say(text: str) -> None:
    """Talk to the person, on stderr."""
    typer.echo(text, err=True)


@contextmanager
def progress(title: str) -> Iterator[Callable[[str, float], None]]:
    """Progress on stderr when that is a terminal, silence otherwise; yields ``report(what, ratio done)``."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _what, _ratio: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=1.0)

        def report(what: str, ratio: float) -> None:
            bar.update(task, completed=ratio, description=f"{title}: {what}" if what else title)

        yield report


def part_of(report: Callable[[str, float], None], number: int, count: int) -> Callable[[str, float], None]:
    """Progress of part ``number``, from 0, of ``count`` equal parts as progress of the whole."""
    return lambda what, ratio: report(what, (number + ratio) / count)
