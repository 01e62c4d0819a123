"""What each assumption of the model is worth: the same predictions with that assumption left out.

An assumption is left out by changing what goes into a prediction (the machine, the model, or the inputs of a published
case), never inside the simulator: the code that predicts knows nothing of it. Assumptions that no input can undo are
listed with the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tiercast_profiles.document import Quantity
from tiercast_profiles.hardware import HardwareProfile, Interference, LookupCurve, Storage
from tiercast_profiles.model import Backbone, ModelSpec
from tiercast_profiles.published import Prediction, WindowRatio
from tiercast_profiles.store import parse

T = TypeVar("T")
NO_TIME = Quantity(value=0.0)
WHOLE = Quantity(value=1.0)
HUGE = Quantity(value=1e9)  # GB/s: takes no time beside anything a profile states


def _same(value: T) -> T:
    return value


@dataclass(frozen=True, slots=True)
class Without:
    """One assumption left out: by what, and how machine, model and case inputs change."""

    assumption: str
    by: str
    hardware: Callable[[HardwareProfile], HardwareProfile] = _same
    model: Callable[[ModelSpec], ModelSpec] = _same
    prediction: Callable[[Prediction], Prediction] = _same


NOTHING = Without("none left out", "")


def _device(hardware: HardwareProfile, **changes: Any) -> HardwareProfile:  # Any: fields of different types
    return hardware.model_copy(update={"device": hardware.device.model_copy(update=changes)})


def _host(hardware: HardwareProfile, **changes: Any) -> HardwareProfile:  # Any: fields of different types
    return hardware.model_copy(update={"host": hardware.host.model_copy(update=changes)})


def _backbone(model: ModelSpec, **changes: Any) -> ModelSpec:  # Any: fields of different types
    return model.model_copy(update={"backbone": model.backbone.model_copy(update=changes)})


def _curves(hardware: HardwareProfile, change: Callable[[LookupCurve], LookupCurve]) -> HardwareProfile:
    return hardware.model_copy(update={"lookups": tuple(map(change, hardware.lookups))})


def _no_overhead(hardware: HardwareProfile) -> HardwareProfile:
    device = hardware.device
    layer, step = (dict.fromkeys(table, NO_TIME) for table in (device.layer_overhead_us, device.step_overhead_us))
    return _device(hardware, layer_overhead_us=layer, step_overhead_us=step)


def _peaks(hardware: HardwareProfile) -> HardwareProfile:
    return _device(hardware, memory_efficiency_ratio=WHOLE, matmul_efficiency_ratio=WHOLE)


def _few_experts(model: ModelSpec) -> ModelSpec:
    return _backbone(model, moe=None)


def _free_collectives(hardware: HardwareProfile) -> HardwareProfile:
    collective = hardware.device.collective
    if collective is None:
        return hardware
    return _device(
        hardware, collective=collective.model_copy(update={"latency_us": NO_TIME, "bandwidth_gb_per_s": HUGE})
    )


def _whole_prefill(model: ModelSpec) -> ModelSpec:
    backbone: Backbone = model.backbone
    if backbone.num_prefill_layers == backbone.num_layers:
        return model
    every = backbone.active_params_decode - backbone.vocab_size * backbone.hidden_size
    return _backbone(model, num_prefill_layers=backbone.num_layers, active_params_prefill=every)


def _free_gather(curve: LookupCurve) -> LookupCurve:
    if curve.path != "device":
        return curve
    free = {"fixed_us": NO_TIME, "row_ns": NO_TIME, "bandwidth_gb_per_s": HUGE, "points": ()}
    return curve.model_copy(update=free)


def _unshared(hardware: HardwareProfile) -> HardwareProfile:
    link = hardware.host_to_device.model_copy(update={"num_sharing": 1})
    return _host(hardware, memory_bandwidth_gb_per_s=HUGE).model_copy(update={"host_to_device": link})


def _near(hardware: HardwareProfile) -> HardwareProfile:
    return _host(hardware, remote_numa_speed_ratio=WHOLE)


def _undisturbed(hardware: HardwareProfile) -> HardwareProfile:
    return hardware.model_copy(update={"interference": ()})


def _unburdened(hardware: HardwareProfile) -> HardwareProfile:
    found = tuple(entry.model_copy(update={"overhead": None}) for entry in hardware.interference)
    return hardware.model_copy(update={"interference": found})


def _awake(hardware: HardwareProfile) -> HardwareProfile:
    at_once: dict[str, object] = {"wake_us": None, "turn_us": None, "behind_us": None}

    def awake(entry: Interference) -> Interference:
        if entry.overhead is None:
            return entry
        points = tuple(point.model_copy(update=at_once) for point in entry.overhead.points)
        return entry.model_copy(update={"overhead": entry.overhead.model_copy(update=at_once | {"points": points})})

    return hardware.model_copy(update={"interference": tuple(awake(entry) for entry in hardware.interference)})


def _instant_hops(hardware: HardwareProfile) -> HardwareProfile:
    instant = {"latency_us": NO_TIME, "bandwidth_gb_per_s": HUGE}
    up, down = (link.model_copy(update=instant) for link in (hardware.host_to_device, hardware.device_to_host))
    return hardware.model_copy(update={"host_to_device": up, "device_to_host": down})


def _drive_alone(hardware: HardwareProfile) -> HardwareProfile:
    nvme: Storage | None = hardware.nvme
    if nvme is None:
        return hardware
    return hardware.model_copy(update={"nvme": nvme.model_copy(update={"host_read_us": None})})


def _tables(hardware: HardwareProfile, **changes: object) -> HardwareProfile:
    tables = tuple(table.model_copy(update=changes) for table in hardware.compute)
    return hardware.model_copy(update={"compute": tables})


def _one_table(hardware: HardwareProfile) -> HardwareProfile:
    with_engram = tuple(table for table in hardware.compute if table.engram_sha256 is not None)
    return hardware.model_copy(update={"compute": with_engram})


def _waits_at_layers(prediction: Prediction) -> Prediction:
    if not isinstance(prediction, WindowRatio):
        return prediction
    return prediction.model_copy(update={"waits_at": ("layer",)})


def _unbanded(data: Any) -> Any:  # Any: any document as plain data
    if isinstance(data, dict):
        if data.keys() == {"value", "low", "high"}:
            return data["value"]
        return {key: _unbanded(value) for key, value in data.items()}
    return [_unbanded(value) for value in data] if isinstance(data, (list, tuple)) else data


def _certain_machine(hardware: HardwareProfile) -> HardwareProfile:
    return parse(HardwareProfile, _unbanded(hardware.model_dump(mode="json")), hardware.name)


def _certain_model(model: ModelSpec) -> ModelSpec:
    data = _unbanded(model.model_dump(mode="json")) | {"row_values_band": None}
    return parse(ModelSpec, data, model.name)


ABLATIONS: tuple[Without, ...] = (
    Without("A1", "no fixed overhead of layers and steps (A7's small kernels neither)", hardware=_no_overhead),
    Without("A1", "the full peaks of arithmetic and memory", hardware=_peaks),
    Without("A2", "a batch reads the experts of one token", model=_few_experts),
    Without("A4", "collectives of tensor parallel take no time", hardware=_free_collectives),
    Without("A6", "prompts run every layer", model=_whole_prefill),
    Without("A9", "the device gathers its own rows in no time", hardware=lambda it: _curves(it, _free_gather)),
    Without("A10", "ranks share neither host memory nor a link", hardware=_unshared),
    Without(
        "A11",
        "a row is read once for each token that asks for it",
        hardware=lambda it: _curves(it, lambda curve: curve.model_copy(update={"removes_duplicates": False})),
    ),
    Without("A13", "remote memory is as fast as local", hardware=_near),
    Without("A14", "lookups and compute do not slow each other", hardware=_undisturbed),
    Without("A18", "no bands: every input at its nominal value", hardware=_certain_machine, model=_certain_model),
    Without(
        "A19",
        "fitted parameters in the place of measured points",
        hardware=lambda it: _curves(it, lambda curve: curve.model_copy(update={"points": ()})),
    ),
    Without("A38", "ids and staged rows cross the link in no time", hardware=_instant_hops),
    Without(
        "A39", "decode attention follows the mean context", hardware=lambda it: _tables(it, context_statistic="mean")
    ),
    Without("A85", "a serial read takes the drive's time alone", hardware=_drive_alone),
    Without("A97", "a decoder without Engram layers takes what it takes between them", hardware=_one_table),
    Without("A98", "decode batches are settled right behind a prompt", hardware=lambda it: _tables(it, settling=None)),
    Without("A100", "lookups take nothing from compute beside its waiting", hardware=_unburdened),
    Without("A106", "the worker begins at once, and all lookups of a step alike", hardware=_awake),
    Without(
        "A107",
        "every lookup takes its mean",
        hardware=lambda it: _curves(it, lambda curve: curve.model_copy(update={"spreads": ()})),
    ),
    Without("A109", "every step computes for its mean time", hardware=lambda it: _tables(it, spreads=())),
    Without("A86", "staged rows are wanted at their layer only", prediction=_waits_at_layers),
)

NOT_IN_THE_CASES = "no case asks for it"
FIXED: dict[str, str] = {
    "A3": "which random ids are drawn moves nothing that a case reports",
    "A5": f"{NOT_IN_THE_CASES}: none uses `prev_step`",
    "A7": "has the number of A1 and goes with it",
    "A8": "without it nothing says which rank reads which rows",
    "A12": f"{NOT_IN_THE_CASES}: none that is scored has a cache",
    "A108": f"{NOT_IN_THE_CASES}: none that is scored has a cache",
    "A15": f"{NOT_IN_THE_CASES}: cycles with drafts are given, not simulated",
    "A16": "the same in both arms of a case",
    "A17": "moves host memory and the share A13 takes",
    "A70": f"{NOT_IN_THE_CASES}: one seed each",
    "A71": f"{NOT_IN_THE_CASES}: no shipped drive states reads in flight",
    "A72": f"{NOT_IN_THE_CASES}: none has a pool of several hosts",
    "A73": f"{NOT_IN_THE_CASES}: no shipped drive states a tail",
    "A74": f"{NOT_IN_THE_CASES}: start-up is not scored",
    "A75": f"{NOT_IN_THE_CASES}: cycles with drafts are given, not simulated",
    "A76": f"{NOT_IN_THE_CASES}: no prefix is cached",
    "A77": f"{NOT_IN_THE_CASES}: prefill and decode are together",
    "A80": f"{NOT_IN_THE_CASES}: none that is scored has a cache",
    "A81": f"{NOT_IN_THE_CASES}: no arm offloads experts",
    "A82": f"{NOT_IN_THE_CASES}: residency is not given where it matters",
    "A83": f"{NOT_IN_THE_CASES}: warming up is not scored",
    "A90": f"{NOT_IN_THE_CASES}: shipped profiles hold no layer times",
    "A91": f"{NOT_IN_THE_CASES}: none is predicted from a transferred profile",
    "A92": f"{NOT_IN_THE_CASES}: shipped profiles hold no layer times",
    "A102": f"{NOT_IN_THE_CASES}: shipped profiles hold no layer times",
    "A103": f"{NOT_IN_THE_CASES}: shipped profiles hold no layer times",
    "A104": f"{NOT_IN_THE_CASES}: shipped profiles hold no layer times",
    "A105": f"{NOT_IN_THE_CASES}: shipped profiles hold no layer times",
    "A110": "moves percentiles of steps alone, which no case reports",
    "A96": f"{NOT_IN_THE_CASES}: shipped profiles hold no gather sweep",
    "A101": "how the table of A97 is measured: goes with it",
    "A99": "a curve holds what a lookup takes from its start, hand-over included: nothing to leave out",
    **dict.fromkeys(("A20", "A21", "A22", "A23", "A24"), "cost alone"),
    **dict.fromkeys(("A30", "A31", "A35", "A36", "A37"), "the runtime's own; a prediction does not run it"),
}
"""Assumptions that no input switches off, with the reason."""
