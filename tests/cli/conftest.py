"""Running commands as a person does, on small files made for the test."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from tiercast_cli.main import app
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.store import load_prices, to_yaml

GOLDEN = Path(__file__).parent.parent / "golden" / "cli"
Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Invoke the program: ``run("models", "list", width=120)``."""

    def invoke(*args: object, width: int = 80) -> Result:
        return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": str(width), "NO_COLOR": "1"})

    return invoke


@pytest.fixture
def fails(run: Run) -> Callable[..., str]:
    """Invoke the program and expect a deliberate error: its exit code, one line on stderr, nothing on stdout."""

    def invoke(exit_code: int, *args: object) -> str:
        result = run(*args)
        assert result.exit_code == exit_code, result.output
        assert result.stdout == ""
        lines = result.stderr.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("tiercast: ")
        assert "Traceback" not in result.output
        return lines[0]

    return invoke


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare text with a committed file, or rewrite that file under ``--update-golden``."""

    def check(name: str, text: str) -> None:
        text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"{name} changed; review with pytest --update-golden"

    return check


@dataclass(frozen=True)
class Files:
    """Paths of a scenario and of the documents it names, and the means to write a changed one."""

    folder: Path
    scenario: Path
    hardware: Path
    body: dict

    def change(self, name: str = "changed.yaml", **sections: object) -> Path:
        """The scenario with whole sections replaced, as a new file."""
        path = self.folder / name
        path.write_text(yaml.safe_dump({**self.body, **sections}), encoding="utf-8")
        return path


@pytest.fixture
def files(tmp_path: Path, mini_model: Callable[..., ModelSpec], cpu_hardware: HardwareProfile) -> Files:
    """A tiny scenario on a made-up CPU machine that has a price."""
    (tmp_path / "model.yaml").write_text(to_yaml(mini_model()), encoding="utf-8")
    (tmp_path / "hardware.yaml").write_text(to_yaml(cpu_hardware), encoding="utf-8")
    prices = load_prices("default").model_dump(mode="json")
    prices["devices"] = {"test-cpu": {**prices["devices"]["h200-sxm"], "product_names": []}}
    prices["evidence"] = {"": "utilization", **{k: v for k, v in prices["evidence"].items() if "devices" not in k}}
    (tmp_path / "prices.yaml").write_text(yaml.safe_dump(prices), encoding="utf-8")
    body = {
        "schema_version": 1,
        "hardware": str(tmp_path / "hardware.yaml"),
        "model": str(tmp_path / "model.yaml"),
        "placement": {"tier": "nvme"},
        "workload": {
            "kind": "closed_loop",
            "concurrency": 3,
            "num_requests": 7,
            "prompt_tokens": {"uniform": [3, 25]},
            "output_tokens": {"uniform": [2, 9]},
            "text": "random",
        },
        "engine": {"max_num_batched_tokens": 16, "max_num_seqs": 4, "kv_block_tokens": 4},
        "prices": str(tmp_path / "prices.yaml"),
    }
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(yaml.safe_dump(body), encoding="utf-8")
    return Files(tmp_path, scenario, tmp_path / "hardware.yaml", json.loads(json.dumps(body)))
