"""How each kind of published quantity is predicted: from shipped profiles and the inputs of the case, nothing else."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tiercast_plan.ablation import NOTHING, Without
from tiercast_plan.settings import apply
from tiercast_profiles.document import BOUNDS, Bound, Quantity
from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.hardware import HardwareProfile, LookupCurve
from tiercast_profiles.published import (
    DriveReads,
    LookupTime,
    Prediction,
    SerialReads,
    Settings,
    SimulatedRatio,
    TableMemory,
    WaitsAt,
    WindowRatio,
)
from tiercast_profiles.scenario import Prefetch, ResolvedScenario, Scenario, combine
from tiercast_profiles.store import load_hardware, load_model, load_prices, parse
from tiercast_profiles.units import NS_PER_MS, NS_PER_S, NS_PER_US, bytes_to_gib
from tiercast_sim.closed_form import WorkerState, run_step
from tiercast_sim.lookup import CurveTimes
from tiercast_sim.memory import memory_plan
from tiercast_sim.simulate import simulate
from tiercast_sim.work import LookupWork, StepWork

ALLOCATION_BYTES = 2 << 20
"""PyTorch's caching allocator rounds large device blocks up to whole 2 MiB (recalled from its source, kRoundLarge)."""
NUM_TENSORS_PER_TABLE = 2  # values and scales


@dataclass(frozen=True, slots=True)
class Predicted:
    """A value at the nominal inputs, and the smallest and largest over every band and choice."""

    value: float
    low: float
    high: float


def predict(prediction: Prediction, without: Without = NOTHING) -> Predicted:
    """Predict one published quantity, with an assumption left out if one is named.

    Raises:
        TiercastError: the case names a scenario, a model or a machine that cannot be run.
    """
    prediction = without.prediction(prediction)
    if isinstance(prediction, SimulatedRatio):
        return _band(simulated_ratios(prediction, without))
    if isinstance(prediction, WindowRatio):
        return _band(
            _corners(
                lambda bound, step, rows, waits_at: _window_ratio(
                    prediction, bound, step, rows, waits_at, without=without
                ),
                prediction.step_ms,
                prediction.rows_per_layer,
                choices=prediction.waits_at,
            )
        )
    if isinstance(prediction, SerialReads):
        return _band(
            _corners(
                lambda bound, step, count: _serial_ratio(prediction, bound, step, count, without),
                prediction.step_ms,
                prediction.num_reads,
            )
        )
    if isinstance(prediction, LookupTime):
        return _band(
            _corners(
                lambda bound, rows: _lookup_ns(prediction.reads, bound, rows, without) / NS_PER_MS, prediction.rows
            )
        )
    return _band(_table_memory(prediction, without))


def _band(found: Iterable[float]) -> Predicted:
    values = list(found)
    return Predicted(values[0], min(values), max(values))


def _corners(answer: Callable[..., float], *inputs: Quantity, choices: Sequence[str] | None = None) -> list[float]:
    """The answer at the nominal inputs and the first choice first, then at every end of every band and every choice."""
    ends = [
        (quantity.value,)
        if quantity.low is None or quantity.high is None
        else (quantity.value, quantity.low, quantity.high)
        for quantity in inputs
    ]
    if choices is None:
        return [answer(bound, *values) for bound, *values in itertools.product(BOUNDS, *ends)]
    return [answer(bound, *values, chosen) for chosen, bound, *values in itertools.product(choices, BOUNDS, *ends)]


def simulated_ratios(prediction: SimulatedRatio, without: Without = NOTHING) -> list[float]:
    """Output tokens per second of the arm over the baseline: nominal first, then every choice at every bound."""
    found: list[float] = []
    for chosen in itertools.product(*prediction.choices.values()):
        settings = dict(zip(prediction.choices, chosen, strict=True))
        arm, baseline = (
            _throughput(_resolved(prediction.scenario, {**settings, **own}, hardware, without))
            for own, hardware in (
                (prediction.arm, prediction.arm_hardware),
                (prediction.baseline, prediction.baseline_hardware),
            )
        )
        found += [arm[bound] / baseline[bound] for bound in BOUNDS if bound in arm and bound in baseline]
    return found


def _resolved(
    scenario: Settings, settings: Settings, hardware_settings: Settings, without: Without
) -> ResolvedScenario:
    data = parse(Scenario, scenario, "published case").model_dump(mode="json")
    for path, value in settings.items():
        data = apply(data, path, value)
    ready = parse(Scenario, data, "published case")
    hardware = without.hardware(changed_hardware(load_hardware(ready.hardware), hardware_settings))
    return combine(ready, hardware, without.model(load_model(ready.model)), load_prices(ready.prices))


def _throughput(resolved: ResolvedScenario) -> dict[Bound, float]:
    metric = simulate(resolved, with_baselines=False, keep_samples=False).metrics.output_tokens_per_s
    found: dict[Bound, float] = {"nominal": metric.value}
    if metric.low is not None and metric.high is not None:
        found |= {"optimistic": metric.high, "pessimistic": metric.low}
    return found


