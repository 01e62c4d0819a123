"""The engine of a GPU on the stand-in: every way to run decoding computes the same tokens, and its captures hold."""

import pytest
import torch
from cuda_stand_in import CUDA, GPU

from tiercast_runtime import backbone_kernels, batch, decode_attention
from tiercast_runtime.engine import Engine

BACKBONE = {"num_layers": 2, "num_prefill_layers": 2, "num_attention_heads": 2, "num_kv_heads": 1, "head_dim": 16}
WORK = {
    "kind": "closed_loop",
    "concurrency": 2,
    "num_requests": 3,
    "prompt_tokens": {"uniform": [2, 6]},
    "output_tokens": {"uniform": [2, 3]},
    "text": "random",
}
PLACEMENTS = {
    "hbm": {"tier": "hbm", "path": "device"},
    "uva": {"tier": "dram", "path": "uva"},
    "uva-off": {"tier": "dram", "path": "uva", "prefetch": "off"},
    "uva-ahead": {"tier": "dram", "path": "uva", "prefetch": "prev_step"},
    "host": {"tier": "dram", "path": "cpu_gather"},
    "host-ahead": {"tier": "dram", "path": "cpu_gather", "prefetch": "prev_step"},
    "disk": {"tier": "nvme", "path": "disk"},
}

NAMES = {
    "eager": ["uva-off", "host-ahead", "disk"],
    "piecewise": ["uva-ahead", "host"],
    "full": ["hbm", "uva"],
}


@pytest.fixture(autouse=True)
def one_split(monkeypatch):
    """Attention in one piece: more programs for the multiprocessors are more work for an interpreter."""
    monkeypatch.setattr(backbone_kernels, "num_splits", lambda num_rows, kv_heads: 1)


@pytest.fixture
def scenario(mini_scenario, mini_model):
    model = mini_model("v41", backbone=BACKBONE, engram={"layer_ids": [0, 1]})
    engine = {"max_num_batched_tokens": 8, "max_num_seqs": 2, "kv_block_tokens": 4}

    def make(name, mode):
        resolved = mini_scenario({"tier": PLACEMENTS[name]["tier"]}, model=model, workload=WORK, engine=engine)
        changes = {"prefetch": "step_entry", **PLACEMENTS[name], "graph_mode": mode}
        return resolved.model_copy(update={"placement": resolved.placement.model_copy(update=changes)})

    return make


def run(scenario, folder):
    with Engine(scenario, CUDA, folder) as engine:
        return engine.run(), engine.graph_facts


@pytest.mark.parametrize("mode", NAMES)
def test_every_placement_computes_the_same_tokens(scenario, tmp_path, monkeypatch, mode):
    if mode == "eager":  # the kernels of the backbone run in the captured steps
        monkeypatch.setattr(batch, "has_kernels", lambda device: False)
        monkeypatch.setattr(decode_attention, "has_kernels", lambda device: False)
    tokens = {}
    for name in NAMES[mode]:
        result, facts = run(scenario(name, mode), tmp_path)
        tokens[name] = result.token_ids
        assert facts.get("graph_mode_run", "eager") == mode, facts
        assert mode == "eager" or facts["graph_steps"] > 0
        for layer in result.layers:
            assert all(step.stall_ns >= 0 and step.lookup_ns >= 0 for step in layer)
    assert len({str(found) for found in tokens.values()}) == 1, tokens


def test_a_refused_capture_leaves_single_calls(scenario, tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise RuntimeError("CUDA error: operation not supported\nmore")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    result, facts = run(scenario("uva", "full"), tmp_path)
    assert facts["graph_mode_run"] == "eager"
    assert "operation not supported" in facts["graph_mode_reason"]
    assert all(result.token_ids)


def test_an_engine_that_fails_in_a_step_unpins_nothing_that_is_read(scenario, tmp_path, monkeypatch):
    def fail(*_args):
        raise KeyboardInterrupt

    with Engine(scenario("uva", "eager"), CUDA, tmp_path) as engine:
        monkeypatch.setattr(engine.backbone, "layer", fail)
        with pytest.raises(KeyboardInterrupt):
            engine.run()
        assert any(one.uses for one in GPU.pinned.values())
