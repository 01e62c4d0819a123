"""Row ids of a step at V4.1 size: our NumPy, torch and fused-kernel hashers beside the plain oracle of reference.py.

Timed from windows on the device to row ids on the device; on a GPU the wait for the device is inside. A call of some
microseconds is timed twice: as one of many in a row, and alone between other work, as a decode step makes it.
"""

import importlib.util
from collections.abc import Callable

import numpy as np
import torch

from tiercast_profiles.rng import stream
from tiercast_profiles.store import load_model
from tiercast_runtime import reference
from tiercast_runtime.hashing import EngramHasher, NumpyHasher, build_windows
from tiercast_runtime.probes.timing import Effort, collect, seconds, timed

COUNTS = (1, 8, 64, 256, 1024, 8192)
TOKENS_PER_SAMPLE = 4096
ORACLE = "oracle: reference.py"


def main() -> None:
    torch.set_num_threads(1)
    engram = load_model("deepseek-v4.1-flash").engram
    cpu = torch.device("cpu")
    on_cpu, with_numpy = EngramHasher(engram, cpu), NumpyHasher(engram)
    has_kernel = torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
    generator = stream(0, "bench-hashing")
    print(f"{engram.num_rows_per_token} rows x {len(engram.layer_ids)} layers per token; median µs [quartiles]")
    if not has_kernel:
        print("fused kernel: not timed, no CUDA GPU with triton here")
    # The oracle searches its primes and draws its multipliers in every call, the hashers once: take that share away.
    reference_moduli, reference_multipliers = reference.moduli(engram), reference.multipliers(engram)
    reference.moduli = lambda _engram: reference_moduli
    reference.multipliers = lambda _engram: reference_multipliers
    for count in COUNTS:
        max_order = engram.ngram_orders[-1]
        ids = generator.integers(0, engram.compressed_vocab_size, max_order + count)
        windows = build_windows(ids, max_order, count, max_order)  # inside a sequence, as decode steps are
        tensor = torch.from_numpy(windows)
        ways = {
            ORACLE: lambda w=windows: reference.row_ids(engram, w),
            "ours: NumPy": lambda w=windows: with_numpy.row_ids(w),
            "ours: torch on the CPU": lambda t=tensor: on_cpu.torch_row_ids(t),
        }
        if has_kernel:
            gpu = torch.device("cuda", 0)
            on_gpu, moved = EngramHasher(engram, gpu), tensor.to(gpu)
            ways["ours: torch on the GPU"] = lambda h=on_gpu, t=moved: _waited(h.torch_row_ids(t))
            ways["ours: fused kernel"] = lambda h=on_gpu, t=moved: _waited(h.kernel_row_ids(t))
        expected = reference.row_ids(engram, windows)
        for name, way in ways.items():
            found = way()
            found = found.cpu().numpy() if isinstance(found, torch.Tensor) else found
            assert np.array_equal(found, expected), f"{name} found other rows"
        for num_calls in sorted({1, max(1, TOKENS_PER_SAMPLE // count)}, reverse=True):
            cases = [timed(name, _repeated(way, num_calls)) for name, way in ways.items()]
            spreads = {spread.key: spread for spread in collect(cases, Effort(seconds(2), 1, 5, 100))}
            for name, spread in spreads.items():
                low, value, high = (np.array([spread.low, spread.value, spread.high]) / 1e3 / num_calls).round(1)
                ratio = spreads[ORACLE].value / spread.value
                how = f"{num_calls} in a row" if num_calls > 1 else "alone"
                print(f"{count:6} tokens  {name:22} {how:14} {value:10} [{low} .. {high}]  oracle/this {ratio:.1f}")


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