def changed_hardware(hardware: HardwareProfile, settings: Settings) -> HardwareProfile:
    """A profile with numbers of its lookup curves replaced; ``lookups.dram/uva.fixed_us`` names one.

    Raises:
        BadInput: the path names no number of a curve the machine has.
    """
    data: dict[str, Any] = hardware.model_dump(mode="json")
    for path, value in settings.items():
        room, _, rest = path.partition(".")
        which, _, field = rest.rpartition(".")
        curves = [curve for curve in data["lookups"] if f"{curve['tier']}/{curve['path']}" == which]
        if room != "lookups" or not curves or field not in LookupCurve.model_fields:
            raise BadInput(
                f"{path!r} names no number of a lookup curve of {hardware.name}; write lookups.dram/uva.row_ns"
            )
        curves[0][field] = value
    return parse(HardwareProfile, data, hardware.name)


def _curve_times(machine: HardwareProfile, reads: DriveReads, bound: Bound) -> CurveTimes:
    curve = machine.curve(reads.tier, reads.path)
    if curve is None:
        raise MissingCapability(f"{machine.name!r} has no curve for {reads.tier}/{reads.path}")
    return CurveTimes(curve, bound, footprint_bytes=1)


def _machine(name: str, without: Without) -> HardwareProfile:
    return without.hardware(load_hardware(name))


def _lookup_ns(reads: DriveReads, bound: Bound, num_rows: float, without: Without) -> float:
    """Time of a lookup alone: the shipped curve, or its fixed time and the rate of reads the source gives."""
    machine = _machine(reads.hardware, without)
    if reads.is_serial:
        return num_rows * _drive_latency_ns(machine, bound)
    times = _curve_times(machine, reads, bound)
    if reads.reads_per_s is None:
        return times.time_ns(num_rows, (reads.row_bytes,))
    rate = reads.reads_per_s.at(bound, higher_is_better=True)
    return times.fixed_ns + num_rows * NS_PER_S / rate


def _window_ratio(
    prediction: WindowRatio, bound: Bound, step_ms: float, num_rows: float, waits_at: WaitsAt, *, without: Without
) -> float:
    lookup_ns = round(_lookup_ns(prediction.reads, bound, num_rows, without))
    layer_ns = step_ms * NS_PER_MS / prediction.num_layers
    layer_ids = prediction.engram_layer_ids
    if waits_at == "step":
        layer_ids = (0,) * len(layer_ids)
    edges = (0, *layer_ids, prediction.num_layers)
    segments = tuple(round((end - start) * layer_ns) for start, end in itertools.pairwise(edges))
    lookup = LookupWork(lookup_ns, (), 0.0, round(num_rows), 0)
    work = StepWork(pre_ns=0, segments_ns=segments, lookups=(lookup,) * len(layer_ids))

    def stalls_ns(prefetch: Prefetch) -> int:
        return sum(run_step(work, prefetch, WorkerState()).stall_ns)

    step_ns = step_ms * NS_PER_MS
    if prediction.baseline == "resident":
        return step_ns / (step_ns + stalls_ns(prediction.prefetch))
    # The known step holds the stalls of fetching on demand; they end where the prefetch hides them.
    return step_ns / max(1.0, step_ns - stalls_ns("off") + stalls_ns(prediction.prefetch))


def _serial_ratio(prediction: SerialReads, bound: Bound, step_ms: float, num_reads: float, without: Without) -> float:
    read_ms = _drive_latency_ns(_machine(prediction.hardware, without), bound) / NS_PER_MS
    return step_ms / max(read_ms, step_ms - (num_reads - 1) * read_ms)


def _drive_latency_ns(machine: HardwareProfile, bound: Bound) -> float:
    """What a thread that reads one thing after another waits for each: the drive, and the host's own work."""
    storage = machine.nvme
    if storage is None:
        raise MissingCapability(f"{machine.name!r} has no NVMe tier")
    latency_us = storage.latency_us.at(bound, higher_is_better=False)
    if storage.host_read_us is not None:
        latency_us += storage.host_read_us.at(bound, higher_is_better=False)
    return latency_us * NS_PER_US


def _table_memory(prediction: TableMemory, without: Without) -> list[float]:
    """Freed GiB per rank, or the growth of the KV room: nominal, then with every table tensor rounded up."""
    plans = {
        tier: memory_plan(_resolved(prediction.scenario, {"placement.tier": tier}, {}, without))
        for tier in ("hbm", "dram")
    }
    freed = sum(plans["hbm"].hbm_per_rank.values()) - sum(plans["dram"].hbm_per_rank.values())
    num_tensors = NUM_TENSORS_PER_TABLE * len(load_model(prediction.scenario["model"]).engram.layer_ids)
    found = [bytes_to_gib(freed), bytes_to_gib(freed + num_tensors * ALLOCATION_BYTES)]
    room = prediction.kv_room_gib
    if room is None:
        return found
    rooms = [end for end in (room.value, room.low, room.high) if end is not None]
    return [1 + freed_gib / end for freed_gib in found for end in rooms]
