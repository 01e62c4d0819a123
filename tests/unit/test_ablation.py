"""Assumptions left out: each is listed, each changes what goes in, and the committed table is of this ledger."""

import re
from pathlib import Path

import pytest

from tiercast_plan.ablation import ABLATIONS, FIXED, NOTHING, Without
from tiercast_plan.ledger import ledger
from tiercast_plan.ledger_predictions import predict
from tiercast_profiles.published import DriveReads, SerialReads, WindowRatio
from tiercast_profiles.store import load_hardware, load_model

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")
MEASURED = str(ROOT / "validation" / "two-core-epyc" / "profile.yaml")
WINDOW = WindowRatio(
    kind="window_ratio",
    reads=DriveReads(hardware="h200-sxm", tier="nvme", path="disk", row_bytes=264, reads_per_s=50_000),
    step_ms=100,
    num_layers=10,
    engram_layer_ids=(1,),
    rows_per_layer=1000,
    prefetch="step_entry",
    baseline="resident",
    waits_at=("layer", "step"),
)


def test_every_assumption_of_the_page_is_left_out_or_says_why_not():
    listed = re.findall(r"^\| (A\d+) \| [A-Z`]", PAGE, re.MULTILINE)
    assert sorted(listed) == sorted(set(listed)), "a number is used twice"
    assert set(listed) == {without.assumption for without in ABLATIONS} | set(FIXED)
    assert not {without.assumption for without in ABLATIONS} & set(FIXED)


@pytest.mark.parametrize("without", ABLATIONS, ids=lambda without: f"{without.assumption} {without.by}")
def test_leaving_one_out_changes_what_goes_in(without: Without):
    machines = [load_hardware(name) for name in ("h200-sxm", MEASURED)]
    models = [load_model(name) for name in ("deepseek-v4.1-flash", "paper-8b-100b")]
    changed = (
        any(without.hardware(machine) != machine for machine in machines)
        or any(without.model(model) != model for model in models)
        or without.prediction(WINDOW) != WINDOW
    )
    assert changed


def test_leaving_one_out_changes_what_comes_out():
    by = {without.assumption: without for without in ABLATIONS}
    serial = SerialReads(kind="serial_reads", hardware="h200-sxm", step_ms=50, num_reads=48)
    assert predict(serial, by["A85"]).value == pytest.approx(50 / (50 - 47 * 0.065))
    assert predict(serial, by["A18"]).low == predict(serial).value
    at_layer = predict(WINDOW, by["A86"])
    assert at_layer.low > predict(WINDOW).low
    assert at_layer.value == predict(WINDOW, NOTHING).value


def test_the_committed_table_is_of_this_ledger():
    found = ledger()
    row = f"| none left out | – | {found.num_inside} | {100 * found.median_error_ratio:.1f} % |"
    assert row in PAGE, "run make docs"
    assert f"inside of {found.num_scored}" in PAGE
    for without in ABLATIONS:
        assert f"| {without.assumption} | {without.by} |" in PAGE, "run make docs"
