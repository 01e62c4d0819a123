"""Which cores a thread runs on: bound for a while, and put back."""

import os
from collections.abc import Iterator, Set
from contextlib import contextmanager


@contextmanager
def on_cores(cores: Set[int] | None) -> Iterator[None]:
    """Inside, this thread runs on these cores only, and threads it starts do; None changes nothing.

    Raises:
        OSError: the system refuses.
    """
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
