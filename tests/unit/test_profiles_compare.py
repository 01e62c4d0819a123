"""Two records side by side, and both on one timeline."""

import json

import pytest

from tiercast_profiles import store
from tiercast_profiles.compare import compare, flat_metrics, ranking, tied_neighbours
from tiercast_profiles.errors import BadInput
from tiercast_profiles.record import (
    LayerWindow,
    Metric,
    Metrics,
    Percentiles,
    Provenance,
    RequestSamples,
    RunRecord,
    Samples,
    Span,
    StepSamples,
)
from tiercast_profiles.timeline import chrome_trace, trace_events

SCENARIO = {
    "schema_version": 1,
    "hardware": "h200-sxm",
    "model": "tiny",
    "placement": {"tier": "dram"},
    "workload": {
        "kind": "closed_loop",
        "concurrency": 2,
        "num_requests": 2,
        "prompt_tokens": {"fixed": 8},
        "output_tokens": {"fixed": 2},
    },
}


def _three(value: float) -> Percentiles:
    return Percentiles(p50=Metric(value=value), p90=Metric(value=value), p99=Metric(value=value))


def _record(kind="measured", *, throughput=None, prefill=(16, 0), spans=(), keep=True, workload="w", **provenance):
    resolved = store.resolve(store.parse(store.Scenario, SCENARIO, "scenario"))
    steps = StepSamples(
        start_ns=(0, 1_000_500),
        duration_ns=(1_000_500, 500),
        prefill_tokens=prefill,
        decode_sequences=(0, 2),
        stall_ns=(0, 0),
        lookup_ns=(0, 0),
        rows=(0, 0),
        rows_read=(0, 0),
    )
    requests = RequestSamples(
        arrival_ns=(0, 0), first_token_ns=(1, 1), finish_ns=(2, 2), prompt_tokens=(8, 8), output_tokens=(2, 2)
    )
    window = Metric(value=100.0)
    metrics = Metrics(
        output_tokens_per_s=throughput or Metric(value=100.0, low=90.0, high=110.0, basis="spread"),
        total_tokens_per_s=Metric(value=500.0),
        ttft_ms=_three(4.0),
        tpot_ms=None if kind == "measured" else _three(2.0),
        step_ms=_three(2.0),
        stall_ms_per_step=Metric(value=0.0),
        lookup_ms_per_step=Metric(value=1.0),
        hidden_ratio=Metric(value=1.0),
        penalty_ratio={"no_engram": Metric(value=0.02)},
        kv_capacity_tokens=None,
        memory_bytes={"hbm": 1, "dram": 2},
        rows_per_token=24.0,
        unique_row_ratio=0.5,
        layers=(LayerWindow(layer_id=4, window_us=window, lookup_us=window, stall_us=window, required_gb_per_s=None),),
    )
    origin = {
        "tool_version": "0.1.0",
        "hardware_name": "h200-sxm",
        "hardware_sha256": "a",
        "hardware_calibration": "datasheet",
        "model_name": "tiny",
        "model_sha256": "b",
        "prices_sha256": "c",
        "vocabulary": "tekken",
        "text_sha256": "d",
    }
    return RunRecord(
        kind=kind,
        scenario=resolved.scenario,
        placement=resolved.placement,
        scenario_sha256="s",
        workload_sha256=workload,
        provenance=Provenance(**(origin | provenance)),
        metrics=metrics,
        samples=Samples(requests=requests, steps=steps) if keep else None,
        spans=spans,
    )


def test_errors_and_intervals():
    predicted = _record("simulated", throughput=Metric(value=120.0, low=95.0, high=130.0, basis="band"))
    found = compare(_record(), predicted).metric("output_tokens_per_s")
    assert found is not None
    assert (found.unit, found.difference) == ("tokens/s", 20.0)
    assert found.error_ratio == pytest.approx(0.2)
    assert found.is_inside_predicted is True  # 100 in 95 .. 130
    assert found.is_inside_spread is False  # 120 not in 90 .. 110
    assert found.intervals_meet is True


def test_no_interval_gives_no_verdict():
    found = compare(_record(), _record("simulated")).metric("ttft_ms.p50")
    assert found is not None
    assert (found.is_inside_predicted, found.is_inside_spread, found.intervals_meet) == (None, None, None)
    assert found.error_ratio == 0


def test_an_error_over_zero_is_not_a_number_but_none():
    found = compare(_record(), _record("simulated")).metric("stall_ms_per_step")
    assert found is not None
    assert found.error_ratio is None


def test_metrics_only_one_side_knows_are_listed():
    comparison = compare(_record(), _record("simulated"))
    assert comparison.only_predicted == ("tpot_ms.p50", "tpot_ms.p90", "tpot_ms.p99")
    assert comparison.only_measured == ()
    assert comparison.metric("tpot_ms.p50") is None


def test_flat_names_carry_their_unit():
    units = {name: unit for name, (unit, _) in flat_metrics(_record("simulated").metrics).items()}
    assert units["total_tokens_per_s"] == "tokens/s"
    assert units["tpot_ms.p99"] == "ms"
    assert units["stall_ms_per_step"] == "ms"
    assert units["penalty_ratio.no_engram"] == "ratio"
    assert units["memory_bytes.dram"] == "bytes"
    assert units["layers.4.window_us"] == "us"
    assert units["rows_per_token"] == "rows"
    assert "" not in units.values()


def test_different_work_is_refused():
    with pytest.raises(BadInput, match="different work") as caught:
        compare(_record(), _record("simulated", workload="other"))
    assert caught.value.exit_code == 2


