"""Stage ``lookups``: one lookup beside its alternatives, and what the module and the baseline cost.

Every way is compared with the others' rows first; ids are fresh in each sample; times are medians.
"""

import json
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import torch

from gpu_evidence.context import Context
from gpu_evidence.plan import Case, paper_model
from gpu_evidence.stage_arms import MOST_ANSWER_TOKENS, PROMPT_TOKENS
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.stats import median
from tiercast_profiles.units import GIB, NS_PER_MS, NS_PER_US
from tiercast_runtime.batch import BatchBuilder
from tiercast_runtime.graph_backend import CudaGraphs
from tiercast_runtime.hashing import EngramHasher
from tiercast_runtime.layer import EngramLayer
from tiercast_runtime.paths.uva import UvaPath
from tiercast_runtime.probes.device_timer import DeviceTimer
from tiercast_runtime.synthetic import synthetic_step
from tiercast_runtime.table import HostTable

TOKENS = tuple(1 << power for power in range(14))  # 1 … 8192
GRIDS = (33, 66, 132, 264, 528)
NUM_SAMPLES = 15
STREAM_ROW_BYTES = 4096  # contiguous rows read in order: a streaming read by the same kernel
STREAM_BYTES = 256 << 20


def cases(context: Context) -> list[Case]:
    """On a GPU all of them; a rehearsal has only the one that is arithmetic, which waits for its arm."""
    floor = [Case("lookups", "decode-floor", 1, decode_floor)]
    if context.state.numbers(_floor_arm(context)) is None:
        floor = []
    if context.is_rehearsal:
        return floor
    return [
        Case("lookups", "uva-against-host-gather", 40, against_host_gather),
        Case("lookups", "uva-against-streaming", 40, against_streaming),
        Case("lookups", "overheads", 30, overheads),
        *floor,
    ]


def against_host_gather(context: Context) -> dict[str, Any]:
    """``uva`` and index_select on the host with a copy behind it, from ids on the device to rows on the device."""
    with closing(HostTable(paper_model("paper-4b-100b", GIB).engram, 0, "packed", is_pinned=True)) as table:
        found = _against_host_gather(table, context.device)
    context.write("sweep/uva-against-host-gather.json", json.dumps(found, indent=1))
    slower = [row["tokens"] for row in found if row["uva_us"] >= row["index_select_and_copy_us"]]
    return {"tokens_where_uva_is_slower": str(slower), **{f"{row['tokens']}_us": row["uva_us"] for row in found[::4]}}


def _against_host_gather(table: HostTable, device: torch.device) -> list[dict[str, float]]:
    """By number of tokens the time of both ways in µs."""
    path = UvaPath([table], device)
    host, per_token = table.parts[0], table.engram.num_rows_per_token
    generator = np.random.default_rng(0)

    def by_host(ids: torch.Tensor) -> torch.Tensor:
        staged = torch.empty((ids.numel(), host.shape[1]), dtype=torch.uint8, pin_memory=True)
        torch.index_select(host, 0, ids.cpu().reshape(-1), out=staged)
        return staged.to(device, non_blocking=True)

    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "uva": lambda ids: path.fetch(0, ids).rows,
        "index_select_and_copy": by_host,
    }
    found = []
    for tokens in TOKENS:
        samples: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(NUM_SAMPLES + 2):
            ids = torch.from_numpy(generator.integers(0, table.num_rows, (tokens, per_token))).to(device)
            rows = []
            for name, way in ways.items():
                torch.cuda.synchronize()
                begin = time.perf_counter_ns()
                rows.append(way(ids))
                torch.cuda.synchronize()
                if number >= 2:
                    samples[name].append((time.perf_counter_ns() - begin) / NS_PER_US)
            assert torch.equal(rows[0][:, : host.shape[1]], rows[1]), "the two ways bring other rows"
        found.append({"tokens": tokens, **{f"{name}_us": median(values) for name, values in samples.items()}})
    path.check()
    path.close()
    return found


def against_streaming(context: Context) -> dict[str, Any]:
    """Random 256-byte rows of a 1 GiB table beside a read of the same memory in order, by grid size."""
    with closing(HostTable(paper_model("paper-4b-100b", GIB).engram, 0, "packed", is_pinned=True)) as table:
        found = _against_streaming(table, context.device)
    context.write("sweep/uva-against-streaming.json", json.dumps(found, indent=1))
    streaming = max(row["streaming_gb_per_s"] for row in found)
    rows = max(row["rows_gb_per_s"] for row in found)
    return {"streaming_gb_per_s": streaming, "rows_gb_per_s": rows, "ratio": rows / streaming}


