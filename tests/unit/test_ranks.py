"""Benches of several ranks as real processes over gloo: same tokens, honest records, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import BadInput, InfeasibleScenario, MissingCapability, TiercastError  # noqa: E402
from tiercast_runtime import ranks, shared_pages, table  # noqa: E402
from tiercast_runtime.bench import bench, bench_in_rounds  # noqa: E402
from tiercast_runtime.engine import Engine  # noqa: E402
from tiercast_runtime.graph_plan import runnable_mode  # noqa: E402
from tiercast_runtime.host_pages import MemoryRequest  # noqa: E402

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.usefixtures("one_compute_thread"),
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="this torch has no gloo",
    ),
]
POISSON = {
    "kind": "poisson",
    "requests_per_s": 200,
    "num_requests": 6,
    "prompt_tokens": {"uniform": [3, 25]},
    "output_tokens": {"uniform": [1, 9]},
}


@pytest.fixture
def two_ranks(mini_scenario, cpu_hardware, monkeypatch):
    """A scenario of two ranks on a machine that says it has two devices; ranks find this checkout."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # a test machine's own name need not resolve
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    device = cpu_hardware.device.model_copy(update={"num_per_host": 2})
    hardware = cpu_hardware.model_copy(update={"device": device})

    def make(placement, **sections):
        return mini_scenario(placement, hardware=hardware, parallel={"tensor": 2}, **sections)

    return make


def alone(resolved):
    scenario = resolved.scenario
    one = scenario.model_copy(update={"parallel": scenario.parallel.model_copy(update={"tensor": 1})})
    return resolved.model_copy(update={"scenario": one})


@pytest.mark.parametrize(
    ("placement", "sections"),
    [
        ({"tier": "nvme", "replication": "none", "cache_gib": 1e-5, "cache_policy": "static_hot"}, {}),
        ({"tier": "hbm"}, {"workload": POISSON, "speculative": {"draft_tokens": 2}}),
    ],
    ids=str,
)
def test_ranks_ask_for_the_rows_of_one_and_say_what_they_share(two_ranks, tmp_path, placement, sections):
    resolved = two_ranks(placement, **sections)
    record = bench(resolved, folder=tmp_path, repeats=2)
    single = bench(alone(resolved), folder=tmp_path)
    facts, steps = record.provenance.facts, record.samples.steps
    assert (facts["num_ranks"], facts["ranks_share"], facts["table_copies"]) == (2, "lookups", 1)
    assert "columns 0 … 2" in facts["rank_0"]
    assert "columns 3 … 5" in facts["rank_1"]
    assert ranks.NOT_SHARED_OUT in record.provenance.warnings
    assert sum(steps.rows) == sum(single.samples.steps.rows)
    if placement["tier"] == "nvme":
        assert sum(steps.rows_hit) > 0
    tier = placement["tier"]
    tables = sum(one.size_bytes for one in table.build_tables(alone(resolved), CPU, tmp_path))
    if tier != "hbm":
        assert record.metrics.memory_bytes[tier] == tables


@pytest.mark.parametrize("replication", ["per_rank", "per_node"])
def test_replication_decides_how_many_copies_there_are_and_not_the_tokens(
    two_ranks, tmp_path, replication, monkeypatch
):
    resolved, reports = two_ranks({"tier": "dram", "replication": replication}), []
    keep = ranks._with_ranks

    def spy(resolved, record, said, **options):
        reports.extend(said)
        return keep(resolved, record, said, **options)

    monkeypatch.setattr(ranks, "_with_ranks", spy)
    record = bench(resolved, folder=tmp_path)
    with Engine(alone(resolved), CPU, tmp_path) as engine:
        result = engine.run()
    assert {report.tokens_sha256 for report in reports} == {ranks.tokens_sha256([result])}
    tables = sum(one.size_bytes for one in table.build_tables(alone(resolved), CPU, tmp_path))
    num_copies = 2 if replication == "per_rank" else 1
    assert record.metrics.memory_bytes["dram"] == num_copies * tables
    assert record.provenance.facts["table_copies"] == num_copies
    assert [report.table_bytes for report in reports] == [tables, tables]


def test_what_a_rank_refuses_is_one_line_of_its_class(two_ranks, tmp_path):
    with pytest.raises(MissingCapability, match="share out lookups and not compute"):
        bench_in_rounds([two_ranks({"tier": "dram"})], folder=tmp_path)
    with pytest.raises(InfeasibleScenario, match=r"^rank [01]: the KV cache of one request") as caught:
        bench(two_ranks({"tier": "nvme", "cache_gib": 1e5}), folder=tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="repeats=0"):
        bench(two_ranks({"tier": "dram"}), folder=tmp_path, repeats=0)


def test_a_rank_that_dies_ends_the_run_in_one_line(two_ranks, tmp_path, monkeypatch):
    start, started = ranks._start, []

    def doomed(order, descriptors):
        process = start(order, descriptors)
        started.append(process)
        if len(started) == 2:
            process.kill()
        return process

    monkeypatch.setattr(ranks, "_start", doomed)
    with pytest.raises(TiercastError, match=r"^rank 1 ended with code -9 before its work was done$"):
        bench(two_ranks({"tier": "dram"}), folder=tmp_path)
    assert all(process.poll() is not None for process in started)


