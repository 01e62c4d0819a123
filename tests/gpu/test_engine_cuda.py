"""The engine on a GPU: placements, prefetch modes and graphs change times, never tokens."""

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_runtime.engine import Engine  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU that torch can use"),
]
PLACEMENTS = [
    {"tier": "hbm", "path": "device"},
    *({"tier": "dram", "path": "uva", "prefetch": mode} for mode in ("off", "step_entry", "prev_step")),
    *({"tier": "dram", "path": "cpu_gather", "prefetch": mode} for mode in ("off", "step_entry", "prev_step")),
    *({"tier": "nvme", "path": "disk", "prefetch": mode} for mode in ("off", "step_entry", "prev_step")),
]
HEAD_64 = {"hidden_size": 128, "num_attention_heads": 4, "num_kv_heads": 2, "head_dim": 64}


def run(mini_scenario, model, placement, mode, folder):
    resolved = mini_scenario({"tier": placement["tier"]}, model=model)
    changed = resolved.placement.model_copy(update={"prefetch": "step_entry", **placement, "graph_mode": mode})
    gpu = torch.device("cuda", 0)
    with Engine(resolved.model_copy(update={"placement": changed}), gpu, folder) as engine:
        result = engine.run()
        return result, engine.graph_facts


@pytest.mark.parametrize("dialect", ["v41", "demo"])
def test_every_placement_and_graph_mode_computes_the_same_tokens(mini_scenario, mini_model, tmp_path, dialect):
    model = mini_model(dialect, backbone={**HEAD_64, "num_branches": 1 if dialect == "demo" else 2})
    by_mode = {}
    for mode in ("eager", "piecewise", "full"):
        for placement in PLACEMENTS:
            result, facts = run(mini_scenario, model, placement, mode, tmp_path)
            host_driven = placement["path"] in ("cpu_gather", "disk")
            expected = (
                "piecewise" if mode == "full" and (host_driven or placement.get("prefetch") == "prev_step") else mode
            )
            if placement["path"] != "device":
                assert facts["graph_mode_run"] == expected, (placement, facts)
            assert "no graph" not in str(facts.get("graph_mode_reason", "")), facts
            assert by_mode.setdefault(mode, result.token_ids) == result.token_ids, (mode, placement)
            for layer in result.layers:
                assert all(step.stall_ns >= 0 and step.lookup_ns >= 0 for step in layer)
    assert by_mode["full"] == by_mode["piecewise"]
    pairs = [
        pair
        for one, other in zip(by_mode["eager"], by_mode["full"], strict=True)
        for pair in zip(one, other, strict=True)
    ]
    # A padded batch is another shape for a matrix product, so a near tie between two logits may fall the other way.
    assert sum(a == b for a, b in pairs) >= 0.9 * len(pairs)


def test_prefetch_under_graphs_overlaps_and_counts_its_windows(mini_scenario, mini_model, tmp_path):
    model = mini_model("v41", backbone=HEAD_64)
    result, facts = run(mini_scenario, model, {"tier": "dram", "path": "uva"}, "full", tmp_path)
    assert facts["graph_steps"] > 0
    assert all(step.window_ns > 0 for layer in result.layers for step in layer)