def test_differing_inputs_are_listed_and_notes_of_one_side_are_not():
    measured = _record(hardware_sha256="x", facts={"num_threads": 2, "torch": "2.13"}, warnings=("noisy",))
    predicted = _record("simulated", facts={"num_threads": 1, "bounds": "both"})
    found = {d.path: (d.measured, d.predicted) for d in compare(measured, predicted).differing_inputs}
    assert found == {"facts.num_threads": ("2", "1"), "provenance.hardware_sha256": ("x", "a")}


def test_step_sequences():
    same = compare(_record(), _record("simulated")).steps
    assert same is not None
    assert same.is_identical
    assert same.first_difference is None
    other = compare(_record(), _record("simulated", prefill=(16, 1))).steps
    assert other is not None
    assert (other.is_identical, other.first_difference) == (False, 1)
    assert compare(_record(), _record("simulated", keep=False)).steps is None


def test_any_two_kinds_compare():
    assert compare(_record("simulated"), _record("simulated")).predicted_kind == "simulated"


def test_ranking_and_ties():
    metrics = {
        "fast": Metric(value=10, low=9, high=11),
        "middle": Metric(value=8, low=7, high=9),
        "slow": Metric(value=2, low=1, high=3),
    }
    order = ranking({name: metric.value for name, metric in metrics.items()})
    assert order == ("fast", "middle", "slow")
    assert tied_neighbours(order, metrics) == (("fast", "middle"),)
    assert ranking({"b": 1, "a": 1}) == ("a", "b")


SPANS = (
    Span(name="layer 1", lane="compute", start_ns=1_001, duration_ns=500),
    Span(name="layer 0", lane="compute", start_ns=0, duration_ns=1_001),
    Span(name="lookup 4", lane="lookup", start_ns=100, duration_ns=1_000),
    Span(name="lookup 8", lane="lookup", start_ns=600, duration_ns=900),
)


def test_timeline_of_two_records():
    records = [_record(spans=SPANS), _record("simulated")]
    trace = trace_events(records)
    names = {(e["pid"], e["tid"], e["name"]): e["args"] for e in trace["traceEvents"] if e["ph"] == "M"}
    assert names[1, 0, "process_name"] == {"name": "measured: tiny on h200-sxm"}
    assert names[2, 0, "process_name"] == {"name": "simulated: tiny on h200-sxm"}
    assert names[1, 1, "thread_name"] == {"name": "compute"}
    assert names[1, 3, "thread_name"] == {"name": "lookup (2)"}  # the overlap has its own row
    slices = [(e["pid"], e["tid"], e["name"], e["ts"], e["dur"]) for e in trace["traceEvents"] if e["ph"] == "X"]
    assert slices == [
        (1, 1, "layer 0", 0, 1.001),
        (2, 1, "step", 0, 1000.5),  # a record without spans shows its steps
        (1, 2, "lookup 4", 0.1, 1),
        (1, 3, "lookup 8", 0.6, 0.9),
        (1, 1, "layer 1", 1.001, 0.5),
        (2, 1, "step", 1000.5, 0.5),
    ]
    assert json.loads(chrome_trace(records)) == trace
    assert chrome_trace(records) == chrome_trace(list(records))


def test_arrows_lead_from_a_lookup_to_the_step_that_uses_it():
    spans = (
        Span(name="compute 0", lane="compute", start_ns=0, duration_ns=1_000),
        Span(name="compute 1", lane="compute", start_ns=1_500, duration_ns=1_000),
        Span(name="8 rows", lane="lookup layer 1", start_ns=100, duration_ns=400),
        Span(name="8 rows", lane="lookup layer 4", start_ns=500, duration_ns=600),  # ready behind the first step
        Span(name="8 rows", lane="lookup layer 1", start_ns=2_400, duration_ns=900),  # nothing computes with it
    )
    events = trace_events([_record(spans=spans)])["traceEvents"]
    arrows = [(e["ph"], e["id"], e["tid"], e["ts"]) for e in events if e["ph"] in "sf"]
    assert arrows == [("s", "1.0", 2, 0.1), ("f", "1.0", 1, 0.5), ("s", "1.1", 3, 0.5), ("f", "1.1", 1, 1.5)]
    assert all(e["bp"] == "e" for e in events if e["ph"] == "f")


def test_counters_show_what_each_step_held_as_long_as_there_are_slices():
    events = trace_events([_record(spans=SPANS), _record("simulated")])["traceEvents"]
    counters = [(e["pid"], e["name"], e["ts"], *e["args"].values()) for e in events if e["ph"] == "C"]
    assert (1, "prefill tokens", 0, 16) in counters
    assert (2, "decode sequences", 1000.5, 2) in counters
    assert {ts for pid, _, ts, _ in counters if pid == 1} == {0}  # its slices end before the second step


def test_two_records_of_one_kind_have_two_processes():
    trace = trace_events([_record("simulated"), _record("simulated", tool_version="0.2.0")])
    assert {e["pid"] for e in trace["traceEvents"]} == {2, 3}


def test_nanoseconds_survive_long_runs():
    hours_ns = 10 * 3600 * 10**9 + 7
    span = Span(name="late", lane="compute", start_ns=hours_ns, duration_ns=1)
    event = trace_events([_record(spans=(span,))])["traceEvents"][-1]
    assert round(event["ts"] * 1000) == hours_ns
    assert round(event["dur"] * 1000) == 1


def test_a_record_with_nothing_to_show():
    with pytest.raises(BadInput, match="neither spans nor samples"):
        chrome_trace([_record(keep=False)])
    with pytest.raises(BadInput, match="at least one record"):
        chrome_trace([])
