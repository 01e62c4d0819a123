"""A machine known only by its datasheet, with the efficiencies of a machine that was measured.

What carries over is what the same software would reach elsewhere: shares of the peaks and of the links, and the fixed
times that software spends. What does not carry over stays the preset's own: peaks, capacities, power, collectives and
tiers.

Assumption A91: shares of the datasheet's peaks, links and memory are the same on both machines; so are fixed times.
"""

import datetime
from typing import Any

from tiercast_profiles.document import Quantity
from tiercast_profiles.errors import BadInput
from tiercast_profiles.hardware import Efficiency, HardwareProfile, LookupCurve
from tiercast_profiles.model import Precision
from tiercast_profiles.store import parse

SOURCE = "transferred"
# What is read through: the quantity whose ratio between two machines scales a lookup curve.
CARRIERS: dict[tuple[str, str], str] = {
    ("hbm", "device"): "device.memory_bandwidth_gb_per_s",
    ("dram", "uva"): "host_to_device.bandwidth_gb_per_s",
    ("dram", "cpu_gather"): "host.memory_bandwidth_gb_per_s",
}
Body = dict[str, Any]  # Any: a document before its schema has seen it


def transfer(
    measured: HardwareProfile, preset: HardwareProfile, anchor: HardwareProfile | None = None
) -> HardwareProfile:
    """The machine ``preset`` with the efficiencies of the machine ``measured``.

    Args:
        measured: a profile that probes wrote, the machine A. Its ``efficiencies`` are used where it has some, the one
            with the most points per graph mode; else the shares that its matrix products reached.
        preset: the machine B that is asked about. Of a datasheet preset the peaks are the datasheet's, so A's shares
            are taken of A's datasheet, which is ``anchor``. Where B is itself measured, its measured peaks are what is
            stated, A's shares are of A's measured peaks, and B's layer times are left out: that is how a transfer is
            tested on machines at hand.
        anchor: the datasheet preset of A's own product (:func:`tiercast_profiles.anchors.matching_preset` finds it).

    Returns:
        B with, from A: the shares of arithmetic and of memory bandwidth, the overheads of a layer and of a step in each
        graph mode that A was measured in, the share of the link, and the lookup curves of paths that both have and A
        measured, scaled by what they read through. Each such number names the source ``transferred``; the curves are
        uncalibrated. B has no layer times, so the simulator's roofline serves, with A's shares.

    Raises:
        BadInput: A is not measured; one of the two is a CPU and the other is not; or B is a datasheet and the anchor is
            missing, is measured itself, or states other precisions than A.
    """
    _check(measured, preset, anchor)
    stated = measured if anchor is None else anchor
    body: Body = preset.model_dump(mode="json")
    for key in ("compute", "efficiencies", "gather_sweeps", "probes"):
        body.pop(key, None)
        _forget(body, key)
    body["name"] = f"{preset.name}-as-{measured.name}"[:80].rstrip("-._")
    body["description"] = f"{preset.description} With the efficiencies of {measured.name}, carried over by arithmetic."
    body["calibration"] = "datasheet"
    fits = _best_fits(measured)
    for name, quantity in _shares(measured, stated, fits).items():
        _state(body, f"device.{name}", quantity)
    for what in ("layer_overhead_us", "step_overhead_us"):
        times = dict(getattr(measured.device, what)) | {mode: getattr(fit, what) for mode, fit in fits.items()}
        for mode, quantity in times.items():
            _state(body, f"device.{what}.{mode}", quantity)
    if measured.device.kind != "cpu":
        for link in ("host_to_device", "device_to_host"):
            ratio = _ratio(preset, stated, f"{link}.bandwidth_gb_per_s")
            _state(body, f"{link}.bandwidth_gb_per_s", _scaled(getattr(measured, link).bandwidth_gb_per_s, ratio))
            _state(body, f"{link}.latency_us", getattr(measured, link).latency_us)
    for index, curve in enumerate(preset.lookups):
        mine = measured.curve(curve.tier, curve.path)
        carrier = CARRIERS.get((curve.tier, curve.path))
        if mine is None or not mine.is_calibrated or carrier is None or curve.is_calibrated:
            continue
        _carry_curve(body, index, mine, _ratio(preset, stated, carrier))
    body["sources"][SOURCE] = {
        "kind": "derived",
        "mark": "D",
        "source": f"shares and fixed times of {measured.name} on the peaks of {preset.name} (Assumption A91)"
        + ("" if anchor is None else f"; shares taken of {anchor.name}"),
        "date": _date(measured).isoformat(),
    }
    body["sources"] = {key: body["sources"][key] for key in dict.fromkeys(body["evidence"].values())}
    return parse(HardwareProfile, body, f"{measured.name} to {preset.name}")


