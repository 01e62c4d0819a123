"""Scenarios that are compared: served in turns, so that all of them meet the same machine."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tiercast_profiles.errors import BadInput
from tiercast_profiles.record import RunRecord
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import GIB
from tiercast_runtime.checkpoint import Checkpoint
from tiercast_runtime.engine import Engine
from tiercast_runtime.host_pages import MemoryRequest
from tiercast_runtime.idle_memory import touch_blocks
from tiercast_runtime.measured_record import OTHERS, measured_record
from tiercast_runtime.other_load import OtherLoad
from tiercast_runtime.read_through import read_through
from tiercast_runtime.support import check_supported, device_of
from tiercast_runtime.table import FileTable, Table
from tiercast_runtime.table_folders import prepared_folder
from tiercast_runtime.turns import RunInTurns, turns

MOST_READ_THROUGH_BYTES = 4 * GIB  # of larger files no host of a virtual drive keeps much
NO_TABLES = "placement.tier is none: there are no tables to fill; leave the checkpoint out"


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the tables of a bench come from: see :func:`tiercast_runtime.bench.bench`."""

    folder: Path | None = None
    tables: Sequence[Table] | None = None
    checkpoint: Path | None = None
    memory: MemoryRequest | None = None


class Together:
    """Scenarios that are compared: their engines, all in memory, and what their rounds have given so far.

    ``others`` are open engines whose weights may be shared.

    Raises:
        As :func:`tiercast_runtime.bench.bench`.
    """

    def __init__(
        self,
        scenarios: Sequence[ResolvedScenario],
        sources: Sources,
        between: Callable[[], Mapping[str, float]] | None,
        others: Sequence[Engine] = (),
    ) -> None:
        for resolved in scenarios:
            check_supported(resolved)
            if sources.checkpoint is not None and resolved.placement.tier == "none":
                raise BadInput(NO_TABLES)
        opened = [None if sources.checkpoint is None else Checkpoint(sources.checkpoint, s.model) for s in scenarios]
        devices = [device_of(resolved) for resolved in scenarios]
        self.engines: list[Engine] = []
        self.num_rounds = 0
        self._scenarios, self._load, self._around = scenarios, OtherLoad(), _Around(between)
        self._runs: list[list[RunInTurns]] = [[] for _ in scenarios]
        with ExitStack() as stack:
            for resolved, device, rows in zip(scenarios, devices, opened, strict=True):
                place = prepared_folder(sources.folder, resolved)
                engine = Engine(
                    resolved,
                    device,
                    place,
                    tables=sources.tables,
                    checkpoint=rows,
                    memory=sources.memory,
                    others=[*others, *self.engines],
                )
                self.engines.append(stack.enter_context(engine))
            if len(self.engines) > 1:
                _read_through(self.engines)
            self._opened = stack.pop_all()  # from here on they are this object's to close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def round(self, report: Callable[[float], None]) -> Generator[None, None, None]:
        """Serve each once, in turns, every other round backwards; stops where ``between`` was called meanwhile."""
        order = list(range(len(self.engines)))[:: 1 if self.num_rounds % 2 == 0 else -1]
        going = turns([self.engines[place] for place in order], report)
        self._around.begin()
        try:
            while True:
                if len(self.engines) > 1:  # one that is served alone does not stand still
                    touch_blocks()
                try:
                    with self._load:
                        next(going)
                except StopIteration as end:
                    found: list[RunInTurns] = end.value
                    break
                self._around.look()
                yield
        finally:
            going.close()
        self._around.look()
        for place, run in zip(order, found, strict=True):
            self._runs[place].append(run)
        self.num_rounds += 1

    def records(self, num_threads: int) -> tuple[RunRecord, ...]:
        """One record per scenario over all rounds."""
        facts = self._around.facts() | _others(self._load.num_cores)
        found = []
        for resolved, engine, done in zip(self._scenarios, self.engines, self._runs, strict=True):
            runs, own = [each.run for each in done], facts | _turns(done, self.engines)
            found.append(measured_record(resolved, engine, runs, num_threads, own))
        return tuple(found)


class _Around:
    """Figures taken around and amid rounds, averaged."""

    def __init__(self, take: Callable[[], Mapping[str, float]] | None) -> None:
        self._take = take
        self._found: list[Mapping[str, float]] = []

    def begin(self) -> None:
        """A round begins: the end of one is the begin of the next."""
        if not self._found:
            self.look()

    def look(self) -> None:
        """Take them now."""
        if self._take is not None:
            self._found.append(self._take())

    def facts(self) -> dict[str, float]:
        """The averages of those that were there every time."""
        found = self._found
        return {
            name: round(sum(each[name] for each in found) / len(found), 4)
            for name in (found[0] if found else ())
            if all(name in each for each in found)
        }


def _read_through(engines: Sequence[Engine]) -> None:
    """Read the table files once, as the probes do theirs: no arm is to meet blocks that another has made fast."""
    paths = {table.path for engine in engines for table in engine.tables if isinstance(table, FileTable)}
    for path in sorted(paths):
        if path.stat().st_size <= MOST_READ_THROUGH_BYTES:
            read_through(path)


def _others(num_cores_used: float | None) -> dict[str, float]:
    """What other processes used of the machine, as a fact; none where the kernel does not say."""
    return {} if num_cores_used is None else {OTHERS: round(num_cores_used, 3)}


def _turns(runs: Sequence[RunInTurns], engines: Sequence[Engine]) -> dict[str, float]:
    """In how many turns with others a scenario was served, as a fact; none where it ran alone."""
    return {"turns": min(each.num_turns for each in runs)} if len(engines) > 1 else {}
