"""Laws of money that hold for any prices and any throughput."""

from decimal import Decimal
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from tiercast_plan.bill import hourly_bill
from tiercast_plan.cost import TOKEN_KINDS, CostReport, cost_of_rates, cost_per_mtok
from tiercast_plan.fleet import size_fleet
from tiercast_profiles import store
from tiercast_profiles.record import Metric, Metrics, Percentiles, Provenance, RunRecord
from tiercast_profiles.scenario import ResolvedScenario, Scenario
from tiercast_sim.memory import memory_plan

TIERS = ("none", "hbm", "dram", "cxl", "nvme", "pool")
REPLICATIONS = ("none", "per_rank", "per_numa", "per_node")
MONEY = st.decimals("0.001", "1000", places=3)
RATES = st.floats(1.0, 1e6)


@cache
def _resolved(tier: str, replication: str = "per_node", data: int = 1) -> ResolvedScenario:
    scenario = {
        "schema_version": 1,
        "hardware": "h200-sxm",
        "model": "deepseek-v4.1-flash",
        "parallel": {"tensor": 4, "data": data},
        "placement": {"tier": tier, "replication": replication},
        "workload": {
            "kind": "closed_loop",
            "concurrency": 1,
            "num_requests": 1,
            "prompt_tokens": {"fixed": 1},
            "output_tokens": {"fixed": 1},
        },
    }
    return store.resolve(Scenario.model_validate(scenario))


def _priced(resolved: ResolvedScenario, *, device: Decimal, memory: Decimal, years: Decimal, energy: bool):
    devices = {
        name: price.model_copy(update={"usd_per_device_hour": device, "includes_energy": not energy})
        for name, price in resolved.prices.devices.items()
    }
    prices = resolved.prices.model_copy(
        update={
            "devices": devices,
            "dram_usd_per_gb": memory,
            "cxl_usd_per_gb": memory,
            "nvme_usd_per_gb": memory,
            "amortisation_years": years,
        }
    )
    return resolved.model_copy(update={"prices": prices})


def _cost(resolved: ResolvedScenario, total: float, output: float) -> CostReport:
    three = Percentiles(p50=Metric(value=1), p90=Metric(value=1), p99=Metric(value=1))
    metrics = Metrics(
        output_tokens_per_s=Metric(value=output),
        total_tokens_per_s=Metric(value=total),
        ttft_ms=three,
        tpot_ms=None,
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
    record = RunRecord(
        kind="simulated",
        scenario=resolved.scenario,
        placement=resolved.placement,
        scenario_sha256="s",
        workload_sha256="w",
        provenance=provenance,
        metrics=metrics,
    )
    return cost_per_mtok(resolved, record)


@settings(deadline=None)
@given(
    st.sampled_from(TIERS),
    MONEY,
    MONEY,
    st.decimals("0.5", "20", places=1),
    st.booleans(),
    RATES,
    st.floats(0.01, 0.99),
)
def test_lines_add_up_to_the_last_digit(tier, device, memory, years, energy, total, share):
    resolved = _priced(_resolved(tier), device=device, memory=memory, years=years, energy=energy)
    report = _cost(resolved, total, total * share)
    assert sum(line.usd_per_hour for line in report.lines) == report.usd_per_hour
    for kind in TOKEN_KINDS:
        assert sum(line.usd_per_mtok[kind] for line in report.lines) == report.usd_per_mtok[kind].value
    assert CostReport.model_validate_json(report.model_dump_json()) == report
    # Both kinds together are paid once: input and output tokens each carry the whole bill.
    assert report.usd_per_mtok["total"].value <= min(
        report.usd_per_mtok["input"].value, report.usd_per_mtok["output"].value
    )


@settings(deadline=None)
@given(st.sampled_from(TIERS), RATES, st.floats(1.01, 10))
def test_more_throughput_is_never_dearer(tier, total, factor):
    slow, fast = (_cost(_resolved(tier), rate, rate / 2) for rate in (total, total * factor))
    for kind in TOKEN_KINDS:
        assert fast.usd_per_mtok[kind].value <= slow.usd_per_mtok[kind].value
    assert fast.usd_per_hour == slow.usd_per_hour


@settings(deadline=None)
@given(st.sampled_from(("dram", "cxl", "nvme", "pool")), MONEY, MONEY)
def test_dearer_memory_is_never_cheaper(tier, one, other):
    low, high = sorted((one, other))
    hourly = [
        _cost(_priced(_resolved(tier), device=Decimal(1), memory=m, years=Decimal(4), energy=False), 10, 5).usd_per_hour
        for m in (low, high)
    ]
    assert hourly[0] <= hourly[1]


@settings(deadline=None)
@given(st.sampled_from(("dram", "cxl", "nvme", "pool")), st.sampled_from(REPLICATIONS), st.integers(1, 5))
def test_every_byte_below_hbm_is_billed_once(tier, replication, data):
    resolved = _resolved(tier, replication, data)
    plan = memory_plan(resolved)
    bill = hourly_bill(resolved, plan, "h200-sxm")
    billed = sum(line.amount for line in bill if line.unit == "GB") * 10**9
    assert billed == sum(size for name, size in plan.total_bytes().items() if name != "hbm")


@settings(deadline=None)
@given(st.integers(1, 10**15), st.integers(1, 10**15), st.floats(1.0, 1e7), st.floats(0.05, 1.0))
def test_more_demand_never_needs_fewer_devices(one, other, rate, utilization):
    fleets = [
        size_fleet(
            total_tokens_per_s=rate,
            usd_per_host_hour=Decimal("12.9157"),
            devices_per_host=8,
            utilization_ratio=utilization,
            demand_tokens_per_day=demand,
        )
        for demand in sorted((one, other))
    ]
    assert fleets[0].num_devices <= fleets[1].num_devices
    assert fleets[0].usd_per_hour <= fleets[1].usd_per_hour
    for demand, fleet in zip(sorted((one, other)), fleets, strict=True):
        # Enough, and with one host less not enough; the day's tokens are whole, hence the one token of slack.
        per_host = fleet.tokens_per_day / fleet.num_hosts
        assert fleet.tokens_per_day >= demand - 1
        assert (fleet.num_hosts - 1) * per_host <= demand + 1


@settings(deadline=None)
@given(MONEY, MONEY, st.sampled_from(("rental", "owned", "own_hyperscaler", "own_neocloud")))
def test_cheaper_memory_never_raises_the_cost_under_any_tenure(one, other, tenure):
    resolved = _on_h100()
    reports = []
    for price in sorted((one, other)):
        prices = resolved.prices.model_copy(update={"dram_usd_per_gb": price})
        priced = resolved.model_copy(update={"prices": prices})
        rates = {"total": Metric(value=20_000.0), "output": Metric(value=8_000.0)}
        reports.append(cost_of_rates(priced, **rates, tenure=tenure))
        assert sum(line.usd_per_hour for line in reports[-1].lines) == reports[-1].usd_per_hour
    for kind in TOKEN_KINDS:
        assert reports[0].usd_per_mtok[kind].value <= reports[1].usd_per_mtok[kind].value


@cache
def _on_h100() -> ResolvedScenario:
    scenario = _resolved("dram").scenario.model_copy(update={"hardware": "h100-sxm"})
    return store.resolve(scenario)
