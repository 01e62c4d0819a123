"""The lookups of a GPU end to end on the stand-in: right rows in every mode, and waits that are really needed."""

import contextlib

import numpy as np
import pytest
import torch
from cuda_stand_in import CUDA, GPU, Event, Fault, Stream

from tiercast_runtime import prefetch_cuda, rows, table
from tiercast_runtime.hashing import EngramHasher, build_windows, numpy_row_ids
from tiercast_runtime.paths.cached import CachedPath
from tiercast_runtime.paths.cpu_gather import CpuGatherPath
from tiercast_runtime.paths.device import DevicePath
from tiercast_runtime.paths.disk import DiskPath
from tiercast_runtime.paths.uva import UvaPath
from tiercast_runtime.prefetch import Prefetcher
from tiercast_runtime.reference import decode_rows

NAMES = ["device", "uva", "cpu_gather", "disk", "uva_cached"]


@contextlib.contextmanager
def opened(name, engram, folder, mode, layout="packed"):
    layers = range(len(engram.layer_ids))
    if name == "device":
        tables = [table.ResidentTable(engram, layer, layout, CUDA) for layer in layers]
    elif name == "disk":
        tables = [table.FileTable(engram, layer, layout, folder) for layer in layers]
    else:
        tables = [table.HostTable(engram, layer, layout, is_pinned=name.startswith("uva")) for layer in layers]
    kinds = {"device": DevicePath, "disk": DiskPath, "cpu_gather": CpuGatherPath}
    path = kinds.get(name, UvaPath)(tables, CUDA)
    if name == "uva_cached":
        path = CachedPath(path, tables, cache_slots=32, policy="lru")
    prefetcher = Prefetcher(path, mode)
    try:
        yield prefetcher
    finally:
        torch.cuda.synchronize()
        prefetcher.close()
        path.close()
        for one in tables:
            one.close()


def row_ids_of(engram, generator, num_tokens):
    """Row ids on the device, by the kernel, and what they must be."""
    folded = generator.integers(0, engram.compressed_vocab_size, num_tokens)
    windows = torch.from_numpy(build_windows(folded, 0, num_tokens, max(engram.ngram_orders)))
    return EngramHasher(engram, CUDA).row_ids(windows.to(CUDA)), numpy_row_ids(engram, windows.numpy())


def values_of(engram, staged):
    """Rows as their layer reads them: on the compute stream, right behind ``rows_for``."""
    decoded = rows.decode_rows(engram, staged.rows)
    return decoded if staged.inverse is None else decoded[staged.inverse.reshape(-1)]


def expected(engram, layer, ids):
    return decode_rows(engram, table.expected_rows(engram, layer, ids[layer].reshape(-1)))


@pytest.mark.parametrize("mode", ["off", "step_entry"])
@pytest.mark.parametrize("name", NAMES)
def test_every_path_brings_the_rows(mini_model, tmp_path, name, mode):
    engram = mini_model("v41").engram
    generator = np.random.default_rng(0)
    with opened(name, engram, tmp_path, mode) as prefetcher:
        for num_tokens in (1, 9, 3, 20):
            row_ids, ids = row_ids_of(engram, generator, num_tokens)
            prefetcher.begin_step(row_ids)
            read = [values_of(engram, prefetcher.rows_for(layer)) for layer in (0, 1)]
            for layer in (0, 1):
                assert np.array_equal(read[layer].cpu().numpy(), expected(engram, layer, ids))
            timings = prefetcher.take_timings()
            assert [timing.layer_index for timing in timings] == [0, 1]
            for timing in timings:
                assert timing.issued_ns <= timing.started_ns <= timing.ready_ns


@pytest.mark.parametrize("name", NAMES[1:])
def test_rows_looked_up_a_step_ahead_are_the_right_ones(mini_model, tmp_path, name):
    engram = mini_model("v41").engram
    generator, ahead = np.random.default_rng(0), None
    with opened(name, engram, tmp_path, "prev_step") as prefetcher:
        lane = prefetcher._lane
        for _ in range(4):
            row_ids, ids = row_ids_of(engram, generator, 5)
            lane.begin_step(row_ids)
            early_ids, next_ahead = row_ids_of(engram, generator, 3)
            lane.look_ahead(early_ids)
            for layer in (0, 1):
                assert np.array_equal(values_of(engram, lane.rows_for(layer)).cpu(), expected(engram, layer, ids))
                if ahead is not None:
                    early = values_of(engram, lane.early_rows_for(layer))
                    assert np.array_equal(early.cpu(), expected(engram, layer, ahead))
            assert sum(timing.is_early for timing in lane.take_timings()) == (0 if ahead is None else 2)
            ahead = next_ahead


