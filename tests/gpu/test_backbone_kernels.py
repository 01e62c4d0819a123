"""The decoder's kernels equal torch: in Triton's interpreter anywhere, on a GPU where there is one."""

import importlib.util
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

HAS_TRITON = importlib.util.find_spec("triton") is not None
HAS_CUDA = torch.cuda.is_available()

CHECKS = """
import sys
import torch
from torch.nn import functional
from tiercast_runtime import backbone_kernels as kernels
from tiercast_runtime.decode_attention import attend_in_torch

device = torch.device(sys.argv[1])
dtype, near = (torch.float32, 1e-5) if device.type == "cpu" else (torch.bfloat16, 2e-2)
torch.manual_seed(0)

def normal(*shape):
    return torch.randn(*shape, device=device).to(dtype)

def same(found, expected, what):
    gap = (found.float() - expected.float()).norm() / expected.float().norm()
    assert gap < near, (what, float(gap))

is_big = device.type == "cuda"
for branches, width in ((1, 48), (2, 33), (1, 2560)):
    hidden = normal(3, branches, width)
    mean = hidden.float().mean(1)
    expected = mean * torch.rsqrt(mean.square().mean(-1, keepdim=True) + 1e-6)
    same(kernels.rms_norm(hidden, 1e-6), expected, "norm")

gate_up, out = normal(3, 2 * 1100), torch.empty(3, 1100, dtype=dtype, device=device)
kernels.silu_mul(gate_up, out)
same(out, functional.silu(gate_up[:, :1100].float()) * gate_up[:, 1100:].float(), "silu")

for heads, kv_heads, head_dim in ((2, 1, 8), (3, 1, 32)) + ((6, 3, 64), (32, 8, 128)) * is_big:
    context = 200
    cache = torch.zeros(5, 2 * kv_heads, context, head_dim, dtype=dtype, device=device)
    qkv = normal(3, (heads + 2 * kv_heads) * head_dim)
    angles = torch.rand(3, 1, head_dim // 2, device=device) * 6
    rope = torch.polar(torch.ones_like(angles), angles)
    slots, positions = torch.tensor([4, 0, 2], device=device), torch.tensor([7, 199, 0], device=device)
    before = qkv.clone().float()
    kernels.rotate_and_store(qkv, rope, cache, slots, positions, heads)
    pairs = before.view(3, -1, head_dim // 2, 2)
    turned = torch.view_as_real(torch.view_as_complex(pairs) * rope).reshape(3, -1, head_dim)
    same(qkv[:, : heads * head_dim], turned[:, :heads].reshape(3, -1), "queries")
    stored = cache[slots, :, positions]
    same(stored[:, :kv_heads], turned[:, heads : heads + kv_heads], "keys")
    same(stored[:, kv_heads:], before.view(3, -1, head_dim)[:, heads + kv_heads :], "values")
    stored.zero_()
    cache[slots, :, positions] = 0
    assert not cache.any(), "nothing is written beside the new token"

    cache.copy_(normal(*cache.shape))
    queries = normal(3, heads * head_dim + 5)[:, : heads * head_dim]
    for lengths in ((1, 64, 200), (65, 130, 2))[: 2 if is_big or heads == 2 else 1]:
        on_device = torch.tensor(lengths, device=device)
        out = torch.full((3, heads * head_dim), float("nan"), dtype=dtype, device=device)
        kernels.attend(queries, cache, slots, on_device, out)
        expected = torch.empty_like(out)
        attend_in_torch(queries, cache, slots, on_device, expected)
        same(out, expected, ("attention", heads, lengths))
assert kernels.num_splits(1, 8) == 16 and kernels.num_splits(64, 8) == 2 and kernels.num_splits(512, 8) == 1
"""


def run(device, **environment):
    return subprocess.run(
        [sys.executable, "-c", CHECKS, device],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_the_kernels_equal_torch_in_the_interpreter():
    """In a process of its own: Triton decides once, when it is imported, whether it interprets."""
    done = run("cpu", TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not (HAS_CUDA and HAS_TRITON), reason="no CUDA GPU with triton on this machine")
def test_the_kernels_equal_torch_on_the_gpu():
    done = run("cuda")
    assert done.returncode == 0, done.stderr
