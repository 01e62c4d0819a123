"""Numbers of a profile at one end of their bands, checked before anything divides by them."""

from tiercast_profiles.document import Bound, Quantity
from tiercast_profiles.errors import BadInput

SMALLEST, LARGEST = 1e-15, 1e15
"""No rate, size, time or ratio of a machine lies outside, in the units of the profile; inside, times stay finite."""


def positive(quantity: Quantity, bound: Bound, name: str, *, higher_is_better: bool = True) -> float:
    """The number at ``bound``.

    Raises:
        BadInput: when it is not a positive number that a machine can have.
    """
    value = quantity.at(bound, higher_is_better=higher_is_better)
    if not SMALLEST <= value <= LARGEST:
        allowed = "> 0" if value <= 0 else f"between {SMALLEST:g} and {LARGEST:g}"
        raise BadInput(f"{name}={value:g} at the {bound} end of its band; must be {allowed}; correct the profile")
    return value


def non_negative(quantity: Quantity, bound: Bound, name: str, *, higher_is_better: bool = False) -> float:
    """The number at ``bound``.

    Raises:
        BadInput: when it is negative or more than a machine can have.
    """
    value = quantity.at(bound, higher_is_better=higher_is_better)
    if not 0 <= value <= LARGEST:
        allowed = ">= 0" if value < 0 else f"at most {LARGEST:g}"
        raise BadInput(f"{name}={value:g} at the {bound} end of its band; must be {allowed}; correct the profile")
    return value


def speed_ratio(quantity: Quantity, bound: Bound, name: str) -> float:
    """The ratio at ``bound``; 1 means full speed.

    Raises:
        BadInput: when it lies outside (0, 1].
    """
    value = quantity.at(bound, higher_is_better=True)
    if not SMALLEST <= value <= 1:
        raise BadInput(f"{name}={value:g} at the {bound} end of its band; must lie in (0, 1]; correct the profile")
    return value