def _check(measured: HardwareProfile, preset: HardwareProfile, anchor: HardwareProfile | None) -> None:
    if measured.calibration != "measured":
        raise BadInput(f"{measured.name}: a datasheet; give a profile that was measured (tiercast profile)")
    kinds = {profile.name: "a CPU" if profile.device.kind == "cpu" else "a GPU" for profile in (measured, preset)}
    if len(set(kinds.values())) > 1:
        said = ", ".join(f"{name} computes on {kind}" for name, kind in kinds.items())
        raise BadInput(f"{said}: what one of them reaches of its peaks says nothing of the other")
    if preset.calibration == "measured":
        if anchor is not None:
            raise BadInput(f"{preset.name}: measured itself, so shares are of measured peaks; leave the anchor out")
        return
    if anchor is None or anchor.calibration == "measured":
        raise BadInput(f"{measured.name}: give the datasheet preset of its own product, of whose peaks its shares are")


def _best_fits(measured: HardwareProfile) -> dict[str, Efficiency]:
    """Per graph mode the fit over the most layers."""
    best: dict[str, Efficiency] = {}
    for fit in measured.efficiencies:
        if fit.graph_mode not in best or fit.num_points > best[fit.graph_mode].num_points:
            best[fit.graph_mode] = fit
    return best


def _shares(measured: HardwareProfile, stated: HardwareProfile, fits: dict[str, Efficiency]) -> dict[str, Quantity]:
    """Shares of what is stated of A: those of layers where they were fitted, of matrix products elsewhere.

    Graphs show what kernels reach; without them a small layer waits for its launches, which are overhead.
    """
    fit = next((fits[mode] for mode in ("full", "piecewise", "eager") if mode in fits), None)
    mine, theirs = measured.device, stated.device
    arithmetic = mine.matmul_efficiency_ratio if fit is None else fit.arithmetic_ratio
    memory = mine.memory_efficiency_ratio if fit is None else fit.memory_ratio
    candidates: list[Precision] = ["bf16", "fp32", "fp8", "fp4"]
    if fit is not None:
        candidates.insert(0, fit.precision)
    peaks = [
        mine.dense_tflops[name].value / theirs.dense_tflops[name].value
        for name in candidates
        if mine.dense_tflops.get(name) is not None and theirs.dense_tflops.get(name) is not None
    ]
    if not peaks:
        raise BadInput(f"{stated.name}: states none of the precisions that were measured on {measured.name}")
    rate = mine.memory_bandwidth_gb_per_s.value / theirs.memory_bandwidth_gb_per_s.value
    return {
        "matmul_efficiency_ratio": _scaled(arithmetic, peaks[0], most=1.0),
        "memory_efficiency_ratio": _scaled(memory, rate, most=1.0),
    }


def _ratio(preset: HardwareProfile, stated: HardwareProfile, path: str) -> float:
    """How much more B states of a quantity than is stated of A."""
    return _value(preset, path) / _value(stated, path)


def _value(profile: HardwareProfile, path: str) -> float:
    section, _, key = path.partition(".")
    value: float = getattr(getattr(profile, section), key).value
    return value


def _carry_curve(body: Body, index: int, mine: LookupCurve, ratio: float) -> None:
    """Fixed time as measured; the time of a row and the bandwidth by the ratio of what they go through."""
    entry = body["lookups"][index]
    entry |= {"is_calibrated": False, "points": []}
    _state(body, f"lookups.{index}.fixed_us", mine.fixed_us)
    _state(body, f"lookups.{index}.row_ns", _scaled(mine.row_ns, 1 / ratio))
    _state(body, f"lookups.{index}.bandwidth_gb_per_s", _scaled(mine.bandwidth_gb_per_s, ratio))
    _state(body, f"lookups.{index}.read_granularity_bytes", mine.read_granularity_bytes)


def _scaled(quantity: Quantity, factor: float, most: float | None = None) -> Quantity:
    def one(value: float) -> float:
        product = float(f"{value * factor:.5g}")
        return product if most is None else min(most, product)

    if quantity.low is None or quantity.high is None:
        return Quantity(value=one(quantity.value))
    return Quantity(value=one(quantity.value), low=one(quantity.low), high=one(quantity.high))


def _state(body: Body, path: str, value: Quantity | int) -> None:
    """Put a value at a dotted path, with ``transferred`` as its only source."""
    *above, last = path.split(".")
    place: Any = body  # Any: a mapping or a list on the way down
    for part in above:
        place = place[int(part)] if isinstance(place, list) else place[part]
    place[last] = value if isinstance(value, int) else value.model_dump(mode="json")
    _forget(body, path)
    body["evidence"][path] = SOURCE


def _forget(body: Body, path: str) -> None:
    """Drop the evidence of a path and of everything below it."""
    evidence = body["evidence"].items()
    body["evidence"] = {key: source for key, source in evidence if key != path and not key.startswith(f"{path}.")}


def _date(measured: HardwareProfile) -> datetime.date:
    """The day of the youngest measurement."""
    return max(source.date for source in measured.sources.values())
