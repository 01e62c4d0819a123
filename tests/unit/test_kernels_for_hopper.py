"""Every Triton kernel compiles to machine code for sm_90, with no GPU at hand, by the very calls that launch it.

The interpreter checks what a kernel computes and nothing of what the compiler refuses: types of constants, types that
change in a loop, what a pointer may be. So the launchers run here on CPU tensors of the types and shapes the runtime
gives them, the driver is replaced by one that names an H100/H200 as its target, and each launch stops once ptxas has
made its binary.
"""

import importlib.util
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")
pytest.importorskip("triton", reason="triton is not installed")

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from tiercast_profiles.store import load_model, shipped_names  # noqa: E402
from tiercast_runtime.cache_torch import TorchRowCache  # noqa: E402
from tiercast_runtime.hashing import EngramHasher  # noqa: E402
from tiercast_runtime.probes.survey import empty_model  # noqa: E402

CPU, BF16, INT64 = torch.device("cpu"), torch.bfloat16, torch.int64
MODELS = [
    model
    for model in map(load_model, shipped_names("models"))
    if model.backbone.is_runnable and model.backbone.moe is None
]
# a profile also times layers with hardly any arithmetic, whose tiles are smaller than any model's
MODELS.append(empty_model(MODELS[0]).model_copy(update={"name": "empty"}))
MAX_SHARED_BYTES = 227 << 10  # of one program on sm_90
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
PTXAS = CUOBJDUMP.with_name("ptxas")

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1" or not os.access(PTXAS, os.X_OK),
    reason="needs Triton's compiler and the assembler that its wheel carries",
)


