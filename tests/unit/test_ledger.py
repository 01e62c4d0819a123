"""The ledger: every graded case is there, its arithmetic is what a hand gets, and a wrong prior shows."""

import pytest

from tiercast_plan import ledger_predictions
from tiercast_plan.ledger import is_wide, ledger
from tiercast_plan.ledger_predictions import Predicted, changed_hardware, predict
from tiercast_profiles import store
from tiercast_profiles.errors import BadInput, UnknownCase
from tiercast_profiles.published import (
    DriveReads,
    LookupTime,
    SerialReads,
    SimulatedRatio,
    TableMemory,
    WindowRatio,
)

GRADED = {1, 3, 5, 6, 7, 8, 10, 13, 15, 16, 17, 19, 21, 23, 24, 26, 28, 30, 31, 34, 35}
DISK = {"hardware": "h200-sxm", "tier": "nvme", "path": "disk", "row_bytes": 264}
WORKLOAD = {
    "kind": "closed_loop",
    "concurrency": 8,
    "num_requests": 8,
    "prompt_tokens": {"fixed": 64},
    "output_tokens": {"fixed": 32},
}


@pytest.fixture(scope="module")
def found():
    return ledger()


def test_every_graded_case_is_there(found):
    assert {row.case for row in found.rows} == GRADED


def test_each_row_says_what_it_needs_to_say(found):
    for row in found.rows:
        assert (row.predicted is None) == (row.verdict == "not scored")
        assert bool(row.reason) == (row.verdict == "not scored" or row.is_wide), row
        assert row.source
        if row.predicted is not None:
            assert row.low <= row.predicted <= row.high
            meets = row.low <= row.published_high and row.published_low <= row.high
            assert row.verdict == ("inside" if meets else "outside")


def test_misses_come_first_and_the_score_counts_them(found):
    verdicts = [row.verdict for row in found.rows]
    assert verdicts == sorted(verdicts, key=("outside", "inside", "not scored").index)
    assert found.num_scored == sum(verdict != "not scored" for verdict in verdicts)
    assert found.num_inside == verdicts.count("inside")
    errors = [abs(row.error_ratio) for row in found.rows if row.verdict == "outside"]
    assert errors == sorted(errors, reverse=True)


def test_a_case_that_does_not_exist():
    with pytest.raises(UnknownCase, match="unknown published case 'case-99'; known: case-01"):
        store.load_published("case-99")


def window(rate: float, prefetch: str = "step_entry", baseline: str = "resident") -> WindowRatio:
    """100 ms over ten layers, Engram at layer 1: a window of 10 ms for 1,000 reads."""
    return WindowRatio(
        kind="window_ratio",
        reads=DriveReads(**DISK, reads_per_s=rate),
        step_ms=100,
        num_layers=10,
        engram_layer_ids=(1,),
        rows_per_layer=1000,
        prefetch=prefetch,
        baseline=baseline,
    )


def test_a_window_by_hand():
    # 1,000 reads at 50,000/s take 20 ms, and the disk path 0.12 ms (0.06 .. 1) before them; 10 ms are hidden.
    assert predict(window(50_000)).value == pytest.approx(100 / (100 + 10.12))
    assert predict(window(50_000)).low == pytest.approx(100 / (100 + 11))
    assert predict(window(50_000)).high == pytest.approx(100 / (100 + 10.06))
    # Against fetching on demand the known step holds the whole 20.12 ms, and 10.12 of them remain.
    assert predict(window(50_000, baseline="off")).value == pytest.approx(100 / 90)
    assert predict(window(50_000, prefetch="off")).value == pytest.approx(100 / 120.12)


def test_an_engine_that_waits_in_front_of_its_step_hides_nothing():
    # Both layers' 20.12 ms stand in front of the step; waiting at the layers hides 10 ms of the first.
    two = window(50_000).model_copy(update={"engram_layer_ids": (1, 5), "waits_at": ("step",)})
    assert predict(two).value == pytest.approx(100 / (100 + 2 * 20.12))
    either = predict(two.model_copy(update={"waits_at": ("layer", "step")}))
    at_layer = predict(two.model_copy(update={"waits_at": ("layer",)}))
    assert (either.value, either.high) == (at_layer.value, at_layer.high)
    assert either.low == predict(two).low


