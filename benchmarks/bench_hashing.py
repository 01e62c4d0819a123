"""Row ids: what the engine calls on this CPU beside the oracle, whose loops a reader can check by hand.

The engine hashes a step of few tokens into memory that such steps of one size share; larger ones, and whoever keeps
the row ids, get a new tensor each time. Both are compared with the oracle. Shown aside: the same by NumPy alone and in
torch operations, and making the tensor of the result with nothing in it. A sample is many calls in a row, as a sequence
of decode steps makes them; the oracle's prime search is not timed.
"""

import importlib.util
from collections.abc import Callable

import numpy as np
import torch

from figures import Figures
from tiercast_profiles.rng import stream
from tiercast_profiles.store import load_model
from tiercast_runtime import reference
from tiercast_runtime.hashing import MAX_BUFFERED_TOKENS, EngramHasher, NumpyHasher, build_windows
from tiercast_runtime.probes.timing import Effort, collect, seconds, timed, to_us

COUNTS = (1, 2, 4, 8, 64, 256, 1024, 8192)
TOKENS_PER_SAMPLE = 2048
ANEW, INTO_BUFFER = "ours: a new tensor each time", "ours: into the step's buffer"
ORACLE = "oracle: reference.py"
FLOOR = "tensor of the result alone"


def main() -> None:
    figures = Figures("Row ids of both Engram layers of DeepSeek-V4.1-Flash, 48 per token")
    torch.set_num_threads(1)
    engram = load_model("deepseek-v4.1-flash").engram
    on_cpu, with_numpy = EngramHasher(engram, torch.device("cpu")), NumpyHasher(engram)
    has_kernel = torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
    if not has_kernel:
        figures.note("fused Triton kernel: not timed, no CUDA GPU with triton here")
    # The oracle searches its primes and draws its multipliers in every call, the hashers once: take that share away.
    reference_moduli, reference_multipliers = reference.moduli(engram), reference.multipliers(engram)
    reference.moduli = lambda _engram: reference_moduli
    reference.multipliers = lambda _engram: reference_multipliers
    with torch.inference_mode():
        for count in COUNTS:
            measure(figures, on_cpu, with_numpy, count, has_kernel=has_kernel)
    figures.finish()


def measure(figures: Figures, on_cpu: EngramHasher, with_numpy: NumpyHasher, count: int, *, has_kernel: bool) -> None:
    engram = on_cpu.engram
    max_order, shape = engram.ngram_orders[-1], (len(engram.layer_ids), count, engram.num_rows_per_token)
    ids = stream(0, f"bench-hashing {count}").integers(0, engram.compressed_vocab_size, max_order + count)
    windows = build_windows(ids, max_order, count, max_order)  # inside a sequence, as decode steps are
    tensor = torch.from_numpy(windows)
    ways: dict[str, Callable[[], object]] = {
        ANEW: lambda: on_cpu.row_ids(tensor),
        ORACLE: lambda: reference.row_ids(engram, windows),
        "NumPy alone": lambda: with_numpy.row_ids(windows),
        "torch operations": lambda: on_cpu.torch_row_ids(tensor),
    }
    if count <= MAX_BUFFERED_TOKENS:
        buffer = on_cpu.buffer(count)
        ways[INTO_BUFFER] = lambda: on_cpu.row_ids(tensor, buffer)
    if has_kernel:
        gpu = torch.device("cuda", 0)
        on_gpu, moved = EngramHasher(engram, gpu), tensor.to(gpu)
        ways["fused kernel on the GPU"] = lambda: _waited(on_gpu.kernel_row_ids(moved))
    expected = reference.row_ids(engram, windows)
    for name, way in ways.items():
        found = way()
        found = found.cpu().numpy() if isinstance(found, torch.Tensor) else found
        assert np.array_equal(found, expected), f"{name} found other rows"
    ways[FLOOR] = lambda: torch.from_numpy(np.empty(shape, np.int64))
    num_calls = max(1, TOKENS_PER_SAMPLE // count)
    cases = [timed(name, _repeated(way, num_calls)) for name, way in ways.items()]
    effort = Effort(seconds(2), 1, 7, 40)
    spreads = {spread.key: to_us(spread).scaled(1 / num_calls) for spread in collect(cases, effort)}
    aside = tuple(name for name in ways if name not in (ANEW, INTO_BUFFER, ORACLE))
    ours = {"": INTO_BUFFER, ", into a new tensor": ANEW} if INTO_BUFFER in ways else {"": ANEW}
    for what, mine in ours.items():
        shown = {name: spread for name, spread in spreads.items() if name == mine or name not in ours.values()}
        figures.compare(f"{count:,} tokens{what}", shown, unit="µs", ours=mine, target_ratio=10.0, aside=aside)


def _repeated(way: Callable[[], object], num_calls: int) -> Callable[[], None]:
    def calls() -> None:
        for _ in range(num_calls):
            way()

    return calls


def _waited(row_ids: torch.Tensor) -> torch.Tensor:
    torch.cuda.synchronize()
    return row_ids


if __name__ == "__main__":
    main()
