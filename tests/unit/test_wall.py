"""The wall: a prediction is made without sight of any measured record."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

from tiercast_sim.simulate import simulate

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "validation" / "two-core-xeon"

# Runs in an interpreter of its own: an audit hook cannot be removed. Everything a prediction opens is written down.
PREDICT = """
import json, os, sys
opened = []
def note(event, args):
    if event == "open" and isinstance(args[0], (str, os.PathLike)):
        opened.append(os.fspath(args[0]))
sys.addaudithook(note)
from tiercast_cli import inputs
from tiercast_sim.simulate import simulate
resolved = inputs.resolve("demo-prefetch", sys.argv[1])
record = simulate(resolved)
print(json.dumps([sorted(set(opened)), sorted(sys.modules), record.sha256]))
"""


def predicted() -> tuple[list[str], list[str], str]:
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, str(RECORD / "profile.yaml")], check=True, capture_output=True, text=True
    )
    opened, modules, sha256 = json.loads(done.stdout)
    return opened, modules, sha256


def test_a_prediction_opens_no_record_and_loads_no_runtime():
    opened, modules, sha256 = predicted()
    assert any(path.endswith("profile.yaml") for path in opened), "the hook sees what is opened"
    records = [path for path in opened if path.endswith(".json") and "site-packages" not in path]
    assert not [path for path in records if "measured" in path or "simulated" in path or "validation" in path]
    assert not [name for name in modules if name.startswith(("tiercast_runtime", "torch"))]
    committed = json.loads((RECORD / "simulated" / "demo-prefetch.json").read_text(encoding="utf-8"))
    assert committed["kind"] == "simulated"
    assert len(sha256) == 64


def test_a_prediction_takes_a_scenario_and_nothing_else():
    """No argument through which a measured record could be handed in."""
    kinds = [str(parameter.annotation) for parameter in inspect.signature(simulate).parameters.values()]
    assert len([kind for kind in kinds if "ResolvedScenario" in kind]) == 1
    assert all("bool" in kind for kind in kinds if "ResolvedScenario" not in kind)


def test_the_simulator_reads_no_records_in_its_source():
    for path in sorted((ROOT / "simulator").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for word in ("load_record", "read_text", "open(", "import compare", "tiercast_profiles.scores"):
            assert word not in text, f"{path.name}: {word}"
