"""The program itself: help, version, start-up, and life without torch."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tiercast_cli import inputs
from tiercast_cli.main import app

ROOT = Path(__file__).parent.parent.parent
COMMANDS = ("profile", "bench", "simulate", "validate", "what-if", "cost", "plan", "locality", "rows", "demo")
PLANNING = ("fit", "doctor", "allocate")
HEAVY = ("torch", "simpy", "numpy", "pydantic", "rich.table", "yaml")


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.parametrize("command", COMMANDS + PLANNING)
def test_every_command_has_an_example_and_json(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"  tiercast {command}" in result.stdout
    assert "--json" in result.stdout


@pytest.mark.parametrize("kind", ["hardware", "models", "prices"])
@pytest.mark.parametrize("verb", ["list", "show", "diff"])
def test_every_catalogue_command_has_an_example_and_json(run, kind, verb):
    result = run(kind, verb, "--help")
    assert f"  tiercast {kind} {verb}" in result.stdout
    assert "--json" in result.stdout


def test_help_documents_the_exit_codes(run):
    text = run("--help").stdout
    assert re.search(r"3 infeasible", text)
    assert re.search(r"4 this machine or this install lacks", text)


def test_version(run):
    assert re.fullmatch(r"tiercast \d+\.\d+\.\d+\n", run("--version").stdout)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom tiercast_cli.main import app\n"
        "CliRunner().invoke(app, ['--help'])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert _python(code).stdout == "[]\n"


WITHOUT_TORCH = """
import sys
for name in ("torch", "safetensors", "pynvml", "triton"):
    sys.modules[name] = None
from typer.testing import CliRunner
from tiercast_cli.main import app
result = CliRunner().invoke(app, {args!r})
print(result.stderr, end="")
sys.exit(result.exit_code)
"""


@pytest.mark.parametrize(
    "args",
    [
        ["models", "list"],
        ["hardware", "show", "gb200"],
        ["rows", "--model", "tiny", "--layer", "4", "--token-ids", "1,2", "--folded"],
        ["doctor"],
        ["fit", "--model", "tiny", "--hardware", "l4"],
        ["what-if", "v41-dram", "--set", "workload.num_requests=4", "--vary", "placement.tier=hbm,nvme"],
    ],
)
def test_the_core_install_works_without_torch(args):
    done = _python(WITHOUT_TORCH.format(args=args))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["profile", "bench", "validate", "demo"])
def test_the_real_runtime_says_how_to_install_it(fails, monkeypatch, command):
    monkeypatch.setattr(inputs.util, "find_spec", lambda _name: None)
    line = fails(4, command, *(["v41-hbm"] if command == "bench" else []))
    assert "pip install 'tiercast[runtime]'" in line


def test_an_interrupt_is_one_line_and_130(run, monkeypatch):
    def interrupted(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inputs, "resolve", interrupted)
    result = run("simulate", "v41-hbm")
    assert result.exit_code == 130
    assert result.stderr == "tiercast: interrupted\n"


def test_the_program_is_installed_under_its_name():
    assert app.info.name == "tiercast"
