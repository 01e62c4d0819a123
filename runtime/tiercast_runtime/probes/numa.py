"""How fast row reads from another NUMA node's memory are, compared with the own node's.

Memory is bound to a node by the system call ``set_mempolicy`` while it is first touched; the thread is bound by its
affinity. Both are put back.
"""

import ctypes
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tiercast_profiles.errors import MissingCapability
from tiercast_profiles.rng import stream
from tiercast_profiles.units import MIB
from tiercast_runtime.cores import on_cores
from tiercast_runtime.memory import HostBlock
from tiercast_runtime.probes.timing import Clock, Effort, Spread, collect

ROW_BYTES = 256
NUM_ROWS = 8192
BLOCK_BYTES = 256 * MIB
_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}  # Linux kernel, arch/*/include/…/unistd
_DEFAULT, _BIND = 0, 2  # MPOL_DEFAULT, MPOL_BIND of linux/mempolicy.h
_MASK_BITS = 1024


def node_cores(root: Path = Path("/")) -> dict[int, set[int]]:
    """Cores of every NUMA node that has some."""
    nodes = {}
    for folder in sorted((root / "sys/devices/system/node").glob("node[0-9]*")):
        cores: set[int] = set()
        for part in (folder / "cpulist").read_text(encoding="ascii").strip().split(","):
            first, _, last = part.partition("-")
            if first:
                cores.update(range(int(first), int(last or first) + 1))
        if cores:
            nodes[int(folder.name.removeprefix("node"))] = cores
    return nodes


def measure_remote_reads(
    own: int,
    other: int,
    cores: set[int],
    effort: Effort,
    *,
    clock: Clock = time.perf_counter_ns,
    block_bytes: int = BLOCK_BYTES,
) -> Spread[str]:
    """Time of a gather from the own node over the time from the other: 1 means as fast, ½ half as fast.

    Args:
        own: node whose cores gather.
        other: node whose memory is read from afar.
        cores: cores of ``own``.
        effort: for the pair.
        clock: ns.
        block_bytes: memory taken on each node.

    Raises:
        MissingCapability: this system cannot bind memory or threads to a node.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise MissingCapability("this system cannot bind a thread to cores")
    blocks: list[HostBlock] = []
    usable = cores & os.sched_getaffinity(0)
    if not usable:
        raise MissingCapability(f"this process may not run on NUMA node {own}")
    with ExitStack() as stack:
        stack.enter_context(on_cores(usable))
        for node in (own, other):
            with _memory_on(node):
                block = HostBlock(block_bytes)
                stack.callback(block.close)
                block.array[:] = 1
            blocks.append(block)
        tables = [block.array.reshape(-1, ROW_BYTES) for block in blocks]
        out = np.empty((NUM_ROWS, ROW_BYTES), dtype=np.uint8)
        generator = stream(0, "numa")
        ids: npt.NDArray[np.int64] = np.zeros(NUM_ROWS, dtype=np.int64)

        def case() -> list[tuple[str, float]]:
            np.take(tables[0], ids, 0, out, "clip")  # so that neither of the two finds the output cold
            order = (0, 1) if generator.integers(2) else (1, 0)
            elapsed = [1, 1]
            for index in order:
                ids[:] = generator.integers(0, len(tables[index]), size=NUM_ROWS)
                start_ns = clock()
                np.take(tables[index], ids, 0, out, "clip")
                elapsed[index] = max(1, clock() - start_ns)
            return [("remote", elapsed[0] / elapsed[1])]

        (spread,) = collect([case], effort, clock)
        return spread


@contextmanager
def own_and_remote(*, is_remote: bool, near: int | None = None, root: Path = Path("/")) -> Iterator[None]:
    """Inside, this thread runs on one NUMA node and memory first touched comes from it, or from another one.

    The one is ``near``, the node of a device, where that is known and this process may run there; else the first on
    which it may. With one node there is nothing to bind, and nothing remote.

    Raises:
        MissingCapability: another node is asked for and there is none, or this system cannot bind.
    """
    nodes = node_cores(root)
    if len(nodes) < 2:
        if is_remote:
            raise MissingCapability("this host has one NUMA node, so nothing is remote")
        yield
        return
    usable = os.sched_getaffinity(0)
    own = next((node for node in sorted(nodes, key=lambda node: (node != near, node)) if nodes[node] & usable), None)
    if own is None:
        raise MissingCapability("this process may not run on the cores of any NUMA node with memory of its own")
    other = max(node for node in nodes if node != own)
    with on_cores(nodes[own] & usable), _memory_on(other if is_remote else own):
        yield


@contextmanager
def near_device(node: int | None, root: Path = Path("/")) -> Iterator[str]:
    """Inside, this thread runs on a device's NUMA node and memory first touched comes from it, as nvbandwidth binds it.

    Args:
        node: of the slot the device sits in; None where the system does not say.
        root: where ``sys`` lies.

    Yields:
        What a record says of it: the node, or why nothing is bound.
    """
    nodes = node_cores(root)
    usable = os.sched_getaffinity(0) & nodes.get(-1 if node is None else node, set()) if len(nodes) > 1 else set()
    with ExitStack() as stack:
        if len(nodes) < 2:
            bound = "the only one"
        elif node is None:
            bound = "not bound: the node of the device is not known"
        elif not usable:
            bound = f"not bound: this process may not run on node {node}, which is the device's"
        else:
            try:
                stack.enter_context(own_and_remote(is_remote=False, near=node, root=root))
                bound = str(node)
            except MissingCapability as error:
                bound = f"not bound: {error}"
        yield bound


@contextmanager
def _memory_on(node: int) -> Iterator[None]:
    """Pages first touched inside come from this node."""
    number = _SET_MEMPOLICY.get(platform.machine())
    if sys.platform != "linux" or number is None:
        raise MissingCapability("memory can be bound to a NUMA node on Linux, x86_64 and aarch64, only")
    libc = ctypes.CDLL(None, use_errno=True)
    mask = (ctypes.c_ulong * (_MASK_BITS // 64))()
    mask[node // 64] = 1 << (node % 64)

    def call(mode: int, nodes: object, num_bits: int) -> None:
        if libc.syscall(ctypes.c_long(number), ctypes.c_long(mode), nodes, ctypes.c_ulong(num_bits)) != 0:
            code = ctypes.get_errno()
            raise MissingCapability(f"memory cannot be bound to NUMA node {node} ({os.strerror(code)})")

    call(_BIND, mask, _MASK_BITS)
    try:
        yield
    finally:
        call(_DEFAULT, None, 0)
