"""The code for GPUs, run on the CPU over a stand-in for ``torch.cuda`` (``tests/stand_in``): it runs, in order.

In a process of its own: the stand-in changes torch for good, and Triton decides at its import whether it interprets.
"""

import importlib.util
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import ExitStack
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "stand_in"
FILES = ["cuda_itself", "cuda_prefetch", "cuda_engine", "cuda_probes", "cuda_evidence", "cuda_copies"]  # taken in turn
# Of the tests for GPUs those that are quick in Triton's interpreter.
ON_GPU = [
    "test_hash_kernel.py::test_the_launch_is_captured_in_a_graph",
    "test_uva_kernel.py::test_decoding_on_the_gpu_equals_the_oracle",
    "test_uva_kernel.py::test_an_id_outside_the_table_voids_the_step",
]
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="the stand-in takes the place CUDA has in this torch"),
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What the cases said that did not pass, by file; two processes share the work, as the least machine has cores."""
    folder = tmp_path_factory.mktemp("stand-in")
    files = [*(f"{FOLDER}/{name}.py" for name in FILES), *(f"{ROOT}/tests/gpu/{name}" for name in ON_GPU)]
    command = [sys.executable, "-m", "pytest", "-p", "stand_in_plugin", "-p", "no:cacheprovider", "--tb=short"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(FOLDER)}
    cases: dict[str, dict[str, str]] = {}
    with ExitStack() as stack:
        children = []
        for number in range(2):
            report, said = folder / f"report-{number}.xml", stack.enter_context((folder / f"{number}.txt").open("w"))
            arguments = [*command, f"--junitxml={report}", f"--basetemp={folder / str(number)}", *files[number::2]]
            child = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT)
            stack.callback(child.wait)
            stack.callback(child.terminate)
            children.append((child, report, Path(said.name)))
        for child, report, said in children:
            child.wait()
            assert report.exists(), said.read_text()[-5000:]
            for case in ET.parse(report).getroot().iter("testcase"):
                name = case.get("classname", "").rsplit(".", 1)[-1]
                bad = [entry for entry in case if entry.tag in ("failure", "error", "skipped")]
                text = (bad[0].text or bad[0].get("message") or bad[0].tag) if bad else ""
                cases.setdefault(name, {})[case.get("name", "")] = text
    return cases


@pytest.mark.parametrize("name", [*FILES, *sorted({test.split(".")[0] for test in ON_GPU})])
def test_the_code_for_gpus_does_what_it_should_on_the_stand_in(ran, name):
    assert ran.get(name), f"nothing ran of {name}: {sorted(ran)}"
    wrong = {case: text for case, text in ran[name].items() if text}
    assert not wrong, "\n".join(f"{case}\n{text}" for case, text in wrong.items())
