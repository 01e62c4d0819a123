"""A price book: dated prices of devices, memory, storage and energy."""

from decimal import Decimal

from pydantic import Field

from tiercast_profiles.document import Document, Grown, Strict
from tiercast_profiles.errors import NoDevicePrice


class DevicePrice(Strict):
    """Price of one device-hour of one hardware profile.

    ``product_names`` are what drivers call the device, so that a profile measured on it finds its price.
    ``includes_energy`` and ``includes_host_memory_gb_per_device`` say what the hourly price already pays for, so
    that nothing is charged twice.
    """

    usd_per_device_hour: Decimal = Field(gt=0)
    all_in_power_kw: float = Field(gt=0)
    includes_energy: bool
    includes_host_memory_gb_per_device: float = Field(default=0.0, ge=0)
    offer: str
    product_names: tuple[str, ...] = ()


class OwnedDevice(Strict):
    """What buying one device costs, with its share of node, network and site where the source counts them in."""

    capital_usd_per_device: Decimal = Field(gt=0)
    offer: str


class Ownership(Strict):
    """Terms of owning: capital, its cost and life, where the devices stand.

    ``power_includes_cooling``: the book's ``all_in_power_kw`` is provisioned power with cooling inside; then
    ``power_usage_effectiveness`` (PUE) only takes the cooling out of it for the colocation bill.
    """

    discount_ratio: Decimal = Field(ge=0, le=1)
    life_years: Decimal = Field(gt=0, le=100)
    residual_ratio: Decimal = Field(ge=0, lt=1)
    colocation_usd_per_kw_month: Decimal = Field(ge=0)
    power_usage_effectiveness: Decimal = Field(ge=1, le=10)
    power_includes_cooling: bool
    devices: dict[str, OwnedDevice]


class OwnRate(Strict):
    """A published all-in cost of owning one device for an hour, by kind of owner."""

    hyperscaler_usd_per_device_hour: Decimal = Field(gt=0)
    neocloud_usd_per_device_hour: Decimal = Field(gt=0)


class PriceBook(Document, Grown):
    """Prices with evidence; ``as_of`` dates live in the sources.

    Memory and storage are bought: ``…_usd_per_gb`` over ``amortisation_years`` in a straight line.
    ``dram_scenarios_usd_per_gb`` are DRAM prices of other times, by name; ``network_usd_per_port`` is what one host's
    port to a remote pool costs, None where no price is known.
    """

    added_fields = frozenset({"ownership", "own_rates", "dram_scenarios_usd_per_gb", "network_usd_per_port"})

    devices: dict[str, DevicePrice]
    dram_usd_per_gb: Decimal = Field(gt=0)
    cxl_usd_per_gb: Decimal = Field(gt=0)
    nvme_usd_per_gb: Decimal = Field(gt=0)
    amortisation_years: Decimal = Field(gt=0)
    energy_usd_per_kwh: Decimal = Field(gt=0)
    utilization_ratio: float = Field(gt=0, le=1)
    ownership: Ownership | None = None
    own_rates: dict[str, OwnRate] = {}
    dram_scenarios_usd_per_gb: dict[str, Decimal] = {}
    network_usd_per_port: Decimal | None = Field(default=None, gt=0)

    def device_key(self, hardware_name: str, product_name: str) -> str:
        """Key in ``devices`` of a hardware profile: its own name, else the one that lists its product.

        Raises:
            NoDevicePrice: the book has neither.
        """
        if hardware_name in self.devices:
            return hardware_name
        found = [key for key in sorted(self.devices) if product_name in self.devices[key].product_names]
        if not found:
            raise NoDevicePrice(hardware_name, self.name, self.devices)
        return found[0]
