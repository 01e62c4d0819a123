"""The shape of the house: five role folders, one package each, and nothing that costs start-up time at the bottom."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    "profiles": "tiercast_profiles",
    "runtime": "tiercast_runtime",
    "simulator": "tiercast_sim",
    "planner": "tiercast_plan",
    "cli": "tiercast_cli",
}


@pytest.mark.parametrize(("folder", "package"), ROOMS.items())
def test_each_room_holds_one_typed_package(folder: str, package: str) -> None:
    importable = sorted(p.name for p in (ROOT / folder).iterdir() if p.is_dir() and (p / "__init__.py").exists())
    assert importable == [package]
    assert (ROOT / folder / package / "py.typed").exists()


@pytest.mark.parametrize("module", ["tiercast_profiles.store", "tiercast_sim", "tiercast_plan", "tiercast_runtime"])
def test_the_core_never_imports_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'pynvml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_help_page_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['tiercast', '--help']\n"
        "from tiercast_cli.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'torch', 'numpy', 'simpy', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_wall_clock_and_no_global_randomness_in_the_simulator() -> None:
    banned = (
        r"import time\b",
        "perf_counter",
        r"time\.time",
        r"datetime\.now",
        r"import random\b",
        r"np\.random\.seed",
    )
    for path in sorted((ROOT / "simulator").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        found = [word for word in banned if re.search(word, text)]
        assert not found, f"{path.name}: {found}"


def test_no_init_files_under_tests() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
