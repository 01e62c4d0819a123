"""A sweep on a Dask cluster: the rows of a local one, also when a worker dies; and every way it can be missing."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tiercast_plan import workers
from tiercast_plan.sweep import sweep
from tiercast_profiles.errors import MissingCapability

pytest.importorskip("distributed", reason="needs the cluster extra")

VARIES = ("workload.concurrency=1..30", "placement.tier=hbm,dram,pool")
DASK = Path(sys.executable).with_name("dask")


def _started(line: str, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A dask process once it printed what ``line`` matches, and what that captured."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [str(DASK), *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    )
    for text in process.stderr or ():
        if found := re.search(line, text):
            return process, found[1]
    raise AssertionError(f"dask {arguments} ended with {process.wait()}")


@contextmanager
def _cluster(num_workers: int) -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    scheduler, address = _started(
        r"Scheduler at:\s+(tcp://\S+)", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show"
    )
    found = []
    try:
        for _ in range(num_workers):
            options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1")
            found.append(_started(r"(Registered to)", "worker", address, *options)[0])
        yield address, found
    finally:
        for process in (*found, scheduler):
            process.kill()
            process.wait()
            process.stderr.close()


def test_a_worker_that_is_killed_loses_nothing(small_v41):
    local = sweep(small_v41, (), VARIES, is_nominal=True)
    with _cluster(2) as (address, found):
        seen = []

        def listen(far):
            seen.append(far)
            if far.done and found[0].poll() is None:
                found[0].send_signal(signal.SIGKILL)
                found[0].wait()

        remote = sweep(small_v41, (), VARIES, is_nominal=True, cluster=address, progress=listen)
        assert found[0].returncode == -signal.SIGKILL
        assert 0 < seen[1].done < seen[-1].done == len(local), "the worker died midway"
    assert [row.model_dump_json() for row in remote] == [row.model_dump_json() for row in local]


def test_no_scheduler_and_no_worker_are_one_line(small_v41, monkeypatch):
    monkeypatch.setattr(workers, "CONNECT_TIMEOUT_S", 1)
    with pytest.raises(MissingCapability, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:9'") as caught:
        sweep(small_v41, cluster="tcp://127.0.0.1:9")
    assert "\n" not in str(caught.value)
    with pytest.raises(MissingCapability, match="no Dask scheduler answers at 'nonsense://x'"):
        sweep(small_v41, cluster="nonsense://x")
    with (
        _cluster(0) as (address, _),
        pytest.raises(MissingCapability, match="has no worker; start one with: dask worker"),
    ):
        sweep(small_v41, cluster=address)


def test_another_version_on_a_worker_is_refused(small_v41, monkeypatch):
    with _cluster(1) as (address, _):
        monkeypatch.setattr(workers, "__version__", "0.0.0")
        with pytest.raises(MissingCapability, match=r"runs Tiercast \S+, this is 0.0.0"):
            sweep(small_v41, cluster=address)


def test_without_the_extra_the_line_says_how_to_get_it(small_v41, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingCapability, match=r"pip install 'tiercast\[cluster\]'"):
        sweep(small_v41, cluster="tcp://127.0.0.1:9")
