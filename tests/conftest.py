"""Small models, machines and scenarios shared by tests: every number in them is made up for the test."""

from collections.abc import Callable, Iterator

import pytest

from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.scenario import ResolvedScenario, Scenario, combine
from tiercast_profiles.store import load_prices


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files; review the diff")


_SOURCES = {"test": {"kind": "assumed", "mark": "D", "source": "made up for a test", "date": "2026-11-23"}}


@pytest.fixture
def one_compute_thread() -> Iterator[None]:
    """torch on one thread: on shapes this small more threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def probes_at_once(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Probes of a round that are made when it begins, without a process of their own; a word for each turn they had."""
    from tiercast_cli import probe_turns

    turns = []

    class ProbesAtOnce(probe_turns.Made):
        def __init__(self, models, file, _plan) -> None:
            super().__init__(file)
            probe_turns.probe_into(file, models, lambda _what, _ratio: None)

        def __enter__(self) -> "ProbesAtOnce":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def turn(self) -> None:
            turns.append("turn")

    monkeypatch.setattr(probe_turns, "ProbesInTurns", ProbesAtOnce)
    return turns


@pytest.fixture(scope="session")
def mini_model() -> Callable[..., ModelSpec]:
    """A six-layer model of any dialect with tables of a few hundred rows; keywords change its sections."""

    def make(dialect: str = "v41", *, backbone: dict | None = None, engram: dict | None = None) -> ModelSpec:
        is_demo = dialect in ("demo", "qwen4exp")
        orders = [2, 3] if is_demo else [2, 3, 4]
        return ModelSpec.model_validate(
            {
                "schema_version": 1,
                "name": f"mini-{dialect}",
                "description": "A model for tests.",
                "sources": _SOURCES,
                "evidence": {"": "test"},
                "backbone": {
                    "num_layers": 6,
                    "num_prefill_layers": 6,
                    "hidden_size": 32,
                    "num_branches": 2,
                    "vocab_size": 97,
                    "num_attention_heads": 4,
                    "num_kv_heads": 2,
                    "head_dim": 8,
                    "intermediate_size": 48,
                    "compute_precision": "fp32",
                    "active_params_prefill": 50_000,
                    "active_params_decode": 50_000,
                    "weight_bytes": 200_000,
                    "kv_bytes_per_token": 768,
                    "is_runnable": True,
                    **(backbone or {}),
                },
                "engram": {
                    "dialect": dialect,
                    "layer_ids": [1, 3],
                    "ngram_orders": orders,
                    "num_heads_per_order": 2,
                    "rows_per_head": [101] * len(orders),
                    "row_values": 32,
                    "row_format": "bf16" if is_demo else "fp8_block32",
                    "compressed_vocab_size": 61,
                    "pad_token_id": 2,
                    "hash_seed": 0,
                    "conv_kernel_size": 4 if is_demo else None,
                    **(engram or {}),
                },
            }
        )

    return make


@pytest.fixture(scope="session")
def small_v41() -> Scenario:
    """DeepSeek-V4.1-Flash on shipped data, two short requests: the least that is predicted and priced."""
    return Scenario.model_validate(
        {
            "schema_version": 1,
            "hardware": "h200-sxm",
            "model": "deepseek-v4.1-flash",
            "parallel": {"tensor": 8},
            "placement": {"tier": "dram"},
            "workload": {
                "kind": "closed_loop",
                "concurrency": 2,
                "num_requests": 2,
                "prompt_tokens": {"fixed": 64},
                "output_tokens": {"fixed": 4},
            },
        }
    )


@pytest.fixture(scope="session")
def cpu_hardware() -> HardwareProfile:
    """A machine whose device is its CPU, with a curve for every path the runtime has there."""
    pairs = (("hbm", "device"), ("dram", "cpu_gather"), ("nvme", "disk"))
    return HardwareProfile.model_validate(
        {
            "schema_version": 1,
            "name": "test-cpu",
            "description": "A machine for tests.",
            "sources": _SOURCES,
            "evidence": {"": "test"},
            "calibration": "datasheet",
            "device": {
                "kind": "cpu",
                "product_name": "test",
                "num_per_host": 1,
                "num_compute_units": 2,
                "memory_capacity_gb": 4,
                "memory_reserve_gb": 0.5,
                "memory_bandwidth_gb_per_s": 10,
                "memory_efficiency_ratio": 0.8,
                "dense_tflops": {"fp32": 0.1},
                "matmul_efficiency_ratio": 0.8,
                "layer_overhead_us": {"eager": 10},
                "step_overhead_us": {"eager": 100},
            },
            "host": {
                "cpu_model": "test",
                "num_cores": 2,
                "num_numa_nodes": 1,
                "memory_capacity_gb": 4,
                "memory_bandwidth_gb_per_s": 10,
                "random_access_ratio": 0.5,
                "remote_numa_speed_ratio": 1,
            },
            "host_to_device": {"bandwidth_gb_per_s": 10, "latency_us": 1},
            "device_to_host": {"bandwidth_gb_per_s": 10, "latency_us": 1},
            "nvme": {
                "capacity_gb": 10,
                "read_bandwidth_gb_per_s": 1,
                "latency_us": 100,
                "read_granularity_bytes": 4096,
            },
            "lookups": [
                {
                    "tier": tier,
                    "path": path,
                    "is_calibrated": False,
                    "fixed_us": 10,
                    "row_ns": 100,
                    "bandwidth_gb_per_s": 1,
                    "read_granularity_bytes": 4096 if tier == "nvme" else 64,
                    "removes_duplicates": path == "disk",
                }
                for tier, path in pairs
            ],
        }
    )


