"""A drive timed at several moments of a profile; its table files stay until the last of them.

A drive that others share has minutes in which every read takes a third longer. A probe of a few seconds sees one side
of that, and whoever serves from the drive for an hour sees both: what is pooled over a profile is nearer to the mean,
and its spread says what one moment is worth.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from tiercast_profiles.hardware import ProbeResult, TimeSpread
from tiercast_profiles.model import Engram
from tiercast_runtime.probes import storage
from tiercast_runtime.probes.alike import cases_of_alike, means_of_alike
from tiercast_runtime.probes.gather import GatherKey
from tiercast_runtime.probes.plan import ProbePlan
from tiercast_runtime.probes.storage import ReadTimes, StorageFacts
from tiercast_runtime.probes.timing import Spread
from tiercast_runtime.read_through import read_through
from tiercast_runtime.table import FileTable

MOST_ROWS = 16_384  # of one lookup: far behind the queue's depth its time grows in a straight line
NUM_MOMENTS = 3  # once the files are made, between layers and lookups beside them, and at the end


class Drive:
    """Table files on one drive, and all that was timed on them so far.

    Args:
        files: by row size; raw reads are timed on the first.
        plan: efforts of a whole profile, of which each moment takes its share, and the largest step.
    """

    def __init__(self, files: Mapping[int, FileTable], plan: ProbePlan) -> None:
        self.files = files
        self._plan = plan
        self._reads: ReadTimes | None = None
        self._lookups: dict[GatherKey, tuple[float, ...]] = {}
        self._said: list[ProbeResult] = []
        self._num_moments = 0
        self.granularity_bytes = 1

    def time(self) -> None:
        """Time raw reads and whole lookups now.

        Raises:
            WrongRows: the path delivered wrong bytes.
            MissingCapability: the files cannot leave memory.
            FileProblem: they cannot be read.
        """
        moment, plan = self._num_moments, self._plan
        first = next(iter(self.files.values()))
        reads = storage.measure_reads(first.path, storage.READ_DEPTHS, storage.READ_BYTES, plan.reads)
        self._reads = reads if self._reads is None else self._reads + reads
        said = []
        rounds = -(-plan.disk.min_rounds // NUM_MOMENTS)
        effort = replace(plan.disk.shared(NUM_MOMENTS), min_rounds=rounds)
        for file in self.files.values():
            largest = min(file.engram.num_rows_per_token * plan.tokens[-1], MOST_ROWS)
            counts = [count for count in sorted({*storage.DISK_ROWS, largest}) if count <= file.num_rows]
            spreads, self.granularity_bytes, facts = storage.measure_disk_lookups(file, counts, effort, moment=moment)
            for spread in spreads:
                self._lookups[spread.key] = self._lookups.get(spread.key, ()) + spread.samples
            said.append(ProbeResult(name="lookup.nvme.disk.path", parameters=_as_text(facts), unit="", status="ok"))
        self._said = said
        self._num_moments += 1

    @property
    def lookups(self) -> list[Spread[GatherKey]]:
        """Whole lookups in µs, over all moments."""
        return [Spread(key, samples) for key, samples in self._lookups.items()]

    @property
    def means(self) -> dict[GatherKey, float]:
        """Mean time of each lookup in µs; see :func:`~tiercast_runtime.probes.alike.means_of_alike`."""
        return means_of_alike(self.lookups)

    @property
    def spreads(self) -> tuple[TimeSpread, ...]:
        """How far lookups of one size lie apart."""
        by_rows = cases_of_alike(self.lookups, lambda key: key[2])
        return tuple(TimeSpread(num_rows=num_rows, time_ratios=ratios) for num_rows, ratios in by_rows.items())

    @property
    def facts(self) -> StorageFacts:
        """The drive as a tier, over all moments, and the probes that say so."""
        assert self._reads is not None, "the drive is timed before it is described"
        found = storage.storage_facts(next(iter(self.files.values())).path, self._reads)
        return replace(found, probes=(*found.probes, *self._said))


@contextmanager
def open_drive(folder: Path, engrams: Sequence[Engram], plan: ProbePlan) -> Iterator[Drive]:
    """Table files of the planned size in folders of their own, one for each row size; removed at the end.

    Raises:
        MissingCapability: the disk has too little room.
        FileProblem: a folder or file cannot be made.
    """
    by_row_bytes = {engram.row_bytes: engram for engram in engrams}
    with ExitStack() as stack:
        files = {}
        for row_bytes, engram in sorted(by_row_bytes.items()):
            place = stack.enter_context(storage.probe_folder(folder, plan.file_bytes))
            files[row_bytes] = FileTable(engram, 0, "packed", place, num_rows=plan.file_bytes // row_bytes)
            read_through(files[row_bytes].path)
        yield Drive(files, plan)


def _as_text(facts: dict[str, str | int | float | bool]) -> dict[str, str | int | float]:
    """Facts with yes and no instead of true and false, which YAML and integers blur."""
    return {name: ("yes" if fact else "no") if isinstance(fact, bool) else fact for name, fact in facts.items()}
