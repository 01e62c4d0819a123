"""The pace of a run: read from records, put into one line, and laid over a profile by the size of a step."""

from pathlib import Path

import pytest

from tiercast_cli import run_pace
from tiercast_cli.changed_profiles import at_pace
from tiercast_cli.run_pace import RunPace, has_step_times, pace_in
from tiercast_profiles import store
from tiercast_profiles.hardware import ComputeTable
from tiercast_sim.simulate import simulate

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "validation" / "two-core-xeon" / "suite"
MEASURED = {"decode_1": 0.8, "decode_8": 1.4, "chunk_512": 2.0}


def table(resolved, **fields) -> ComputeTable:
    """Layer times of 10 µs at several sizes."""
    points = [
        {"num_tokens": n, "context_tokens": 0, "time_us": 10, "low_us": 9, "high_us": 12} for n in (1, 8, 64, 900)
    ]
    return ComputeTable.model_validate(
        {
            "model_name": "mini",
            "shape_sha256": resolved.model.backbone.shape_sha256,
            "engram_sha256": resolved.model.engram.shape_sha256,
            "graph_mode": "eager",
            "context_statistic": "max",
            "components": {"linear": points, "attention_prefill": points[2:]},
            **fields,
        }
    )


def test_the_ratio_of_a_step_lies_on_straight_lines_over_the_logarithm_of_its_tokens():
    pace = RunPace(MEASURED, None)
    assert [pace.ratio_at(tokens) for tokens in (1, 8, 512)] == pytest.approx([0.8, 1.4, 2.0])
    assert pace.ratio_at(64) == pytest.approx(1.7), "halfway between 8 and 512"
    assert [pace.ratio_at(tokens) for tokens in (513, 100_000)] == [2.0, 2.0]
    assert RunPace({"decode_8": 1.3}, None).ratio_at(1) == RunPace({"decode_8": 1.3}, None).ratio_at(99) == 1.3
    assert pace.compute_ratio == pytest.approx((0.8 * 1.4 * 2.0) ** (1 / 3))


def test_a_profile_is_stretched_by_the_size_of_each_point(mini_scenario):
    resolved = mini_scenario({"tier": "nvme"})
    profile = resolved.hardware.model_copy(update={"compute": (table(resolved),)})
    found = at_pace(profile, RunPace(MEASURED, 3.0))
    linear = found.compute[0].components["linear"]
    assert [point.time_us for point in linear] == pytest.approx([8, 14, 17, 20])
    assert [point.low_us for point in linear] == pytest.approx([7.2, 12.6, 15.3, 18])
    assert [point.high_us for point in linear] == pytest.approx([9.6, 16.8, 20.4, 24])
    assert [point.time_us for point in found.compute[0].components["attention_prefill"]] == pytest.approx([17, 20])
    for old, new in zip(profile.lookups, found.lookups, strict=True):
        assert new == old if old.path != "disk" else new.fixed_us.value == pytest.approx(3 * old.fixed_us.value)


def test_a_drive_that_was_not_timed_stays_as_it_is(mini_scenario):
    profile = mini_scenario({"tier": "nvme"}).hardware
    assert at_pace(profile, RunPace(MEASURED, None)).lookups == profile.lookups


def test_a_record_holds_its_pace_or_none(mini_scenario):
    record = simulate(mini_scenario({"tier": "none"}), with_baselines=False)

    def with_facts(**facts):
        provenance = record.provenance.model_copy(update={"facts": record.provenance.facts | facts})
        return record.model_copy(update={"provenance": provenance})

    assert pace_in(record) is None
    assert pace_in(with_facts(pace_disk=1.5)) is None, "a drive alone says nothing of layers"
    assert pace_in(with_facts(pace_decode_8=1.25, pace_notes="quiet")) == RunPace({"decode_8": 1.25}, None)
    assert pace_in(with_facts(pace_chunk_151=0.9, pace_disk=2)) == RunPace({"chunk_151": 0.9}, 2.0)


def test_committed_records_hold_a_pace_by_size():
    pace = pace_in(store.load_record(SUITE / "measured" / "one-none.json"))
    assert pace is not None
    assert set(pace.step_ratios) == {"decode_1", "decode_8", "chunk_151"}
    assert pace.ratio_at(1) == pace.step_ratios["decode_1"]


def test_the_line_names_range_steps_and_drive():
    assert run_pace.line([]) == ""
    one = run_pace.line([RunPace({"chunk_151": 1.44, "decode_1": 1.0}, None)])
    assert one == (
        "pace: around the runs reference steps took 1.20 times as long as in the profile "
        "(decode of 1: 1.00, chunk of 151 tokens: 1.44)"
    )
    two = run_pace.line([RunPace({"decode_1": 1.0}, 1.3), RunPace({"decode_1": 1.2}, None)])
    assert "1.10 times as long as in the profile (1.00 to 1.20 over the cases, decode of 1: 1.10)" in two
    assert two.endswith("reads from the drive 1.30 times as long as in the profile")


def test_only_measured_single_calls_are_stretched(mini_scenario):
    bare = mini_scenario({"tier": "nvme"})

    def holding(*tables):
        return bare.model_copy(update={"hardware": bare.hardware.model_copy(update={"compute": tables})})

    assert has_step_times(holding(table(bare, graph_mode="full"), table(bare)))
    for other in (bare, holding(table(bare, graph_mode="full")), holding(table(bare, shape_sha256="0" * 64))):
        assert not has_step_times(other)