def _against_streaming(table: HostTable, device: torch.device) -> list[dict[str, float]]:
    """By grid size the rate of both in GB/s."""
    from tiercast_runtime.paths.uva_kernel import launch_gather

    octets = table.parts[0].reshape(-1)
    octets = octets[: octets.numel() // STREAM_ROW_BYTES * STREAM_ROW_BYTES]
    complaints = torch.zeros(1, dtype=torch.int32, pin_memory=True)
    out = torch.empty(STREAM_BYTES, dtype=torch.uint8, device=device)
    generator = np.random.default_rng(0)

    def rate(row_bytes: int, grid: int, *, is_random: bool) -> float:
        source, target = octets.view(-1, row_bytes), out.view(-1, row_bytes)
        values = []
        for number in range(NUM_SAMPLES):
            count = len(target)
            places = generator.integers(0, len(source), count) if is_random else np.arange(count) + number % 3 * count
            ids = torch.from_numpy(places.astype(np.int64)).to(device)
            milliseconds = _timed(lambda ids=ids: launch_gather(source, ids, target, complaints, grid))
            values.append(STREAM_BYTES / milliseconds / NS_PER_MS)
        return median(values[2:])

    found = [
        {
            "grid": grid,
            "streaming_gb_per_s": rate(STREAM_ROW_BYTES, grid, is_random=False),
            "rows_gb_per_s": rate(256, grid, is_random=True),
        }
        for grid in GRIDS
    ]
    assert not int(complaints[0]), "an id was outside the table"
    return found


def overheads(context: Context) -> dict[str, Any]:
    """Hash and launch of a lookup for 256 tokens, and one Engram module, in host time and as captured graphs."""
    model = paper_model("paper-4b-100b", GIB)
    with closing(HostTable(model.engram, 0, "packed", is_pinned=True)) as table:
        return _overheads(table, model, context.device)


def _overheads(table: HostTable, model: ModelSpec, device: torch.device) -> dict[str, Any]:
    """Times in µs, by what they are of."""
    path, hasher = UvaPath([table], device), EngramHasher(model.engram, device)
    clock = time.perf_counter_ns
    backend, timed = CudaGraphs(device, clock), DeviceTimer(device)
    found: dict[str, Any] = {}
    with torch.inference_mode():
        plan, tokens = synthetic_step(model, [128] * 256, [])
        builder = BatchBuilder(model, device, torch.bfloat16, max_context_tokens=256)
        batch = builder.build(plan, tokens)
        host_us = []
        for _ in range(NUM_SAMPLES + 5):
            torch.cuda.synchronize()
            begin = clock()
            path.fetch(0, hasher.row_ids(batch.windows)[0])
            host_us.append((clock() - begin) / NS_PER_US)
        found["hash_and_launch_host_us_256_tokens"] = median(host_us[5:])
        hashing = backend.capture(lambda: hasher.row_ids(batch.windows))
        found["hash_graph_us_256_tokens"] = median([timed(hashing.replay) / NS_PER_US for _ in range(NUM_SAMPLES)])
        generator = torch.Generator(device=device).manual_seed(1)
        layer = EngramLayer(model, 0, device, torch.bfloat16, generator, num_slots=256)
        staged = path.fetch(0, hasher.row_ids(batch.windows)[0])
        hidden = torch.randn(256, 1, model.backbone.hidden_size, dtype=torch.bfloat16, device=device)
        module = backend.capture(lambda: layer.forward(hidden, staged, batch))
        found["module_graph_us_256_tokens"] = median([timed(module.replay) / NS_PER_US for _ in range(NUM_SAMPLES)])
    path.close()
    return found


def decode_floor(context: Context) -> dict[str, Any]:
    """Time of a decode step of the baseline over the time its weights and cached tokens take to read."""
    numbers = context.state.numbers(_floor_arm(context))
    assert numbers is not None, "the case waits for its arm"
    spec, device = context.model().backbone, context.profile().device
    bandwidth = device.memory_bandwidth_gb_per_s.value
    mean_context = PROMPT_TOKENS + MOST_ANSWER_TOKENS // 2
    sequences, context_tokens = (2, 40) if context.is_rehearsal else (64, mean_context)
    itemsize = 4 if context.is_rehearsal else 2
    read_bytes = spec.active_params_decode * itemsize + sequences * context_tokens * spec.kv_bytes_per_token.value
    floor_ms = read_bytes / bandwidth / NS_PER_MS
    return {"floor_ms": floor_ms, "step_ms": numbers["step_ms"], "ratio": numbers["step_ms"] / floor_ms}


def _floor_arm(context: Context) -> str:
    return f"arms/{'tiny-2' if context.is_rehearsal else 'decode-64'}/no_engram"


def _timed(action: Callable[[], object]) -> float:
    """Milliseconds the device takes for what ``action`` enqueues."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    action()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))
