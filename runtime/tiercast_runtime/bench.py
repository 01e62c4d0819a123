"""Runs a scenario on this machine and writes what was measured as a record.

Table files are kept under the cache folder and used again when their header matches: delete the folder to free the
disk. Nothing in a measured record is predicted, and nothing in it is corrected.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from tiercast_profiles.errors import BadInput, InfeasibleScenario, MissingCapability, TiercastError
from tiercast_profiles.record import RunRecord
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_runtime.device import set_compute_threads
from tiercast_runtime.engine import Engine, EngineRun, serving
from tiercast_runtime.host_pages import MemoryRequest
from tiercast_runtime.measured_record import measured_record
from tiercast_runtime.memory import available_host_bytes
from tiercast_runtime.support import check_supported, device_of
from tiercast_runtime.table import Table
from tiercast_runtime.table_folders import prepared_folder
from tiercast_runtime.together import NO_TABLES, Sources, Together

MAX_REPEATS = 1000


def bench(
    resolved: ResolvedScenario,
    *,
    repeats: int = 1,
    folder: Path | None = None,
    tables: Sequence[Table] | None = None,
    progress: Callable[[float], None] | None = None,
    checkpoint: Path | None = None,
    memory: MemoryRequest | None = None,
) -> RunRecord:
    """Serve the scenario's workload ``repeats`` times with the real runtime.

    Each metric is the median over the repeats, with quartiles as its interval where there are several. Samples and
    spans are those of the repeat with the median throughput.

    Args:
        resolved: what to run; its hardware profile must be of this kind of machine.
        repeats: timed runs, each after its own warm-up.
        folder: where table files are kept; by default :func:`default_table_folder`.
        tables: the scenario's tables, made before and kept by the caller; by default each run makes its own.
        progress: called with the share done, 0 … 1, at most ten times per repeat.
        checkpoint: safetensors with the Engram's rows and weights (:mod:`tiercast_runtime.checkpoint`); without one
            the rows are computed and the weights random.
        memory: pages and NUMA node of tables in host memory; the record says what was obtained.

    Raises:
        BadInput: ``repeats`` out of range, or a checkpoint for a scenario without tables.
        MissingCapability: this machine, or the runtime, lacks something the scenario asks for.
        InfeasibleScenario: it does not fit this machine's memory.
        FileProblem: the table folder cannot be written, or the checkpoint is not this model's.
    """
    if resolved.scenario.parallel.tensor > 1:
        check_repeats(repeats)
        check_supported(resolved, has_ranks=True)
        if tables is not None:
            raise BadInput("tables made before serve one process; leave them out, or set parallel.tensor to 1")
        if checkpoint is not None and resolved.placement.tier == "none":
            raise BadInput(NO_TABLES)
        device_of(resolved)
        from tiercast_runtime.ranks import bench_ranks

        place = prepared_folder(folder, resolved)
        return bench_ranks(
            resolved, repeats=repeats, folder=place, progress=progress, checkpoint=checkpoint, memory=memory
        )
    return bench_in_rounds(
        [resolved],
        repeats=repeats,
        folder=folder,
        tables=tables,
        progress=progress,
        checkpoint=checkpoint,
        memory=memory,
    )[0]


def check_repeats(repeats: int) -> None:
    """Refuse a number of repeats out of range.

    Raises:
        BadInput: saying what is allowed.
    """
    if not 1 <= repeats <= MAX_REPEATS:
        raise BadInput(f"repeats={repeats}; must be between 1 and {MAX_REPEATS}")


def bench_engine(
    engine: Engine, repeats: int, num_threads: int, progress: Callable[[float], None]
) -> tuple[RunRecord, list[EngineRun]]:
    """The record of an engine that runs ``repeats`` times, and the runs."""
    runs: list[EngineRun] = []
    for done in range(repeats):

        def report(share: float, done: int = done) -> None:
            progress((done + share) / repeats)

        runs.append(engine.run(report))
    return measured_record(engine.resolved, engine, runs, num_threads, {}), runs  # others: the other ranks would count


def bench_in_rounds(
    scenarios: Sequence[ResolvedScenario],
    *,
    repeats: int = 1,
    folder: Path | None = None,
    tables: Sequence[Table] | None = None,
    progress: Callable[[float], None] | None = None,
    checkpoint: Path | None = None,
    memory: MemoryRequest | None = None,
    between: Callable[[], Mapping[str, float]] | None = None,
) -> tuple[RunRecord, ...]:
    """Serve several scenarios, each once per round, in turns of a fraction of a second: all meet the same machine.

    What the others take is in no scenario's time (:mod:`tiercast_runtime.turns`). Every other round goes backwards. All
    of them are in memory at once. Arguments and errors are those of :func:`bench`, which alone runs several ranks;
    ``between`` is called before every round, between turns every two seconds, and at the end, and what it returned is
    averaged into the facts of all records.
    """
    check_repeats(repeats)
    with ExitStack() as stack:
        num_threads = stack.enter_context(_compute_threads())
        sources = Sources(folder=folder, tables=tables, checkpoint=checkpoint, memory=memory)
        together = stack.enter_context(Together(scenarios, sources, between))

        def report(share: float) -> None:
            if progress is not None:
                progress((together.num_rounds + share) / repeats)

        with serving():
            for _ in range(repeats):
                for _ in together.round(report):
                    pass
        return together.records(num_threads)


def bench_groups(
    groups: Mapping[str, Sequence[ResolvedScenario]],
    *,
    folder: Path | None = None,
    progress: Callable[[float], None] | None = None,
    between: Callable[[], Mapping[str, float]] | None = None,
) -> dict[str, tuple[RunRecord, ...] | TiercastError]:
    """Serve several groups of scenarios once each, a few seconds of one group after those of another.

    Within a group scenarios are compared and take turns as in :func:`bench_in_rounds`. Groups differ in their work and
    are only to meet the same machine in the long run: one after the other, each would meet its own half minute. As many
    are in memory at once as leave half of it free; on a GPU, whose memory engines take whole, one.

    Args:
        groups: scenarios by name of their group.
        folder: as for :func:`bench`.
        progress: called with the share done of all of them.
        between: as for :func:`bench_in_rounds`, by group: its records have the averages of its own moments.

    Returns:
        By group its records, or why it cannot be run.
    """
    found: dict[str, tuple[RunRecord, ...] | TiercastError] = {}
    shares = dict.fromkeys(groups, 0.0)
    left = deque(groups.items())
    spare_bytes = available_host_bytes() // 2

    def report_of(name: str) -> Callable[[float], None]:
        def report(share: float) -> None:
            shares[name] = share
            if progress is not None:
                progress(sum(shares.values()) / len(shares))

        return report

    with _compute_threads() as num_threads:
        while left:
            with ExitStack() as stack:
                opened: dict[str, Together] = {}
                while left and (not opened or _has_room(opened, spare_bytes)):
                    name, scenarios = left.popleft()
                    others = [engine for each in opened.values() for engine in each.engines]
                    try:
                        together = stack.enter_context(Together(scenarios, Sources(folder=folder), between, others))
                    except InfeasibleScenario as error:
                        if opened:  # those beside it take the memory
                            left.appendleft((name, scenarios))
                            break
                        found[name] = error
                    except MissingCapability as error:
                        found[name] = error
                    else:
                        opened[name] = together
                going = {name: together.round(report_of(name)) for name, together in opened.items()}
                for each in going.values():
                    stack.callback(each.close)  # before the engines, whatever happens
                failed = _served(going)
                found |= failed
                found |= {name: each.records(num_threads) for name, each in opened.items() if name not in failed}
    return {name: found[name] for name in groups}


def _served(rounds: Mapping[str, Generator[None, None, None]]) -> dict[str, TiercastError]:
    """Go on with each in turn until all are done; what ended those that could not be run."""
    left, failed = dict(rounds), dict[str, TiercastError]()
    with serving():
        while left:
            for name in list(left):
                try:
                    next(left[name])
                except StopIteration:
                    del left[name]
                except (InfeasibleScenario, MissingCapability) as error:
                    del left[name]
                    failed[name] = error
    return failed


def _has_room(opened: Mapping[str, Together], spare_bytes: int) -> bool:
    """Whether another group may be in memory beside those that are."""
    is_on_gpu = any(engine.device.type == "cuda" for each in opened.values() for engine in each.engines)
    return not is_on_gpu and available_host_bytes() >= spare_bytes


@contextmanager
def _compute_threads() -> Iterator[int]:
    """Compute with the threads of this machine, and with those of before afterwards."""
    previous = torch.get_num_threads()
    try:
        yield set_compute_threads()
    finally:
        torch.set_num_threads(previous)
