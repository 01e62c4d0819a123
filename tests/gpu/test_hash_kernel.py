"""The hash kernel equals the oracle bit for bit: in Triton's interpreter anywhere, on a GPU where there is one."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import BadInput  # noqa: E402
from tiercast_profiles.store import load_model  # noqa: E402
from tiercast_runtime import reference  # noqa: E402
from tiercast_runtime.hashing import DEAD, EngramHasher, numpy_row_ids  # noqa: E402

HAS_TRITON = importlib.util.find_spec("triton") is not None
HAS_CUDA = torch.cuda.is_available()
needs_kernel = pytest.mark.skipif(not (HAS_CUDA and HAS_TRITON), reason="no CUDA GPU with triton on this machine")

INTERPRETED = """
import itertools, sys
import numpy as np, torch
from tiercast_profiles.errors import BadInput
from tiercast_profiles.model import Engram
from tiercast_profiles.store import load_model
from tiercast_runtime import reference
from tiercast_runtime.hashing import EngramHasher, numpy_row_ids

def check(engram, windows, pad=None, is_in_vocabulary=True):
    hasher = EngramHasher(engram, torch.device("cpu"), pad)
    expected = reference.row_ids(engram, windows, pad)
    found = hasher.kernel_row_ids(torch.from_numpy(windows))
    assert found.dtype == torch.int64 and np.array_equal(found.numpy(), expected), (engram.dialect, windows)
    if is_in_vocabulary:
        assert np.array_equal(numpy_row_ids(engram, windows, pad), expected)
    return hasher, expected

v41 = load_model("deepseek-v4.1-flash").engram
small = v41.model_dump() | {"layer_ids": (1, 3, 4), "rows_per_head": (101,) * 3, "num_heads_per_order": 3}
three_heads = Engram.model_validate(small | {"compressed_vocab_size": 61, "row_values": 32})
demo = Engram.model_validate(
    small | {"dialect": "demo", "conv_kernel_size": 4, "ngram_orders": (2, 3), "rows_per_head": (646_400,) * 2}
)
generator = np.random.default_rng(0)
for engram in (v41, three_heads, demo):
    order, top = engram.ngram_orders[-1], engram.compressed_vocab_size - 1
    for num_tokens in (0, 1, 2, 7, 31, 32, 33, 65):
        windows = generator.integers(0, top + 1, (num_tokens, order))
        windows[generator.random(windows.shape) < 0.2] = -1
        check(engram, windows)
    every_pattern = np.array([*itertools.product((-1, 5, top), repeat=order)])
    for pad in (None, 0, 1, top):
        hasher, expected = check(engram, every_pattern, pad)
    out = torch.full(expected.shape, -7)
    strided = torch.from_numpy(np.repeat(every_pattern, 2, axis=1).copy())[:, ::2]
    assert hasher.kernel_row_ids(strided, out) is out and np.array_equal(out.numpy(), expected)
    beyond = generator.integers(-(2**63), 2**63 - 1, (40, order))
    assert (reference.row_ids(engram, beyond) >= 0).all()
    check(engram, beyond, is_in_vocabulary=False)
    for bad, into in ((strided[:, 1:], None), (strided.int(), None), (strided, out[:, 1:]), (strided, out.int())):
        try:
            hasher.kernel_row_ids(bad, into)
        except BadInput as problem:
            assert "must be" in str(problem)
        else:
            sys.exit("a bad shape was taken")
"""


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_the_kernel_equals_the_oracle_in_the_interpreter():
    """In a process of its own: Triton decides once, when it is imported, whether it interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", INTERPRETED],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def some_windows(engram, num_tokens):
    generator = np.random.default_rng(num_tokens)
    windows = generator.integers(0, engram.compressed_vocab_size, (num_tokens, engram.ngram_orders[-1]))
    windows[generator.random(windows.shape) < 0.2] = DEAD
    return windows


@pytest.mark.gpu
@needs_kernel
def test_the_kernel_equals_the_oracle_on_the_gpu(mini_model):
    gpu = torch.device("cuda", 0)
    for engram in (load_model("deepseek-v4.1-flash").engram, mini_model("demo").engram):
        hasher = EngramHasher(engram, gpu)
        assert hasher.has_kernel
        for num_tokens in (0, 1, 33, 8192):
            windows = some_windows(engram, num_tokens)
            on_gpu = torch.from_numpy(windows).to(gpu)
            expected = numpy_row_ids(engram, windows)
            assert np.array_equal(hasher.row_ids(on_gpu).cpu().numpy(), expected)
            assert np.array_equal(hasher.torch_row_ids(on_gpu).cpu().numpy(), expected)
        beyond = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, (99, engram.ngram_orders[-1]))
        found = hasher.row_ids(torch.from_numpy(beyond).to(gpu)).cpu().numpy()
        assert np.array_equal(found, reference.row_ids(engram, beyond))


@pytest.mark.gpu
@needs_kernel
def test_the_launch_is_captured_in_a_graph():
    gpu = torch.device("cuda", 0)
    engram = load_model("deepseek-v4.1-flash").engram
    hasher = EngramHasher(engram, gpu)
    windows = torch.from_numpy(some_windows(engram, 40)).to(gpu)
    out = torch.empty((2, 40, 24), dtype=torch.int64, device=gpu)
    hasher.kernel_row_ids(windows, out)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hasher.kernel_row_ids(windows, out)
    later = some_windows(engram, 41)[:40]
    windows.copy_(torch.from_numpy(later))
    graph.replay()
    assert np.array_equal(out.cpu().numpy(), numpy_row_ids(engram, later))


@pytest.mark.gpu
@needs_kernel
def test_windows_of_another_shape_are_refused_on_the_gpu(mini_model):
    hasher = EngramHasher(mini_model("v41").engram, torch.device("cuda", 0))
    with pytest.raises(BadInput, match=r"must be int64 \[tokens, 4\]"):
        hasher.row_ids(torch.zeros((2, 3), dtype=torch.int64, device="cuda"))
