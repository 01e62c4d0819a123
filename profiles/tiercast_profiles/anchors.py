"""A measured profile beside the datasheet of the same product: how much of each anchor the machine reaches."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tiercast_profiles.document import Bound, Quantity
from tiercast_profiles.errors import BadInput
from tiercast_profiles.hardware import HardwareProfile, LookupCurve
from tiercast_profiles.units import NS_PER_US

LOOKUP_ROW_BYTES = 264  # a packed row of DeepSeek-V4.1-Flash: 256 B and 8 B of scales
FEW_ROWS, MANY_ROWS = 24, 8192 * 24  # one token, and one prefill chunk, of one of its layers
_ENDS: tuple[Bound, Bound] = ("optimistic", "pessimistic")
Side = tuple[Quantity | None, str]  # a number, and the path of its evidence


@dataclass(frozen=True, slots=True)
class Anchor:
    """One quantity of both profiles.

    ``of_anchor_ratio`` is measured over datasheet; above 1 is more bandwidth than the anchor, or, where ``unit`` is a
    time, a longer one. ``is_in_band`` is None where the anchor has no band.
    """

    what: str
    unit: str
    measured: float
    anchor: float
    anchor_low: float | None
    anchor_high: float | None
    of_anchor_ratio: float
    mark: str

    @property
    def is_in_band(self) -> bool | None:
        """True when the measured value lies within the band of the anchor."""
        if self.anchor_low is None or self.anchor_high is None:
            return None
        return self.anchor_low <= self.measured <= self.anchor_high


def matching_preset(
    measured: HardwareProfile, presets: Sequence[HardwareProfile], option: str = "--with"
) -> HardwareProfile:
    """The one preset of the measured product; ``option`` is what a person gives to choose another.

    Raises:
        BadInput: none or several are of this product; the message says which to choose from.
    """
    product = measured.device.product_name
    fitting = [preset for preset in presets if is_same_product(product, preset.device.product_name)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(preset.name for preset in fitting or presets)
    found = "several shipped machines are" if fitting else "no shipped machine is"
    raise BadInput(f"{measured.name}: {found} of product {product!r}; give {option} one of: {names}")


def is_same_product(first: str, second: str) -> bool:
    """Product names agree when the words of one are in the other: drivers and sellers add memory and form factor."""
    one, two = (set(re.findall(r"[a-z0-9]+", text.lower())) - {"nvidia", "amd"} for text in (first, second))
    return bool(one and two) and (one <= two or two <= one)


def compare_with_preset(measured: HardwareProfile, preset: HardwareProfile) -> tuple[Anchor, ...]:
    """Every quantity that was measured and that the preset states too, in the order of the profile.

    Raises:
        BadInput: nothing in the first profile was measured.
    """
    anchors = []
    for what, unit, get in _quantities(measured, preset):
        (mine, path), (theirs, _) = get(measured), get(preset)
        source = measured.source_of(path)
        if mine is None or theirs is None or source is None or source.kind not in ("measured", "derived"):
            continue
        if source == preset.source_of(path) or theirs.value == 0:
            continue  # the preset's own number says nothing of this machine
        anchors.append(
            Anchor(
                what, unit, mine.value, theirs.value, theirs.low, theirs.high, mine.value / theirs.value, source.mark
            )
        )
    if not anchors:
        raise BadInput(f"{measured.name}: holds no measured number that {preset.name!r} states too; nothing to compare")
    return tuple(anchors)


def _quantities(
    measured: HardwareProfile, preset: HardwareProfile
) -> list[tuple[str, str, Callable[[HardwareProfile], Side]]]:
    found: list[tuple[str, str, Callable[[HardwareProfile], Side]]] = [
        ("device.memory_capacity_gb", "GB", _field("device.memory_capacity_gb")),
        ("device.memory_bandwidth_gb_per_s", "GB/s", _field("device.memory_bandwidth_gb_per_s")),
        *(
            (f"device.dense_tflops.{precision}", "TFLOPS", _rate(str(precision)))
            for precision in measured.device.dense_tflops
            if precision in preset.device.dense_tflops
        ),
        ("device.power_w", "W", _field("device.power_w")),
        ("host.memory_capacity_gb", "GB", _field("host.memory_capacity_gb")),
        ("host.memory_bandwidth_gb_per_s", "GB/s", _field("host.memory_bandwidth_gb_per_s")),
        ("host_to_device.bandwidth_gb_per_s", "GB/s", _field("host_to_device.bandwidth_gb_per_s")),
        ("host_to_device.latency_us", "us", _field("host_to_device.latency_us")),
        ("device_to_host.bandwidth_gb_per_s", "GB/s", _field("device_to_host.bandwidth_gb_per_s")),
        ("device_to_host.latency_us", "us", _field("device_to_host.latency_us")),
        ("nvme.read_bandwidth_gb_per_s", "GB/s", _field("nvme.read_bandwidth_gb_per_s")),
        ("nvme.latency_us", "us", _field("nvme.latency_us")),
        ("nvme.max_reads_per_s", "reads/s", _field("nvme.max_reads_per_s")),
    ]
    for curve in measured.lookups:
        if curve.is_calibrated and preset.curve(curve.tier, curve.path) is not None:
            name = f"{curve.tier} by {curve.path}, {LOOKUP_ROW_BYTES} B rows"
            found.append((f"{name}: {FEW_ROWS} at once", "us", _lookup(curve, FEW_ROWS, is_time=True)))
            found.append((f"{name}: {MANY_ROWS:,} at once", "GB/s", _lookup(curve, MANY_ROWS, is_time=False)))
    return found


def _field(path: str) -> Callable[[HardwareProfile], Side]:
    section, _, key = path.partition(".")

    def get(profile: HardwareProfile) -> Side:
        return getattr(getattr(profile, section), key, None), path

    return get


def _rate(precision: str) -> Callable[[HardwareProfile], Side]:
    return lambda profile: (
        next(rate for name, rate in profile.device.dense_tflops.items() if name == precision),
        f"device.dense_tflops.{precision}",
    )


def _lookup(like: LookupCurve, num_rows: int, *, is_time: bool) -> Callable[[HardwareProfile], Side]:
    def get(profile: HardwareProfile) -> Side:
        index = next(i for i, c in enumerate(profile.lookups) if (c.tier, c.path) == (like.tier, like.path))
        quantity = lookup_time_us(profile.lookups[index], num_rows, LOOKUP_ROW_BYTES)
        path = f"lookups.{index}.fixed_us"
        if is_time:
            return quantity, path
        gigabytes_us = num_rows * LOOKUP_ROW_BYTES / 1e3  # GB/s × µs = 1e3 B
        slow, fast = quantity.high, quantity.low
        return Quantity(
            value=gigabytes_us / quantity.value,
            low=None if slow is None else gigabytes_us / slow,
            high=None if fast is None else gigabytes_us / fast,
        ), path

    return get


def lookup_time_us(curve: LookupCurve, num_rows: int, row_bytes: int) -> Quantity:
    """Time of a lookup by the parameters of its curve, with the band of the best and the worst of all of them."""
    moved = math.ceil(row_bytes / curve.read_granularity_bytes) * curve.read_granularity_bytes

    def time_us(fixed_us: float, row_ns: float, bandwidth_gb_per_s: float) -> float:
        return fixed_us + num_rows * max(row_ns, moved / bandwidth_gb_per_s) / NS_PER_US

    fixed, row, rate = curve.fixed_us, curve.row_ns, curve.bandwidth_gb_per_s
    best, worst = (
        time_us(
            fixed.at(bound, higher_is_better=False),
            row.at(bound, higher_is_better=False),
            rate.at(bound, higher_is_better=True),
        )
        for bound in _ENDS
    )
    middle = time_us(fixed.value, row.value, rate.value)
    if best == worst:
        return Quantity(value=middle)
    return Quantity(value=middle, low=best, high=worst)
