"""What the device reaches at its best, and what share of that serving shapes reach, by matrix products.

A square product gives the peak rate. A product of a few hundred rows gives the share of it that large steps reach; one
row times many matrices in turn gives the share of the memory bandwidth that decoding reaches.
"""

import time
from dataclasses import dataclass

import torch

from tiercast_profiles.document import Quantity
from tiercast_profiles.hardware import ProbeResult
from tiercast_profiles.model import Precision
from tiercast_profiles.units import NS_PER_S, TERA
from tiercast_runtime.backbone import compute_dtype
from tiercast_runtime.memory import require_bytes
from tiercast_runtime.probes.hold import LEAST_HOLD_NS, hold
from tiercast_runtime.probes.timing import (
    Case,
    Clock,
    Effort,
    Spread,
    Stopwatch,
    collect,
    not_measured,
    probe_result,
    rounded,
)

STEP_TOKENS = 256  # rows of the product that stands for a large step
CPU_SIDE, GPU_SIDE = 1024, 8192
CPU_STREAM_SIDE, GPU_STREAM_SIDE = 2048, 8192
NUM_STREAM_MATRICES = 12  # together larger than the caches: 192 MiB on a CPU, 1.5 GiB on a GPU


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """Peak rates by precision, the shares of peak and of memory bandwidth that serving shapes reach, and the probes."""

    tflops: dict[Precision, Quantity]
    matmul_efficiency_ratio: Quantity
    memory_efficiency_ratio: Quantity
    probes: tuple[ProbeResult, ...]


def measure_rates(
    device: torch.device, memory_gb_per_s: float, effort: Effort, clock: Clock = time.perf_counter_ns
) -> DeviceRates:
    """Peak and shares of one device with the compute threads that are set.

    Args:
        device: CPU or GPU.
        memory_gb_per_s: bandwidth of its memory, which the share is taken of.
        effort: for all products together.
        clock: ns.
    """
    is_gpu = device.type == "cuda"
    side, stream_side = (GPU_SIDE, GPU_STREAM_SIDE) if is_gpu else (CPU_SIDE, CPU_STREAM_SIDE)
    dtype = compute_dtype(device)
    require_bytes(NUM_STREAM_MATRICES * stream_side**2 * dtype.itemsize, device, "the matrix probe")
    dtypes: dict[Precision, torch.dtype] = {"fp32": torch.float32}
    if is_gpu:
        dtypes["bf16"] = torch.bfloat16
    matrices = [_operand(stream_side, stream_side, dtype, device)]
    matrices += [matrices[0].clone() for _ in range(NUM_STREAM_MATRICES - 1)]
    row, rows = (_operand(count, stream_side, dtype, device) for count in (1, STEP_TOKENS))
    cases: list[Case[str]] = [_square_case(name, kind, side, device, clock) for name, kind in dtypes.items()]
    cases += [_stream_case("one", row, matrices, clock), _stream_case("step", rows, matrices, clock)]
    with torch.inference_mode():
        spreads = {spread.key: spread for spread in collect(cases, effort, clock)}
    tflops, probes = {}, []
    for name in dtypes:
        rate = _rate(spreads[name], 2 * side**3 / TERA)
        tflops[name] = _quantity(rate)
        probes.append(probe_result("matmul.square", rate, "TFLOP/s", {"precision": name, "side": side}))
    if is_gpu:
        fp8 = _fp8_rate(device, effort, clock)
        if isinstance(fp8, ProbeResult):
            probes.append(fp8)
        else:
            tflops["fp8"] = _quantity(fp8)
            probes.append(probe_result("matmul.square", fp8, "TFLOP/s", {"precision": "fp8", "side": side}))
    peak = tflops["bf16" if is_gpu else "fp32"].value
    step = _rate(spreads["step"], 2 * STEP_TOKENS * stream_side**2 / TERA)
    stream = _rate(spreads["one"], stream_side**2 * dtype.itemsize / 1e9)
    here: dict[str, str | int | float] = {"side": stream_side, "matrices": NUM_STREAM_MATRICES}
    probes.append(probe_result("matmul.step", step, "TFLOP/s", here | {"rows": STEP_TOKENS}))
    probes.append(probe_result("matmul.weights", stream, "GB/s", here | {"rows": 1}))
    return DeviceRates(tflops, _share(step, peak), _share(stream, memory_gb_per_s), tuple(probes))


