"""The GPU evidence script: what it plans, how it resumes, what it keeps when something fails. Nothing is measured."""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from gpu_evidence import (  # noqa: E402
    plan,
    stage_arms,
    stage_lookups,
    stage_predict,
    stage_probe,
    stage_publish,
    summary,
)
from gpu_evidence.__main__ import STAGES, _run_child, main, parse, run_stage  # noqa: E402
from gpu_evidence.context import ASSUMED_FILL_BYTES_PER_S, LEAST_USE_SECONDS, Context, _copied  # noqa: E402
from gpu_evidence.plan import Case, Room  # noqa: E402
from gpu_evidence.state import State  # noqa: E402
from tiercast_profiles.errors import MissingCapability  # noqa: E402
from tiercast_profiles.gather import GatherSweep  # noqa: E402
from tiercast_profiles.head_sizes import table_rows  # noqa: E402
from tiercast_profiles.store import load_hardware, to_yaml  # noqa: E402
from tiercast_profiles.units import GIB, MIB  # noqa: E402
from tiercast_runtime.probes.sweep_device import GPU_PLAN  # noqa: E402

H200 = Room(host_bytes=124 * GIB, device_bytes=139 * GIB, disk_bytes=60 * GIB)


@pytest.fixture
def context(tmp_path):
    return Context(tmp_path, True, None, State(tmp_path / "state.json"))


def test_the_paper_s_table_fits_an_h200_and_is_cut_where_the_host_is_smaller():
    full = plan.host_table_bytes(H200)
    assert 96 * GIB < full == plan.paper_table_bytes() < 97 * GIB
    assert plan.fits_device(full, H200)
    assert not plan.fits_device(full, Room(124 * GIB, 80 * GIB, 60 * GIB))
    assert plan.host_table_bytes(Room(40 * GIB, 139 * GIB, 60 * GIB)) == 26 * GIB
    assert plan.host_table_bytes(Room(4 * GIB, 16 * GIB, 60 * GIB)) == 64 * MIB
    assert plan.host_table_bytes(H200, 93 * GIB) == 93 * GIB
    assert plan.disk_table_bytes(H200, full) == 8 * GIB
    assert plan.disk_table_bytes(Room(1, 1, 10 * GIB), full) == 4 * GIB


def test_the_sweep_reaches_from_64_mib_to_the_table():
    sizes = GPU_PLAN.footprints(93 * GIB)
    assert (sizes[0], sizes[-1]) == (64 * MIB, 93 * GIB)
    assert GPU_PLAN.footprints(plan.paper_table_bytes())[-1] > 96 * GIB
    assert all(second <= 5 * first for first, second in itertools.pairwise(sizes))


def test_the_model_has_the_table_that_was_planned():
    for name in ("paper-4b-100b", "paper-8b-100b"):
        model = plan.paper_model(name, 24 * GIB)
        assert model.engram.row_bytes == 264
        assert sum(table_rows(model.engram)) * 264 == pytest.approx(24 * GIB, rel=1e-4)
        assert model.name.endswith("-24gib")


def test_every_arm_of_the_issue_is_there_at_every_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(Context, "room", H200)
    context = Context(tmp_path, False, None, State(tmp_path / "state.json"))
    assert stage_arms.arm_cases(context) == stage_arms.disk_cases(context) == [], "no scenario without a profile"
    context.write("profile-quick.yaml", to_yaml(load_hardware("h200-sxm")))
    names = {case.name for case in stage_arms.arm_cases(context)}
    for batch in (1, 8, 32, 64, 128, 256, 512):
        assert {f"decode-{batch}/{arm}" for arm in ("no_engram", "hbm", "uva")} <= names
    for work in ("decode-1", "decode-64", "decode-256", "prefill-8192", "paper-512"):
        assert {f"{work}/{arm}" for arm in ("no_engram", "hbm", "uva", "uva-off", "cpu_gather")} <= names
    disk = {case.name for case in stage_arms.disk_cases(context)}
    assert {"decode-64/disk", "decode-64/disk-off"} <= disk
    longest = parse([]).budget_s
    assert all(case.seconds + context.tables_seconds < longest for case in stage_arms.arm_cases(context))


