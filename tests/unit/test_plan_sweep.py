"""Sweeps: settings by dotted path, every point validated before any runs."""

import pytest

from tiercast_plan.settings import apply, points
from tiercast_plan.sweep import sweep
from tiercast_profiles.errors import BadInput, InfeasibleScenario, UnknownHardware
from tiercast_profiles.scenario import Scenario

SCENARIO = Scenario.model_validate(
    {
        "schema_version": 1,
        "hardware": "h200-sxm",
        "model": "deepseek-v4.1-flash",
        "parallel": {"tensor": 8},
        "placement": {"tier": "dram"},
        "workload": {
            "kind": "closed_loop",
            "concurrency": 4,
            "num_requests": 4,
            "prompt_tokens": {"uniform": [64, 128]},
            "output_tokens": {"fixed": 8},
        },
    }
)


def _values(path: str, text: str) -> list:
    found = points(SCENARIO, [], [f"{path}={text}"])
    return [point.settings[path] for point in found]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("7", [7]),
        ("1,2,9", [1, 2, 9]),
        ("1..4", [1, 2, 3, 4]),
        ("8..32..8", [8, 16, 24, 32]),
        ("8..64*2", [8, 16, 32, 64]),
        ("8..65*2", [8, 16, 32, 64]),
        ("1,4..6,100..1000*10", [1, 4, 5, 6, 100, 1000]),
    ],
)
def test_lists_and_ranges(text, values):
    assert _values("workload.concurrency", text) == values


def test_words_that_yaml_takes_for_booleans_stay_the_words_that_were_typed():
    found = points(SCENARIO, ["engine.prefix_caching=on"], ["placement.prefetch=off,step_entry"])
    assert [point.settings["placement.prefetch"] for point in found] == ["off", "step_entry"]
    assert [point.scenario.placement.prefetch for point in found] == ["off", "step_entry"]
    assert all(point.scenario.engine.prefix_caching is True for point in found)


def test_fractions_keep_their_last_value():
    assert _values("engine.memory_utilization_ratio", "0.1..0.7..0.1") == pytest.approx([x / 10 for x in range(1, 8)])


def test_combinations_change_the_last_variation_fastest():
    found = points(SCENARIO, ["seed=5"], ["placement.tier=hbm,nvme", "workload.concurrency=1,2"])
    assert [tuple(p.settings.values()) for p in found] == [("hbm", 1), ("hbm", 2), ("nvme", 1), ("nvme", 2)]
    assert [(p.scenario.placement.tier, p.scenario.workload.concurrency) for p in found][-1] == ("nvme", 2)
    assert {p.scenario.seed for p in found} == {5}
    assert SCENARIO.seed == 0


def test_no_variation_is_one_point():
    assert [p.settings for p in points(SCENARIO, [], [])] == [{}]


def test_laws_of_lengths():
    def lengths(setting: str):
        return points(SCENARIO, [setting], [])[0].scenario.workload.prompt_tokens.model_dump()

    assert lengths("workload.prompt_tokens={fixed: 9}") == {"fixed": 9}
    assert lengths("workload.prompt_tokens.fixed=9") == {"fixed": 9}
    assert lengths("workload.prompt_tokens.uniform=[1, 9]") == {"uniform": (1, 9)}
    assert lengths("workload.prompt_tokens.uniform.1=999") == {"uniform": (64, 999)}
    varied = points(SCENARIO, [], ["workload.prompt_tokens.uniform=[1, 9],[2, 8]"])
    assert [p.scenario.workload.prompt_tokens.model_dump()["uniform"] for p in varied] == [(1, 9), (2, 8)]


