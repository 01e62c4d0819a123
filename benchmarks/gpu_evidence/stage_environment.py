"""Stage ``environment``: what machine this is, and whether the kernels equal their oracles on it."""

import importlib.metadata
import json
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_evidence.context import Context, environment_of
from gpu_evidence.plan import HOST_TO_ASK_BYTES, Case, disk_table_bytes, fits_device, paper_table_bytes
from tiercast_profiles.units import GIB
from tiercast_runtime.device import describe, num_cores
from tiercast_runtime.growing_memory import memory_field, memory_that_comes
from tiercast_runtime.host_loops import compiled_loops
from tiercast_runtime.memory import available_host_bytes
from tiercast_runtime.probes.host import read_host

ROOT = Path(__file__).resolve().parents[2]
TEST_SECONDS = 90
SYSTEM_FILES = (
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/proc/meminfo",
    "/proc/cmdline",
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory.current",
)
TEST_FILES = ("test_backbone_kernels", "test_hash_kernel", "test_uva_kernel", "test_engine_cuda", "test_probes_cuda")


def cases(context: Context) -> list[Case]:
    """The machine, then one case per file of GPU tests."""
    files = TEST_FILES[:1] if context.is_rehearsal else TEST_FILES
    return [
        *(() if context.is_rehearsal else (Case("environment", "memory", 180, memory),)),
        Case("environment", "machine", 15, machine),
        *(Case("environment", name, TEST_SECONDS, gpu_tests(name)) for name in files),
    ]


def memory(_context: Context) -> dict[str, Any]:
    """How much memory the host really gives: a virtual machine may start with little and grow as it is used."""
    before, wanted = memory_field("MemTotal"), paper_table_bytes() + HOST_TO_ASK_BYTES
    if available_host_bytes() >= wanted:
        return {"grown_bytes": 0, "host_bytes_before": before}
    used = before - memory_field("MemAvailable")
    got = memory_that_comes(wanted)
    # what came stays promised, also where the machine takes it back between two processes
    grown = max(memory_field("MemTotal"), used + got)
    return {"grown_bytes": grown if grown > before + GIB else 0, "host_bytes_before": before, "bytes_touched": got}


def machine(context: Context) -> dict[str, Any]:
    """Facts of the machine, and the table size planned from them."""
    room, device = context.room, context.device
    facts: dict[str, Any] = {
        "device": describe(device),
        "num_cores": num_cores(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "numpy": np.__version__,
        "triton": _version("triton"),
        "numba": _version("numba") if compiled_loops() is not None else None,  # without it NumPy gathers on the host
        "locked_memory_limit": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "host_bytes": room.host_bytes,
        "device_bytes": room.device_bytes,
        "disk_bytes": room.disk_bytes,
        "table_bytes": context.table_bytes,
        "table_fits_device": fits_device(context.table_bytes, room) or context.is_rehearsal,
        "disk_table_bytes": disk_table_bytes(room, context.table_bytes),
    }
    details = {
        "facts": facts,
        "host": read_host().probe_result().model_dump(mode="json"),
        "files": {name: _head(Path(name)) for name in SYSTEM_FILES},
        "nvidia_smi": _output(["nvidia-smi"]),
        "nvidia_smi_topology": _output(["nvidia-smi", "topo", "-m"]),
    }
    context.write("environment.json", json.dumps(details, indent=1))
    return facts


def gpu_tests(name: str) -> Any:
    """A case that runs one file of tests/gpu in a process of its own."""

    def run(context: Context) -> dict[str, Any]:
        # other versions of torch and NumPy than the pinned ones warn of other things: that fails no kernel here
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default"]
        command.append(f"tests/gpu/{name}.py")
        if not context.is_rehearsal:  # those in the interpreter are for machines without a GPU
            command += ["-m", "gpu"]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment_of(ROOT),
            capture_output=True,
            text=True,
            check=False,
            timeout=TEST_SECONDS * 3,
        )
        context.write(f"logs/{name}.txt", done.stdout[-20_000:] + done.stderr[-5_000:])
        last = (done.stdout.strip().splitlines() or ["no output"])[-1]
        if done.returncode != 0:
            raise AssertionError(f"{name}: {last}")
        return {"result": last}

    return run


def _head(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:2000].strip()
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout[:4000]
