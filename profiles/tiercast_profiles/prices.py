"""A price book: dated prices of devices, memory, storage and energy."""

from decimal import Decimal

from pydantic import Field

from tiercast_profiles.document import Document, Strict
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


class PriceBook(Document):
    """Prices with evidence; ``as_of`` dates live in the sources.

    Memory and storage are bought: ``…_usd_per_gb`` over ``amortisation_years`` in a straight line.
    """

    devices: dict[str, DevicePrice]
    dram_usd_per_gb: Decimal = Field(gt=0)
    cxl_usd_per_gb: Decimal = Field(gt=0)
    nvme_usd_per_gb: Decimal = Field(gt=0)
    amortisation_years: Decimal = Field(gt=0)
    energy_usd_per_kwh: Decimal = Field(gt=0)
    utilization_ratio: float = Field(gt=0, le=1)

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
