"""A real ``tiercast profile`` that is interrupted or killed: what is left behind, and that it goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.store import load_hardware, to_yaml, write_text  # noqa: E402
from tiercast_runtime.probes.partial import PartialSweeps  # noqa: E402

SCRIPT = Path(__file__).with_name("interrupted_profile.py")

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the sizes are small for a CPU as the device only")


@pytest.fixture
def start(mini_model, tmp_path_factory, tmp_path):
    """Start the command; it stops at a place. In a process group of its own: whoever is left would be seen."""
    model, started = tmp_path_factory.mktemp("model") / "mini.yaml", []
    write_text(model, to_yaml(mini_model("v41")))

    def command(stop, *arguments):
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), stop, "profile", "--model", str(model), "-o", "found.yaml", *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield command
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def end(process, number):
    """Send a signal once the process has stopped at its place; its exit code and what it said."""
    assert process.stdout.readline() == "stopped\n", process.communicate()[1]
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=300)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    return process.returncode, said


def test_ctrl_c_inside_the_probe_of_a_drive_leaves_no_file_and_no_process(start, tmp_path):
    returned, said = end(start("disk lookups", "--quick"), signal.SIGINT)
    assert returned == 130
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def stopped(process):
    assert process.stdout.readline() == "stopped\n", process.communicate()[1]
    return process


def test_the_folder_of_a_killed_profile_goes_when_the_next_one_starts_and_that_of_a_living_one_stays(start, tmp_path):
    def folders():
        return {path.name for path in tmp_path.glob(".tiercast-probe-*")}

    assert end(start("disk lookups", "--quick"), signal.SIGKILL)[0] == -signal.SIGKILL
    abandoned = folders()
    assert len(abandoned) == 1
    assert list(tmp_path.rglob("*.safetensors")), "it had written its table file"
    living = stopped(start("host", "--quick"))
    (its_own,) = folders()
    assert {its_own}.isdisjoint(abandoned)
    third = stopped(start("host", "--quick"))
    assert its_own in folders()
    assert len(folders()) == 2
    for process in (third, living):
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=300) == 130
    assert folders() == set()


def test_a_killed_profile_goes_on_where_it_was(start, tmp_path):
    assert end(start("gather sweep 1"), signal.SIGKILL)[0] == -signal.SIGKILL
    side = tmp_path / "found.yaml.partial"
    machine = {}  # nothing that must be the same: the test reads what any machine left
    kept = PartialSweeps(side, machine, is_resumed=True).get("cpu_gather/thp/random/local/1 threads")
    process = start("nowhere", "--resume")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    first, second = load_hardware(str(tmp_path / "found.yaml")).gather_sweeps
    assert first.model_copy(update={"drift_ratio": None}) == kept
    assert second.pages == "4k"
    assert not side.exists()
