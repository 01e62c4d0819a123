"""bench, validate, profile and demo with the real runtime on a model of a few hundred rows."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_cli import demo_job, inputs, probing, validation
from tiercast_profiles.store import load_hardware, load_record
from tiercast_runtime.checkpoint import expected_tensors
from tiercast_runtime.checkpoint_write import write_checkpoint
from tiercast_runtime.row_source import ComputedRows


@pytest.fixture(autouse=True)
def _tables_in_a_folder_of_the_test(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_bench_writes_a_measured_record(run, files):
    output, trace = files.folder / "measured.json", files.folder / "trace.json"
    result = run("bench", files.scenario, "--repeats", "2", "-o", output, "--trace", trace)
    assert result.exit_code == 0, result.output
    assert "measured run: mini-v41 on test-cpu" in result.stdout
    assert "interval: quartiles of the repeats" in result.stdout
    record = load_record(output)
    assert record.kind == "measured"
    assert record.provenance.facts["repeats"] == 2
    assert json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]


def test_bench_serves_the_rows_of_a_checkpoint(run, fails, files):
    model, folder = inputs.resolve(str(files.scenario), None).model, files.folder / "checkpoint"
    specs = expected_tensors(model)
    sizes = {"wkv.weight": 1, "wkv.scale": 1, "q_weight": 2, "k_weight": 2}
    projections = [
        {
            name: np.full(int(np.prod(specs[f"layers.{layer}.engram.{name}"].shape)) * size, 60, dtype=np.uint8)
            for name, size in sizes.items()
        }
        for layer in model.engram.layer_ids
    ]
    write_checkpoint(model, folder, [ComputedRows(model.engram, layer) for layer in (0, 1)], projections)
    result = run("bench", files.scenario, "--checkpoint", folder, "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["provenance"]["facts"]["checkpoint_sha256"]) == 64
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: cannot be read" in fails(
        2, "bench", files.scenario, "--checkpoint", folder
    )


def test_bench_of_a_model_it_cannot_run_says_what_to_do(fails):
    assert fails(4, "bench", "v41-dram").endswith("simulate this one")


def test_validate_shows_measured_predicted_and_error(run, files):
    resident = files.change("resident.yaml", placement={"tier": "hbm"})
    output = files.folder / "validation.json"
    result = run("validate", files.scenario, resident, "--repeats", "1", "-o", output)
    assert result.exit_code == 0, result.output
    for word in ("measured", "predicted", "error", "ranking by output tokens/s"):
        assert word in result.stdout
    data = json.loads(output.read_text(encoding="utf-8"))
    assert [case["name"] for case in data["cases"]] == [str(files.scenario), str(resident)]
    metrics = {metric["name"]: metric for metric in data["cases"][0]["comparison"]["metrics"]}
    throughput = metrics["output_tokens_per_s"]
    expected = throughput["predicted"]["value"] / throughput["measured"]["value"] - 1
    assert throughput["error_ratio"] == pytest.approx(expected)


def test_validate_holds_the_error_against_a_limit(run, files):
    result = run("validate", files.scenario, "--repeats", "1", "--max-error", "0.000001")
    assert result.exit_code == 1
    assert "exceeds the allowed 0.0 %" in result.stderr
    assert "output tokens/s" in result.stdout


def test_validate_names_a_scenario_that_cannot_run_and_scores_the_others(run, fails, files):
    replicas = files.change("replicas.yaml", parallel={"data": 2})
    resident = files.change("resident.yaml", placement={"tier": "hbm"})
    output = files.folder / "validation.json"
    result = run("validate", replicas, files.scenario, resident, "--repeats", "1", "-o", output)
    assert result.exit_code == 1, result.output
    assert f"1 of 3 scenarios could not be run or predicted: {replicas}" in result.stderr
    data = json.loads(output.read_text(encoding="utf-8"))
    assert [case["name"] for case in data["cases"]] == [str(files.scenario), str(resident)]
    assert [failure["case"] for failure in data["failures"]] == [str(replicas)]
    scores = {score["metric"]: score for score in data["scores"]["all"]}
    throughput = scores["output_tokens_per_s"]
    assert (throughput["num_cases"], throughput["num_failed"]) == (3, 1)
    text = " ".join(result.stdout.split())
    assert "was not timed: profile test-cpu holds no layer times" in text
    assert "at pace" not in text
    assert "the runtime serves one replica" in fails(4, "validate", replicas, "--repeats", "1")


def test_profile_writes_what_the_probes_return(run, files, monkeypatch):
    asked = {}

    def probe(models, *, quick, folder=None, memory_bytes=None, output=None, is_resumed=False):
        asked.update(models=models, quick=quick, memory_bytes=memory_bytes, is_resumed=is_resumed)
        return load_hardware(str(files.hardware))

    monkeypatch.setattr(probing, "probe", probe)
    output = files.folder / "profile.yaml"
    result = run("profile", "--quick", "--model", "tiny", "-o", output)
    assert result.exit_code == 0, result.output
    assert asked == {"models": ["tiny"], "quick": True, "memory_bytes": None, "is_resumed": False}
    assert load_hardware(str(output)) == load_hardware(str(files.hardware))
    assert "nvme by disk" in result.stdout
    assert json.loads(run("profile", "--json", "--memory-gib", "2").stdout)["name"] == "test-cpu"
    assert asked["memory_bytes"] == 2 << 30
    partial = files.folder / "profile.yaml.partial"
    partial.write_text("kept")
    assert run("profile", "-o", output, "--resume").exit_code == 0
    assert asked["is_resumed"]
    assert not partial.exists()
    assert run("profile", "--resume").exit_code == run("profile", "--quick", "-o", output, "--resume").exit_code == 2
    refused = run("profile", "--memory-gib", "0")
    assert refused.exit_code == 2
    assert "must be above 0" in refused.stderr


@pytest.fixture
def small_demo(monkeypatch, tmp_path, mini_scenario, cpu_hardware, files, probes_at_once):
    """The demo's real parts on a small model, without probes and without the large model."""
    placements = {
        "demo-resident": {"tier": "hbm"},
        "demo-prefetch": {"tier": "nvme"},
        "demo-no-prefetch": {"tier": "nvme", "prefetch": "off"},
        "demo-no-engram": {"tier": "none"},
    }
    text = tmp_path / "text.txt"
    text.write_text("a few words of text that come again and again\n" * 200, encoding="utf-8")
    whole = inputs.resolve

    def resolve(name: str, profile: str | None = None):
        return mini_scenario(placements[name]) if name in placements else whole(str(files.scenario))

    monkeypatch.setattr(inputs, "resolve", resolve)
    monkeypatch.setattr(probing, "probe", lambda _models, *, quick, folder=None, report=None: cpu_hardware)
    monkeypatch.setattr(demo_job, "TEXTS", (str(text),))
    monkeypatch.setattr(demo_job, "LARGE_SCENARIOS", ("v41-dram",))


