"""Money: the worked example of docs/cost.md, exact sums, intervals, and what the device price already pays for."""

import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from tiercast_plan.api_price import against_api, parse_api_price
from tiercast_plan.cost import TOKEN_KINDS, CostReport, cost_per_mtok, every_tenure
from tiercast_profiles import store
from tiercast_profiles.errors import BadInput, NoDevicePrice
from tiercast_profiles.record import Metric, Metrics, Percentiles, Provenance, RunRecord
from tiercast_profiles.scenario import ResolvedScenario, Scenario

DOC = Path(__file__).parents[2] / "docs" / "cost.md"
TODAY = datetime.date(2026, 11, 23)


def _resolved(placement=None, *, hardware="h200-sxm", tensor=8, data=1) -> ResolvedScenario:
    scenario = {
        "schema_version": 1,
        "hardware": hardware,
        "model": "deepseek-v4.1-flash",
        "parallel": {"tensor": tensor, "data": data},
        "placement": placement or {"tier": "dram"},
        "workload": {
            "kind": "closed_loop",
            "concurrency": 4,
            "num_requests": 32,
            "prompt_tokens": {"fixed": 128},
            "output_tokens": {"fixed": 64},
        },
    }
    return store.resolve(Scenario.model_validate(scenario))


def _with_prices(resolved: ResolvedScenario, **changes) -> ResolvedScenario:
    device = {key: changes.pop(key) for key in list(changes) if key.startswith(("includes", "usd_per_device"))}
    devices = {name: price.model_copy(update=device) for name, price in resolved.prices.devices.items()}
    prices = resolved.prices.model_copy(update={"devices": devices, **changes})
    return resolved.model_copy(update={"prices": prices})


def _record(resolved: ResolvedScenario, total=20_000.0, output=8_000.0, spread=None) -> RunRecord:
    low, high = (None, None) if spread is None else (1 - spread, 1 + spread)
    basis = "point" if spread is None else "band"

    def metric(value: float) -> Metric:
        return Metric(value=value, low=low and value * low, high=high and value * high, basis=basis)

    three = Percentiles(p50=Metric(value=1), p90=Metric(value=1), p99=Metric(value=1))
    metrics = Metrics(
        output_tokens_per_s=metric(output),
        total_tokens_per_s=metric(total),
        ttft_ms=three,
        tpot_ms=three,
        step_ms=three,
        stall_ms_per_step=Metric(value=0),
        lookup_ms_per_step=Metric(value=0),
        hidden_ratio=None,
        kv_capacity_tokens=None,
        memory_bytes={},
        rows_per_token=48,
        unique_row_ratio=None,
    )
    provenance = Provenance(
        tool_version="0",
        hardware_name=resolved.hardware.name,
        hardware_sha256="h",
        hardware_calibration="datasheet",
        model_name=resolved.model.name,
        model_sha256="m",
        prices_sha256="p",
        vocabulary="v",
        text_sha256="t",
    )
    return RunRecord(
        kind="simulated",
        scenario=resolved.scenario,
        placement=resolved.placement,
        scenario_sha256=resolved.sha256,
        workload_sha256="w",
        provenance=provenance,
        metrics=metrics,
    )


def _cost(resolved: ResolvedScenario, **record) -> CostReport:
    return cost_per_mtok(resolved, _record(resolved, **record))


def _documented() -> dict[str, list[Decimal]]:
    rows = [line.strip("| \n").split("|") for line in DOC.read_text(encoding="utf-8").splitlines() if "|" in line]
    cells = [[cell.strip() for cell in row] for row in rows]
    return {
        row[0]: [Decimal(x) for x in row[1:]] for row in cells if len(row) == 5 and row[0] in ("devices", "dram", "sum")
    }


def test_the_worked_example_of_the_docs():
    report = _cost(_resolved())
    six = Decimal("0.000001")
    found = {
        line.name: [line.usd_per_hour, *(line.usd_per_mtok[kind] for kind in TOKEN_KINDS)] for line in report.lines
    }
    found["sum"] = [report.usd_per_hour, *(report.usd_per_mtok[kind].value for kind in TOKEN_KINDS)]
    documented = _documented()
    assert set(documented) == {"devices", "dram", "sum"}
    for name, numbers in documented.items():
        assert [number.quantize(six) for number in found[name]] == numbers
    assert report.joules_per_token["total"] == pytest.approx(0.692)
    assert report.joules_per_token["output"] == pytest.approx(1.730)
    assert report.line("energy").is_included
    assert report.line("energy").usd_per_hour == 0


