"""Whole hosts for a demand, and what a budget buys. Money and host counts are exact."""

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from tiercast_profiles.errors import BadInput

SECONDS_PER_DAY = 86_400
MAX_TOKENS_PER_DAY = 10**15


@dataclass(frozen=True, slots=True)
class Fleet:
    """``num_hosts`` whole hosts, what they cost and what they serve at the utilisation of the price book."""

    num_hosts: int
    num_devices: int
    usd_per_hour: Decimal
    tokens_per_day: int


def size_fleet(
    *,
    total_tokens_per_s: float,
    usd_per_host_hour: Decimal,
    devices_per_host: int,
    utilization_ratio: float,
    demand_tokens_per_day: int | None = None,
    budget_usd_per_hour: Decimal | None = None,
) -> Fleet:
    """As few hosts as the demand needs; without one, as many as the budget buys; with neither, one.

    Assumption A30: a fleet is whole hosts, demand is input and output tokens together, and a host serves
    ``utilization_ratio`` of the time at the rate it was planned for.

    Raises:
        BadInput: a demand or a budget that is not above zero, or a demand beyond 10^15 tokens a day.
    """
    if demand_tokens_per_day is not None and not 0 < demand_tokens_per_day <= MAX_TOKENS_PER_DAY:
        raise BadInput(f"demand of {demand_tokens_per_day} tokens a day; it must be from 1 to 10^15")
    if budget_usd_per_hour is not None and not budget_usd_per_hour > 0:
        raise BadInput(f"budget of {budget_usd_per_hour} USD an hour; it must be above 0")
    per_day = Decimal(str(total_tokens_per_s)) * Decimal(str(utilization_ratio)) * SECONDS_PER_DAY
    num_hosts = 1
    if demand_tokens_per_day is not None:
        num_hosts = int((demand_tokens_per_day / per_day).to_integral_value(ROUND_CEILING))
    elif budget_usd_per_hour is not None:
        num_hosts = max(1, int(budget_usd_per_hour // usd_per_host_hour))
    return Fleet(num_hosts, num_hosts * devices_per_host, num_hosts * usd_per_host_hour, int(num_hosts * per_day))