def test_a_failure_is_kept_and_the_rest_goes_on_and_a_second_call_resumes(context):
    ran, now = [], [0.0]

    def case(name, seconds=10.0, error=None):
        def work(_context):
            ran.append(name)
            now[0] += seconds
            if error is not None:
                raise error
            return {"value": 1 / 3}

        return Case("stage", name, seconds, work)

    cases = [case("a"), case("b", error=ValueError("bad\nmore")), case("c", 100.0), case("d")]
    run_stage(context, cases, until=60, clock=lambda: now[0])
    assert ran == ["a", "b", "d"]
    again = Context(context.out, True, None, State.load(context.state.path))
    assert again.state.numbers("stage/a") == {"value": 0.33333}
    assert again.state.cases["stage/b"]["message"] == "ValueError: bad"
    assert again.state.numbers("stage/b") is None
    run_stage(again, cases, until=500, clock=lambda: now[0])
    assert ran == ["a", "b", "d", "c"]
    again.state.forget_failed()
    assert again.state.is_pending("stage/b")
    assert not again.state.is_pending("stage/a")


def test_a_lost_device_ends_the_process_s_share_of_a_stage(context):
    def lost(_context):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    cases = [Case("stage", "first", 1, lost), Case("stage", "second", 1, lambda _context: {})]
    run_stage(context, cases, until=1e9)
    assert context.state.cases["stage/first"]["status"] == "failed"
    assert context.state.is_pending("stage/second")


def test_a_case_that_was_cut_off_is_tried_once_more_and_then_given_up(context):
    state = context.state
    for attempt in range(2):
        assert state.is_pending("stage/x"), attempt
        state.begin("stage/x")
    assert not State.load(state.path).is_pending("stage/x")


def test_predicted_penalties_are_scored_and_single_calls_are_compared_with_single_calls(context):
    state = context.state
    speeds = {
        "no_engram": (100.0, 50.0),
        "uva": (98.0, 48.0),
        "no_engram-eager": (40.0, 40.0),
        "uva-eager": (30.0, 38.0),
    }
    for arm, (measured, predicted) in speeds.items():
        for key, speed in ((f"arms/decode-64/{arm}", measured), (f"predict/arms/decode-64/{arm}", predicted)):
            state.begin(key)
            numbers = {"step_ms": 1000 / speed, "output_tokens_per_s": 1.0, "throughput_error_ratio": None}
            state.end(key, "done", 1.0, "", numbers)
    assert summary.penalties(state)["decode-64/uva-eager"] == {"no_engram": 0.25}
    assert summary.penalty_errors(state) == {"decode-64/uva": 0.02, "decode-64/uva-eager": -0.2}
    data = summary.as_data(state, [], is_rehearsal=True)
    assert data["penalty_error_median"] == pytest.approx(0.11)
    assert data["penalty_error_worst"] == 0.2


def test_a_prediction_has_the_slots_of_the_engine_only_where_those_are_fewer(context):
    work = stage_arms.WORKS["paper-512"]
    context.write("profile-quick.yaml", to_yaml(load_hardware("h200-sxm")))
    free, cut = (
        stage_arms.resolve(context, stage_arms.UVA, work, is_disk=False, max_num_seqs=slots) for slots in (512, 67)
    )
    assert (free.scenario.engine.max_num_seqs, cut.scenario.engine.max_num_seqs) == (512, 67)


def test_an_arm_whose_curve_no_probe_left_is_measured_all_the_same(context):
    known = load_hardware("h200-sxm")
    kept = tuple(curve for curve in known.lookups if curve.path != "uva")
    profile = known.model_copy(update={"lookups": kept})
    context.write("profile-quick.yaml", to_yaml(profile))
    work = stage_arms.WORKS["decode-64"]
    with pytest.raises(MissingCapability, match="no curve"):
        stage_arms.resolve(context, stage_arms.UVA, work, is_disk=False)
    filled = stage_arms.with_every_curve(profile)
    assert filled.lookups[: len(kept)] == kept
    assert stage_arms.resolve(context, stage_arms.UVA, work, is_disk=False, hardware=filled).placement.path == "uva"
    assert stage_arms.with_every_curve(known) is known