@pytest.fixture(scope="session")
def mini_scenario(
    mini_model: Callable[..., ModelSpec], cpu_hardware: HardwareProfile
) -> Callable[..., ResolvedScenario]:
    """A resolved scenario of a mini model on the test machine; keywords replace whole sections of the file."""

    def make(
        placement: dict, *, model: ModelSpec | None = None, hardware: HardwareProfile | None = None, **sections: object
    ) -> ResolvedScenario:
        workload = {
            "kind": "closed_loop",
            "concurrency": 3,
            "num_requests": 7,
            "prompt_tokens": {"uniform": [3, 25]},
            "output_tokens": {"uniform": [1, 9]},
            "text": "random",
        }
        scenario = Scenario.model_validate(
            {
                "schema_version": 1,
                "hardware": "test-cpu",
                "model": "mini",
                "placement": placement,
                "workload": workload,
                "engine": {"max_num_batched_tokens": 16, "max_num_seqs": 4, "kv_block_tokens": 4},
                **sections,
            }
        )
        return combine(scenario, hardware or cpu_hardware, model or mini_model(), load_prices("default"))

    return make


_GPU_HARDWARE = {
    "schema_version": 1,
    "name": "test-gpu",
    "description": "Two-socket host with four GPUs and every tier, for tests.",
    "sources": _SOURCES,
    "evidence": {"": "test"},
    "calibration": "datasheet",
    "device": {
        "kind": "cuda",
        "product_name": "test GPU",
        "num_per_host": 4,
        "num_compute_units": 10,
        "memory_capacity_gb": 1,
        "memory_reserve_gb": 0.1,
        "memory_bandwidth_gb_per_s": 100,
        "memory_efficiency_ratio": 0.8,
        "dense_tflops": {"fp32": 10, "bf16": 20},
        "matmul_efficiency_ratio": 0.5,
        "layer_overhead_us": {"eager": 20, "piecewise": 10, "full": 5},
        "step_overhead_us": {"eager": 300, "piecewise": 200, "full": 100},
        "collective": {"bandwidth_gb_per_s": 50, "latency_us": 3},
    },
    "host": {
        "cpu_model": "test",
        "num_cores": 8,
        "num_numa_nodes": 2,
        "memory_capacity_gb": 4,
        "memory_bandwidth_gb_per_s": 40,
        "random_access_ratio": 0.5,
        "remote_numa_speed_ratio": 0.5,
    },
    "host_to_device": {"bandwidth_gb_per_s": 10, "latency_us": 2},
    "device_to_host": {"bandwidth_gb_per_s": 10, "latency_us": 2},
    "nvme": {
        "capacity_gb": 10,
        "read_bandwidth_gb_per_s": 5,
        "latency_us": 80,
        "max_reads_per_s": 500_000,
        "read_granularity_bytes": 512,
    },
    "cxl": {"capacity_gb": 10, "read_bandwidth_gb_per_s": 8, "latency_us": 1, "read_granularity_bytes": 64},
    "pool": {"capacity_gb": 10, "read_bandwidth_gb_per_s": 6, "latency_us": 5, "read_granularity_bytes": 64},
    "lookups": [
        {
            "tier": tier,
            "path": path,
            "is_calibrated": False,
            "fixed_us": fixed_us,
            "row_ns": row_ns,
            "bandwidth_gb_per_s": bandwidth,
            "read_granularity_bytes": granularity,
            "removes_duplicates": path == "disk",
        }
        for tier, path, fixed_us, row_ns, bandwidth, granularity in (
            ("hbm", "device", 3, 0.2, 50, 32),
            ("dram", "uva", 10, 8, 6, 32),
            ("dram", "cpu_gather", 25, 12, 8, 64),
            ("cxl", "uva", 15, 20, 4, 64),
            ("nvme", "disk", 90, 2500, 5, 512),
            ("pool", "pool", 60, 30, 3, 64),
        )
    ],
}


def _merge(base: dict, change: dict) -> dict:
    """``base`` with the nested keys of ``change`` replaced."""
    merged = dict(base)
    for key, value in change.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


@pytest.fixture(scope="session")
def sim_scenario(mini_model: Callable[..., ModelSpec]) -> Callable[..., ResolvedScenario]:
    """A resolved scenario on a four-GPU test machine for the simulator.

    ``hardware`` and ``backbone``/``engram`` change nested keys of the machine and the model; other keywords replace
    sections of the scenario file.
    """

    def make(
        placement: dict,
        *,
        hardware: dict | None = None,
        backbone: dict | None = None,
        engram: dict | None = None,
        **sections: object,
    ) -> ResolvedScenario:
        machine = HardwareProfile.model_validate(_merge(_GPU_HARDWARE, hardware or {}))
        model = mini_model(
            backbone={"active_params_prefill": 6_000_000, "active_params_decode": 6_200_000, **(backbone or {})},
            engram={"rows_per_head": [4001] * 3, "row_values": 64, **(engram or {})},
        )
        workload = {
            "kind": "closed_loop",
            "concurrency": 4,
            "num_requests": 10,
            "prompt_tokens": {"uniform": [3, 40]},
            "output_tokens": {"uniform": [1, 12]},
            "text": "random",
        }
        scenario = Scenario.model_validate(
            {
                "schema_version": 1,
                "hardware": "test-gpu",
                "model": "mini",
                "placement": placement,
                "workload": workload,
                "engine": {"max_num_batched_tokens": 32, "max_num_seqs": 8, "kv_block_tokens": 4},
                **sections,
            }
        )
        return combine(scenario, machine, model, load_prices("default"))

    return make
