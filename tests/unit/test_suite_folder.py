"""A suite that survives an interruption, is scored again from its records, and catches a profile that is wrong."""

import contextlib
import shutil
from pathlib import Path

import pytest

from tiercast_cli import probing, suite, suite_views
from tiercast_cli.changed_profiles import WRONG, at_pace, spoilt
from tiercast_cli.render import to_text
from tiercast_cli.run_pace import RunPace
from tiercast_cli.suite_folder import SuiteFolder
from tiercast_profiles import store
from tiercast_profiles.errors import BadInput, FileProblem, InfeasibleScenario, MissingCapability
from tiercast_profiles.suite import HeldOut, Suite
from tiercast_sim.simulate import simulate

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "validation" / "two-core-epyc" / "profile.yaml"


@pytest.fixture
def profile(tmp_path) -> str:
    """A profile with layer times, in a file of its own."""
    file = tmp_path / "profile.yaml"
    shutil.copy(COMMITTED, file)
    return str(file)


@pytest.fixture
def small_suite(monkeypatch):
    """Two works of the shipped suite, shortened."""
    shipped, _ = store.load_suite()
    short = {"workload.num_requests": 3, "workload.concurrency": 2, "workload.output_tokens": {"fixed": 8}}
    arms = ("none", "dram", "nvme-off")
    plan = Suite.model_validate(
        {
            **shipped.model_dump(),
            "works": {
                "docs": {"settings": short, "arms": arms},
                "random": {"settings": {**short, "workload.text": "random"}, "arms": arms},
            },
        }
    )
    held_out = HeldOut(schema_version=1, declared="2026-11-29", cases=("random/dram",))
    monkeypatch.setattr(store, "load_suite", lambda: (plan, held_out))
    return plan


class NoPace:
    def measure(self):
        return {}

    def warm_up(self):
        pass

    def profile_us(self):
        return {}


@pytest.fixture
def machine(monkeypatch):
    """A machine that does to the nanosecond what its profile predicts; counts the cases it was made to run."""
    ran = []

    def bench_in_rounds(scenarios, *, repeats, between, progress=None):
        ran.extend(scenario.scenario.placement.tier for scenario in scenarios)
        return tuple(
            simulate(scenario, with_baselines=False, with_bounds=False).model_copy(update={"kind": "measured"})
            for scenario in scenarios
        )

    monkeypatch.setattr(probing, "pace_of", lambda _profile, _model: contextlib.nullcontext(NoPace()))
    in_rounds(monkeypatch, bench_in_rounds)
    return ran


def in_rounds(monkeypatch, bench_in_rounds):
    """Have the runtime measure so, groups one after the other; one that cannot be run is given back as its error."""

    def bench_groups(groups, *, progress, between):
        found = {}
        for name, scenarios in groups.items():
            try:
                found[name] = bench_in_rounds(scenarios, repeats=1, progress=progress, between=between)
            except (InfeasibleScenario, MissingCapability) as error:
                found[name] = error
        return found

    monkeypatch.setattr("tiercast_runtime.bench.bench_in_rounds", bench_in_rounds)
    monkeypatch.setattr("tiercast_runtime.bench.bench_groups", bench_groups)


def run(profile: str, folder: Path, repeats: int = 3):
    return suite.run(profile, repeats=repeats, folder=folder, report=lambda _what, _ratio: None)


pytest.importorskip("torch", reason="the runtime extra is not installed")


def test_a_perfect_machine_is_predicted_perfectly(profile, small_suite, machine, tmp_path):
    found = run(profile, tmp_path / "out")
    forwards = ["none", "dram", "nvme"] * 2
    assert machine == forwards + forwards[::-1] + forwards, "every case once a round, every other round backwards"
    for group, num_cases in (("all", 6), ("open", 5), ("held out", 1)):
        score = found.score_of("output_tokens_per_s", group)
        assert (score.num_cases, score.worst_absolute) == (num_cases, 0)
    assert not any(order.wrong for order in found.orders)
    assert all("facts.compute" not in case.differing_inputs for case in found.cases)


