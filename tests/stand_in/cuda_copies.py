"""Copies over the link on the stand-in: behind their gate, both ways at the same time, and every byte compared."""

import pytest
import torch
from cuda_stand_in import CUDA, GPU

from tiercast_profiles.units import KIB
from tiercast_runtime.probes import copies, link_copies
from tiercast_runtime.probes.link_copies import NUM_COPIES, NUM_OPPOSITE_COPIES, NUM_WARM_UPS, CopyTrial, Way
from tiercast_runtime.probes.telemetry import Telemetry
from tiercast_runtime.probes.timing import Effort

BRIEF = Effort(0, num_warm_ups=0, min_rounds=1, max_rounds=1)
NUM_BYTES = 16 * KIB
WHAT = {"up": "copy from host", "down": "copy to host", "within": "copy_"}


def on_host(*, is_pinned=True):
    return torch.zeros(NUM_BYTES, dtype=torch.uint8, pin_memory=is_pinned)


def on_device():
    return torch.zeros(NUM_BYTES, dtype=torch.uint8, device=CUDA)


def way(direction, *, is_pinned=True):
    if direction == "up":
        return Way(on_host(is_pinned=is_pinned), on_device())
    return Way(on_device(), on_host(is_pinned=is_pinned) if direction == "down" else on_device())


@pytest.fixture
def launched(monkeypatch):
    """What a sample launches before its bytes are compared, which copies them once more."""
    monkeypatch.setattr(GPU, "launched", [])
    monkeypatch.setattr(Way, "verify_changes", lambda way, device: None)
    return GPU.launched


def measured(num_bytes=256 * KIB):
    with Telemetry(0) as telemetry:
        return link_copies.measure_device_copies(CUDA, num_bytes, BRIEF, telemetry)


@pytest.mark.parametrize("direction", list(WHAT))
def test_every_copy_waits_for_the_gate_and_only_the_later_ones_are_timed(launched, direction):
    trial = CopyTrial("rate", way(direction), CUDA)
    GPU.log.clear()
    trial.run()
    (gate,) = (one for one in launched if one.what == "sleep")
    moved = [one for one in launched if one.what == WHAT[direction]]
    assert len(moved) == NUM_WARM_UPS + NUM_COPIES
    assert all(one.is_after(gate) for one in moved)
    names = [what for _, what in GPU.log]
    copied = [WHAT[direction]]
    assert names[names.index("sleep") :] == [
        *("sleep", "event"),
        *(NUM_WARM_UPS * copied),
        "event",
        *(NUM_COPIES * copied),
        "event",
    ]


@pytest.mark.parametrize("direction", ["up", "down"])
def test_copies_of_pageable_memory_have_no_gate_and_say_so(launched, direction):
    trial = CopyTrial("rate", way(direction, is_pinned=False), CUDA, is_gated=False)
    trial.run()
    assert [one.what for one in launched].count(WHAT[direction]) == NUM_WARM_UPS + NUM_COPIES
    assert "sleep" not in {one.what for one in launched}
    assert trial.parameters["host_memory"] == "pageable"
    assert str(trial.parameters["gate"]).startswith("none: pageable copies make the host wait")


@pytest.mark.parametrize(("timed", "other"), [("up", "down"), ("down", "up")])
def test_both_directions_start_at_one_gate_and_neither_waits_for_the_other(launched, timed, other):
    CopyTrial("rate", way(timed), CUDA, way(other)).run()
    (gate,) = (one for one in launched if one.what == "sleep")
    ours = [one for one in launched if one.what == WHAT[timed]]
    theirs = [one for one in launched if one.what == WHAT[other]]
    assert (len(ours), len(theirs)) == (NUM_WARM_UPS + NUM_COPIES, NUM_OPPOSITE_COPIES)
    assert all(one.is_after(gate) for one in (*ours, *theirs))
    assert not any(one.is_after(two) or two.is_after(one) for one in ours for two in theirs)


def test_copies_over_the_link_run_to_a_result():
    found = measured()
    over_link = [
        f"{direction}{kind}"
        for kind in ("", "_pageable", "_bidirectional")
        for direction in ("host_to_device", "device_to_host")
    ]
    assert set(found.rates) == {*over_link, "device"}
    assert all(spread.value > 0 for spread in (*found.rates.values(), *found.latencies.values()))
    sizes = {(probe.name, probe.parameters["bytes"]) for probe in found.probes if probe.unit == "GB/s"}
    assert sizes == {
        *((f"copy.{name}", size) for name in over_link for size in (64 * KIB, 256 * KIB)),
        ("copy.device", 256 * KIB),
    }
    gates = {probe.name: str(probe.parameters["gate"]) for probe in found.probes if probe.unit == "GB/s"}
    assert {name for name, gate in gates.items() if gate == "shut until all copies were enqueued"} == {
        *(f"copy.{name}" for name in over_link if "pageable" not in name),
        "copy.device",
    }
    overlaps = [probe for probe in found.probes if probe.name.endswith("_bidirectional.overlap")]
    assert [probe.unit for probe in overlaps] == ["ratio"] * 4
    assert not [probe.name for probe in found.probes if probe.status == "invalid"]


def test_a_copy_that_brings_other_bytes_is_refused(monkeypatch):
    equal = torch.equal
    monkeypatch.setattr(torch, "equal", lambda one, other: equal(one, other) and one.numel() < 1000)
    with pytest.raises(copies.CopyMismatch):
        measured()


class Lost(Way):
    """Copies that never arrive."""

    def enqueue(self, num_copies):
        pass


@pytest.mark.parametrize("is_opposite", [False, True])
def test_a_direction_whose_copies_are_lost_is_refused(is_opposite):
    up, down = way("up"), way("down")
    lost = Lost(down.source, down.target)
    trial = CopyTrial("rate", up, CUDA, lost) if is_opposite else CopyTrial("rate", lost, CUDA, up)
    with pytest.raises(copies.CopyMismatch):
        trial.run()


def test_the_bytes_of_the_sample_before_do_not_pass(monkeypatch):
    trial = CopyTrial("rate", way("down"), CUDA)
    trial.run()
    monkeypatch.setattr(Way, "enqueue", lambda way, num_copies: None)
    with pytest.raises(copies.CopyMismatch):
        trial.run()


def test_a_host_without_room_for_one_more_buffer_has_a_link_all_the_same(monkeypatch):
    empty, pinned = torch.empty, []

    def refusing(*args, pin_memory=False, **kwargs):
        pinned.extend([True] * pin_memory)
        if len(pinned) > 1 and pin_memory:
            raise RuntimeError("CUDA error: out of memory\nmore")
        return empty(*args, pin_memory=pin_memory, **kwargs)

    monkeypatch.setattr(torch, "empty", refusing)
    found = measured()
    assert {"host_to_device", "device_to_host", "device"} <= set(found.rates)
    failed = {probe.name: probe.reason for probe in found.probes if probe.status == "failed"}
    assert failed == dict.fromkeys(
        ("copy.host_to_device_bidirectional", "copy.device_to_host_bidirectional"), "CUDA error: out of memory"
    )