def test_a_rank_the_system_refuses_is_one_line_and_ends_those_that_started(two_ranks, tmp_path, monkeypatch):
    real, started = subprocess.Popen, []

    def start(*arguments, **options):
        if started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(real(*arguments, **options))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(MissingCapability, match=r"^rank 1 could not be started .*Resource temporarily unavailable"):
        bench(two_ranks({"tier": "dram"}), folder=tmp_path)
    assert started[0].returncode is not None


def test_what_a_library_prints_in_a_rank_is_no_message(two_ranks, tmp_path, monkeypatch):
    """As NCCL prints its version: to standard output, in the rank itself."""
    noisy = (
        "import json, os; real = json.loads; json.loads = lambda text: (os.write(1, b'NCCL version'), real(text))[1]"
    )
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(noisy)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(folder), os.environ["PYTHONPATH"])))
    assert bench(two_ranks({"tier": "dram"}), folder=tmp_path).provenance.facts["num_ranks"] == 2


def test_a_graph_is_cut_where_ranks_agree(mini_scenario):
    placement = mini_scenario({"tier": "hbm"}).placement.model_copy(update={"graph_mode": "full"})
    assert runnable_mode(placement) == ("full", "")
    assert runnable_mode(placement, has_ranks=True)[0] == "piecewise"


def test_a_shared_table_is_one_memory(mini_model):
    engram = mini_model("v41").engram
    made = table.HostTable(engram, 0, "split", is_shared=True, memory=MemoryRequest("4k"))
    other = table.HostTable(engram, 0, "split", shared=made.shared)
    ids = np.arange(made.num_rows)
    assert np.array_equal(torch.cat(other.parts, dim=1).numpy(), table.expected_rows(engram, 0, ids))
    made.parts[0][3, 1] = 77
    assert int(other.parts[0][3, 1]) == 77
    assert made.obtained.page_bytes == os.sysconf("SC_PAGE_SIZE")
    descriptors = list(made.shared)
    made.close()
    other.close()
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


OWNER = """
import subprocess, sys, time
from tiercast_runtime.host_pages import MemoryRequest, map_memory
from tiercast_runtime.shared_pages import make_shared
size = 8 << 20
descriptor = make_shared(size, MemoryRequest("4k"), "a table")
memory = map_memory(size, MemoryRequest("4k"), descriptor)
memory[:5] = b"owner"
sharer = '''
import sys, threading, os
from tiercast_runtime.host_pages import MemoryRequest, map_memory
memory = map_memory(8 << 20, MemoryRequest("4k"), int(sys.argv[1]))
print(bytes(memory[:5]).decode(), os.getpid(), flush=True)
sys.stdin.read()
'''
child = subprocess.Popen([sys.executable, "-c", sharer, str(descriptor)], stdin=subprocess.PIPE, pass_fds=[descriptor])
time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_a_killed_owner_leaves_nothing_behind(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    word, pid = owner.stdout.readline().split()
    assert word == "owner"
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert owner.stdout.read() == ""  # the other end is the sharer's: it has ended
    deadline = time.monotonic() + 10
    while _is_running(int(pid)) and time.monotonic() < deadline:
        os.sched_yield()
    assert not _is_running(int(pid))
    assert not [path for path in shared_pages.SHM_FOLDER.glob("*tiercast*") if path.stat().st_uid == os.getuid()]
    owner.stdout.close()


def _is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_dev_shm_serves_where_there_is_no_memfd_and_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(shared_pages, "_memory_file", lambda page_bytes: None)
    descriptor = shared_pages.make_shared(5000, MemoryRequest(), "a table")
    assert os.fstat(descriptor).st_size == 5000
    os.close(descriptor)

    class Small:
        f_bavail, f_frsize = 16384, 4096

    monkeypatch.setattr(os, "statvfs", lambda folder: Small)
    with pytest.raises(
        InfeasibleScenario, match=r"needs 189\.00 GiB of /dev/shm; 64\.00 MiB is free: .*--shm-size=190g"
    ) as got:
        shared_pages.make_shared(189 << 30, MemoryRequest(), "the table of layer 1")
    assert got.value.shortfall_bytes == (189 << 30) - (64 << 20)
    with pytest.raises(MissingCapability, match="grants no memfd"):
        shared_pages.make_shared(5000, MemoryRequest("2m"), "a table")
    monkeypatch.setattr(shared_pages, "SHM_FOLDER", tmp_path / "none")
    monkeypatch.undo()


def test_reserved_pages_that_are_not_there_are_one_line():
    if int(Path("/proc/sys/vm/nr_hugepages").read_text()) > 0:
        pytest.skip("this machine has reserved pages")
    with pytest.raises((MissingCapability, InfeasibleScenario), match=r"huge pages of 2.00 MiB|grants no memfd"):
        shared_pages.make_shared(4 << 20, MemoryRequest("2m"), "a table")
