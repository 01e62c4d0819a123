"""Shared things beyond bandwidth: queues, slow reads, host cores, pools of several hosts; and start-up."""

import numpy as np
import pytest
from pydantic import ValidationError

from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.hardware import Storage
from tiercast_profiles.rng import stream
from tiercast_sim.run import run
from tiercast_sim.simulate import run_warnings, simulate
from tiercast_sim.storage import LatencyTail, reads_per_s

DRIVE = {"capacity_gb": 1, "read_bandwidth_gb_per_s": 1, "latency_us": 80, "read_granularity_bytes": 512}
TAIL = [{"read_ratio": 0.9, "latency_us": 200}, {"read_ratio": 0.99, "latency_us": 1000}]


def elapsed_ns(resolved):
    return max(run(resolved, "nominal").samples.requests.finish_ns)


def with_curve(sim_scenario, placement, change, **keywords):
    """The scenario with one lookup curve of the machine changed."""
    resolved = sim_scenario(placement)
    lookups = [curve.model_dump() for curve in resolved.hardware.lookups]
    own = (resolved.placement.tier, resolved.placement.path)
    next(curve for curve in lookups if (curve["tier"], curve["path"]) == own).update(change)
    hardware = {**keywords.pop("hardware", {}), "lookups": lookups}
    return sim_scenario(placement, hardware=hardware, **keywords)


def test_a_queue_bounds_the_reads_by_littles_law():
    assert reads_per_s(Storage(**DRIVE), "nominal", "nvme") is None
    assert reads_per_s(Storage(**DRIVE, num_reads_in_flight=8), "nominal", "nvme") == pytest.approx(8 / 80e-6)
    assert reads_per_s(Storage(**DRIVE, num_reads_in_flight=8, max_reads_per_s=5), "nominal", "nvme") == 5
    with pytest.raises(BadInput, match=r"nvme\.latency_us=0"):
        reads_per_s(Storage(**{**DRIVE, "latency_us": 0}, num_reads_in_flight=8), "nominal", "nvme")


@pytest.mark.parametrize("tier", ["nvme", "pool"])
def test_a_shallow_queue_slows_ranks_that_share_it(sim_scenario, tier):
    deep, shallow = (
        elapsed_ns(
            sim_scenario({"tier": tier}, hardware={tier: {"num_reads_in_flight": depth}}, parallel={"tensor": 4})
        )
        for depth in (4096, 1)
    )
    assert shallow > deep


def test_a_tail_must_rise():
    Storage(**DRIVE, latency_tail=TAIL)
    for bad in (TAIL[::-1], [{"read_ratio": 0.9, "latency_us": 10}]):
        with pytest.raises(ValidationError, match="must rise"):
            Storage(**DRIVE, latency_tail=bad)


def test_the_slowest_of_many_reads_lies_in_the_tail():
    tail = LatencyTail(Storage(**DRIVE, latency_tail=TAIL), "nominal", "nvme", stream(0, "test"))
    one = np.array([tail.slowest_ns(1) for _ in range(2000)])
    many = np.array([tail.slowest_ns(100_000) for _ in range(50)])
    assert np.mean(one == 0) == pytest.approx(0.5, abs=0.05)
    assert np.mean(one <= 120_000) == pytest.approx(0.9, abs=0.03)
    assert set(many) == {920_000}  # beyond the last known quantile the tail is flat


def test_a_tail_slows_and_repeats_by_seed(sim_scenario):
    hardware = {"nvme": {"latency_tail": TAIL}}
    with_tail = [elapsed_ns(sim_scenario({"tier": "nvme"}, hardware=hardware, seed=3)) for _ in range(2)]
    assert with_tail[0] == with_tail[1]
    assert with_tail[0] > elapsed_ns(sim_scenario({"tier": "nvme"}, seed=3))


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_each_layer_draws_its_own_tail(sim_scenario, num_layers):
    layers = {"layer_ids": [1, 3, 4][:num_layers]}
    resolved = sim_scenario({"tier": "nvme"}, hardware={"nvme": {"latency_tail": TAIL}}, engram=layers)
    steps = run(resolved, "nominal").steps
    assert {len(step.layers) for step in steps} == {num_layers}
    if num_layers > 1:
        assert any(step.layers[0].service_ns != step.layers[1].service_ns for step in steps)


