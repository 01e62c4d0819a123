"""What owning a device costs by the hour: capital recovered over its life, less what it is still worth at the end."""

from decimal import Decimal
from typing import Literal

from tiercast_profiles.prices import Ownership

Tenure = Literal["rental", "owned", "own_hyperscaler", "own_neocloud"]
HOURS_PER_YEAR = 8760


def capital_recovery_ratio(discount_ratio: Decimal, life_years: Decimal) -> Decimal:
    """The yearly payment for one dollar of capital: r / (1 - (1 + r)^-n), or 1/n where capital costs nothing."""
    if discount_ratio == 0:
        return 1 / life_years
    return discount_ratio / (1 - (1 + discount_ratio) ** -life_years)


def capital_usd_per_hour(terms: Ownership, device_key: str) -> Decimal:
    """Capital of one device by the hour, used or not.

    Assumption A26: the residual value is paid at the end of the life, so it counts at its value today.
    """
    capital = terms.devices[device_key].capital_usd_per_device
    worth_today = terms.residual_ratio / (1 + terms.discount_ratio) ** terms.life_years
    yearly = capital * (1 - worth_today) * capital_recovery_ratio(terms.discount_ratio, terms.life_years)
    return yearly / HOURS_PER_YEAR


def energy_kw(terms: Ownership, power_kw: Decimal) -> Decimal:
    """Power that is paid for as energy: cooling is in it once, whichever way the book states the power."""
    return power_kw if terms.power_includes_cooling else power_kw * terms.power_usage_effectiveness


def colocation_kw(terms: Ownership, power_kw: Decimal) -> Decimal:
    """Power of the devices alone, which colocation is leased by (Assumption A27)."""
    return power_kw / terms.power_usage_effectiveness if terms.power_includes_cooling else power_kw
