"""Work in batches: one after the other here, on processes of this machine, or on a Dask cluster.

A batch goes out as one piece and comes back as one piece, in whatever order batches end; who asked puts results in
order. Every way gives the same results, because a batch is computed by the same function from the same values.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar, cast

from tiercast_profiles import __version__
from tiercast_profiles.errors import MissingCapability

WorkT = TypeVar("WorkT")
ResultT = TypeVar("ResultT")

MAX_BATCH = 64  # points of a batch: small enough to lose little with a worker, large enough to pay for its trip
BATCHES_PER_WORKER = 8  # so that workers end at about the same time
CONNECT_TIMEOUT_S = 10
NO_WORKER_TIMEOUT_S = 60
AHEAD_PER_THREAD = 4  # batches handed out beyond those that run


def batches_of(work: Sequence[WorkT], num_workers: int) -> list[Sequence[WorkT]]:
    """The work in pieces for that many workers, in order."""
    size = max(1, min(MAX_BATCH, len(work) // (num_workers * BATCHES_PER_WORKER)))
    return [work[start : start + size] for start in range(0, len(work), size)]


def in_processes(run: Callable[[Sequence[WorkT]], ResultT], work: Sequence[WorkT], num_jobs: int) -> Iterator[ResultT]:
    """Results of batches as they end, computed by ``num_jobs`` processes of this machine (1: by this one)."""
    if num_jobs == 1:
        yield from (run([item]) for item in work)
        return
    from joblib import Parallel, delayed  # only a parallel sweep pays for the import

    ended = Parallel(n_jobs=num_jobs, return_as="generator_unordered")(
        delayed(run)(batch) for batch in batches_of(work, num_jobs)
    )
    yield from cast("Iterable[ResultT]", ended)


def on_cluster(run: Callable[[Sequence[WorkT]], ResultT], work: Sequence[WorkT], address: str) -> Iterator[ResultT]:
    """Results of batches as they end, computed by the workers of a Dask cluster.

    What a lost worker had not given back is computed again by another one.

    Raises:
        MissingCapability: the cluster extra is not installed, no scheduler or no worker answers, a worker has another
            version of Tiercast or none, or a batch cost several workers their life.
    """
    try:
        from distributed import Client
    except ImportError:
        raise MissingCapability(
            "a sweep on a cluster needs the cluster extra; install it with: pip install 'tiercast[cluster]'"
        ) from None
    try:
        client = Client(address, timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise MissingCapability(
            f"no Dask scheduler answers at {address!r} ({str(error).splitlines()[0]}); start one with: dask scheduler, "
            "and give its address, such as tcp://127.0.0.1:8786"
        ) from None
    try:
        _check_workers(client, address)
        yield from _ended(client, run, work, address)
    finally:
        client.close(timeout=CONNECT_TIMEOUT_S)


def version_here() -> str:
    """The version a worker runs; asked before any work is sent."""
    return __version__


# Any: distributed has no type hints that hold between its versions.
def _check_workers(client: Any, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=CONNECT_TIMEOUT_S)
    except OSError:
        raise MissingCapability(f"{_no_worker(address)}") from None
    try:
        versions: dict[str, str] = client.run(version_here)
    except Exception as error:  # whatever a worker raised: most often that it cannot import Tiercast
        raise MissingCapability(
            f"a worker of {address} cannot run Tiercast ({type(error).__name__}: {str(error).splitlines()[0]}); "
            f"install tiercast=={__version__} for every worker"
        ) from None
    other = {worker: version for worker, version in versions.items() if version != __version__}
    if other:
        worker, version = min(other.items())
        raise MissingCapability(
            f"worker {worker} runs Tiercast {version}, this is {__version__}; install the same on all"
        )


def _ended(
    client: Any, run: Callable[[Sequence[WorkT]], ResultT], work: Sequence[WorkT], address: str
) -> Iterator[ResultT]:
    from distributed import wait
    from distributed.scheduler import KilledWorker

    num_threads = max(1, sum(client.nthreads().values()))
    todo = iter(batches_of(work, num_threads))
    running: list[Any] = []
    seen_worker_s = time.monotonic()
    while True:
        ahead = AHEAD_PER_THREAD * max(1, sum(client.nthreads().values())) - len(running)
        running += [client.submit(run, batch, pure=False) for batch in islice(todo, max(0, ahead))]
        if not running:
            return
        try:
            ended: Any = wait(running, timeout=5, return_when="FIRST_COMPLETED")
            done = ended.done
        except OSError:  # nothing ended within the time
            done = set()
        if client.nthreads():
            seen_worker_s = time.monotonic()
        elif time.monotonic() - seen_worker_s > NO_WORKER_TIMEOUT_S:
            raise MissingCapability(f"{_no_worker(address)}; what was finished is in the state file, if you gave one")
        for future in [future for future in running if future in done]:
            running.remove(future)
            try:
                yield future.result()
            except KilledWorker as error:
                raise MissingCapability(
                    f"workers of {address} died again and again on the same points ({str(error).splitlines()[0]}); "
                    "give them more memory, or run the sweep here with --jobs"
                ) from None


def _no_worker(address: str) -> str:
    return f"the scheduler at {address} has no worker; start one with: dask worker {address}"