@pytest.mark.parametrize(("tier", "path"), [("dram", "cpu_gather"), ("nvme", "disk"), ("pool", "pool")])
def test_worker_threads_of_several_devices_share_the_cores(sim_scenario, tier, path):
    placement, parallel = {"tier": tier, "path": path, "prefetch": "off"}, {"tensor": 1, "data": 4}
    unknown = sim_scenario(placement, parallel=parallel)
    few = with_curve(sim_scenario, placement, {"num_threads": 2}, parallel=parallel)  # 4 x 2 threads on 8 cores
    many = with_curve(sim_scenario, placement, {"num_threads": 8}, parallel=parallel)
    assert elapsed_ns(few) == elapsed_ns(unknown)
    assert elapsed_ns(many) > elapsed_ns(few)
    assert any("worker threads" in text for text in run_warnings(unknown, run(unknown, "nominal")))
    assert not any("worker threads" in text for text in run_warnings(few, run(few, "nominal")))
    used = run(many, "nominal").shared["cores of host 0"]
    assert used.kind == "core_seconds"


def test_hosts_share_a_pool(sim_scenario):
    parallel = {"tensor": 4, "data": 2}  # two hosts
    alone = sim_scenario({"tier": "pool"}, parallel=parallel)
    assert any("hosts do not hinder each other" in text for text in run_warnings(alone, run(alone, "nominal")))
    wide, narrow = (
        sim_scenario({"tier": "pool"}, hardware={"pool": {"shared_bandwidth_gb_per_s": rate}}, parallel=parallel)
        for rate in (1000, 0.01)
    )
    assert elapsed_ns(wide) == elapsed_ns(alone)
    assert elapsed_ns(narrow) > elapsed_ns(wide)


def test_other_hosts_on_the_pool_take_their_part(sim_scenario):
    hardware = {"pool": {"shared_bandwidth_gb_per_s": 0.5}}
    parallel = {"tensor": 4}
    times = [
        elapsed_ns(
            sim_scenario(
                {"tier": "pool", "prefetch": "off", "num_pool_hosts": hosts}, hardware=hardware, parallel=parallel
            )
        )
        for hosts in (1, 8, 64)
    ]
    assert times[0] < times[1] < times[2]


def test_pool_hosts_that_make_no_sense_are_refused(sim_scenario):
    with pytest.raises(ValidationError, match="says who shares a pool"):
        sim_scenario({"tier": "dram", "num_pool_hosts": 2})
    with pytest.raises(MissingCapability, match=r"needs pool\.shared_bandwidth_gb_per_s"):
        run(sim_scenario({"tier": "pool", "num_pool_hosts": 2}), "nominal")
    with pytest.raises(BadInput, match="below the 2 hosts"):
        run(sim_scenario({"tier": "pool", "num_pool_hosts": 1}, parallel={"tensor": 4, "data": 2}), "nominal")


def start_up(resolved):
    return simulate(resolved, with_baselines=False, with_bounds=False).metrics.start_up


def test_start_up_says_what_it_does_not_know(sim_scenario):
    found = start_up(sim_scenario({"tier": "dram"}))
    assert found.total_s is None
    notes = [part.note for part in found.parts if part.time_s is None]
    assert notes == [
        "the profile of test-gpu does not state host.page_fill_gb_per_s",
        "the profile of test-gpu does not state host.register_gb_per_s",
    ]


def test_start_up_is_bytes_over_rates(sim_scenario):
    hardware = {"host": {"page_fill_gb_per_s": 4, "register_gb_per_s": 2}}
    parts = {part.name: part for part in start_up(sim_scenario({"tier": "dram"}, hardware=hardware)).parts}
    tables = 2 * 3 * 2 * 4001 * 66  # layers, orders, heads, rows (prime sizes are a little larger)
    pinned = parts["register with the devices"]
    assert pinned.size_bytes == pytest.approx(tables, rel=0.02)
    assert pinned.time_s.value == pytest.approx(pinned.size_bytes / 2e9)
    assert parts["first touch of pages"].time_s.value == pytest.approx(pinned.size_bytes / 4e9)
    assert parts["read from the drive"].size_bytes == pinned.size_bytes + 200_000
    total = start_up(sim_scenario({"tier": "dram"}, hardware=hardware)).total_s
    assert total.value == pytest.approx(sum(part.time_s.value for part in parts.values()))
    in_place = {part.name: part for part in start_up(sim_scenario({"tier": "nvme"}, hardware=hardware)).parts}
    assert in_place["read from the drive"].size_bytes == 200_000


def test_fields_a_profile_does_not_use_leave_its_hash_alone(sim_scenario):
    """Records name the hash of the profile they were made with."""
    hardware = sim_scenario({"tier": "none"}).hardware
    assert "num_reads_in_flight" not in hardware.model_dump()["nvme"]
    other = sim_scenario({"tier": "none"}, hardware={"nvme": {"num_reads_in_flight": 4}}).hardware
    assert other.model_dump(mode="json")["nvme"]["num_reads_in_flight"] == 4
    assert type(other).model_validate(other.model_dump()) == other
    assert other.sha256 != hardware.sha256
