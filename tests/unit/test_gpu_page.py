"""The page of the GPU run: says that nothing was measured, or what a summary holds and nothing else."""

import json
import runpy
from pathlib import Path

import pytest

PAGE = runpy.run_path(str(Path(__file__).resolve().parents[2] / "docs" / "gpu_page.py"))
SPEEDS = {"no_engram": 1000.0, "hbm": 990.0, "uva": 985.0}


@pytest.fixture
def folder(tmp_path):
    cases = {"environment/machine": {"device": "NVIDIA H200", "table_bytes": 103_125_000_000}}
    for work in ("decode-64", "decode-8", "prefill-8192"):
        for arm, speed in SPEEDS.items():
            numbers = {"output_tokens_per_s": speed, "total_tokens_per_s": 2 * speed}
            cases[f"arms/{work}/{arm}"] = numbers | {"low": 0.99 * speed, "high": 1.01 * speed}
    cases["lookups/decode-floor"] = {"ratio": 1.21}
    summary = {
        "cases": {key: {"status": "done", "numbers": numbers} for key, numbers in cases.items()}
        | {"lookups/overheads": {"status": "failed", "message": "died"}},
        "penalties": {"decode-64/uva": {"hbm": 0.00505, "no_engram": 0.015}, "decode-8/uva": {"hbm": 0.02}}
        | {"decode-64/no_engram-again": {"no_engram": -0.0012}},
        "throughput_error_median": 0.021,
        "throughput_error_worst": None,
        "penalty_error_median": 0.0042,
        "penalty_error_worst": None,
        "num_failed": 1,
        "num_lacking": 0,
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return tmp_path


def test_without_a_record_every_place_says_so(tmp_path):
    places = PAGE["gpu_places"](tmp_path)
    assert set(places.values()) == {PAGE["NOT_YET"]}
    assert "Not measured yet" in PAGE["NOT_YET"]


def test_the_places_hold_what_was_measured(folder):
    places = PAGE["gpu_places"](folder)
    lines = places["gpu-headline"].splitlines()
    assert lines[0] == "NVIDIA H200, table of 103.1 GB."
    # prefill has no penalty in this summary, and batches come in order
    assert lines[4:] == ["| decode-8 | 2.00 % | – | ± 1.00 % |", "| decode-64 | 0.51 % | 1.50 % | ± 1.00 % |"]
    assert "| prefill-8192 | 2,000 | 1,980 | 1,970 | – | – | – |" in places["gpu-arms"]
    assert "memory floor, at most 1.3 | 1.21 |" in places["gpu-checks"]
    assert "hash and launch for 256 tokens, at most 10 us | not measured |" in places["gpu-checks"]
    assert "worst | – |" in places["gpu-checks"]
    assert "decode-64: no Engram again, behind the others, lost against itself | -0.12 % |" in places["gpu-checks"]
    assert "against no Engram, median | 0.42 pt |" in places["gpu-checks"]
    assert places["gpu-table-4"] == PAGE["NOT_YET"]


def test_the_paper_s_table_stands_beside_the_prediction(folder):
    row = {"what": "4B", "published": 0.98081, "predicted": 0.975, "low": 0.95, "high": 0.99, "is_inside": True}
    (folder / "table-4.json").write_text(json.dumps([row]), encoding="utf-8")
    table = PAGE["gpu_places"](folder)["gpu-table-4"]
    assert table.splitlines()[-1] == "| 4B | 0.9808 | 0.9750 | 0.9500 .. 0.9900 | inside |"