def test_a_machine_that_slowed_down_is_predicted_perfectly_at_its_pace(
    profile, small_suite, machine, tmp_path, monkeypatch
):
    layers, reads = {"decode_1": 1.5, "decode_8": 1.2, "chunk_151": 1.1}, 3.0
    facts = {"pace_disk": reads} | {f"pace_{name}": ratio for name, ratio in layers.items()}

    def bench_in_rounds(scenarios, **_):
        slow = at_pace(store.load_hardware(profile), RunPace(layers, reads))
        records = []
        for scenario in scenarios:
            record = simulate(scenario.model_copy(update={"hardware": slow}), with_baselines=False, with_bounds=False)
            own = {"facts": record.provenance.facts | facts, "hardware_sha256": scenario.hardware.sha256}
            provenance = record.provenance.model_copy(update=own)
            records.append(record.model_copy(update={"kind": "measured", "provenance": provenance}))
        return tuple(records)

    in_rounds(monkeypatch, bench_in_rounds)
    found = run(profile, tmp_path / "out")
    for metric in ("output_tokens_per_s", "stall_ms_per_step", "penalty"):
        assert found.score_of(metric, "at pace").worst_absolute == pytest.approx(0, abs=1e-9)
    assert found.score_of("output_tokens_per_s").worst_absolute > 0.2
    assert [case.run_pace for case in found.cases] == [RunPace(layers, reads)] * 6
    assert [case.pace for case in found.cases] == pytest.approx([(1.5 * 1.2 * 1.1) ** (1 / 3)] * 6)
    page = " ".join(to_text(lambda: suite_views.page(found), 110).split())
    assert page.count("pace: around the runs") == 1
    assert "(decode of 1: 1.50, decode of 8: 1.20, chunk of 151 tokens: 1.10), reads from the drive 3.00" in page
    again = suite.rescore(tmp_path / "out", profile, "layers-slower")
    assert "at pace" not in again.scores, "beside another profile the pace says nothing"


