"""README holds what the committed record says, to the byte."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tiercast_cli import inputs
from tiercast_cli.suite_result import SuiteResult
from tiercast_profiles import store
from tiercast_sim.simulate import simulate

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "validation" / "two-core-epyc-avx2"


def test_the_generated_places_are_fresh() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["v41-hbm", "v41-dram"])
def test_what_the_readme_says_is_predicted_is_predicted_now(name) -> None:
    """The drive's arm takes a quarter of a minute to simulate; the other two stand for all three."""
    shown = store.load_record(RECORD / "simulated" / f"{name}.json").metrics
    now = simulate(inputs.resolve(name), with_bounds=False).metrics
    for metric in ("output_tokens_per_s", "kv_capacity_tokens"):
        assert getattr(now, metric).value == getattr(shown, metric).value, "make the demo's record anew"
    assert now.penalty_ratio["no_engram"].value == shown.penalty_ratio["no_engram"].value


def test_the_committed_records_load_and_belong_together() -> None:
    profile = store.load_hardware(str(RECORD / "profile.yaml"))
    names = sorted(path.stem for path in (RECORD / "measured").glob("*.json"))
    assert names
    for name in names:
        measured = store.load_record(RECORD / "measured" / f"{name}.json")
        predicted = store.load_record(RECORD / "simulated" / f"{name}.json")
        assert (measured.kind, predicted.kind) == ("measured", "simulated")
        assert measured.workload_sha256 == predicted.workload_sha256
        assert measured.scenario_sha256 == predicted.scenario_sha256
        assert predicted.provenance.hardware_sha256 == profile.sha256
        assert measured.samples is not None
        assert predicted.samples is not None
        # The scheduler of each, written apart, made the same steps of the same work.
        for column in ("prefill_tokens", "decode_sequences", "rows"):
            assert getattr(measured.samples.steps, column) == getattr(predicted.samples.steps, column), (name, column)


def test_the_summary_names_the_profile_it_used() -> None:
    summary = json.loads((RECORD / "summary.json").read_text(encoding="utf-8"))
    assert summary["machine"]["profile_sha256"] == store.load_hardware(str(RECORD / "profile.yaml")).sha256


def test_a_run_at_another_time_is_kept_as_its_scores_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    other_run = importlib.import_module("other_run")
    result = store.parse(SuiteResult, store.read_mapping(RECORD / "suite" / "suite.json"), "suite")
    kept = other_run.shortened(result, "2026-12-01 07:28", "nothing")
    for group in ("all", "at pace"):
        for metric in other_run.METRICS:
            assert kept.score_of(metric, group) == result.score_of(metric, group)
    assert len(kept.throughput_errors) == len(result.cases)
    worst = result.score_of("output_tokens_per_s")
    assert abs(kept.throughput_errors[worst.worst_case]) == pytest.approx(worst.worst_absolute, abs=1e-4)


def test_keeping_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "docs" / "other_run.py", tmp_path, "two-core-xeon", "today", "nothing"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.strip() == f"{tmp_path / 'suite.json'}: no such file"
