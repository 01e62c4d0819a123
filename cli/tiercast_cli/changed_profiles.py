"""Profiles with one thing changed: made wrong on purpose, or taken to the pace that the machine had at another time.

A validation that does not catch a wrong profile would catch nothing. Each way spoils one thing of a measured profile
that the suite must notice: the error table then moves in a known direction, in the cases that use the spoilt thing, and
nowhere else.
"""

from collections.abc import Callable
from typing import Literal, get_args

from tiercast_cli.run_pace import RunPace
from tiercast_profiles.document import Quantity
from tiercast_profiles.hardware import ComputePoint, ComputeTable, HardwareProfile, Link, LookupCurve, LookupPoint

Wrong = Literal["link-halved", "rows-doubled", "layers-slower"]
WRONG: tuple[Wrong, ...] = get_args(Wrong)
BY_NAME: dict[str, Wrong] = {name: name for name in WRONG}
WORDS: dict[Wrong, str] = {
    "link-halved": "everything below device memory at half its speed: links, drive, and the lookups measured over them",
    "rows-doubled": "every lookup charged for twice its rows",
    "layers-slower": "every component of a step a fifth slower",
}
SLOWER = 1.2


def spoilt(profile: HardwareProfile, how: Wrong) -> HardwareProfile:
    """The profile with one thing wrong; its name says so."""
    changed = {"link-halved": _link_halved, "rows-doubled": _rows_doubled, "layers-slower": _layers_slower}[how](
        profile
    )
    return changed.model_copy(update={"name": f"{profile.name}-{how}"})


def _link_halved(profile: HardwareProfile) -> HardwareProfile:
    def halved(link: Link) -> Link:
        return link.model_copy(update={"bandwidth_gb_per_s": _scaled(link.bandwidth_gb_per_s, 0.5)})

    tiers = {
        name: tier.model_copy(update={"read_bandwidth_gb_per_s": _scaled(tier.read_bandwidth_gb_per_s, 0.5)})
        for name, tier in (("nvme", profile.nvme), ("cxl", profile.cxl), ("pool", profile.pool))
        if tier is not None
    }
    return profile.model_copy(
        update={
            "host_to_device": halved(profile.host_to_device),
            "device_to_host": halved(profile.device_to_host),
            "lookups": tuple(curve if curve.tier == "hbm" else _slower_curve(curve, 2) for curve in profile.lookups),
            **tiers,
        }
    )


def _rows_doubled(profile: HardwareProfile) -> HardwareProfile:
    def doubled(curve: LookupCurve) -> LookupCurve:
        fixed_us = curve.fixed_us.value
        return curve.model_copy(
            update={
                "row_ns": _scaled(curve.row_ns, 2),
                "bandwidth_gb_per_s": _scaled(curve.bandwidth_gb_per_s, 0.5),
                "points": tuple(
                    _lookup_point(point, lambda time_us: max(time_us, 2 * time_us - fixed_us)) for point in curve.points
                ),
            }
        )

    return profile.model_copy(update={"lookups": tuple(doubled(curve) for curve in profile.lookups)})


def _layers_slower(profile: HardwareProfile) -> HardwareProfile:
    return _slower_layers(profile, lambda _num_tokens: SLOWER)


def at_pace(profile: HardwareProfile, pace: RunPace) -> HardwareProfile:
    """The profile had its layers and its reads from a drive taken as long as they did around some runs.

    A measured time is stretched by the ratio of the reference step of its size, whatever the component: by the number
    of tokens, or of sequences or sampled tokens where that is what the component counts (:meth:`RunPace.ratio_at`).
    Only three sizes of one model at one context were timed: between them the ratio is interpolated, outside held, and
    other components of the same size may have changed speed otherwise. Links and lookups in memory stay as they are,
    and so do the reads where the drive was not timed.
    """
    ratio = 1.0 if pace.disk_ratio is None else pace.disk_ratio
    curves = tuple(_slower_curve(curve, ratio) if curve.path == "disk" else curve for curve in profile.lookups)
    return _slower_layers(profile, pace.ratio_at).model_copy(update={"lookups": curves})


def _slower_layers(profile: HardwareProfile, ratio_of: Callable[[int], float]) -> HardwareProfile:
    """Every component's times multiplied by a ratio that may depend on the tokens of the point."""

    def slower_point(point: ComputePoint) -> ComputePoint:
        ratio = ratio_of(point.num_tokens)
        names = ("time_us", "low_us", "high_us", *(() if point.host_us is None else ("host_us",)))
        return point.model_copy(update={name: ratio * getattr(point, name) for name in names})

    def slower(table: ComputeTable) -> ComputeTable:
        components = {name: tuple(map(slower_point, points)) for name, points in table.components.items()}
        return table.model_copy(update={"components": components})

    return profile.model_copy(update={"compute": tuple(slower(table) for table in profile.compute)})


def _slower_curve(curve: LookupCurve, ratio: float) -> LookupCurve:
    return curve.model_copy(
        update={
            "fixed_us": _scaled(curve.fixed_us, ratio),
            "row_ns": _scaled(curve.row_ns, ratio),
            "bandwidth_gb_per_s": _scaled(curve.bandwidth_gb_per_s, 1 / ratio),
            "points": tuple(_lookup_point(point, lambda time_us: ratio * time_us) for point in curve.points),
        }
    )


def _lookup_point(point: LookupPoint, change: Callable[[float], float]) -> LookupPoint:
    return point.model_copy(update={name: change(getattr(point, name)) for name in ("time_us", "low_us", "high_us")})


def _scaled(quantity: Quantity, factor: float) -> Quantity:
    ends = {
        name: None if getattr(quantity, name) is None else factor * getattr(quantity, name)
        for name in ("value", "low", "high")
    }
    return quantity.model_copy(update=ends)