def test_what_another_profile_predicted_is_predicted_anew(context):
    context.write("profile-quick.yaml", "name: x")
    for key in ("arms/decode-64/uva", "arms/decode-8/uva"):
        context.state.begin(key)
        context.state.end(key, "done", 1.0, "", {"kv_slots": 64})
        context.state.begin(f"predict/{key}")
        context.state.end(f"predict/{key}", "done", 1.0, "", {"profile": "profile-quick"})
    keys = {case.key for case in stage_predict.cases(context)}
    assert keys == {"predict/arms/decode-64/uva", "predict/arms/decode-8/uva"}
    assert not any(context.state.is_pending(key) for key in keys)
    context.write("profile-full.yaml", "name: y")
    context.state.end("predict/arms/decode-8/uva", "done", 1.0, "", {"profile": "profile-full"})
    pending = [case.key for case in stage_predict.cases(context) if context.state.is_pending(case.key)]
    assert pending == ["predict/arms/decode-64/uva"]


def test_a_profile_that_did_not_come_along_is_probed_again(tmp_path):
    """Only the state came to a fresh machine: arms would wait for a profile for ever, and nothing would say so."""
    context = Context(tmp_path, False, None, State(tmp_path / "state.json"))
    for case in (*stage_probe.probe_cases(context), *stage_probe.full_cases(context)):
        context.state.begin(case.key)
        context.state.end(case.key, "done", 1.0, "", {})
        assert context.state.is_pending(case.key) is False
    context.write("profile-full.yaml", "name: x")
    (quick,), (full,) = stage_probe.probe_cases(context), stage_probe.full_cases(context)
    assert context.state.is_pending(quick.key)
    assert not context.state.is_pending(full.key)


def test_the_floor_of_a_step_waits_for_its_arm(context):
    assert stage_lookups.cases(context) == []
    context.state.begin("arms/tiny-2/no_engram")
    context.state.end("arms/tiny-2/no_engram", "done", 1.0, "", {"step_ms": 1.0})
    assert [case.key for case in stage_lookups.cases(context)] == ["lookups/decode-floor"]


def test_a_table_file_of_another_machine_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(Context, "room", H200)
    context = Context(tmp_path, False, None, State(tmp_path / "state.json"))
    context.write("profile-quick.yaml", to_yaml(load_hardware("h200-sxm")))
    for is_there in (True, False):
        context.state.begin("disk/table-file")
        context.state.end("disk/table-file", "done", 1.0, "", {})
        for file in context.tables_folder.glob("*"):
            file.unlink()
        if is_there:
            (context.tables_folder / "engram-x.safetensors").touch()
        first = stage_arms.disk_cases(context)[0]
        assert (first.key, context.state.is_pending(first.key)) == ("disk/table-file", not is_there)


def test_arithmetic_needs_no_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_evidence", "--out", str(tmp_path), "--stages", "arms"])
    assert main() == 4
    assert "no CUDA GPU" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["gpu_evidence", "--out", str(tmp_path), "--stages", "predict"])
    assert main() == 0
    assert '"num_failed": 0' in capsys.readouterr().out


def test_what_a_machine_lacked_is_asked_for_once_more(context):
    state = context.state
    for attempt in range(2):
        assert state.is_pending("stage/x"), attempt
        state.begin("stage/x")
        state.end("stage/x", "lacking", 1.0, "no curve", {})
    assert not state.is_pending("stage/x")


def test_the_first_case_of_a_process_that_reads_the_tables_is_given_the_time_to_make_them(tmp_path, monkeypatch):
    context = Context(tmp_path, False, 8 * GIB, State(tmp_path / "state.json"))
    monkeypatch.setattr(Context, "room", H200)
    assumed = context.tables_seconds
    assert assumed == pytest.approx(8 * GIB / ASSUMED_FILL_BYTES_PER_S + LEAST_USE_SECONDS)
    cases = [Case("stage", "table", 10, lambda _context: {}, needs_tables=True), Case("stage", "other", 10, dict)]
    run_stage(context, cases, until=assumed + 9, clock=lambda: 0.0)
    assert context.state.is_pending("stage/table")
    assert not context.state.is_pending("stage/other")
    context.state.begin("arms/host-tables")
    context.state.end("arms/host-tables", "done", 40.0, "", {"seconds": 33.0})
    assert context.tables_seconds == 33.0 + LEAST_USE_SECONDS
    context._tables["host"] = []
    assert context.tables_seconds == 0.0


def test_what_a_stage_that_is_cut_off_has_started_ends_with_it(tmp_path):
    begun = tmp_path / "pid"
    command = ["sh", "-c", f"sleep 60 & echo $! > {begun}; wait"]
    with pytest.raises(subprocess.TimeoutExpired):
        _run_child(command, 1.0)
    grandchild = Path("/proc") / begun.read_text().strip()
    ends = time.monotonic() + 10
    while grandchild.exists() and "Z" not in (grandchild / "stat").read_text().split()[2] and time.monotonic() < ends:
        time.sleep(0.05)
    assert time.monotonic() < ends