class Hopper:
    """A driver that launches nothing. Its device is one no machine has, so that no other test meets its kernels."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 90

    def get_current_stream(self, device):
        return 0


@dataclass(frozen=True)
class Build:
    """A kernel as it was compiled: what it was specialised on is in ``ptx``."""

    name: str
    ptx: str
    cubin: bytes
    shared_bytes: int
    num_warps: int


@pytest.fixture
def builds(monkeypatch, tmp_path):
    """What the launches of a test compile to."""
    found = []
    compile_or_launch = JITFunction.run

    def run(self, *args, grid, warmup, **kwargs):
        assert 1 <= len(grid) <= 3
        assert all(size >= 1 for size in grid), f"{self.__name__} would be launched on an empty grid {grid}"
        assert all(size <= 65_535 for size in grid[1:]), f"{self.__name__}: {grid}"
        kernel = compile_or_launch(self, *args, grid=grid, warmup=True, **kwargs)
        made, facts = kernel.asm, kernel.metadata
        found.append(Build(self.__name__, made["ptx"], made["cubin"], facts.shared, facts.num_warps))
        return kernel

    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr(driver, "_active", Hopper())
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "triton"))
    return found


def check(builds, names, tmp_path):
    """Each kernel is there, for sm_90, and keeps what it works with in registers."""
    assert {build.name for build in builds} == set(names)
    for number, build in enumerate({build.ptx: build for build in builds}.values()):
        assert re.search(r"^\.target sm_90", build.ptx, re.MULTILINE), build.name
        assert build.cubin.startswith(b"\x7fELF"), build.name
        assert build.shared_bytes <= MAX_SHARED_BYTES, (build.name, build.shared_bytes)
        file = tmp_path / f"{number}.cubin"
        file.write_bytes(build.cubin)
        used = resources(file)
        assert used["STACK"] == used["LOCAL"] == 0, (build.name, used)
        assert used["REG"] * 32 * build.num_warps <= 65_536, (build.name, used)


def resources(file):
    """Registers of a thread and bytes of its memory, by the assembler's account."""
    done = subprocess.run(
        [str(CUOBJDUMP), "--dump-resource-usage", str(file)], capture_output=True, text=True, check=True
    )
    line = next(line for line in done.stdout.splitlines() if "REG:" in line)
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_decoder(builds, tmp_path, model):
    from tiercast_runtime import backbone_kernels as kernels

    spec = model.backbone
    heads, kv_heads, head_dim = spec.num_attention_heads, spec.num_kv_heads, spec.head_dim
    cache = torch.zeros(2, 2 * kv_heads, 16, head_dim, dtype=BF16)
    for count in (1, 16, 64, 512):  # as many splits of a sequence, and counts that are and are not multiples of 16
        numbers = torch.zeros(count, dtype=INT64)
        kernels.rms_norm(torch.zeros(count, spec.num_branches, spec.hidden_size, dtype=BF16), 1e-6)
        qkv = torch.zeros(count, (heads + 2 * kv_heads) * head_dim, dtype=BF16)
        rope = torch.zeros(count, 1, head_dim // 2, dtype=torch.complex64)
        kernels.rotate_and_store(qkv, rope, cache, numbers, numbers, heads)
        kernels.silu_mul(
            torch.zeros(count, 2 * spec.intermediate_size, dtype=BF16),
            torch.zeros(count, spec.intermediate_size, dtype=BF16),
        )
        out = torch.zeros(count, heads * head_dim, dtype=BF16)
        kernels.attend(qkv[:, : heads * head_dim], cache, numbers, numbers + 1, out)
    check(builds, ("_rms_norm", "_rotate_and_store", "_silu_mul", "_attend_splits", "_join_splits"), tmp_path)
    assert any("mma.sync" in build.ptx for build in builds if build.name == "_attend_splits"), "no tensor cores"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_hash(builds, tmp_path, model):
    hasher = EngramHasher(model.engram, CPU)
    order = model.engram.ngram_orders[-1]
    one = torch.zeros((1, order), dtype=INT64)
    for windows in (one, one.repeat(8192, 1), one.repeat(33, 2)[:, ::2]):
        hasher.kernel_row_ids(windows)
    check(builds, ["_hash_windows"], tmp_path)
    assert len({build.ptx for build in builds}) == 1, "no step may meet a first compilation"


@pytest.mark.parametrize(
    ("width", "stride"),
    [
        *((size, size) for size in (8, 16, 64, 128, 256, 264, 320, 512, 1024, 4096)),
        (256, 264),
        (264, 320),
        (250, 250),
        (33, 33),
    ],
)
def test_the_gather(builds, tmp_path, width, stride):
    from tiercast_runtime.paths.uva_kernel import launch_gather

    table, complaints = torch.zeros((10, stride), dtype=torch.uint8), torch.zeros(1, dtype=torch.int32)
    for count in (1, 2, 512, 513, 8192):
        ids, out = torch.zeros(count, dtype=INT64), torch.zeros((count, width), dtype=torch.uint8)
        launch_gather(table[:, :width], ids, out, complaints, 66)
    launch_gather(table[:, :width], ids[:0], out[:0], complaints, 66)
    check(builds, ["_gather_rows"], tmp_path)
    assert len(builds) == 5, "nothing is launched for no ids"
    assert len({build.ptx for build in builds}) == 2, "one binary for few rows and one for many"


@pytest.mark.parametrize(("width", "ways", "policy"), [(264, 16, "lru"), (264, 16, "static_hot"), (33, 3, "lru")])
def test_the_cache(builds, tmp_path, width, ways, policy):
    cache = TorchRowCache(64, width, CPU, policy=policy, num_ways=ways)
    cache.has_kernel = True
    for count in (1, 100):
        cache.lookup(torch.zeros(count, dtype=INT64), torch.zeros((count, width), dtype=torch.uint8))
    check(builds, ["_look_up"], tmp_path)
    assert len({build.ptx for build in builds}) == 1, "no lookup may meet a first compilation"
    uses = "atom.global.gpu.acq_rel.max.s64" in builds[0].ptx
    assert uses == (policy == "lru"), "uses are counted by an atomic maximum that other programs see"


def test_the_chase(builds, tmp_path):
    from tiercast_runtime.probes.chase_kernel import launch_chase

    launch_chase(torch.zeros(100, dtype=INT64), torch.zeros(1, dtype=INT64), 2000)
    check(builds, ["_chase"], tmp_path)
    assert builds[0].num_warps == 1


def test_no_kernel_is_forgotten():
    """A kernel that a new module brings must be compiled here too."""
    package = Path(importlib.util.find_spec("tiercast_runtime").origin).parent
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py")))
    kernels = set(re.findall(r"^@triton\.jit\b[^@]*?^def (\w+)\(", source, re.MULTILINE))
    known = {"_rms_norm", "_rotate_and_store", "_silu_mul", "_attend_splits", "_join_splits"}
    assert kernels == known | {"_hash_windows", "_gather_rows", "_look_up", "_chase"}
