"""Numbers of a profile at one end of their bands, checked before anything divides by them."""

import math

from tiercast_profiles.document import Bound, Quantity
from tiercast_profiles.errors import BadInput


def positive(quantity: Quantity, bound: Bound, name: str, *, higher_is_better: bool = True) -> float:
    """The number at ``bound``.

    Raises:
        BadInput: when it is not a positive finite number.
    """
    value = quantity.at(bound, higher_is_better=higher_is_better)
    if not (math.isfinite(value) and value > 0):
        raise BadInput(f"{name}={value:g} at the {bound} end of its band; must be > 0; correct the profile")
    return value


def non_negative(quantity: Quantity, bound: Bound, name: str, *, higher_is_better: bool = False) -> float:
    """The number at ``bound``.

    Raises:
        BadInput: when it is negative or not finite.
    """
    value = quantity.at(bound, higher_is_better=higher_is_better)
    if not (math.isfinite(value) and value >= 0):
        raise BadInput(f"{name}={value:g} at the {bound} end of its band; must be >= 0; correct the profile")
    return value


def speed_ratio(quantity: Quantity, bound: Bound, name: str) -> float:
    """The ratio at ``bound``; 1 means full speed.

    Raises:
        BadInput: when it lies outside (0, 1].
    """
    value = quantity.at(bound, higher_is_better=True)
    if not 0 < value <= 1:
        raise BadInput(f"{name}={value:g} at the {bound} end of its band; must lie in (0, 1]; correct the profile")
    return value
