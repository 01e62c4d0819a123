"""Every field of a scenario moves a metric in the right direction, or says why it cannot.

The schema is walked by reflection: a new field without an entry here fails the first test.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import BaseModel

from tiercast_profiles.compare import flat_metrics
from tiercast_profiles.scenario import Scenario
from tiercast_sim.simulate import simulate


@dataclass(frozen=True)
class Knob:
    """Turning ``field`` from ``before`` to ``after`` moves ``metric`` ``up`` or ``down``."""

    before: object
    after: object
    metric: str
    direction: str
    base: dict = field(default_factory=dict)


CLOSED = {
    "kind": "closed_loop",
    "concurrency": 4,
    "num_requests": 12,
    "prompt_tokens": {"fixed": 20},
    "output_tokens": {"fixed": 8},
    "text": "random",
}
DATA = Path(__file__).parent / "data"
SHORT_TRACE, LONG_TRACE = str(DATA / "short-prompts.jsonl"), str(DATA / "long-prompts.csv")
POISSON = {**{key: value for key, value in CLOSED.items() if key != "concurrency"}, "kind": "poisson"}
BASE = {
    "placement": {"tier": "nvme"},
    "workload": CLOSED,
    "engine": {
        "max_num_batched_tokens": 64,
        "max_num_seqs": 8,
        "kv_block_tokens": 4,
        "memory_utilization_ratio": 0.9,
    },
    "speculative": {"draft_tokens": 0, "acceptance_ratio": 0.7},
    "parallel": {"tensor": 1, "data": 1},
    "seed": 0,
}
DRAM = {"placement": {"tier": "dram"}}
DRAFTS = {"speculative": {"draft_tokens": 2}}
SCARCE_KV = {
    **DRAM,
    "backbone": {"kv_bytes_per_token": 12_000_000},
    "engine": {"max_num_batched_tokens": 64, "max_num_seqs": 8, "kv_block_tokens": 4},
    "workload": {**CLOSED, "concurrency": 8, "output_tokens": {"fixed": 40}},
}
UNEVEN = {"workload": {**CLOSED, "prompt_tokens": {"lognormal": [20, 0.9]}}}

KNOBS = {
    "placement.tier": Knob("dram", "nvme", "lookup_ms_per_step", "up"),
    "placement.path": Knob("uva", "cpu_gather", "lookup_ms_per_step", "up", DRAM),
    "placement.prefetch": Knob("off", "step_entry", "stall_ms_per_step", "down"),
    "placement.replication": Knob(
        "per_node", "per_rank", "memory_bytes.dram", "up", {**DRAM, "parallel": {"tensor": 2}}
    ),
    "placement.row_layout": Knob("packed", "split", "lookup_ms_per_step", "up"),
    "placement.cache_gib": Knob(0, 0.01, "cache_hit_ratio", "up"),
    "placement.cache_policy": Knob(
        "lru", "static_hot", "cache_hit_ratio", "up", {"placement": {"tier": "nvme", "cache_gib": 3e-5}}
    ),
    "placement.page_cache_residency_ratio": Knob(0, 0.9, "lookup_ms_per_step", "down"),
    "placement.graph_mode": Knob("full", "eager", "output_tokens_per_s", "down", DRAM),
    "placement.num_pool_hosts": Knob(
        1, 64, "lookup_ms_per_step", "up", {"placement": {"tier": "pool"}, "pool": {"shared_bandwidth_gb_per_s": 0.5}}
    ),
    "workload.concurrency": Knob(1, 4, "output_tokens_per_s", "up"),
    "workload.requests_per_s": Knob(
        10.0, 1000.0, "output_tokens_per_s", "up", {"workload": {**POISSON, "requests_per_s": 1.0}}
    ),
    "workload.burstiness": Knob(
        1.0, 0.05, "ttft_ms.p99", "up", {"workload": {**POISSON, "requests_per_s": 1000.0, "num_requests": 200}}
    ),
    "workload.on_off": Knob(
        None,
        {"mean_on_s": 0.01, "mean_off_s": 0.1},
        "ttft_ms.p99",
        "up",
        {"workload": {**POISSON, "requests_per_s": 1000.0, "num_requests": 200}},
    ),
    "workload.file": Knob(SHORT_TRACE, LONG_TRACE, "ttft_ms.p50", "up", {"workload": {"kind": "trace"}}),
    "workload.trace_speedup": Knob(1.0, 1e5, "ttft_ms.p50", "up", {"workload": {"kind": "trace", "file": SHORT_TRACE}}),
    "workload.shared_prefix_tokens": Knob(
        0, 16, "prefix_hit_ratio", "up", {**DRAM, "engine": {"prefix_caching": True, "kv_block_tokens": 4}}
    ),
    "workload.num_requests": Knob(4, 40, "ttft_ms.p50", "up", {"workload": {**POISSON, "requests_per_s": 1e6}}),
    "workload.prompt_tokens": Knob({"fixed": 4}, {"fixed": 60}, "ttft_ms.p50", "up"),
    "workload.output_tokens": Knob({"fixed": 2}, {"fixed": 30}, "output_tokens_per_s", "up"),
    "workload.text": Knob("random", "docs", "unique_row_ratio", "down"),
    "engine.max_num_seqs": Knob(1, 4, "output_tokens_per_s", "up"),
    "engine.max_num_batched_tokens": Knob(8, 64, "ttft_ms.p50", "down"),
    "engine.kv_block_tokens": Knob(4, 4096, "kv_capacity_tokens", "down"),
    "engine.memory_utilization_ratio": Knob(0.9, 0.5, "kv_capacity_tokens", "down"),
    "engine.kv_reservation": Knob("full", "on_demand", "tpot_ms.p50", "up", SCARCE_KV),
    "engine.prefix_caching": Knob(
        False, True, "ttft_ms.p50", "down", {**DRAM, "workload": {**CLOSED, "shared_prefix_tokens": 16}}
    ),
    "speculative.draft_tokens": Knob(0, 3, "tpot_ms.p50", "down", DRAM),
    "speculative.draft_step_us": Knob(0.0, 500.0, "tpot_ms.p50", "up", DRAFTS),
    "speculative.acceptance_ratio": Knob(0.1, 0.9, "tpot_ms.p50", "down", DRAFTS),
    "parallel.tensor": Knob(1, 2, "memory_bytes.hbm", "up"),
    "parallel.data": Knob(1, 4, "output_tokens_per_s", "up"),
    "parallel.prefill": Knob(0, 1, "memory_bytes.hbm", "up"),
    "seed": Knob(0, 1, "total_tokens_per_s", "either", UNEVEN),
}
IDENTITY = {
    "schema_version": "one version exists",
    "hardware": "a name; the numbers behind it are turned in tests/unit/test_sim_simulate.py and test_sim_shared.py",
    "model": "a name; what the model's sizes move is in tests/unit/test_sim_compute.py and test_sim_memory.py",
    "prices": "money only: tests/unit/test_plan_cost.py",
    "workload.kind": "decides which of concurrency, requests_per_s and file is read; all are turned here",
}


def fields(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted path of every field; a section is walked, a choice between laws is one field."""
    for name, info in schema.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from fields(info.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def values(sim_scenario, knob, path, value):
    sections = {name: dict(part) if isinstance(part, dict) else part for name, part in {**BASE, **knob.base}.items()}
    pool, backbone = sections.pop("pool", {}), sections.pop("backbone", {})
    section, _, name = path.partition(".")
    if name:
        sections[section][name] = value
    else:
        sections[section] = value
    placement = sections.pop("placement")
    resolved = sim_scenario(placement, hardware={"pool": pool}, backbone=backbone, **sections)
    metrics = simulate(resolved, with_baselines=False, with_bounds=False).metrics
    known = {name: metric.value for name, (_, metric) in flat_metrics(metrics).items()}
    known |= {f"memory_bytes.{tier}": float(size) for tier, size in metrics.memory_bytes.items()}
    known |= {"unique_row_ratio": metrics.unique_row_ratio, "cache_hit_ratio": metrics.cache_hit_ratio or 0.0}
    return known


def test_every_field_of_a_scenario_is_listed():
    listed = sorted({*KNOBS, *IDENTITY})
    assert sorted(fields(Scenario)) == listed, "give the field a knob that moves a metric, or a reason why it cannot"
    assert not set(KNOBS) & set(IDENTITY)


@pytest.mark.parametrize("path", KNOBS)
def test_a_knob_moves_its_metric(sim_scenario, path):
    knob = KNOBS[path]
    before, after = (values(sim_scenario, knob, path, value)[knob.metric] for value in (knob.before, knob.after))
    if knob.direction == "either":
        assert after != before
    elif knob.direction == "up":
        assert after > before
    else:
        assert after < before
