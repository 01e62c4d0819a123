"""diff: two scenarios, a scenario and a change, two records."""

import json

import pytest


@pytest.mark.parametrize("width", [80, 120])
def test_a_changed_setting_is_as_committed(run, golden, files, width, monkeypatch):
    monkeypatch.chdir(files.folder)
    result = run("diff", "scenario.yaml", "--set", "placement.tier=hbm", width=width)
    assert result.exit_code == 0, result.output
    golden(f"diff.{width}.txt", result.stdout)


def test_markdown_is_as_committed_and_json_says_the_same(run, golden, files, monkeypatch):
    monkeypatch.chdir(files.folder)
    args = ("diff", "scenario.yaml", "--set", "prices.dram_usd_per_gb=32")
    result = run(*args, "--markdown", "-o", "diff.md")
    golden("diff.md", result.stdout)
    assert (files.folder / "diff.md").read_text() == result.stdout
    found = json.loads(run(*args, "--json").stdout)
    assert [change["path"] for change in found["inputs"]] == ["prices.dram_usd_per_gb"]
    assert found["after_name"] == "prices.dram_usd_per_gb=32"
    assert all(metric["verdict"] == "same" for metric in found["metrics"])


def test_records_compare_as_the_scenarios_they_came_from(run, files):
    other = files.change(placement={"tier": "hbm"})
    first, second = files.folder / "first.json", files.folder / "second.json"
    run("simulate", files.scenario, "-o", first)
    run("simulate", other, "-o", second)
    records, scenarios = (
        json.loads(run("diff", *pair, "--json").stdout) for pair in ((first, second), (files.scenario, other))
    )
    for key in ("metrics", "money", "inputs"):
        assert records[key] == scenarios[key]


def test_a_record_without_its_documents_has_no_price_and_says_so(run, files):
    record = files.folder / "record.json"
    run("simulate", files.scenario, "-o", record)
    files.hardware.unlink()
    result = run("diff", record, record)
    assert result.exit_code == 0
    assert "no price: the documents of the record" in " ".join(result.stdout.split())
    assert "no input differs" in result.stdout


def test_mistakes_are_one_line(fails, files, run):
    assert "nothing differs" in fails(2, "diff", files.scenario)
    assert "two forms of one result" in fails(2, "diff", files.scenario, files.scenario, "--json", "--markdown")
    record = files.folder / "record.json"
    run("simulate", files.scenario, "-o", record)
    assert "is a record, which is finished" in fails(2, "diff", files.scenario, record, "--set", "seed=1")
    assert "unknown scenario 'nonesuch'" in fails(2, "diff", files.scenario, "nonesuch")
    record.write_text('{"kind": "simulated", "metrics": {}}')
    assert "record.json" in fails(2, "diff", record, files.scenario)
