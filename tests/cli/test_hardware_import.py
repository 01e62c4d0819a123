"""tiercast hardware import: files in, a profile and a table of what came from where out."""

import json

from tiercast_profiles.store import load_hardware

STREAM = "Function    Best Rate MB/s\nCopy: 480000.0 1\nScale: 470000.0 1\nAdd: 490000.0 1\nTriad: 485000.0 1\n"


def test_the_profile_is_written_and_the_sources_are_shown(run, golden, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stream.txt").write_text(STREAM, encoding="utf-8")
    words = ["hardware", "import", "stream.txt", "--base", "h100-sxm", "--date", "2026-11-25", "-o", "my-box.yaml"]
    for width in (80, 120):
        result = run(*words, width=width)
        assert result.exit_code == 0, result.output
        golden(f"hardware-import.{width}.txt", result.stdout)
    profile = load_hardware("my-box.yaml")
    assert (profile.name, profile.host.memory_bandwidth_gb_per_s.value) == ("my-box", 485)
    assert json.loads(run(*words, "--json").stdout)["name"] == "my-box"


def test_what_is_wrong_is_one_line_and_no_file(fails, tmp_path):
    (tmp_path / "stream.txt").write_text(STREAM, encoding="utf-8")
    output = tmp_path / "box.yaml"
    words = ("hardware", "import", tmp_path / "stream.txt", "-o", output)
    assert "give --base NAME" in fails(2, *words)
    assert "--date 'today': give a day as in 2026-11-25" in fails(2, *words, "--date", "today")
    assert "unknown hardware 'x'" in fails(2, *words, "--base", "x")
    assert "does not exist" in fails(2, *words[:3], "-o", tmp_path / "absent" / "box.yaml")
    assert not output.exists()


def test_an_imported_machine_is_compared_with_its_datasheet(run, golden, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stream.txt").write_text(STREAM, encoding="utf-8")
    run("hardware", "import", "stream.txt", "--base", "h100-sxm", "--date", "2026-11-25", "-o", "my-box.yaml")
    for width in (80, 120):
        result = run("hardware", "compare", "my-box.yaml", "--with", "h100-sxm", width=width)
        assert result.exit_code == 0, result.output
        golden(f"hardware-compare.{width}.txt", result.stdout)
    (row,) = json.loads(run("hardware", "compare", "my-box.yaml", "--json").stdout)  # found by its product
    assert row["of_anchor_ratio"] == 485 / 504


def test_compare_names_what_is_wrong(fails):
    assert "holds no measured number" in fails(2, "hardware", "compare", "l4")
    assert "several shipped machines" not in fails(2, "hardware", "compare", "absent.yaml")
