"""The pages a reader meets: every command on them is accepted, every field is explained, every link leads somewhere."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from tiercast_cli import doctoring, inputs, planning, row_lookup, text_locality, validate
from tiercast_profiles.errors import TiercastError
from tiercast_profiles.scenario import Engine, Parallel, Placement, Scenario, Speculative
from tiercast_profiles.workload import Workload

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "validation" / "README.md"]
FENCE = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# These measure this machine or need a file that only the reader has: their arguments are read, the work is not done.
MEASURING = ("profile", "bench", "validate", "demo", "doctor")
NEEDS_A_FILE_OF_THE_READER = ("profile.yaml", "--tokenizer")
SECTIONS = {
    "parallel": Parallel,
    "placement": Placement,
    "workload": Workload,
    "engine": Engine,
    "speculative": Speculative,
}


class _Accepted(TiercastError):
    exit_code = 77


def _commands() -> list[str]:
    lines = [
        line.split(" #")[0].strip()
        for page in PAGES
        for block in FENCE.findall(page.read_text(encoding="utf-8"))
        for line in block.splitlines()
    ]
    return sorted({line for line in lines if line.startswith("tiercast ") and "[" not in line})


def _accept(*_arguments: object, **_options: object) -> None:
    raise _Accepted("the arguments were understood")


def _is_run(words: list[str]) -> bool:
    return words[0] not in MEASURING and not any(name in words for name in NEEDS_A_FILE_OF_THE_READER)


@pytest.fixture
def accepting(monkeypatch):
    """Commands stop where the work would start."""
    for name in ("resolve", "load_scenario", "require_runtime"):
        monkeypatch.setattr(inputs, name, _accept)
    monkeypatch.setattr(text_locality, "measure", _accept)
    monkeypatch.setattr(planning, "question", _accept)
    monkeypatch.setattr(doctoring, "examine", _accept)
    monkeypatch.setattr(row_lookup, "read_tokenizer", _accept)
    monkeypatch.setattr(validate, "_rescore", _accept)


@pytest.mark.parametrize("command", [line for line in _commands() if _is_run(shlex.split(line)[1:])])
def test_every_command_on_a_page_runs(run, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    assert result.stdout


@pytest.mark.parametrize("command", [line for line in _commands() if not _is_run(shlex.split(line)[1:])])
def test_every_command_that_measures_is_accepted(run, accepting, command):
    words = shlex.split(command)[1:]
    if words[0] == "hardware" and words[1] in ("show", "pool"):
        pytest.skip("needs profiles that lines before it write; it is run where its command is tested")
    result = run(*words)
    assert result.exit_code == _Accepted.exit_code, result.output


@pytest.mark.parametrize(
    "command",
    [
        "profile",
        "bench",
        "simulate",
        "validate",
        "what-if",
        "diff",
        "report",
        "cost",
        "plan",
        "fit",
        "doctor",
        "allocate",
        "locality",
        "rows",
        "published",
    ],
)
def test_every_example_in_the_help_is_accepted(run, accepting, command):
    text = run(command, "--help", width=200).stdout
    found = [line.split("  #")[0] for line in text[text.index("Examples:") :].splitlines()[1:] if line.strip()]
    assert found
    for line in found:
        words = shlex.split(line)[1:]
        is_done = words[0] in ("rows", "published", "fit", "allocate") and _is_run(words)
        assert run(*words).exit_code == (0 if is_done else _Accepted.exit_code), line


def test_the_scenario_of_the_page_is_a_scenario():
    block = FENCE.findall((ROOT / "docs" / "scenario.md").read_text(encoding="utf-8"))[0]
    scenario = Scenario.model_validate(yaml.safe_load(block))
    assert scenario.placement.path == "uva"


@pytest.mark.parametrize("section", [None, *SECTIONS])
def test_every_field_of_a_scenario_is_explained_with_its_default(section):
    text = (ROOT / "docs" / "scenario.md").read_text(encoding="utf-8")
    schema = Scenario if section is None else SECTIONS[section]
    heading = "## Top level" if section is None else f"## `{section}`"
    part = text[text.index(heading) :].split("\n## ")[0]
    for name, field in schema.model_fields.items():
        if section is None and name in SECTIONS:
            continue
        line = next((line for line in part.splitlines() if line.startswith(f"| `{name}` |")), "")
        assert line, f"{name} is not explained under {heading}"
        if isinstance(field.default, str | int | float):
            shown = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
            assert (shown.lower() if isinstance(field.default, bool) else shown) in line, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_generated_places_of_the_readme_are_marked():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("demo-output", "accuracy", "ledger-score"):
        assert text.index(f"<!-- {name}:begin -->") < text.index(f"<!-- {name}:end -->")
