"""Scenarios of a person's own, probed before every round: what is run, what is pooled, and what is refused."""

from pathlib import Path

import pytest

from tiercast_cli import probed_rounds, probing
from tiercast_cli.changed_profiles import at_pace
from tiercast_cli.run_pace import RunPace
from tiercast_profiles import store
from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.hardware import HardwareProfile
from tiercast_sim.simulate import simulate

pytest.importorskip("torch", reason="the runtime extra is not installed")

COMMITTED = Path(__file__).resolve().parents[2] / "validation" / "two-core-xeon" / "profile.yaml"
NAMES = ("demo-prefetch", "demo-no-engram")
SLOWNESS = (1.0, 1.0, 3.0, 2.0)  # of layers, in the probes before any run and in each round


@pytest.fixture
def machine(probes_at_once, monkeypatch):
    """Probes and runs of a machine whose layers take ``SLOWNESS`` times as long in each round; what it was made to do.

    Runs do to the nanosecond what the profile of their round predicts.
    """
    committed = store.load_hardware(str(COMMITTED))
    done: list[tuple[str, ...]] = []
    now: list[HardwareProfile] = []

    def probe(models, *, quick, report):
        assert quick
        ratio = SLOWNESS[len(now) % len(SLOWNESS)]
        now.append(at_pace(committed, RunPace({"decode_1": ratio, "chunk_151": ratio}, None)))
        done.append(tuple(models))
        return now[-1]

    def bench_in_rounds(scenarios, *, repeats, folder, progress, between):
        assert repeats == 1
        done.append(tuple(scenario.scenario.placement.tier for scenario in scenarios))
        found = []
        for scenario in scenarios:
            own = simulate(scenario.model_copy(update={"hardware": now[-1]}), with_baselines=False, with_bounds=False)
            provenance = own.provenance.model_copy(update={"hardware_sha256": scenario.hardware.sha256})
            metrics = own.metrics.model_copy(
                update={"resources": (), "offers": (), "kv_chain": None, "time_spent": None}
            )
            whose = {"metrics": metrics, "scenario_sha256": scenario.sha256, "provenance": provenance}
            found.append(own.model_copy(update={"kind": "measured", **whose}))
        return tuple(found)

    monkeypatch.setattr(probing, "probe", probe)
    monkeypatch.setattr("tiercast_runtime.bench.bench_in_rounds", bench_in_rounds)
    return done


def run(folder, names=NAMES, rounds: int = 3):
    return probed_rounds.run(names, rounds=rounds, folder=folder, report=lambda _what, _ratio: None)


def test_probes_and_runs_take_turns_and_the_machine_of_all_rounds_is_predicted(machine, tmp_path):
    found = run(tmp_path / "out")
    forwards = ("nvme", "none")
    assert machine == [("tiny",), ("tiny",), forwards, ("tiny",), forwards[::-1], ("tiny",), forwards]
    assert [case.name for case in found.cases] == list(NAMES)
    assert not found.failures
    whole = store.load_hardware(str(tmp_path / "out" / "profile.yaml"))
    assert all(case.predicted.provenance.hardware_sha256 == whole.sha256 for case in found.cases)
    for case in found.cases:
        assert len(case.measured.metrics.runs_output_tokens_per_s) == 3
        error = case.comparison.metric("output_tokens_per_s").error_ratio
        assert error == pytest.approx(0, abs=0.005), "the middle round, from the middle probes"
    assert len({store.load_hardware(str(file)).sha256 for file in (tmp_path / "out").glob("profile-?.yaml")}) == 3


def test_a_scenario_that_fails_in_one_round_is_named_and_not_run_again(machine, tmp_path, monkeypatch):
    from tiercast_runtime import support

    def check(resolved):
        if resolved.placement.tier == "nvme" and len(machine) > 3:
            raise MissingCapability("the drive is gone")

    monkeypatch.setattr(support, "check_supported", check)
    found = run(tmp_path / "out")
    assert [(failure.case, failure.reason) for failure in found.failures] == [("demo-prefetch", "the drive is gone")]
    assert [case.name for case in found.cases] == ["demo-no-engram"]
    assert machine[4:] == [("none",), ("tiny",), ("none",)]


def test_where_nothing_runs_the_reason_is_the_error(machine, tmp_path, monkeypatch):
    def refuse(_resolved):
        raise MissingCapability("no such device")

    monkeypatch.setattr("tiercast_runtime.support.check_supported", refuse)
    with pytest.raises(MissingCapability, match="no such device"):
        run(tmp_path / "out")
    assert len(machine) == 2, "the machine is not probed again for nothing"


def test_what_cannot_run_here_leaves_nothing_behind(machine, tmp_path):
    with pytest.raises(MissingCapability, match=r"'deepseek-v4\.1-flash' .*simulate this one"):
        run(tmp_path / "out", ("demo-prefetch", "v41-dram"))
    assert not machine, "no minute of probes is spent on it"
    wide = tmp_path / "wide.yaml"
    wide.write_text(
        "{schema_version: 1, hardware: this.yaml, model: tiny, parallel: {tensor: 2}, placement: {tier: dram},"
        " workload: {kind: closed_loop, concurrency: 1, num_requests: 1,"
        " prompt_tokens: {fixed: 8}, output_tokens: {fixed: 8}}}"
    )
    with pytest.raises(BadInput, match=r"parallel\.tensor=2 exceeds the 1 devices"):
        run(tmp_path / "out", (str(wide),))
    assert not list((tmp_path / "out").iterdir())


def test_one_round_and_a_folder_with_a_profile_are_refused(machine, tmp_path):
    with pytest.raises(BadInput, match="--repeats 1; probing in every round takes two or more"):
        run(tmp_path, rounds=1)
    (tmp_path / "profile.yaml").write_text("mine")
    with pytest.raises(BadInput, match=r"profile\.yaml is there already; give --probe a --folder without profiles"):
        run(tmp_path)
    assert not machine
    assert (tmp_path / "profile.yaml").read_text() == "mine"
