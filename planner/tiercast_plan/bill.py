"""The hourly bill of a deployment: devices, memory bought for the tables, energy, each apart."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import GB
from tiercast_sim.memory import MemoryPlan

HOURS_PER_YEAR = 8760
# Lines are kept to a trillionth of a dollar, so that they add up exactly in any order and survive JSON.
QUANTUM = Decimal("1e-12")

MemoryTier = Literal["dram", "pool", "cxl", "nvme"]
LineName = Literal["devices", "energy"] | MemoryTier
LineUnit = Literal["device", "GB", "kW"]
# Assumption A24: memory of a remote pool costs what host DRAM costs.
_MEMORY_PRICES: dict[MemoryTier, str] = {
    "dram": "dram_usd_per_gb",
    "pool": "dram_usd_per_gb",
    "cxl": "cxl_usd_per_gb",
    "nvme": "nvme_usd_per_gb",
}


@dataclass(frozen=True, slots=True)
class HourlyLine:
    """One line: how many of what, at which price of the book, and what it adds to the hour."""

    name: LineName
    amount: Decimal
    unit: LineUnit
    is_included: bool
    note: str
    usd_per_hour: Decimal
    price_path: str


def hourly_bill(resolved: ResolvedScenario, plan: MemoryPlan, device_key: str) -> tuple[HourlyLine, ...]:
    """Every line of the bill, those that cost nothing included."""
    return (
        _devices(resolved, device_key),
        *(_memory(resolved, plan, device_key, tier) for tier in _MEMORY_PRICES),
        _energy(resolved, device_key),
    )


def all_in_power_kw(resolved: ResolvedScenario, device_key: str) -> Decimal:
    """Provisioned power of all devices, cooling and host included (Assumption A22: drawn every rented hour)."""
    return _decimal(resolved.prices.devices[device_key].all_in_power_kw) * resolved.num_ranks


def _decimal(number: float) -> Decimal:
    return Decimal(str(number))


def _devices(resolved: ResolvedScenario, device_key: str) -> HourlyLine:
    price = resolved.prices.devices[device_key]
    return HourlyLine(
        name="devices",
        amount=Decimal(resolved.num_ranks),
        unit="device",
        is_included=False,
        note=price.offer,
        usd_per_hour=(price.usd_per_device_hour * resolved.num_ranks).quantize(QUANTUM),
        price_path=f"devices.{device_key}.usd_per_device_hour",
    )


def _memory(resolved: ResolvedScenario, plan: MemoryPlan, device_key: str, tier: MemoryTier) -> HourlyLine:
    """Assumption A20: bought for the tables, written off in a straight line, no residual value."""
    size_bytes = sum(sum(pieces.values()) for pieces in plan.per_host.get(tier, ()))
    included_bytes = Decimal(0)
    if tier == "dram":
        per_device_gb = resolved.prices.devices[device_key].includes_host_memory_gb_per_device
        included_bytes = min(_decimal(per_device_gb) * GB * resolved.num_ranks, Decimal(size_bytes))
    bought_gb = (Decimal(size_bytes) - included_bytes) / GB
    price: Decimal = getattr(resolved.prices, _MEMORY_PRICES[tier])
    hours = resolved.prices.amortisation_years * HOURS_PER_YEAR
    return HourlyLine(
        name=tier,
        amount=bought_gb,
        unit="GB",
        is_included=size_bytes > 0 and bought_gb == 0,
        note=_memory_note(plan, tier, included_bytes),
        usd_per_hour=(bought_gb * price / hours).quantize(QUANTUM),
        price_path=_MEMORY_PRICES[tier],
    )


def _memory_note(plan: MemoryPlan, tier: MemoryTier, included_bytes: Decimal) -> str:
    hosts = plan.per_host.get(tier, ())
    if not hosts:
        return "nothing is kept there"
    tables = sum(pieces.get("tables", 0) for pieces in hosts)
    staging = sum(pieces.get("staging", 0) for pieces in hosts)
    parts = []
    if tables:
        copies = num_table_copies(plan)
        where = "a remote host" if tier == "pool" else _count(len(hosts), "host")
        parts.append(f"{_count(copies, 'copy', 'copies')} of the tables on {where}")
    if staging:
        parts.append("staging buffers")
    if included_bytes:
        parts.append(f"{included_bytes / GB:.1f} GB of it inside the device price")
    return ", ".join(parts)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def num_table_copies(plan: MemoryPlan) -> int:
    """Whole copies of the tables below HBM, over all hosts; 0 where they are in HBM or there are none."""
    if not plan.table_bytes:
        return 0
    tables = sum(pieces.get("tables", 0) for hosts in plan.per_host.values() for pieces in hosts)
    return tables // plan.table_bytes


def _energy(resolved: ResolvedScenario, device_key: str) -> HourlyLine:
    is_included = resolved.prices.devices[device_key].includes_energy
    power_kw = all_in_power_kw(resolved, device_key)
    bill = (power_kw * resolved.prices.energy_usd_per_kwh).quantize(QUANTUM)
    return HourlyLine(
        name="energy",
        amount=power_kw,
        unit="kW",
        is_included=is_included,
        note=f"inside the device price; bought apart it would be {bill:.3f} USD/h" if is_included else "bought apart",
        usd_per_hour=Decimal(0).quantize(QUANTUM) if is_included else bill,
        price_path="energy_usd_per_kwh",
    )