def test_a_layer_waits_for_the_event_behind_its_own_gather(mini_model, tmp_path, monkeypatch):
    engram = mini_model("v41").engram
    waits = []
    wait_event = Stream.wait_event

    def noted(stream, event):
        waits.append((stream, event))
        wait_event(stream, event)

    with opened("uva", engram, tmp_path, "step_entry") as prefetcher:
        side = prefetcher._lane._side
        row_ids, _ = row_ids_of(engram, np.random.default_rng(0), 5)
        GPU.log.clear()
        monkeypatch.setattr(Stream, "wait_event", noted)
        prefetcher.begin_step(row_ids)
        on_side = [what for stream, what in GPU.log if stream == side.name]
        assert [what for what in on_side if what in ("_gather_rows", "event")] == ["event", "_gather_rows", "event"] * 2
        assert {stream for stream, _ in waits} == {side}
        flights = dict(prefetcher._lane._pending)
        waits.clear()
        for layer in (0, 1):
            staged = prefetcher.rows_for(layer)
            assert waits.pop() == (GPU.default, flights[layer].ready)
            assert staged.rows.memory.written[0] is side
            assert staged.rows.memory.written[1] < flights[layer].ready.clock[side]
            assert GPU.default in staged.rows.memory.recorded
        assert not waits
        prefetcher.take_timings()


def test_the_wait_for_the_rows_is_needed(mini_model, tmp_path, monkeypatch):
    engram = mini_model("v41").engram
    with opened("uva", engram, tmp_path, "step_entry") as prefetcher:
        row_ids, _ = row_ids_of(engram, np.random.default_rng(0), 5)
        prefetcher.begin_step(row_ids)
        monkeypatch.setattr(Stream, "wait_event", lambda stream, event: None)
        with pytest.raises(Fault, match="no event between them"):
            values_of(engram, prefetcher.rows_for(0))
    GPU.faults.clear()


def test_the_wait_for_the_row_ids_is_needed(mini_model, tmp_path, monkeypatch):
    engram = mini_model("v41").engram
    with opened("uva", engram, tmp_path, "step_entry") as prefetcher:
        row_ids, _ = row_ids_of(engram, np.random.default_rng(0), 5)
        monkeypatch.setattr(Stream, "wait_event", lambda stream, event: None)
        prefetcher.begin_step(row_ids)
        with pytest.raises(Fault, match="no event between them"):
            prefetcher.rows_for(0)
        prefetcher._lane._pending.clear()
    GPU.faults.clear()


def test_the_wait_for_a_staging_slot_is_needed(mini_model, tmp_path, monkeypatch):
    engram = mini_model("v41").engram
    generator = np.random.default_rng(0)
    with opened("cpu_gather", engram, tmp_path, "off") as prefetcher:
        monkeypatch.setattr(Event, "synchronize", lambda event: None)
        read = []
        for _ in range(3):  # two slots a layer: the third lookup writes over what the first copy still reads
            row_ids = torch.from_numpy(generator.integers(0, 101, (2, 5, 6)))
            prefetcher.begin_step(row_ids)
            staged = [prefetcher.rows_for(layer) for layer in (0, 1)]
            read.append((row_ids, staged))
        row_ids, staged = read[0]
        content = table.expected_rows(engram, 0, row_ids[0].numpy().reshape(-1))
        assert not np.array_equal(staged[0].rows.cpu().numpy(), content)
        prefetcher._lane._taken.clear()


def test_memory_of_rows_and_ids_is_not_reused_too_early(mini_model, tmp_path, monkeypatch):
    engram = mini_model("v41").engram
    monkeypatch.setattr("cuda_stand_in.CudaTensor.record_stream", lambda tensor, stream: None)
    with opened("uva", engram, tmp_path, "step_entry") as prefetcher:
        row_ids, _ = row_ids_of(engram, np.random.default_rng(0), 5)
        prefetcher.begin_step(row_ids)
        values_of(engram, prefetcher.rows_for(0))
        prefetcher.rows_for(1)
        prefetcher._lane._taken.clear()
    assert "no record_stream" in str(GPU.faults)
    GPU.faults.clear()


def test_the_anchor_of_the_event_clock_is_waited_for():
    events = prefetch_cuda.EventClock(lambda: 1000)
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    event.synchronize()
    assert events.ns(event) > 1000
