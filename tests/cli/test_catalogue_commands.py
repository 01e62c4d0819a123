"""hardware, models and prices: what is known, and from where."""

import json

import pytest

from tiercast_cli import catalogue_views, render
from tiercast_profiles.hardware import ComputePoint, ComputeTable, HostCachePoint, Interference, ProbeResult, TimeSpread

KINDS = ("hardware", "models", "prices")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [80, 120])
def test_list_is_as_committed(run, golden, kind, width):
    result = run(kind, "list", width=width)
    assert result.exit_code == 0
    golden(f"{kind}-list.{width}.txt", result.stdout)
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= width


@pytest.mark.parametrize("kind", KINDS)
def test_list_gives_the_same_names_as_json(run, golden, kind):
    result = run(kind, "list", "--json")
    golden(f"{kind}-list.json", result.stdout)
    assert [row["name"] for row in json.loads(result.stdout)] == sorted(
        row["name"] for row in json.loads(result.stdout)
    )


def test_show_names_band_evidence_and_source_of_a_number(run):
    result = run("hardware", "show", "h200-sxm", width=120)
    line = next(line for line in result.stdout.splitlines() if line.startswith("device.memory_capacity_gb"))
    assert "141.0 [141.0 .. 150.1]" in line
    assert "published: gpu-specs" in line
    assert any(line.startswith("gpu-specs") for line in result.stdout.splitlines())


@pytest.mark.parametrize(("kind", "name"), [("hardware", "gb200"), ("models", "tiny"), ("prices", "default")])
def test_show_json_is_the_document(run, tmp_path, kind, name):
    result = run(kind, "show", name, "--json")
    copy = tmp_path / "copy.json"
    copy.write_text(result.stdout, encoding="utf-8")
    assert json.loads(result.stdout)["name"] == name
    assert "the same values" in run(kind, "diff", name, copy).stdout


def test_money_stays_exact_text_in_json(run):
    book = json.loads(run("prices", "show", "default", "--json").stdout)
    assert book["nvme_usd_per_gb"] == "0.357"


def test_diff_shows_only_what_differs(run):
    rows = json.loads(run("hardware", "diff", "h200-sxm", "h800-sxm", "--json").stdout)
    assert {"what": "device.product_name", "first": "NVIDIA H200", "second": "NVIDIA H800"} in rows
    assert not any(row["first"] == row["second"] for row in rows)
    assert "NVIDIA H800" in run("hardware", "diff", "h200-sxm", "h800-sxm").stdout


def test_diff_compares_curves_of_the_same_tier_and_path(run):
    rows = {row["what"]: row for row in json.loads(run("hardware", "diff", "h200-sxm", "gb200", "--json").stdout)}
    assert rows["lookups.cxl/uva.tier"] == {"what": "lookups.cxl/uva.tier", "first": "cxl", "second": None}
    assert rows["lookups.dram/uva.fixed_us"]["second"].startswith("4.0 ")
    assert not any(row["what"].endswith((".tier", ".path")) and row["first"] and row["second"] for row in rows.values())


def test_show_names_a_curve_as_settings_do_and_keeps_its_evidence(run):
    shown = run("hardware", "show", "h200-sxm", width=200).stdout
    line = next(line for line in shown.splitlines() if line.startswith("lookups.nvme/disk.row_ns "))
    assert line.split()[-2:] == ["derived:", "nvme-rate"]


@pytest.mark.parametrize(("kind", "noun"), [("hardware", "hardware"), ("models", "model"), ("prices", "price book")])
def test_an_unknown_name_is_answered_with_the_known_ones(fails, kind, noun):
    line = fails(2, kind, "show", "rtx-9999")
    assert f"unknown {noun} 'rtx-9999'" in line
    assert "known:" in line


@pytest.mark.parametrize("width", [80, 120])
def test_parts_are_as_committed(run, golden, width):
    result = run("hardware", "parts", width=width)
    assert result.exit_code == 0
    golden(f"hardware-parts.{width}.txt", result.stdout)
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= width


def test_parts_as_json_name_their_marks(run):
    rows = json.loads(run("hardware", "parts", "--json").stdout)
    assert {"kind": "gpu", "name": "rtx-4090", "marks": ["R"]}.items() <= rows[19].items()


def test_show_says_which_curves_are_uncalibrated(run):
    text = " ".join(run("hardware", "show", "mi300x", width=200).stdout.split())
    assert "uncalibrated lookup curves, each a prior with a band: hbm by device, dram by uva" in text


def test_a_telemetry_envelope_is_no_case_of_its_own(cpu_hardware):
    probes = (
        ProbeResult(name="copy", unit="GB/s", samples=(1.0,), status="invalid", reason="2 link replays"),
        ProbeResult(name="telemetry.copy", unit="", status="invalid", reason="2 link replays"),
        ProbeResult(name="telemetry.rates", unit="", status="ok"),
    )
    profile = cpu_hardware.model_copy(update={"probes": probes})
    text = render.to_text(lambda: catalogue_views.profile_summary(profile), 120)
    assert "cases measured: 1 (1 invalid)\n  invalid: copy, 2 link replays\n" in text