def test_a_table_is_copied_in_the_pieces_it_was_pinned_in(monkeypatch):
    monkeypatch.setattr("gpu_evidence.context.PIN_CHUNK_BYTES", 1000)
    rows = torch.randint(0, 256, (50, 264), dtype=torch.uint8)
    assert torch.equal(_copied(rows, torch.device("cpu")), rows)
    assert torch.equal(_copied(rows[:, :256], torch.device("cpu")), rows[:, :256])


def test_the_summary_has_the_penalties_and_little_files(context):
    speeds = {"no_engram": 100.0, "hbm": 99.0, "uva": 98.0}
    for arm, speed in speeds.items():
        for work in ("decode-64", "paper-512"):
            key = f"arms/{work}/{arm}"
            slots = {"kv_slots": 67 if arm == "hbm" and work == "paper-512" else 410}
            context.state.begin(key)
            speeds_of = {"step_ms": 1000 / speed, "output_tokens_per_s": speed, "total_tokens_per_s": speed}
            context.state.end(key, "done", 1, "", {**slots, **speeds_of})
    context.write("measured/decode-64-uva.json", "{}")
    data = summary.as_data(context.state, [], is_rehearsal=True)
    assert data["penalties"]["decode-64/uva"] == {"no_engram": 0.02, "hbm": pytest.approx(1 - 98 / 99, abs=1e-5)}
    assert data["penalties"]["paper-512/uva"] == {"no_engram": 0.02}, "a cache of 67 sequences is another question"
    assert "paper-512/hbm" not in data["penalties"]
    context.write("profile-quick.yaml", "name: x")
    files = summary.pack(context.out, data, context.out / "packed")
    kept = {"summary.json", "state.json", "records-0.tar.gz"}
    assert {path.name for path in files} == kept | {
        "profile-quick.yaml"
    }  # better than none, until there is a better one
    context.write("h200-sxm-measured.yaml", "name: y")
    files = summary.pack(context.out, data, context.out / "packed")
    assert {path.name for path in files} == kept | {"profile-quick.yaml", "h200-sxm-measured.yaml"}
    assert json.loads(files[0].read_text())["is_rehearsal"] is True
    assert any("penalty" in line for line in summary.lines(data))


def test_options(capsys):
    assert str(parse(["--rehearse"]).out) == "out/rehearsal"
    assert parse([]).stages.split(",") == list(STAGES)
    with pytest.raises(SystemExit):
        parse(["--stages", "arms,sleep"])
    assert "no stage sleep" in capsys.readouterr().err


def test_the_shipped_profile_holds_the_sweeps_and_the_longer_one_of_a_label(context, cpu_hardware):
    measured = cpu_hardware.model_copy(update={"calibration": "measured"})
    context.write("profile-quick.yaml", to_yaml(measured))
    point = {"piece_bytes": [64], "footprint_bytes": 4096, "num_rows": 1, "num_workers": 1, "samples_us": [1.0]}
    for name, count in (("table-random", 2), ("thp-local-random", 1)):
        sweep = GatherSweep(path="uva", pages="thp", order="random", place="local", points=[point] * count)
        context.write(f"gathers/{name}.json", sweep.model_dump_json())
    before = [case.name for case in stage_publish.cases(context)]
    assert stage_publish.publish(context)["num_sweeps"] == 1
    shipped = load_hardware(str(context.out / "rehearsed.yaml"))
    assert [len(sweep.points) for sweep in shipped.gather_sweeps] == [2]
    context.write("profile-full.yaml", to_yaml(measured))
    assert [case.name for case in stage_publish.cases(context)] != before  # published anew when more was measured


def test_table_4_is_predicted_on_an_h800_from_the_measured_machine(context, cpu_hardware):
    context.write("profile-quick.yaml", to_yaml(cpu_hardware))
    ratios = stage_publish.table_4(context)
    assert len(ratios) == 2
    assert all(0 < ratio <= 1.01 for ratio in ratios.values())
    rows = json.loads((context.out / "table-4.json").read_text())
    assert [row["published"] for row in rows] == [0.98081, 0.97221]
    assert all(row["low"] <= row["predicted"] <= row["high"] for row in rows)
