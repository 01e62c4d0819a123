"""Whatever is wrong with an input ends in one clear line, the right exit code, and never half a file."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ("simulate", "bench", "cost", "what-if", "validate")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_file(fails, command):
    assert fails(2, command, "missing.yaml") == "tiercast: missing.yaml: no such file"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--bogus"], "tiercast: No such option: --bogus; see 'tiercast --help'"),
        (["bogus"], "tiercast: No such command 'bogus'; see 'tiercast --help'"),
        (["simulate"], "tiercast: Missing argument 'SCENARIO'; see 'tiercast simulate --help'"),
    ],
)
def test_a_wrong_command_line_is_one_line(fails, arguments, line):
    assert fails(2, *arguments) == line


def test_an_unknown_scenario_name(fails):
    line = fails(2, "simulate", "v42-hbm")
    assert "unknown scenario 'v42-hbm'" in line
    assert "v41-hbm" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_hardware(fails, files, command):
    line = fails(2, command, files.change(hardware="b900"))
    assert "unknown hardware 'b900'; known: a100-pcie-80, " in line
    assert ", gb200, " in line


def test_a_profile_that_is_not_there_says_how_to_make_one(fails, files):
    line = fails(2, "simulate", files.change(hardware="profile-of-mine.yaml"))
    assert "profile-of-mine.yaml: no such file" in line
    assert "tiercast profile --quick -o profile.yaml" in line


@pytest.mark.parametrize("arguments", [["simulate", "h" * 400], ["simulate", "v41-dram", "-o", "h" * 400]])
def test_a_name_no_file_can_have(fails, arguments):
    assert fails(2, *arguments) == (f"tiercast: '{'h' * 58}…: longer than a file's name can be (File name too long)")


def test_a_negative_size(fails, files):
    line = fails(2, "simulate", files.change(placement={"tier": "nvme", "cache_gib": -1}))
    assert "placement.cache_gib" in line
    assert "given -1" in line


def test_an_unknown_key(fails, files):
    line = fails(2, "simulate", files.change(placemnt={"tier": "hbm"}))
    assert "placemnt: unknown key; known here: schema_version, hardware" in line


def test_a_path_that_cannot_serve_the_tier(fails, files):
    assert "path 'uva' cannot serve tier 'nvme'" in fails(
        2, "simulate", files.change(placement={"tier": "nvme", "path": "uva"})
    )


def test_truncated_json(fails, files):
    whole = files.folder / "whole.json"
    whole.write_text(json.dumps(files.body)[:-40], encoding="utf-8")
    line = fails(2, "simulate", whole)
    assert "not complete JSON" in line


def test_a_folder_instead_of_a_file(fails, tmp_path):
    assert "is a folder" in fails(2, "simulate", tmp_path)


def test_the_folder_of_the_output_is_missing(fails, files):
    line = fails(2, "simulate", files.scenario, "-o", files.folder / "nowhere" / "record.json")
    assert "cannot be written" in line


@pytest.mark.parametrize("option", ["-o", "--trace"])
def test_a_full_disk_while_writing_leaves_no_file(run, files, monkeypatch, option):
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    before = sorted(files.folder.iterdir())
    result = run("simulate", files.scenario, option, files.folder / "out.json")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith("out.json: cannot be written (No space left on device)")
    assert result.stdout == ""
    assert sorted(files.folder.iterdir()) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_device_as_output(fails, files):
    assert fails(2, "simulate", files.scenario, "-o", "/dev/full").endswith("(No space left on device)")
    assert Path("/dev/full").is_char_device()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_standard_output_is_one_line():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tiercast_cli.main", "models", "list", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "tiercast: standard output cannot be written (No space left on device)\n"


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m tiercast_cli.main hardware show h200-sxm | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_an_unknown_command_and_an_unknown_option(run):
    for args in (["fly"], ["simulate", "v41-hbm", "--fast"], ["simulate"]):
        result = run(*args)
        assert result.exit_code == 2
        assert "Traceback" not in result.output


def test_the_suite_takes_no_scenarios_and_needs_a_profile(fails):
    assert "--suite has its own scenarios; leave out v41-dram" in fails(2, "validate", "v41-dram", "--suite")
    assert "--suite needs --profile FILE" in fails(2, "validate", "--suite")
    assert "--records needs --profile FILE" in fails(2, "validate", "--records", "x")
    assert "--records runs nothing" in fails(2, "validate", "--records", "x", "--suite", "--profile", "p.yaml")
    assert "--folder belongs to --suite and --probe" in fails(2, "validate", "v41-dram", "--folder", "x")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("simulate", "scenario.yaml", "-o", "scenario.yaml"), "scenario.yaml: cannot be written (it is read by"),
        (("simulate", "scenario.yaml", "-o", "a.json", "--trace", "./a.json"), "./a.json: cannot be written (it is an"),
        (("what-if", "scenario.yaml", "-o", "a.csv", "--state", "a.csv"), "a.csv: cannot be written (it is another"),
        (("diff", "scenario.yaml", "--set", "seed=1", "-o", "scenario.yaml"), "is read by the same command"),
        (("cost", "scenario.yaml", "-o", "."), ".: cannot be written (Is a directory)"),
    ],
)
def test_an_output_takes_the_place_of_nothing_that_is_needed(fails, files, monkeypatch, args, text):
    monkeypatch.chdir(files.folder)
    before = {path.name: path.read_bytes() for path in files.folder.iterdir()}
    assert text.removesuffix("an") in fails(2, *args)
    assert {path.name: path.read_bytes() for path in files.folder.iterdir()} == before


def test_two_outputs_may_share_a_device(run, files):
    assert run("simulate", files.scenario, "-o", "/dev/null", "--trace", "/dev/null").exit_code == 0