@pytest.mark.parametrize("width", [80, 120])
def test_the_parts_of_a_layer_stand_beside_each_other(cpu_hardware, width):
    def at(count, context, us):
        return ComputePoint(num_tokens=count, context_tokens=context, time_us=us, low_us=us, high_us=us)

    components = {"linear": (at(2, 0, 41.5),), "attention_decode": (at(2, 112, 7),), "engram_module": (at(2, 0, 19),)}
    table = ComputeTable(
        model_name="tiny-wide",
        shape_sha256="0" * 64,
        engram_sha256="1" * 64,
        graph_mode="eager",
        context_statistic="max",
        components=components,
    )
    at_two = {"model": "tiny-wide", "tokens": 2}
    probe = ProbeResult(name="layers.mlp", parameters=at_two, unit="us", samples=(24.25,), status="ok")
    profile = cpu_hardware.model_copy(update={"compute": (table,), "probes": (probe,)})
    text = render.to_text(lambda: catalogue_views.profile_summary(profile), width)
    row = next(line.split() for line in text.splitlines() if "24.25" in line)
    assert row == ["tiny-wide,", "eager", "2", "at", "context", "112", "41.50", "24.25", "7", "19"]
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [80, 120])
def test_what_lookups_take_stands_beside_each_path(cpu_hardware, width):
    times = {"issue_us": 133.25, "beside_us": 67.5, "after_us": 37.75, "inline_us": 112.5}
    ratios = {"compute_speed_ratio": 1, "lookup_speed_ratio": 1}
    worker = {"wake_us": 81.5, "turn_us": 15.25, "behind_us": 310}
    by_size = times | {"points": [times | worker | {"num_rows": 24, "issue_us": 8}, times | {"num_rows": 3}]}
    entries = [
        {"tier": "dram", "path": "uva"},
        {"tier": "dram", "path": "cpu_gather", "overhead": by_size},
        {"tier": "nvme", "path": "disk", "overhead": times},
    ]
    interference = tuple(Interference.model_validate(entry | ratios) for entry in entries)
    profile = cpu_hardware.model_copy(update={"interference": interference})
    text = render.to_text(lambda: catalogue_views.profile_summary(profile), width)
    rows = [line.split() for line in text[text.index("what lookups take beside") :].splitlines() if " by " in line]
    assert rows == [
        ["dram", "by", "cpu_gather", "3", "133.2", "67.50", "112.5", "37.75"],
        ["dram", "by", "cpu_gather", "24", "8", "67.50", "112.5", "37.75"],
        ["nvme", "by", "disk", "any", "133.2", "67.50", "112.5", "37.75"],
        ["dram", "by", "cpu_gather", "24", "81.50", "15.25", "310"],
    ]
    assert max(map(len, text.splitlines())) <= width
    bare = cpu_hardware.model_copy(update={"interference": interference[:1]})
    assert "what lookups take" not in render.to_text(lambda: catalogue_views.profile_summary(bare), width)


@pytest.mark.parametrize("width", [80, 120])
def test_what_a_cache_takes_is_shown_by_rows(cpu_hardware, width):
    point = {"row_bytes": 264, "find_us": 105.25, "keep_us": 135.5, "hit_us": {"value": 130, "low": 113, "high": 138}}
    points = [HostCachePoint.model_validate(point | {"num_rows": rows}) for rows in (1, 3072)]
    profile = cpu_hardware.model_copy(update={"host_cache": tuple(points)})
    text = render.to_text(lambda: catalogue_views.profile_summary(profile), width)
    rows = [line.split() for line in text.splitlines() if " 264 " in line]
    assert rows == [["1", "264", "105.2", "135.5", "130"], ["3,072", "264", "105.2", "135.5", "130"]]
    assert "what a cache in host memory takes of a lookup, us" in text
    assert catalogue_views.flatten(profile)["host_cache"] == "2 entries"
    bare = render.to_text(lambda: catalogue_views.profile_summary(cpu_hardware), width)
    assert "what a cache in host memory" not in bare


def test_how_far_lookups_lie_apart_is_shown_as_a_count(cpu_hardware):
    spread = TimeSpread(num_rows=96, time_ratios=(0.9,) * 9 + (1.9,))
    curves = [curve.model_copy(update={"spreads": (spread,)}) for curve in cpu_hardware.lookups]
    shown = catalogue_views.flatten(cpu_hardware.model_copy(update={"lookups": tuple(curves)}))
    named = {name: words for name, words in shown.items() if "spreads" in name}
    assert len(named) == len(curves) > 0
    assert set(named.values()) == {"1 entries"}


def test_a_bare_device_name_is_a_machine_in_every_command_about_machines(run, fails):
    assert run("hardware", "show", "H200", "--json").stdout == run("hardware", "show", "h200-sxm", "--json").stdout
    assert run("hardware", "diff", "h200", "h200-sxm").stdout.endswith("state the same values\n")
    assert "fits several machines: a100-pcie-80, a100-sxm-80" in fails(2, "hardware", "show", "a100")


def test_the_help_of_hardware_names_all_it_can_do(run):
    text = run("hardware", "--help", width=200).stdout
    summary, _, listed = text.partition("Commands:")
    names = [line.split()[0] for line in listed.splitlines() if line.strip()]
    assert "import" in names
    assert all(name in summary for name in names)