def test_a_slower_drive_never_helps():
    values = [predict(window(rate)).value for rate in (200_000, 100_000, 50_000, 25_000)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 1.0
    assert values[-1] < 0.8


def test_serial_reads_by_hand():
    # The drive's latency is 65 us (50 .. 80) and the host's own part of a read 12.06 (0 .. 25.47); 47 of 48 are saved.
    got = predict(SerialReads(kind="serial_reads", hardware="h200-sxm", step_ms=50, num_reads=48))
    assert got == Predicted(
        pytest.approx(50 / (50 - 47 * 0.07706)),
        pytest.approx(50 / (50 - 47 * 0.05)),
        pytest.approx(50 / (50 - 47 * 0.10547)),
    )


def test_a_lookup_by_hand():
    got = predict(LookupTime(kind="lookup_time", reads=DriveReads(**DISK, reads_per_s=100_000), rows=1000))
    assert got == Predicted(pytest.approx(10.12), pytest.approx(10.06), pytest.approx(11))
    serial = predict(LookupTime(kind="lookup_time", reads=DriveReads(**DISK, is_serial=True), rows=10))
    assert serial == Predicted(pytest.approx(0.7706), pytest.approx(0.5), pytest.approx(1.0547))


def test_table_memory_by_hand():
    scenario = {
        "schema_version": 1,
        "hardware": "h200-sxm",
        "model": "deepseek-v4.1-flash",
        "parallel": {"tensor": 4},
        "placement": {"tier": "dram"},
        "workload": WORKLOAD,
    }
    gib = 768_022_850 * 264 / 4 / 2**30
    freed = predict(TableMemory(kind="table_memory", scenario=scenario))
    assert freed.value == pytest.approx(gib)
    assert freed.high - freed.value == pytest.approx(8 / 1024)  # two tensors of two tables, each up to 2 MiB more
    growth = predict(TableMemory(kind="table_memory", scenario=scenario, kv_room_gib=100))
    assert growth.value == pytest.approx(1 + gib / 100)


def test_both_arms_of_a_ratio_are_simulated_at_every_choice(monkeypatch):
    asked = []
    answer = ledger_predictions._resolved

    def spy(scenario, settings, hardware_settings, without):
        asked.append((dict(settings), dict(hardware_settings)))
        return answer(scenario, settings, hardware_settings, without)

    monkeypatch.setattr(ledger_predictions, "_resolved", spy)
    got = predict(
        SimulatedRatio(
            kind="simulated_ratio",
            scenario={
                "schema_version": 1,
                "hardware": "h800-sxm",
                "model": "paper-4b-100b",
                "placement": {"tier": "dram"},
                "workload": WORKLOAD,
            },
            arm={"placement.prefetch": "off"},
            arm_hardware={"lookups.dram/uva.fixed_us": 5000},
            choices={"workload.concurrency": (8, 4)},
        )
    )
    assert got.high < 0.95
    assert asked == [
        ({"workload.concurrency": 8, "placement.prefetch": "off"}, {"lookups.dram/uva.fixed_us": 5000}),
        ({"workload.concurrency": 8}, {}),
        ({"workload.concurrency": 4, "placement.prefetch": "off"}, {"lookups.dram/uva.fixed_us": 5000}),
        ({"workload.concurrency": 4}, {}),
    ]


@pytest.mark.parametrize("path", ["lookups.dram/uva.colour", "lookups.pool/uva.row_ns", "device.power_w", "lookups"])
def test_a_number_that_no_curve_has(path):
    with pytest.raises(BadInput, match="names no number of a lookup curve of h200-sxm"):
        changed_hardware(store.load_hardware("h200-sxm"), {path: 1})


def test_wide_means_further_than_a_quarter():
    assert not is_wide(Predicted(100, 75, 125))
    assert is_wide(Predicted(100, 74, 100))
    assert is_wide(Predicted(100, 100, 126))