def test_an_interrupted_run_goes_on_where_it_stopped(profile, small_suite, machine, tmp_path, monkeypatch):
    whole = SuiteFolder.write_in

    def interrupted(folder, number, name, record):
        if number == 2 and name.startswith("docs/"):  # the second round goes backwards: its other work is written
            raise KeyboardInterrupt
        whole(folder, number, name, record)

    monkeypatch.setattr(SuiteFolder, "write_in", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(profile, tmp_path / "out")
    assert len(machine) == 12
    assert not list((tmp_path / "out" / "measured").iterdir()), "no case was run as often as was asked for"
    monkeypatch.setattr(SuiteFolder, "write_in", whole)
    found = run(profile, tmp_path / "out")
    assert len(machine) == 21, "works that were whole are not run again"
    assert found.score_of("output_tokens_per_s").num_cases == 6
    shutil.rmtree(tmp_path / "out" / "rounds")
    again = run(profile, tmp_path / "out")
    assert len(machine) == 21, "nor is anything once all rounds are done"
    assert again == found


@pytest.fixture
def probes(profile, probes_at_once, monkeypatch):
    """Probes that find layers 1, 1, 3, then 2 times as long as the profile has them; counts how often they ran."""
    made = []

    def probe(models, *, quick, report):
        made.append(tuple(models))
        assert quick
        report("copies", 0.5)
        times = dict.fromkeys(("decode_1", "chunk_151"), float((1, 1, 3, 2)[len(made) - 1]))
        return at_pace(store.load_hardware(profile), RunPace(times, None))

    monkeypatch.setattr(probing, "probe", probe)
    return made


def run_probed(folder: Path, repeats: int = 3):
    return suite.run_probed(repeats=repeats, folder=folder, report=lambda _what, _ratio: None)


def test_a_suite_that_probes_in_every_round_predicts_from_all_its_profiles(small_suite, machine, probes, tmp_path):
    out = tmp_path / "out"
    found = run_probed(out)
    assert probes == [("tiny",)] * 4
    assert len(machine) == 18
    whole, second = (store.load_hardware(str(file)) for file in (out / "profile.yaml", out / "rounds/3/profile.yaml"))
    assert found.predicted_from_sha256 == found.profile_sha256 == whole.sha256
    for mine, other in zip(whole.compute, second.compute, strict=True):
        for name, points in other.components.items():
            assert [p.time_us for p in mine.components[name]] == pytest.approx([p.time_us for p in points])
    assert all(not case.differing_inputs for case in found.cases), "records are those of the pooled profile"
    score = found.score_of("output_tokens_per_s")
    assert score.bias is not None
    assert score.bias < -0.2, "the runs were as fast as the profile before them, the pooled one is half as fast"
    alone = suite.rescore(out, str(out / "rounds/before.yaml")).score_of("output_tokens_per_s")
    assert alone.worst_absolute == pytest.approx(0, abs=1e-6)
    assert run_probed(out) == found
    assert (len(probes), len(machine)) == (4, 18), "a folder that is whole is only predicted anew"
    with pytest.raises(BadInput, match=r"probed in every round, 3 repeats\), not of .*2 repeats"):
        run_probed(out, repeats=2)


def test_an_interrupted_suite_keeps_the_profiles_it_made(small_suite, machine, probes, tmp_path, monkeypatch):
    def interrupted(_groups, **_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tiercast_runtime.bench.bench_groups", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_probed(tmp_path / "out")
    assert (len(probes), len(machine)) == (2, 0)
    run_probed(tmp_path / "out")
    assert (len(probes), len(machine)) == (4, 18)


def test_a_pace_is_told_beside_the_pooled_profile(small_suite, machine, probes, probes_at_once, tmp_path, monkeypatch):
    done = probes_at_once

    class Timed:
        def __init__(self, hardware) -> None:
            self.us = hardware.compute[0].components["linear"][0].time_us

        def measure(self):
            done.append("measure")
            return {"pace_decode_1": 1.5}  # beside the first profile

        def warm_up(self):
            done.append("warm up")

        def profile_us(self):
            return {"pace_decode_1": self.us, "pace_disk": 0.0}

    monkeypatch.setattr(probing, "pace_of", lambda profile, _model: contextlib.nullcontext(Timed(profile)))

    def bench_in_rounds(scenarios, *, repeats, between, progress=None):
        found = []
        for scenario in scenarios:
            record = simulate(scenario, with_baselines=False, with_bounds=False)
            facts = {"facts": record.provenance.facts | between()}
            provenance = record.provenance.model_copy(update=facts)
            found.append(record.model_copy(update={"kind": "measured", "provenance": provenance}))
        return tuple(found)

    in_rounds(monkeypatch, bench_in_rounds)
    found = run_probed(tmp_path / "out")
    assert [case.step_paces for case in found.cases] == [{"decode_1": 0.75}] * 6
    assert done[:3] == ["measure", "turn", "warm up"], "the core stood still while others probed"
    assert len(done) % 3 == 0


def test_one_round_is_too_few_to_pool(tmp_path):
    with pytest.raises(BadInput, match="--repeats 1; probing in every round takes two or more"):
        run_probed(tmp_path / "out", repeats=1)


def test_a_folder_of_another_run_is_not_mixed_with_this_one(profile, small_suite, machine, tmp_path):
    run(profile, tmp_path / "out")
    with pytest.raises(BadInput, match=r"holds cases of .*3 repeats.*give another folder"):
        run(profile, tmp_path / "out", repeats=2)


def test_records_are_small_and_can_be_scored_again(profile, small_suite, machine, tmp_path):
    found = run(profile, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "rounds")
    files = list((tmp_path / "out").rglob("*.json"))
    assert sum(file.stat().st_size for file in files) < 200_000
    assert suite.rescore(tmp_path / "out", profile).scores == found.scores
    assert len(machine) == 18, "nothing is run"
    with pytest.raises(FileProblem, match="no suite was run into this folder"):
        suite.rescore(tmp_path, profile)


def test_a_record_that_is_missing_stays_in_the_denominator(profile, small_suite, machine, tmp_path):
    run(profile, tmp_path / "out")
    (tmp_path / "out" / "measured" / "docs-dram.json").unlink()
    score = suite.rescore(tmp_path / "out", profile).score_of("output_tokens_per_s")
    assert (score.num_cases, score.num_failed) == (6, 1)


def test_a_profile_that_lacks_a_model_says_what_to_probe(profile, small_suite, machine, tmp_path):
    bare = store.load_hardware(profile).model_copy(update={"compute": ()})
    store.write_text(profile, store.to_yaml(bare))
    with pytest.raises(BadInput, match=r"no layer times of tiny, which the suite runs; .*--model tiny -o"):
        run(profile, tmp_path / "out")


def test_wrong_profiles_are_caught(profile, small_suite, machine, tmp_path):
    """Each moves the errors the way it must, where the spoilt thing is used, and nowhere else."""
    run(profile, tmp_path / "out")
    by_how = {how: suite.rescore(tmp_path / "out", profile, how) for how in WRONG}

    def errors(how: str, metric: str) -> dict[str, float]:
        return {
            case.name.split("/")[1]: case.metrics[metric].predicted.value - case.metrics[metric].measured.value
            for case in by_how[how].cases
            if metric in case.metrics
        }

    for how in ("link-halved", "rows-doubled"):
        assert errors(how, "output_tokens_per_s")["none"] == 0
        assert errors(how, "output_tokens_per_s")["nvme-off"] < 0
        assert errors(how, "stall_ms_per_step")["nvme-off"] > 0
        assert errors(how, "penalty")["nvme-off"] > 0
    slower = errors("layers-slower", "output_tokens_per_s")
    measured = {
        case.name.split("/")[1]: case.metrics["output_tokens_per_s"].measured for case in by_how[WRONG[0]].cases
    }
    assert slower["none"] / measured["none"].value == pytest.approx(1 / 1.2 - 1, abs=1e-3)
    assert slower["nvme-off"] < 0
    assert errors("layers-slower", "stall_ms_per_step")["nvme-off"] == pytest.approx(0, abs=1e-3)
    for found in by_how.values():
        bias = found.score_of("output_tokens_per_s").bias
        assert bias is not None
        assert bias < -0.02
        page = to_text(lambda found=found: suite_views.page(found), 110)
        assert "predicted from another profile" in page


def test_a_wrong_profile_is_wrong_in_one_thing():
    right = store.load_hardware(str(COMMITTED))
    assert spoilt(right, "layers-slower").lookups == right.lookups
    assert spoilt(right, "rows-doubled").compute == right.compute
    halved = spoilt(right, "link-halved")
    assert halved.compute == right.compute
    assert halved.host_to_device.bandwidth_gb_per_s.value == right.host_to_device.bandwidth_gb_per_s.value / 2
    for one, other in zip(halved.lookups, right.lookups, strict=True):
        assert one == other if one.tier == "hbm" else one.fixed_us.value == 2 * other.fixed_us.value
