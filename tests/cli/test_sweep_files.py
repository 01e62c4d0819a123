"""What what-if writes: CSV, state, a page with charts; and settings of documents."""

import csv
import io
import json
import sys

VARY = ("--vary", "placement.tier=hbm,nvme,pool")


def test_csv_has_a_line_for_each_point_with_units_in_its_columns(run, files):
    path = files.folder / "rows.csv"
    result = run("what-if", files.scenario, *VARY, "-o", path)
    assert result.exit_code == 0
    lines = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [line["placement.tier"] for line in lines] == ["hbm", "nvme", "pool"]
    rows = json.loads(run("what-if", files.scenario, *VARY, "--json").stdout)
    assert float(lines[0]["output_tokens_per_s"]) == rows[0]["metrics"]["output_tokens_per_s"]["value"]
    assert lines[1]["usd_per_mtok.total"] == rows[1]["cost"]["usd_per_mtok"]["total"]["value"]
    assert lines[2]["output_tokens_per_s"] == ""
    assert "pool" in lines[2]["problem"]


def test_a_finished_state_gives_the_same_rows_again(run, files):
    state = files.folder / "state.jsonl"
    args = ("what-if", files.scenario, *VARY, "--nominal", "--state", state, "--json")
    first = run(*args).stdout
    assert len(state.read_text().splitlines()) == 4
    assert run(*args).stdout == first


def test_the_plot_is_a_page_of_its_own(run, files):
    page = files.folder / "plot.html"
    result = run("what-if", files.scenario, "--vary", "workload.concurrency=1..3", "--nominal", "--plot", page)
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert '"title": {"text": "workload.concurrency"}' in text


def test_settings_reach_the_documents(run, files):
    args = ("what-if", files.scenario, "--vary", "prices.nvme_usd_per_gb=1,1000", "--nominal", "--json")
    cheap, dear = (float(row["cost"]["usd_per_hour"]) for row in json.loads(run(*args).stdout))
    assert dear > cheap


def test_mistakes_are_one_line(fails, files, monkeypatch):
    assert "give one" in fails(2, "what-if", files.scenario, "--jobs", "2", "--cluster", "tcp://127.0.0.1:9")
    assert "unknown key prices.dram" in fails(2, "what-if", files.scenario, "--set", "prices.dram=1")
    missing = files.folder / "none" / "plot.html"
    assert "cannot be written" in fails(2, "what-if", files.scenario, "--plot", missing)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert "tiercast[report]" in fails(4, "what-if", files.scenario, "--plot", files.folder / "plot.html")