def test_the_owned_example_of_the_docs():
    resolved = _resolved(hardware="h100-sxm")
    report = cost_per_mtok(resolved, _record(resolved), tenure="owned")
    found = {
        f"own {line.name}": [line.usd_per_hour, *(line.usd_per_mtok[kind] for kind in TOKEN_KINDS)]
        for line in report.lines
    }
    found["own sum"] = [report.usd_per_hour, *(report.usd_per_mtok[kind].value for kind in TOKEN_KINDS)]
    rows = [line.strip("| \n").split("|") for line in DOC.read_text(encoding="utf-8").splitlines() if "| own " in line]
    documented = {row[0].strip(): [Decimal(cell.strip()) for cell in row[1:]] for row in rows}
    assert set(documented) == {"own devices", "own colocation", "own dram", "own energy", "own sum"}
    for name, numbers in documented.items():
        assert [number.quantize(Decimal("0.000001")) for number in found[name]] == numbers
    assert sum(line.usd_per_hour for line in report.lines) == report.usd_per_hour
    by_path = {item.path for item in report.evidence}
    assert {"ownership.residual_ratio", "ownership.devices.h100-sxm.capital_usd_per_device"} <= by_path


def test_cooling_is_counted_once_however_the_power_is_stated():
    resolved = _resolved(hardware="h100-sxm")
    record, terms = _record(resolved), resolved.prices.ownership
    bare = {key: price.model_copy(update={"all_in_power_kw": 1.384}) for key, price in resolved.prices.devices.items()}
    prices = resolved.prices.model_copy(
        update={"devices": bare, "ownership": terms.model_copy(update={"power_includes_cooling": False})}
    )
    other = cost_per_mtok(resolved.model_copy(update={"prices": prices}), record, tenure="owned")
    assert other.lines == cost_per_mtok(resolved, record, tenure="owned").lines


def test_every_tenure_the_book_knows_is_priced_side_by_side():
    for hardware, owned in (("h100-sxm", ["owned"]), ("h200-sxm", [])):
        resolved = _resolved(hardware=hardware)
        found = every_tenure(resolved, _record(resolved))
        assert [report.tenure for report in found] == ["rental", *owned, "own_hyperscaler", "own_neocloud"]
    assert found[1].line("devices").usd_per_hour == 8 * Decimal("1.41")
    with pytest.raises(NoDevicePrice, match=r"ownership' has no device price for hardware 'h200-sxm'; it has: gb200"):
        cost_per_mtok(resolved, _record(resolved), tenure="owned")


def test_ports_to_a_pool_are_paid_for_or_missed_aloud():
    resolved = _resolved({"tier": "pool"}, data=2)
    assert any("network_usd_per_port" in warning for warning in _cost(resolved).warnings)
    evidence = {**resolved.prices.evidence, "network_usd_per_port": "cxl"}
    priced = _cost(_with_prices(resolved, network_usd_per_port=Decimal(1752), evidence=evidence))
    assert priced.line("network").usd_per_hour == 2 * Decimal("0.05")
    assert not any("not in this bill" in warning for warning in priced.warnings)


def test_an_api_price_is_blended_by_the_mix_of_the_run():
    resolved = _resolved()
    record = _record(resolved)
    found = against_api(_cost(resolved), record.metrics, parse_api_price("0.10, 0.60"))
    assert found.api_usd_per_mtok == Decimal("0.3")
    assert found.own_of_api_ratio == Decimal("1.195901")
    for text in ("", "free", "0", "1,2,3", "nan"):
        with pytest.raises(BadInput, match="API price"):
            parse_api_price(text)


def test_each_copy_has_its_price():
    report = _cost(_resolved({"tier": "dram", "replication": "per_numa"}))
    assert report.line("dram").usd_per_copy_hour == report.line("dram").usd_per_hour / 2
    assert report.line("nvme").usd_per_copy_hour is None


def test_the_dram_scenarios_of_the_docs():
    text = DOC.read_text(encoding="utf-8")
    for usd_per_gb in (4, 11, 20, 32):
        report = _cost(_with_prices(_resolved(), dram_usd_per_gb=Decimal(usd_per_gb)))
        hourly = report.line("dram").usd_per_hour.quantize(Decimal("0.001"))
        row = next(line for line in text.splitlines() if line.startswith(f"| {usd_per_gb} |"))
        assert row.split("|")[3].strip() == str(hourly)


def test_lines_add_up_exactly_and_every_line_is_there():
    report = _cost(_resolved({"tier": "nvme"}), total=12_345.678, output=9_876.543)
    names = ["devices", "colocation", "dram", "pool", "cxl", "nvme", "network", "energy"]
    assert [line.name for line in report.lines] == names
    assert sum(line.usd_per_hour for line in report.lines) == report.usd_per_hour
    for kind in TOKEN_KINDS:
        assert sum(line.usd_per_mtok[kind] for line in report.lines) == report.usd_per_mtok[kind].value
    assert CostReport.model_validate_json(report.model_dump_json()) == report


def test_a_report_whose_lines_do_not_add_up_is_refused():
    data = _cost(_resolved()).model_dump()
    data["usd_per_hour"] += Decimal("1e-12")
    with pytest.raises(ValueError, match="do not add up"):
        CostReport.model_validate(data)


