"""simulate, what-if and cost, on a small machine and a small model."""

import json
from decimal import Decimal

import pytest

from tiercast_cli import inputs


@pytest.mark.parametrize("width", [80, 120])
def test_simulate_is_as_committed(run, golden, files, width):
    result = run("simulate", files.scenario, width=width)
    assert result.exit_code == 0
    golden(f"simulate.{width}.txt", result.stdout)


def test_simulate_json_is_the_bytes_that_are_written(run, files):
    output, trace = files.folder / "record.json", files.folder / "trace.json"
    result = run("simulate", files.scenario, "--json", "-o", output, "--trace", trace)
    assert result.exit_code == 0
    assert result.stdout == output.read_text(encoding="utf-8")
    assert result.stdout == run("simulate", files.scenario, "--json").stdout
    record = json.loads(result.stdout)
    assert record["kind"] == "simulated"
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    assert {event["pid"] for event in events} == {2}
    assert f"wrote {output}" in result.stderr


def test_a_profile_takes_the_place_of_the_hardware(run, files):
    elsewhere = files.change(hardware="h200-sxm")
    record = json.loads(run("simulate", elsewhere, "--profile", files.hardware, "--json").stdout)
    assert record["provenance"]["hardware_name"] == "test-cpu"


@pytest.mark.parametrize("name", ["v41-hbm", "v41-dram", "v41-nvme"])
def test_shipped_scenarios_go_by_name(name):
    resolved = inputs.resolve(name)
    assert resolved.placement.tier == name.removeprefix("v41-")
    assert resolved.num_ranks == 8


def test_what_if_has_one_row_per_combination(run, files):
    args = ("what-if", files.scenario, "--vary", "placement.tier=hbm,nvme", "--vary", "workload.concurrency=1,2")
    result = run(*args, "--json")
    rows = json.loads(result.stdout)
    assert [tuple(row["settings"].values()) for row in rows] == [("hbm", 1), ("hbm", 2), ("nvme", 1), ("nvme", 2)]
    table = run(*args)
    assert table.exit_code == 0
    assert "placement.tier" in table.stdout
    assert "USD/Mtok" in table.stdout


def test_what_if_off_is_a_word(run, files):
    rows = json.loads(run("what-if", files.scenario, "--vary", "placement.prefetch=off,step_entry", "--json").stdout)
    stalls = [row["metrics"]["stall_ms_per_step"]["value"] for row in rows]
    assert stalls[0] > stalls[1]
    assert [row["settings"]["placement.prefetch"] for row in rows] == ["off", "step_entry"]


def test_what_if_keeps_what_does_not_fit_as_a_row(run, files):
    args = ("what-if", files.scenario, "--vary", "placement.tier=hbm,pool")
    rows = json.loads(run(*args, "--json").stdout)
    assert rows[0]["metrics"] is not None
    assert rows[1]["metrics"] is None
    assert "no result" in run(*args).stdout


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("placement.teir=hbm", "unknown scenario key 'placement.teir'"),
        ("placement.tier", "is not a setting"),
        ("placement.tier=tape", "placement.tier"),
        ("workload.concurrency=-3", "greater than 0"),
    ],
)
def test_what_if_names_the_wrong_setting(fails, files, setting, text):
    assert text in fails(2, "what-if", files.scenario, "--set", setting)


def test_cost_of_one_scenario_shows_every_tier_of_the_machine(run, files):
    rows = json.loads(run("cost", files.scenario, "--json").stdout)
    assert [row["placement"]["tier"] for row in rows] == ["nvme", "none", "hbm", "dram"]
    for row in rows:
        lines = sum(Decimal(line["usd_per_hour"]) for line in row["cost"]["lines"])
        assert lines == Decimal(row["cost"]["usd_per_hour"])


def test_cost_of_several_scenarios_shows_just_those(run, files):
    other = files.change(placement={"tier": "hbm"})
    result = run("cost", files.scenario, other)
    assert result.exit_code == 0
    assert "does not fit" not in result.stdout
    assert "uncalibrated" in result.stdout
    assert len(json.loads(run("cost", files.scenario, other, "--json").stdout)) == 2


def test_a_table_larger_than_the_tier_is_infeasible(run, fails, files):
    wide = {"prompt_tokens": {"fixed": 8}, "output_tokens": {"fixed": 2}}
    body = {"kind": "closed_loop", "concurrency": 1, "num_requests": 1, **wide}
    large = files.change(model="paper-4b-100b", placement={"tier": "dram"}, workload=body)
    assert "dram" in fails(3, "simulate", large)
    result = run("cost", large, large)
    assert result.exit_code == 3
    assert "does not fit" in result.stdout
    assert result.stderr.startswith("tiercast: no placement fits")
