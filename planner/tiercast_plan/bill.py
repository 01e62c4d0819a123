"""The hourly bill of a deployment: devices, memory bought for the tables, energy, each apart.

A bill has one tenure: devices are rented, owned by capital and terms, or owned at a published all-in rate.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from tiercast_plan.ownership import Tenure, capital_usd_per_hour, colocation_kw, energy_kw
from tiercast_profiles.errors import NoDevicePrice
from tiercast_profiles.prices import PriceBook
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import GB
from tiercast_sim.memory import MemoryPlan

HOURS_PER_YEAR = 8760
# Lines are kept to a trillionth of a dollar, so that they add up exactly in any order and survive JSON.
QUANTUM = Decimal("1e-12")

MemoryTier = Literal["dram", "pool", "cxl", "nvme"]
LineName = Literal["devices", "colocation", "network", "energy"] | MemoryTier
LineUnit = Literal["device", "GB", "kW", "port"]
# Assumption A24: memory of a remote pool costs what host DRAM costs.
_MEMORY_PRICES: dict[MemoryTier, str] = {
    "dram": "dram_usd_per_gb",
    "pool": "dram_usd_per_gb",
    "cxl": "cxl_usd_per_gb",
    "nvme": "nvme_usd_per_gb",
}


@dataclass(frozen=True, slots=True)
class HourlyLine:
    """One line: how many of what, at which prices of the book, and what it adds to the hour.

    ``num_copies`` are the copies of the tables that a line of memory holds, 0 on every other line.
    """

    name: LineName
    amount: Decimal
    unit: LineUnit
    is_included: bool
    note: str
    usd_per_hour: Decimal
    price_paths: tuple[str, ...]
    num_copies: int = 0


def hourly_bill(
    resolved: ResolvedScenario, plan: MemoryPlan, device_key: str, tenure: Tenure = "rental"
) -> tuple[HourlyLine, ...]:
    """Every line of the bill, those that cost nothing included.

    Raises:
        NoDevicePrice: the book does not know what this device costs under the tenure.
    """
    return (
        _devices(resolved, device_key, tenure),
        _colocation(resolved, device_key, tenure),
        *(_memory(resolved, plan, device_key, tier) for tier in _MEMORY_PRICES),
        _network(resolved, plan),
        _energy(resolved, device_key, tenure),
    )


def tenures_of(prices: PriceBook, device_key: str) -> tuple[Tenure, ...]:
    """What the book can price this device as, rental first."""
    owned: tuple[Tenure, ...] = ()
    if prices.ownership is not None and device_key in prices.ownership.devices:
        owned = ("owned",)
    published: tuple[Tenure, ...] = ("own_hyperscaler", "own_neocloud") if device_key in prices.own_rates else ()
    return ("rental", *owned, *published)


def all_in_power_kw(resolved: ResolvedScenario, device_key: str) -> Decimal:
    """Provisioned power of all devices, cooling and host included (Assumption A22: drawn every rented hour)."""
    return _decimal(resolved.prices.devices[device_key].all_in_power_kw) * resolved.num_ranks


def _decimal(number: float) -> Decimal:
    return Decimal(str(number))


def _devices(resolved: ResolvedScenario, device_key: str, tenure: Tenure) -> HourlyLine:
    hourly, note, paths = _device_price(resolved.prices, device_key, tenure)
    return HourlyLine(
        name="devices",
        amount=Decimal(resolved.num_ranks),
        unit="device",
        is_included=False,
        note=note,
        usd_per_hour=(hourly * resolved.num_ranks).quantize(QUANTUM),
        price_paths=paths,
    )


def _device_price(prices: PriceBook, device_key: str, tenure: Tenure) -> tuple[Decimal, str, tuple[str, ...]]:
    """USD per device-hour, what it is, and the numbers of the book behind it."""
    if tenure == "rental":
        price = prices.devices[device_key]
        return price.usd_per_device_hour, price.offer, (f"devices.{device_key}.usd_per_device_hour",)
    if tenure == "owned":
        terms = prices.ownership
        if terms is None or device_key not in terms.devices:
            known = () if terms is None else tuple(terms.devices)
            raise NoDevicePrice(device_key, f"{prices.name}, ownership", known)
        paths = (
            f"ownership.devices.{device_key}.capital_usd_per_device",
            "ownership.discount_ratio",
            "ownership.life_years",
            "ownership.residual_ratio",
        )
        return capital_usd_per_hour(terms, device_key), terms.devices[device_key].offer, paths
    if device_key not in prices.own_rates:
        raise NoDevicePrice(device_key, f"{prices.name}, own_rates", prices.own_rates)
    kind = tenure.removeprefix("own_")
    field = f"{kind}_usd_per_device_hour"
    rate: Decimal = getattr(prices.own_rates[device_key], field)
    return rate, f"published all-in cost of owning as a {kind}", (f"own_rates.{device_key}.{field}",)


def _colocation(resolved: ResolvedScenario, device_key: str, tenure: Tenure) -> HourlyLine:
    terms = resolved.prices.ownership
    if tenure != "owned" or terms is None:
        return HourlyLine("colocation", Decimal(0), "kW", True, "inside the device price", Decimal(0), ())
    power_kw = colocation_kw(terms, all_in_power_kw(resolved, device_key))
    hourly = power_kw * terms.colocation_usd_per_kw_month * 12 / HOURS_PER_YEAR
    return HourlyLine(
        name="colocation",
        amount=power_kw.quantize(QUANTUM),
        unit="kW",
        is_included=False,
        note="power of the devices without cooling, leased by the month",
        usd_per_hour=hourly.quantize(QUANTUM),
        price_paths=("ownership.colocation_usd_per_kw_month", "ownership.power_usage_effectiveness"),
    )


def _network(resolved: ResolvedScenario, plan: MemoryPlan) -> HourlyLine:
    """Assumption A25: one port of every host leads to the remote pool, bought and written off as memory is."""
    ports = Decimal(plan.num_hosts if resolved.placement.tier == "pool" else 0)
    price = resolved.prices.network_usd_per_port
    if not ports:
        return HourlyLine("network", ports, "port", False, "no remote pool", Decimal(0), ())
    if price is None:
        note = "the book has no network_usd_per_port: the ports to the pool are not in this bill"
        return HourlyLine("network", ports, "port", False, note, Decimal(0), ())
    hours = resolved.prices.amortisation_years * HOURS_PER_YEAR
    hourly = (ports * price / hours).quantize(QUANTUM)
    return HourlyLine("network", ports, "port", False, "to the remote pool", hourly, ("network_usd_per_port",))


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
        price_paths=(_MEMORY_PRICES[tier],),
        num_copies=_copies_in(plan, tier),
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
    return sum(_copies_in(plan, tier) for tier in _MEMORY_PRICES)


def _copies_in(plan: MemoryPlan, tier: MemoryTier) -> int:
    tables = sum(pieces.get("tables", 0) for pieces in plan.per_host.get(tier, ()))
    return tables // plan.table_bytes if plan.table_bytes else 0


def _energy(resolved: ResolvedScenario, device_key: str, tenure: Tenure) -> HourlyLine:
    is_included = resolved.prices.devices[device_key].includes_energy if tenure == "rental" else tenure != "owned"
    power_kw = all_in_power_kw(resolved, device_key)
    terms = resolved.prices.ownership
    if tenure == "owned" and terms is not None:
        power_kw = energy_kw(terms, power_kw)
    bill = (power_kw * resolved.prices.energy_usd_per_kwh).quantize(QUANTUM)
    return HourlyLine(
        name="energy",
        amount=power_kw,
        unit="kW",
        is_included=is_included,
        note=f"inside the device price; bought apart it would be {bill:.3f} USD/h" if is_included else "bought apart",
        usd_per_hour=Decimal(0).quantize(QUANTUM) if is_included else bill,
        price_paths=("energy_usd_per_kwh",),
    )
