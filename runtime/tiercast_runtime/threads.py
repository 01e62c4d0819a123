"""Threads that the system may refuse: a limit on tasks (``ulimit -u``, a container's) is one clear line."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread

from tiercast_profiles.errors import MissingCapability


def start(thread: Thread, what: str) -> None:
    """Start a thread.

    Raises:
        MissingCapability: the system refuses it.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise _refused(what, error) from None


def submit_all(pool: ThreadPoolExecutor, calls: Iterable[Callable[[], None]], what: str) -> list[Future[None]]:
    """Hand all calls to a pool, whose threads start as they are needed.

    Raises:
        MissingCapability: the system refuses a thread. The pool is closed then, none of the calls runs any more and
            none will: what is left in a queue would write later into memory that is something else's by then.
    """
    try:
        return [pool.submit(call) for call in calls]
    except RuntimeError as error:
        pool.shutdown(cancel_futures=True)
        raise _refused(what, error) from None


def _refused(what: str, error: RuntimeError) -> MissingCapability:
    return MissingCapability(
        f"cannot start {what} ({error}); allow this process more threads (ulimit -u, or the container's limit)"
    )