def test_demo_writes_every_record_and_a_page(run, small_demo, tmp_path, probes_at_once):
    folder = tmp_path / "out" / "demo"
    folder.mkdir(parents=True)
    (folder / "profile.yaml").write_text("of an earlier demo", encoding="utf-8")
    result = run("demo", "--folder", folder, "--repeats", "1", width=100)
    assert result.exit_code == 0, result.output
    assert probes_at_once.count("turn") >= 2, "around the runs at least"
    for arm in validation.DEMO_ARMS:
        measured, predicted = (
            load_record(folder / "measured" / f"{arm}.json"),
            load_record(folder / "simulated" / f"{arm}.json"),
        )
        assert (measured.kind, predicted.kind) == ("measured", "simulated")
        assert measured.workload_sha256 == predicted.workload_sha256
        assert json.loads((folder / "traces" / f"{arm}.json").read_text(encoding="utf-8"))["traceEvents"]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["penalty_vs_no_engram"]) == set(validation.DEMO_ARMS) - {demo_job.BASELINE_ARM}
    assert [row["name"] for row in summary["predictions"]] == ["v41-dram"]
    assert summary["validation"]["ranking"]["measured"]
    page = (folder / "output.txt").read_text(encoding="utf-8")
    assert max(map(len, page.splitlines())) <= demo_job.PAGE_WIDTH
    for heading in ("1. This machine", "2. Real text", "3. The same work", "4. Predicted"):
        assert heading in page
        assert heading in result.stdout
    assert "prefetch against no prefetch:" in page
    assert {file.name for file in folder.glob("profile*")} == {"profile.yaml", "profile-before.yaml"}
    assert summary["machine"]["profile_sha256"] == load_hardware(str(folder / "profile.yaml")).sha256
    table = (folder / "error-table.md").read_text(encoding="utf-8").splitlines()
    assert table[0] == "| arm | metric | measured | predicted | error |"
    assert sum("| output tokens/s |" in line for line in table) == 4


def test_demo_json_is_the_summary(run, small_demo, tmp_path):
    folder = tmp_path / "demo"
    result = run("demo", "--folder", folder, "--repeats", "1", "--json")
    assert json.loads(result.stdout) == json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def test_demo_into_a_file_is_refused(fails, small_demo, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    assert "cannot be created" in fails(2, "demo", "--folder", Path(blocked))
