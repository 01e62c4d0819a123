"""How a plan is typed: engine settings, host settings, and what the engine cannot do, each with its source.

vLLM and SGLang read the tables from device memory or pinned host memory only; other tiers have no released flag there,
and the plan says so. Every item carries the mark of the fact it rests on (V: read in the named source).
"""

import json
import shlex
from dataclasses import dataclass
from typing import Literal

from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import GIB, MIB
from tiercast_sim.memory import MemoryPlan

EngineName = Literal["vllm", "sglang"]
Mark = Literal["V", "V2", "D", "R"]
SHM_SLACK_GIB = 8
"""Beside the tables /dev/shm holds the engine's message queues; a round figure, not a measurement."""
VLLM_DOC = "vLLM docs/features/engram.md (#57910)"
VLLM_LIMITS = "vLLM #56219, #56220, #56224"
SGLANG_DOC = "SGLang --engram-config and its environment variables"


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing to type or to know: what it is for, the text itself, where it comes from."""

    purpose: str
    text: str
    mark: Mark
    source: str


@dataclass(frozen=True, slots=True)
class LaunchFlags:
    """Settings of one engine and of the host, and what does not work; ``is_supported`` false: no released flag."""

    engine: EngineName
    is_supported: bool
    settings: tuple[Setting, ...]
    host: tuple[Setting, ...]
    unsupported: tuple[Setting, ...]


def launch_flags(resolved: ResolvedScenario, plan: MemoryPlan, max_num_seqs: int) -> tuple[LaunchFlags, ...]:
    """What to type for each engine."""
    host = _host(resolved, plan)
    return (
        _vllm(resolved, host, max_num_seqs),
        _sglang(resolved, host, max_num_seqs),
    )


def _vllm(resolved: ResolvedScenario, host: tuple[Setting, ...], max_num_seqs: int) -> LaunchFlags:
    placement, parallel = resolved.placement, resolved.scenario.parallel
    is_supported = placement.tier == "hbm" or (placement.tier == "dram" and placement.path == "uva")
    settings: list[Setting] = []
    if is_supported:
        config: dict[str, bool] = {"cpu_offload": placement.tier == "dram"}
        if placement.tier == "dram":
            # One copy for all replicas of the host is shared memory between the data-parallel processes.
            if parallel.data > 1:
                config["dp_shared_memory"] = placement.replication in ("per_node", "per_numa")
            config["use_thp"] = True
        text = json.dumps(config, separators=(",", ":"))
        settings.append(Setting("tables", f"--engram-config {shlex.quote(text)}", "V", VLLM_DOC))
    settings += [
        Setting(
            "ranks", _ranks("--tensor-parallel-size", "--data-parallel-size", resolved), "V", "vLLM engine arguments"
        ),
        Setting("load", f"--max-num-seqs {max_num_seqs}", "V", "vLLM engine arguments"),
        Setting(
            "step budget",
            f"--max-num-batched-tokens {resolved.scenario.engine.max_num_batched_tokens}",
            "V",
            "vLLM engine arguments",
        ),
        Setting(
            "device memory",
            f"--gpu-memory-utilization {resolved.scenario.engine.memory_utilization_ratio:g}",
            "V",
            "vLLM engine arguments",
        ),
    ]
    unsupported = [
        Setting("micro-batching", "dual-batch overlap (DBO) does not work with Engram", "V", VLLM_LIMITS),
        Setting("elastic experts", "elastic expert parallelism does not work with Engram", "V", VLLM_LIMITS),
    ]
    if placement.tier == "dram":
        unsupported.append(
            Setting(
                "graphs",
                "FULL_AND_PIECEWISE has failed with cudaErrorNotPermitted under load; fall back to PIECEWISE",
                "V",
                "vLLM #57759",
            )
        )
    unsupported += _lacking(resolved, is_supported, "vLLM", "vLLM #56757 (disk offload, closed), engram_pool")
    if placement.tier == "dram" and placement.replication == "per_numa":
        unsupported.append(
            Setting("copies", "no flag for a copy per NUMA node; start one engine per node", "D", VLLM_DOC)
        )
    return LaunchFlags("vllm", is_supported, tuple(settings), host, tuple(unsupported))


def _sglang(resolved: ResolvedScenario, host: tuple[Setting, ...], max_num_seqs: int) -> LaunchFlags:
    placement = resolved.placement
    is_supported = placement.tier == "hbm" or (placement.tier == "dram" and placement.path == "uva")
    settings: list[Setting] = []
    if is_supported:
        is_host = placement.tier == "dram"
        config = {
            "placement": "cpu" if is_host else "gpu",
            "replication": "per_node" if is_host and placement.replication != "none" else "none",
            "lookup": "collective",
        }
        text = json.dumps(config, separators=(",", ":"))
        settings.append(Setting("tables", f"--engram-config {shlex.quote(text)}", "V", SGLANG_DOC))
        if is_host:
            layout = {"per_rank": "per_rank", "per_numa": "numa_shared"}.get(placement.replication, "shared")
            settings += [
                Setting("tables", "export SGLANG_ENABLE_DSV41_ENGRAM_HOST_TABLE=1", "V", SGLANG_DOC),
                Setting("copies", f"export SGLANG_DSV41_ENGRAM_HOST_TABLE_LAYOUT={layout}", "V", "SGLang #40106"),
                Setting("pages", "export SGLANG_ENABLE_DSV41_ENGRAM_DROP_PAGE_CACHE=1", "V", SGLANG_DOC),
            ]
    settings += [
        Setting("ranks", _ranks("--tp-size", "--dp-size", resolved), "V", "SGLang server arguments"),
        Setting("load", f"--max-running-requests {max_num_seqs}", "V", "SGLang server arguments"),
        Setting(
            "device memory",
            f"--mem-fraction-static {resolved.scenario.engine.memory_utilization_ratio:g}",
            "V",
            "SGLang server arguments; it counts weights and KV, not activations",
        ),
    ]
    unsupported = [
        Setting("graphs", "host lookups break a captured graph: breakable graphs only", "V", "SGLang #39205"),
        Setting(
            "prefetch",
            "SGLANG_ENABLE_DSV41_ENGRAM_KV_PREFETCH works on Blackwell, for one-token decode only",
            "V",
            SGLANG_DOC,
        ),
    ]
    if placement.tier == "hbm":
        unsupported = []
    unsupported += _lacking(resolved, is_supported, "SGLang", "SGLang store_backend mooncake|cxl_shm (prototype)")
    return LaunchFlags("sglang", is_supported, tuple(settings), host, tuple(unsupported))


def _ranks(tensor_flag: str, data_flag: str, resolved: ResolvedScenario) -> str:
    parallel = resolved.scenario.parallel
    return f"{tensor_flag} {parallel.tensor}" + (f" {data_flag} {parallel.data}" if parallel.data > 1 else "")


def _lacking(resolved: ResolvedScenario, is_supported: bool, engine: str, source: str) -> list[Setting]:
    placement = resolved.placement
    found = []
    if not is_supported:
        what = f"tables in {placement.tier} by path {placement.path}"
        found.append(Setting("tables", f"{engine} has no released flag for {what}", "V", source))
    if placement.prefetch == "prev_step":
        found.append(Setting("prefetch", f"{engine} starts lookups at step entry, not a step early", "V", source))
    if placement.cache_gib > 0:
        found.append(Setting("cache", f"{engine} has no hot-row cache in front of the tables", "V", source))
    return found


def _host(resolved: ResolvedScenario, plan: MemoryPlan) -> tuple[Setting, ...]:
    """Shared memory, huge pages and NUMA of the fullest host; nothing where no table lies in host memory."""
    placement, host = resolved.placement, resolved.hardware.host
    if placement.tier not in ("dram", "cxl"):
        return ()
    tables = max(pieces.get("tables", 0) for pieces in plan.per_host[placement.tier])
    shm_gib = -(-tables // GIB) + SHM_SLACK_GIB
    found = [
        Setting(
            "shared memory",
            f"docker run --shm-size={shm_gib}g   # or --ipc=host; the default of 64 MiB is too small",
            "D",
            f"tables of {tables / GIB:.1f} GiB in /dev/shm (vLLM #57651), {SHM_SLACK_GIB} GiB for the engine",
        ),
        Setting("locked memory", "docker run --ulimit memlock=-1", "D", "cudaHostRegister pins the tables in full"),
        Setting(
            "huge pages",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled; "
            "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
            "V",
            "lookups are about 10 x slower on small pages (SGLang); vLLM #56926",
        ),
    ]
    if host.num_numa_nodes > 1:
        found.append(
            Setting("NUMA balancing", "sysctl kernel.numa_balancing=0", "R", "the kernel must not move pinned pages")
        )
        if placement.replication == "per_numa":
            text = "numactl --cpunodebind=N --membind=N   # for the ranks of node N"
            found.append(Setting("NUMA", text, "V", "SGLang #40106: one copy per node ends cross-socket gathers"))
        else:
            text = "numactl --interleave=all   # one copy for both sockets: spread it"
            found.append(Setting("NUMA", text, "D", "Assumption A13: the one copy is spread over the nodes"))
    reserve_pages = -(-tables // (2 * MIB))
    found.append(
        Setting(
            "huge-page pool",
            f"sysctl vm.nr_hugepages={reserve_pages}   # 2 MiB pages; only where the engine maps hugetlbfs",
            "D",
            "tables divided by the page size",
        )
    )
    return tuple(found)