@pytest.mark.parametrize(
    ("sets", "varies", "text"),
    [
        (["placement.teir=nvme"], [], r"unknown scenario key 'placement.teir': no 'teir' there; known: tier, path"),
        (["plcement.tier=nvme"], [], "unknown scenario key 'plcement.tier'.*known: schema_version, hardware"),
        (["placement.tier.x=1"], [], "'tier' holds a value"),
        (["workload.prompt_tokens.uniform.2=9"], [], "unknown scenario key 'workload.prompt_tokens.uniform.2'"),
        (["workload.prompt_tokens.fixed.0=9"], [], "unknown scenario key 'workload.prompt_tokens.fixed.0'"),
        (["workload.prompt_tokens.gamma=9"], [], "unknown scenario key 'workload.prompt_tokens.gamma'"),
        (["placement.tier"], [], "write path=value"),
        (["=3"], [], "write path=value"),
        (["seed=1"], ["seed=1,2"], "seed: set more than once"),
        ([], ["seed=1,,2"], "empty value between commas"),
        ([], ["seed=4..1"], "must rise"),
        ([], ["seed=1..4..0"], "positive step"),
        ([], ["seed=1..9*1"], "factor above 1"),
        ([], ["seed=a..b"], "not a range"),
        ([], ["seed=1..2..3..4"], "not a range"),
        ([], ["seed=0..1e9"], "at most 200000 values"),
        ([], ["seed=0..1999", "workload.concurrency=1..200"], "400000 points"),
        (["placement.cache_gib=-1"], [], "cache_gib"),
        ([], ["placement.tier=dram,tape"], r"placement.tier=tape: placement.tier"),
        (["placement=[unclosed"], [], "cannot be read as a value"),
    ],
)
def test_mistakes_are_one_line_and_nothing_runs(sets, varies, text):
    with pytest.raises(BadInput, match=text) as caught:
        sweep(SCENARIO, sets, varies, predict=lambda resolved: pytest.fail("ran"))
    assert "\n" not in str(caught.value)


def test_unknown_hardware_stops_before_anything_runs():
    with pytest.raises(UnknownHardware):
        sweep(SCENARIO, [], ["hardware=h200-sxm,h9000"], predict=lambda resolved: pytest.fail("ran"))


def test_apply_copies():
    data = {"placement": {"tier": "dram"}}
    assert apply(data, "placement.tier", "nvme") == {"placement": {"tier": "nvme"}}
    assert data == {"placement": {"tier": "dram"}}


def test_points_that_cannot_be_had_are_rows():
    def predict(resolved):
        raise InfeasibleScenario("too large", 17)

    rows = sweep(SCENARIO, [], ["hardware=h200-sxm,gb200"], predict=predict)
    assert (rows[0].problem, rows[0].shortfall_bytes) == ("too large", 17)
    assert "exceeds the 4 devices" in (rows[1].problem or "")
    assert all(row.metrics is None and row.cost is None for row in rows)


def test_a_real_sweep_prices_what_has_a_price():
    seen = []
    rows = sweep(
        SCENARIO,
        ["parallel.tensor=4", "workload.num_requests=2", "workload.concurrency=2"],
        ["hardware=gb200,h800-sxm", "placement.tier=none,dram"],
        progress=lambda far: seen.append((far.done, far.total)),
    )
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    priced = [row for row in rows if row.settings["hardware"] == "gb200"]
    assert all(row.metrics is not None and row.cost is not None for row in priced)
    dearer = priced[1].cost.line("dram").usd_per_hour
    assert dearer > priced[0].cost.line("dram").usd_per_hour == 0
    # Four H800 cannot hold the backbone; that is a row, not the end of the sweep.
    assert all(row.problem or row.cost_problem for row in rows if row.settings["hardware"] == "h800-sxm")
    again = sweep(
        SCENARIO, ["parallel.tensor=4", "workload.num_requests=2", "workload.concurrency=2"], ["placement.tier=none"]
    )
    assert [row.settings for row in again] == [{"placement.tier": "none"}]


def test_processes_give_the_rows_of_a_serial_sweep():
    """INV-11: in parallel and in series, the same bytes in the same order."""
    varies = ("placement.tier=hbm,dram,pool", "seed=0,1")
    serial, parallel = (sweep(SCENARIO, (), varies, num_jobs=jobs) for jobs in (1, 2))
    assert [row.model_dump_json() for row in serial] == [row.model_dump_json() for row in parallel]
    assert any(row.metrics is not None for row in serial)
