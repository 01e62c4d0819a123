"""``tiercast hardware pool``: one profile of a machine out of several."""

from pathlib import Path

import yaml

from tiercast_profiles import store

ROOT = Path(__file__).resolve().parents[2]
XEON, EPYC = (ROOT / "validation" / name / "profile.yaml" for name in ("two-core-xeon", "two-core-epyc"))


def slower(folder):
    """The committed profile a tenth slower in its copies."""
    data = yaml.safe_load(XEON.read_text(encoding="utf-8"))
    low, value, high = (1.1 * data["host_to_device"]["latency_us"][key] for key in ("low", "value", "high"))
    data["host_to_device"]["latency_us"] = {"value": value, "low": low, "high": high}
    path = folder / "later.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def test_profiles_of_two_times_become_one_that_can_be_shown(run, tmp_path):
    output = tmp_path / "profile.yaml"
    result = run("hardware", "pool", XEON, slower(tmp_path), "-o", output)
    assert result.exit_code == 0, result.stderr
    assert "Pooled over 2 profiles" in " ".join(result.stdout.split())
    before, found = (store.load_hardware(str(path)).host_to_device.latency_us for path in (XEON, output))
    assert before.low is not None
    assert found.value == 1.05 * before.value
    assert found.low == before.low
    assert run("hardware", "show", output).exit_code == 0


def test_other_machines_and_single_files_are_refused_and_nothing_is_written(fails, tmp_path):
    output = tmp_path / "profile.yaml"
    assert "pool two or more" in fails(2, "hardware", "pool", XEON, "-o", output)
    line = fails(2, "hardware", "pool", XEON, EPYC, "-o", output)
    assert "pool profiles of " in line
    assert "datasheet" in fails(2, "hardware", "pool", XEON, "h200-sxm", "-o", output)
    assert "no such file" in fails(2, "hardware", "pool", XEON, tmp_path / "gone.yaml", "-o", output)
    mine = slower(tmp_path)
    assert "is read by the same command" in fails(2, "hardware", "pool", XEON, mine, "-o", mine)
    assert not output.exists()


def test_probing_before_every_round_needs_a_folder_and_no_profile(fails, tmp_path):
    assert "--probe needs --folder DIR" in fails(2, "validate", "--probe")
    assert "--probe needs --folder DIR" in fails(2, "validate", "--suite", "--probe")
    both = ("validate", "--suite", "--probe", "--folder", tmp_path / "out", "--profile", XEON)
    assert "leave out --profile, or leave out --probe" in fails(2, *both)
    assert not (tmp_path / "out").exists()
