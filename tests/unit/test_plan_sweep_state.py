"""A sweep that is killed goes on; settings of documents; points that ask for the same."""

import datetime
from decimal import Decimal

import pytest

from tiercast_plan.documents import Documents
from tiercast_plan.settings import DocumentSetting
from tiercast_plan.sweep import sweep
from tiercast_profiles.errors import BadInput, FileProblem, InfeasibleScenario

TODAY = datetime.date(2026, 11, 29)
VARIES = ("workload.concurrency=1,2", "prices.dram_usd_per_gb=4,20")


class Killed(Exception):
    pass


def _kill_after(count):
    def listen(far):
        if far.done >= count:
            raise Killed

    return listen


def _json(rows):
    return [row.model_dump_json() for row in rows]


def _never(resolved):
    raise AssertionError("ran again")


def test_a_killed_sweep_goes_on_where_it_was(small_v41, tmp_path):
    whole = sweep(small_v41, (), VARIES, today=TODAY)
    state = tmp_path / "state.jsonl"
    with pytest.raises(Killed):
        sweep(small_v41, (), VARIES, today=TODAY, state=state, progress=_kill_after(1))
    with state.open("a") as file:
        file.write('{"key": "cut sho')  # the kill fell into the middle of a line
    seen = []
    rows = sweep(small_v41, (), VARIES, today=datetime.date(2027, 1, 1), state=state, progress=seen.append)
    assert _json(rows) == _json(whole), "prices age against the day the sweep began"
    assert (seen[0].done, seen[-1].done, seen[-1].failed) == (2, 4, 0)
    assert "USD/Mtok" in seen[-1].best
    again = sweep(small_v41, (), VARIES, today=TODAY, state=state, predict=_never)
    assert _json(again) == _json(whole)


def test_the_state_of_another_sweep_is_refused(small_v41, tmp_path):
    state = tmp_path / "state.jsonl"
    sweep(small_v41, (), ["workload.concurrency=1"], state=state, is_nominal=True)
    before = state.read_bytes()
    with pytest.raises(FileProblem, match="state of another sweep"):
        sweep(small_v41, (), ["workload.concurrency=2"], state=state, is_nominal=True)
    with pytest.raises(FileProblem, match="state of another sweep"):
        sweep(small_v41, (), ["workload.concurrency=1"], state=state)
    assert state.read_bytes() == before
    lines = before.decode().splitlines()
    state.write_text("\n".join([lines[0], "{}", ""]))
    with pytest.raises(FileProblem, match="line 2 is damaged"):
        sweep(small_v41, (), ["workload.concurrency=1"], state=state, is_nominal=True)
    for text in ("some: yaml\n", "[1]\n", "\xff\xfe\n"):
        state.write_text(text, encoding="latin-1")
        with pytest.raises(FileProblem, match="not the state of a sweep"):
            sweep(small_v41, (), ["workload.concurrency=1"], state=state)
    with pytest.raises(FileProblem, match="cannot be used"):
        sweep(small_v41, (), (), state=tmp_path / "none" / "state.jsonl")


def test_points_that_ask_for_the_same_run_once(small_v41):
    asked = []

    def predict(resolved):
        asked.append(resolved)
        raise InfeasibleScenario("no", 1)

    rows = sweep(small_v41, (), ["seed=0,0,1"], predict=predict)
    assert len(asked) == 2
    assert [row.settings["seed"] for row in rows] == [0, 0, 1]
    assert all(row.problem == "no" for row in rows)


def test_nominal_points_have_the_same_values_without_intervals(small_v41):
    full, nominal = (sweep(small_v41, (), (), is_nominal=flag)[0].metrics for flag in (False, True))
    assert nominal.output_tokens_per_s.value == full.output_tokens_per_s.value
    assert nominal.output_tokens_per_s.low is None
    assert full.output_tokens_per_s.low is not None
    assert nominal.penalty_ratio == {}


def test_settings_of_documents_move_results(small_v41):
    rows = sweep(small_v41, (), ["prices.dram_usd_per_gb=4,20"], today=TODAY, is_nominal=True)
    cheap, dear = (row.cost.line("dram").usd_per_hour for row in rows)
    assert dear == pytest.approx(5 * cheap)
    hardware = sweep(small_v41, (), ["hardware.device.memory_bandwidth_gb_per_s=2400,4800"], is_nominal=True)
    slow, fast = (row.metrics.output_tokens_per_s.value for row in hardware)
    assert slow < fast
    model = sweep(small_v41, (), ["model.engram.layer_ids=[1, 14],[14, 20]"], is_nominal=True)
    assert model[0].scenario_sha256 != model[1].scenario_sha256
    # --set reaches documents too, and a row of a list goes by its tier and path.
    slower = sweep(small_v41, ["hardware.lookups.dram/uva.fixed_us=5000"], (), is_nominal=True)[0].metrics
    assert slower.stall_ms_per_step.value > hardware[1].metrics.stall_ms_per_step.value


def test_a_replaced_number_says_so(small_v41):
    prices = Documents(TODAY).of(small_v41, [DocumentSetting("prices", "dram_usd_per_gb", 7)])[2]
    assert prices.dram_usd_per_gb == Decimal(7)
    source = prices.source_of("dram_usd_per_gb")
    assert (source.kind, source.date) == ("assumed", TODAY)
    band = [DocumentSetting("hardware", "host_to_device.bandwidth_gb_per_s", 30)]
    hardware = Documents().of(small_v41, band)[0]
    assert not hardware.host_to_device.bandwidth_gb_per_s.is_banded
    assert hardware.source_of("host_to_device.bandwidth_gb_per_s").kind == "assumed"
    assert hardware.source_of("device.power_w").kind == "published"
    documents = Documents()
    assert documents.of(small_v41, band)[0] is documents.of(small_v41, band)[0]


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("hardware.devise.power_w=1", "unknown key hardware.devise.power_w: no 'devise' there; known: device, host"),
        ("hardware.lookups.9.fixed_us=1", "no '9' there; known: hbm/device, dram/uva"),
        ("hardware.device.power_w.x=1", "no 'x' there; known: nothing; it holds a value"),
        ("prices.evidence.x=1", "evidence cannot be set; set one of: devices"),
        ("prices.devices.h200-sxm.offer.x=1", "nothing; it holds a value"),
        ("prices.dram_usd_per_gb=-3", "prices.dram_usd_per_gb=-3: dram_usd_per_gb: Input should be greater than 0"),
        ("hardware.lookups.dram/uva.tier=tape", "lookups.1.tier"),
        ("model.engram.num_heads_per_order=x", "model.engram.num_heads_per_order=x"),
    ],
)
def test_mistakes_in_documents_are_one_line(small_v41, setting, text):
    with pytest.raises(BadInput) as caught:
        sweep(small_v41, [setting], (), predict=_never)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_points_that_differ_in_prices_alone_share_a_prediction(small_v41):
    """What a machine does is not asked again because a price changed; each is priced for itself."""
    asked = []

    def predict(resolved):
        asked.append(resolved)
        raise InfeasibleScenario("no", 1)

    sweep(small_v41, (), VARIES, predict=predict)
    assert [resolved.scenario.workload.concurrency for resolved in asked] == [1, 2]
