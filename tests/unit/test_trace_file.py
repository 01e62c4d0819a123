"""Traces as Mooncake and Azure publish them: what is read, and what is refused with its line."""

import json

import pytest
import yaml

from tiercast_profiles.errors import BadInput, FileProblem
from tiercast_profiles.store import load_scenario, resolve
from tiercast_profiles.trace_file import TraceLine, read_trace
from tiercast_profiles.workload import Workload, draw_requests
from tiercast_sim.simulate import simulate

MOONCAKE = [
    {"timestamp": 27482, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 48]},
    {"timestamp": 30535.5, "input_length": 20, "output_length": 3, "hash_ids": [46]},
    {"timestamp": 27482, "input_length": 7, "output_length": 1},
]
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""


@pytest.fixture
def trace(tmp_path):
    def write(text, name="trace.jsonl"):
        path = tmp_path / name
        path.write_text(text if isinstance(text, str) else "\n".join(map(json.dumps, text)), encoding="utf-8")
        return str(path)

    return write


def test_json_lines_as_mooncake_publishes_them(trace):
    assert read_trace(trace(MOONCAKE), None) == (
        TraceLine(0, 1100, 52, (46, 47, 48)),
        TraceLine(0, 7, 1, ()),
        TraceLine(3_053_500_000, 20, 3, (46,)),
    )


def test_csv_as_azure_publishes_it(trace):
    path = trace(AZURE, "trace.csv")
    assert read_trace(path, None) == (TraceLine(0, 374, 44, ()), TraceLine(4_314_579_000, 396, 109, ()))
    with_zone = AZURE.replace("46.6805900", "46.680590+00:00").replace("50.9951690", "50.995169+00:00")
    assert read_trace(trace(with_zone, "zone.csv"), None) == read_trace(path, None)


def test_a_speed_up_shrinks_the_gaps_and_a_number_takes_the_first_lines(trace):
    workload = Workload.model_validate({"kind": "trace", "file": trace(MOONCAKE), "trace_speedup": 10.0})
    assert [request.arrival_ns for request in draw_requests(workload, 0)] == [0, 0, 305_350_000]
    first = Workload.model_validate({"kind": "trace", "file": trace(MOONCAKE), "num_requests": 2})
    assert [request.prompt_tokens for request in draw_requests(first, 0)] == [1100, 20]


def test_a_changed_file_is_read_again_and_counts_by_its_content(trace):
    workload = Workload.model_validate({"kind": "trace", "file": trace(MOONCAKE)})
    assert len(draw_requests(workload, 0)) == 3
    before = workload.identity()
    moved = Workload.model_validate({"kind": "trace", "file": trace(MOONCAKE, "other.jsonl")})
    assert moved.identity() == before
    trace(MOONCAKE[:1])
    assert len(draw_requests(workload, 0)) == 1
    assert workload.identity() != before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: holds list"),
        ('{"timestamp": 1, "input_length": 2}', "line 2: no output_length"),
        ('{"timestamp": 1, "input_length": 0, "output_length": 2}', "line 2: input_length=0; must be a whole number"),
        ('{"timestamp": 1, "input_length": 2, "output_length": 1.5}', "line 2: output_length=1.5"),
        ('{"timestamp": NaN, "input_length": 2, "output_length": 1}', "line 2: timestamp=nan"),
        ('{"timestamp": -1, "input_length": 2, "output_length": 1}', "line 2: timestamp=-1"),
        ('{"timestamp": 1, "input_length": 2, "output_length": 1, "hash_ids": "x"}', "line 2: hash_ids must be"),
        ('{"timestamp": 1, "input_length": 2, "output_length": 1, "hash_ids": [1, 2]}', "2 hash_ids for 2 tokens"),
    ],
)
def test_a_bad_line_is_named(trace, line, message):
    with pytest.raises(BadInput, match=message) as error:
        read_trace(trace(json.dumps(MOONCAKE[0]) + "\n" + line), None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TIMESTAMP,ContextTokens\n", "line 1: no column GeneratedTokens"),
        (AZURE + "yesterday,1,1\n", "line 4: TIMESTAMP='yesterday'"),
        (AZURE + "2023-11-16 18:15:51,x,1\n", "line 4: ContextTokens='x'"),
        (AZURE + "2023-11-16 18:15:51,1\n", "line 4: GeneratedTokens=None"),
    ],
)
def test_a_bad_row_is_named(trace, text, message):
    with pytest.raises(BadInput, match=message):
        read_trace(trace(text, "trace.csv"), None)


def test_files_that_are_no_trace(trace, tmp_path):
    with pytest.raises(FileProblem, match="holds no request"):
        read_trace(trace("\n\n"), None)
    with pytest.raises(FileProblem, match="No such file"):
        read_trace(str(tmp_path / "none.jsonl"), None)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileProblem, match="not a UTF-8 text file"):
        read_trace(str(tmp_path / "bytes.jsonl"), None)


def test_a_scenario_finds_its_trace_beside_itself_and_runs_it(trace, tmp_path, monkeypatch):
    trace(MOONCAKE)
    scenario = {
        "schema_version": 1,
        "hardware": "h200-sxm",
        "model": "deepseek-v4.1-flash",
        "parallel": {"tensor": 8},
        "placement": {"tier": "dram"},
        "workload": {"kind": "trace", "file": "trace.jsonl"},
    }
    (tmp_path / "scenario.yaml").write_text(yaml.safe_dump(scenario), encoding="utf-8")
    monkeypatch.chdir(tmp_path.parent)
    resolved = resolve(load_scenario(f"{tmp_path.name}/scenario.yaml"))
    record = simulate(resolved, with_baselines=False, with_bounds=False)
    assert record.samples.requests.arrival_ns == (0, 0, 3_053_500_000)
    assert record.samples.requests.prompt_tokens == (1100, 7, 20)
    assert record.samples.requests.output_tokens == (52, 1, 3)
    trace(MOONCAKE[:2])
    assert resolved.sha256 != record.scenario_sha256