@pytest.mark.parametrize(
    ("placement", "tensor", "data", "line", "copies"),
    [
        ({"tier": "hbm"}, 8, 2, None, 0),
        ({"tier": "none"}, 8, 2, None, 0),
        ({"tier": "dram", "replication": "per_node"}, 8, 2, "dram", 2),
        ({"tier": "dram", "replication": "per_node"}, 4, 2, "dram", 1),
        ({"tier": "dram", "replication": "per_numa"}, 8, 1, "dram", 2),
        ({"tier": "dram", "replication": "per_rank"}, 4, 1, "dram", 4),
        ({"tier": "dram", "replication": "none"}, 4, 2, "dram", 2),
        ({"tier": "cxl"}, 8, 1, "cxl", 1),
        ({"tier": "nvme"}, 8, 1, "nvme", 1),
        ({"tier": "pool"}, 8, 3, "pool", 1),
    ],
)
def test_copies_of_the_tables_are_paid_for(placement, tensor, data, line, copies):
    report = _cost(_resolved(placement, tensor=tensor, data=data))
    assert report.num_table_copies == copies
    assert report.num_devices == tensor * data
    bought = {x.name: x for x in report.lines if x.unit == "GB" and x.amount > 1}
    assert set(bought) == ({line} if line else set())
    if line:
        assert float(bought[line].amount) == pytest.approx(202.758 * copies, rel=2e-3)


def test_memory_in_the_device_price_is_not_charged_again():
    resolved = _resolved()
    some = _cost(_with_prices(resolved, includes_host_memory_gb_per_device=10.0))
    assert some.line("dram").amount == _cost(resolved).line("dram").amount - 80
    all_of_it = _cost(_with_prices(resolved, includes_host_memory_gb_per_device=256.0))
    assert all_of_it.line("dram").usd_per_hour == 0
    assert all_of_it.line("dram").is_included
    assert "inside the device price" in all_of_it.line("dram").note


def test_energy_bought_apart():
    report = _cost(_with_prices(_resolved(), includes_energy=False))
    assert report.line("energy").usd_per_hour == Decimal("13.84") * Decimal("0.1437")
    assert not report.line("energy").is_included
    assert any(item.path == "energy_usd_per_kwh" for item in report.evidence)


def test_cost_falls_as_throughput_rises():
    cost = _cost(_resolved(), spread=0.25).usd_per_mtok["output"]
    assert cost.low is not None
    assert cost.high is not None
    assert float(cost.low) == pytest.approx(float(cost.value) / 1.25)
    assert float(cost.high) == pytest.approx(float(cost.value) / 0.75)
    assert _cost(_resolved()).usd_per_mtok["output"].low is None


def test_half_the_utilisation_costs_twice():
    resolved = _resolved()
    half = _cost(_with_prices(resolved, utilization_ratio=0.25)).usd_per_mtok["total"].value
    assert float(half) == pytest.approx(2 * float(_cost(resolved).usd_per_mtok["total"].value))


def test_evidence_travels_with_the_report():
    report = _cost(_resolved())
    by_path = {item.path: item for item in report.evidence}
    assert by_path["devices.h200-sxm.usd_per_device_hour"].value == "1.60"
    assert by_path["devices.h200-sxm.usd_per_device_hour"].mark == "V"
    assert by_path["dram_usd_per_gb"].date == datetime.date(2026, 7, 1)
    assert "nvme_usd_per_gb" not in by_path


def test_old_prices_are_called_old_only_when_the_day_is_given():
    resolved = _resolved()
    record = _record(resolved)
    assert cost_per_mtok(resolved, record).warnings == ()
    assert cost_per_mtok(resolved, record, today=datetime.date(2026, 8, 1)).warnings == ()
    warned = cost_per_mtok(resolved, record, today=TODAY).warnings
    assert len(warned) == 1
    assert "devices.h200-sxm.usd_per_device_hour is of 2026-04-03, 234 days before 2026-11-23" in warned[0]


def test_prices_of_different_seasons_are_not_mixed_silently():
    resolved = _resolved({"tier": "cxl"})
    assert any("mixed" in warning for warning in _cost(resolved).warnings)


def test_hardware_without_a_price():
    resolved = _resolved({"tier": "dram"}, hardware="h800-sxm")
    with pytest.raises(NoDevicePrice, match="h800-sxm"):
        _cost(resolved)


def test_a_record_of_another_deployment_is_refused():
    record = _record(_resolved({"tier": "nvme"}))
    with pytest.raises(BadInput, match="record was made with placement"):
        cost_per_mtok(_resolved(), record)


def test_a_record_that_serves_nothing_is_refused():
    resolved = _resolved()
    with pytest.raises(BadInput, match="both kinds of token"):
        _cost(resolved, total=100.0, output=100.0)


def test_a_closed_loop_that_is_hardly_longer_than_its_first_wave_says_what_that_does_to_its_price():
    long = _resolved()
    workload = long.scenario.workload.model_copy(update={"num_requests": 31})
    short = long.model_copy(update={"scenario": long.scenario.model_copy(update={"workload": workload})})
    assert cost_per_mtok(long, _record(long)).warnings == ()
    (warning,) = cost_per_mtok(short, _record(short)).warnings
    assert "fewer than 8 requests for each one in flight" in warning