def begun(device: torch.device, clock: Clock) -> Stopwatch:
    """A watch with its first lap; on a GPU behind a hold, so that what comes next waits for no launch."""
    watch = Stopwatch(device, clock)
    if device.type == "cuda":
        hold(LEAST_HOLD_NS)
    watch.lap()
    return watch


def _operand(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Random numbers around 0: equal ones flip no bits, and a GPU that saves their power runs at higher clocks."""
    return torch.empty(rows, columns, dtype=dtype, device=device).normal_(0.0, columns**-0.5)


def _square_case(key: str, dtype: torch.dtype, side: int, device: torch.device, clock: Clock) -> Case[str]:
    left = _operand(side, side, dtype, device)
    right, out = left.clone(), torch.empty_like(left)

    def case() -> list[tuple[str, float]]:
        watch = begun(device, clock)
        torch.mm(left, right, out=out)
        watch.lap()
        return [(key, watch.laps_ns()[0])]

    return case


def _stream_case(key: str, rows: torch.Tensor, matrices: list[torch.Tensor], clock: Clock) -> Case[str]:
    """Products with every matrix in turn; the value is the mean time of one."""
    out = torch.empty_like(rows)

    def case() -> list[tuple[str, float]]:
        watch = begun(rows.device, clock)
        for matrix in matrices:
            torch.mm(rows, matrix, out=out)
        watch.lap()
        return [(key, watch.laps_ns()[0] / len(matrices))]

    return case


def _fp8_rate(device: torch.device, effort: Effort, clock: Clock) -> Spread[str] | ProbeResult:
    """Square FP8 products, where this GPU and this torch have them."""
    if torch.cuda.get_device_capability(device) < (8, 9):
        return not_measured("matmul.square", "this GPU multiplies no FP8")
    # of size one: where a product of 8192 would put them, E4M3 has hardly any codes
    left = _operand(GPU_SIDE, GPU_SIDE, torch.float32, device).mul_(GPU_SIDE**0.5).to(torch.float8_e4m3fn)
    right = left.clone().t()  # the second operand is wanted column by column
    scale = torch.ones((), device=device)

    def case() -> list[tuple[str, float]]:
        watch = begun(device, clock)
        # fast accumulation, as serving engines ask for and datasheets count
        torch.ops.aten._scaled_mm(left, right, scale, scale, out_dtype=torch.bfloat16, use_fast_accum=True)
        watch.lap()
        return [("fp8", watch.laps_ns()[0])]

    try:
        (spread,) = collect([case], effort, clock)
    except (RuntimeError, AttributeError, TypeError) as error:  # a private operator: its form may change
        return not_measured("matmul.square", f"FP8 product failed: {str(error).splitlines()[0]}", is_failure=True)
    return _rate(spread, 2 * GPU_SIDE**3 / TERA)


def _rate(spread: Spread[str], units: float) -> Spread[str]:
    """Units per second of something that takes these ns."""
    return Spread(spread.key, tuple(units * NS_PER_S / sample for sample in spread.samples))


def _share(rate: Spread[str], most: float) -> Quantity:
    low, value, high = (rounded(min(1.0, number / most)) for number in (rate.low, rate.value, rate.high))
    return Quantity(value=value, low=low, high=high)


def _quantity(spread: Spread[str]) -> Quantity:
    return Quantity(value=rounded(spread.value), low=rounded(spread.low), high=rounded(spread.high))
