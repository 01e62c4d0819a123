"""The stages of the GPU evidence that need a GPU, on the stand-in with tiny sizes: each case ends with numbers."""

import math

import pytest
import torch

from gpu_evidence import context as context_module
from gpu_evidence import stage_arms, stage_environment, stage_lookups, stage_sweep
from gpu_evidence.__main__ import run_stage
from gpu_evidence.context import Context
from gpu_evidence.plan import Case
from gpu_evidence.state import State
from tiercast_profiles.units import MIB
from tiercast_runtime import batch, decode_attention
from tiercast_runtime.probes import sweep_device
from tiercast_runtime.probes.sweep_grid import SweepPlan
from tiercast_runtime.probes.timing import Effort

BRIEF = Effort(0, num_warm_ups=0, min_rounds=1, max_rounds=1)
SWEEP = SweepPlan(
    payloads=((64,), (256, 8)),
    few_payloads=((64,),),
    num_rows=(4,),
    min_footprint_bytes=MIB,
    max_footprint_bytes=MIB,
    num_refined_ratio=0,
    num_workers=(4,),
)
WORK = stage_arms.Work(
    "decode-2",
    {
        "kind": "closed_loop",
        "concurrency": 2,
        "num_requests": 2,
        "prompt_tokens": {"fixed": 3},
        "output_tokens": {"fixed": 2},
        "text": "random",
    },
    seconds=1,
    repeats=1,
)


@pytest.fixture
def context(tmp_path, monkeypatch, mini_model, cpu_hardware):
    heads = {"num_attention_heads": 2, "num_kv_heads": 1, "head_dim": 16, "num_branches": 1}
    model = mini_model(
        "v41",
        backbone={"num_layers": 2, "num_prefill_layers": 2, **heads},
        engram={"layer_ids": [0, 1], "rows_per_head": [6007] * 3},  # tables of a MiB, which a sweep asks for
    )
    by_host = next(curve for curve in cpu_hardware.lookups if curve.path == "cpu_gather")
    lookups = (*cpu_hardware.lookups, by_host.model_copy(update={"path": "uva"}))
    device = cpu_hardware.device.model_copy(update={"kind": "cuda"})
    profile = cpu_hardware.model_copy(update={"device": device, "lookups": lookups})
    monkeypatch.setattr(Context, "profile", lambda context: profile)
    for module in (context_module, stage_lookups):
        monkeypatch.setattr(module, "paper_model", lambda name, table_bytes: model)
    small = {
        stage_arms: {"SAMPLED_ROWS": 20},
        stage_lookups: {"TOKENS": (1, 4), "GRIDS": (2,), "NUM_SAMPLES": 3, "STREAM_BYTES": 4096},
        stage_sweep: {"BLOCK_BYTES": MIB, "GPU_PLAN": SWEEP, "TABLE_EFFORT": BRIEF, "EFFORT": BRIEF},
        sweep_device: {"NUM_HOPS": 20},
        batch: {"has_kernels": lambda device: False},  # those of the backbone run in the engine's tests
        decode_attention: {"has_kernels": lambda device: False},
    }
    small[stage_lookups]["STREAM_ROW_BYTES"] = 256
    for module, values in small.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    return Context(tmp_path, False, 64 * MIB, State(tmp_path / "state.json"))


def done(context, cases):
    """Numbers of the cases, all of which are done; those that the machine lacks something for are None."""
    run_stage(context, cases, math.inf)
    failed = {key: entry["message"] for key, entry in context.state.cases.items() if entry["status"] == "failed"}
    assert not failed
    return {key: context.state.numbers(key) for key in context.state.cases}


def test_the_lookups_beside_their_alternatives(context):
    found = done(context, stage_lookups.cases(context)[:3])
    assert found["lookups/uva-against-host-gather"]["1_us"] > 0
    assert found["lookups/uva-against-streaming"]["ratio"] > 0
    assert found["lookups/overheads"]["module_graph_us_256_tokens"] > 0


def test_the_sweeps_of_the_gpu(context):
    found = done(context, [*stage_sweep.cases(context), stage_sweep.table_case()])
    assert found["sweep/uva-thp"]["round_trip_ns"] > 0
    for name in ("sweep/uva-thp", "sweep/uva-4k", "sweep/device", "arms/sweep-table"):
        assert found[name]["random_best_gb_per_s"] > 0, name
    assert {sweep.path for sweep in stage_sweep.kept_sweeps(context)} == {"uva", "device"}


def test_the_rows_and_the_arms(context):
    arms = (stage_arms.UVA, stage_arms.HBM)
    cases = [
        Case("environment", "machine", 1, stage_environment.machine),
        Case("arms", "rows", 1, stage_arms.check_rows),
        *(stage_arms._case("arms", arm, WORK) for arm in arms),
    ]
    found = done(context, cases)
    assert found["environment/machine"]["device"] == torch.cuda.get_device_name(0)
    assert found["arms/rows"] == {f"table_{n}_rows{by}": 20 for n in (0, 1) for by in ("", "_by_gpu")}
    for arm in arms:
        numbers = found[f"arms/decode-2/{arm.name}"]
        assert numbers["output_tokens_per_s"] > 0
        assert numbers["graph_mode"] == "full", numbers


def test_a_case_that_a_gpu_refuses_costs_itself(context, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise RuntimeError("CUDA error: operation not supported")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    machine = Case("environment", "machine", 1, stage_environment.machine)
    run_stage(context, [stage_lookups.cases(context)[2], machine], math.inf)
    status = {key: (entry["status"], entry["message"]) for key, entry in context.state.cases.items()}
    assert status.pop("lookups/overheads") == ("failed", "RuntimeError: CUDA error: operation not supported")
    assert {value for value, _ in status.values()} == {"done"}
