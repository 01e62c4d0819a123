"""What one layer takes, part by part, as a profile tells it: from its tables, and the MLP from its probes."""

from pathlib import Path

import pytest

from tiercast_cli.suite import scenarios
from tiercast_profiles import store
from tiercast_profiles.hardware import ComputePoint, ComputeTable, ProbeResult
from tiercast_profiles.layer_parts import LayerParts, layer_parts
from tiercast_sim.simulate import simulate

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "validation" / "two-core-xeon" / "suite" / "profile.yaml"


def points(*places: tuple[int, int, float]) -> tuple[ComputePoint, ...]:
    return tuple(
        ComputePoint(num_tokens=count, context_tokens=context, time_us=us, low_us=us, high_us=us)
        for count, context, us in places
    )


def table(mode: str = "eager", engram: str | None = "1" * 64) -> ComputeTable:
    return ComputeTable(
        model_name="mini",
        shape_sha256="0" * 64,
        engram_sha256=engram,
        graph_mode=mode,
        context_statistic="max",
        components={
            "linear": points((1, 0, 40), (4, 0, 44), (8, 0, 50), (20, 0, 90)),
            "attention_decode": points(*((n, c, n + c / 16) for n in (1, 4, 8) for c in (16, 48, 96))),
            "attention_prefill": points((5, 0, 7), (20, 0, 12), (20, 16, 15)),
            "engram_module": points((1, 0, 21), (8, 0, 24)),
        },
    )


def mlp(name: str, size: str, count: int, *samples: float, model: str = "mini") -> ProbeResult:
    return ProbeResult(name=name, parameters={"model": model, size: count}, unit="us", samples=samples, status="ok")


def test_the_ends_of_the_batches_and_the_largest_chunk_are_shown(cpu_hardware):
    probes = (
        mlp("layers.mlp", "tokens", 1, 20, 20, 20, 100),  # the last one counts as 60
        mlp("layers.mlp", "tokens", 8, 7, model="another"),
        mlp("layers.plain.mlp", "tokens", 8, 8),
        mlp("layers.graph.mlp", "sequences", 8, 9),
        mlp("layers.mlp", "tokens", 20, 60),
        ProbeResult(name="layers.mlp", unit="us", status="failed"),
    )
    compute = (table(), table(engram=None), table("piecewise"))
    found = layer_parts(cpu_hardware.model_copy(update={"compute": compute, "probes": probes}))
    assert found == [
        LayerParts("mini", "eager", False, 1, 48, 40, 30, 4, 21),
        LayerParts("mini", "eager", False, 8, 48, 50, None, 11, 24),
        LayerParts("mini", "eager", True, 20, 0, 90, 60, 12, None),
    ]


def test_a_graphs_mlp_goes_by_sequences_and_its_chunks_are_those_of_single_calls(cpu_hardware):
    probes = (mlp("layers.graph.mlp", "sequences", 8, 30), mlp("layers.mlp", "tokens", 1, 25))
    found = layer_parts(cpu_hardware.model_copy(update={"compute": (table("full"),), "probes": probes}))
    assert [(parts.num_tokens, parts.mlp_us, parts.is_chunk) for parts in found] == [(1, None, False), (8, 30, False)]


def test_a_machine_without_layer_times_has_none_to_show(cpu_hardware):
    assert layer_parts(cpu_hardware) == []


@pytest.mark.parametrize("case", ["one/none", "one/nvme"])
def test_a_prediction_does_not_see_the_mlp_apart(case):
    profile = store.load_hardware(str(COMMITTED))
    resolved = scenarios(store.load_suite()[0], str(COMMITTED))[case]
    linear = [probe for probe in profile.probes if probe.name == "layers.linear"]
    assert linear
    apart = tuple(probe.model_copy(update={"name": "layers.mlp"}) for probe in linear)
    with_mlp = profile.model_copy(update={"probes": (*profile.probes, *apart)})
    before, after = (
        simulate(resolved.model_copy(update={"hardware": hardware})).metrics for hardware in (profile, with_mlp)
    )
    assert after == before
