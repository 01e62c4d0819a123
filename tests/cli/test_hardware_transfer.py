"""``tiercast hardware transfer``: the efficiencies of a measured machine on another's peaks."""

import yaml

from tiercast_profiles import store


def measured_file(folder):
    """The shipped H200 host as if it had been measured."""
    data = store.load_hardware("h200-sxm").model_dump(mode="json")
    source = {"kind": "measured", "mark": "M", "source": "made up for the test", "date": "2026-11-25"}
    data |= {"name": "mine", "calibration": "measured", "sources": {"probe": source}, "evidence": {"": "probe"}}
    data["device"]["layer_overhead_us"] = {"eager": 80}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def test_the_file_can_be_simulated_and_names_what_was_carried_over(run, tmp_path):
    output = tmp_path / "h100.yaml"
    result = run("hardware", "transfer", measured_file(tmp_path), "--to", "h100-sxm", "-o", output, width=120)
    assert result.exit_code == 0, result.stderr
    assert "device.layer_overhead_us.eager" in result.stdout
    profile = store.load_hardware(str(output))
    assert profile.device.layer_overhead_us["eager"].value == 80
    assert profile.source_of("device.layer_overhead_us.eager").mark == "D"
    assert profile.device.dense_tflops == store.load_hardware("h100-sxm").device.dense_tflops


def test_bad_input_writes_no_file(fails, tmp_path):
    output = tmp_path / "none.yaml"
    assert "give a profile that was measured" in fails(
        2, "hardware", "transfer", "h200-sxm", "--to", "h100-sxm", "-o", output
    )
    mine = measured_file(tmp_path)
    assert "unknown hardware 'rtx-9999'" in fails(2, "hardware", "transfer", mine, "--to", "rtx-9999", "-o", output)
    assert not output.exists()
