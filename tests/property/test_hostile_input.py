"""Absurd scenarios end in one clear error or a right answer: no hang, no infinity in a record."""

import json
import math
import time

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from tiercast_profiles.errors import BadInput, InfeasibleScenario, TiercastError
from tiercast_profiles.scenario import Scenario
from tiercast_profiles.workload import Workload
from tiercast_sim.simulate import simulate

ONE_TOKEN = {
    "kind": "closed_loop",
    "concurrency": 1,
    "num_requests": 1,
    "prompt_tokens": {"fixed": 1},
    "output_tokens": {"fixed": 1},
}
PLACEMENTS = [{"tier": "hbm"}, {"tier": "dram"}, {"tier": "cxl"}, {"tier": "nvme"}, {"tier": "pool"}]
NUMBERS = [
    "device.memory_capacity_gb",
    "device.memory_reserve_gb",
    "device.memory_bandwidth_gb_per_s",
    "device.memory_efficiency_ratio",
    "device.matmul_efficiency_ratio",
    "device.dense_tflops.fp32",
    "device.layer_overhead_us.full",
    "device.step_overhead_us.full",
    "device.collective.bandwidth_gb_per_s",
    "device.collective.latency_us",
    "host.memory_capacity_gb",
    "host.memory_bandwidth_gb_per_s",
    "host.random_access_ratio",
    "host.remote_numa_speed_ratio",
    "host.register_gb_per_s",
    "host.page_fill_gb_per_s",
    "host_to_device.bandwidth_gb_per_s",
    "host_to_device.latency_us",
    "nvme.capacity_gb",
    "nvme.read_bandwidth_gb_per_s",
    "nvme.latency_us",
    "nvme.max_reads_per_s",
    "pool.read_bandwidth_gb_per_s",
    "pool.shared_bandwidth_gb_per_s",
]
ABSURD = [0.0, -1.0, 5e-324, 1e-300, 1e-12, 1e12, 1e300, 1.7e308]


def finite(record):
    """The record's JSON as data; canonical JSON refuses anything that is not finite."""
    data = json.loads(record.to_json())

    def walk(value):
        if isinstance(value, dict):
            return all(walk(part) for part in value.values())
        if isinstance(value, list):
            return all(walk(part) for part in value)
        return not isinstance(value, float) or math.isfinite(value)

    return walk(data)


@pytest.mark.parametrize("placement", [{"tier": "none"}, *PLACEMENTS], ids=str)
def test_one_token_of_one_request(sim_scenario, placement):
    record = simulate(sim_scenario(placement, workload=ONE_TOKEN))
    assert finite(record)
    assert record.metrics.tpot_ms is None  # there is no second token to time
    assert sum(record.samples.steps.prefill_tokens) == 1


def test_more_clients_than_requests_are_as_many_as_requests(sim_scenario):
    def finish(concurrency):
        workload = {**ONE_TOKEN, "concurrency": concurrency, "num_requests": 50, "output_tokens": {"fixed": 3}}
        return simulate(sim_scenario({"tier": "dram"}, workload=workload), with_bounds=False).samples.requests.finish_ns

    assert finish(1_000_000) == finish(50)


@pytest.mark.parametrize(
    "change",
    [
        {"concurrency": 0},
        {"concurrency": -1},
        {"concurrency": 1_000_001},
        {"num_requests": 0},
        {"num_requests": 10**15},
        {"prompt_tokens": {"fixed": 0}},
        {"output_tokens": {"fixed": -3}},
        {"prompt_tokens": {"lognormal": [math.nan, 1]}},
        {"prompt_tokens": {"lognormal": [10, math.inf]}},
        {"kind": "poisson", "concurrency": None, "requests_per_s": 0},
        {"kind": "poisson", "concurrency": None, "requests_per_s": math.nan},
    ],
    ids=str,
)
def test_workloads_that_are_none_are_refused(change):
    with pytest.raises(ValidationError):
        Workload.model_validate({**ONE_TOKEN, **change})


@pytest.mark.parametrize("rows", [0, -5, math.nan])
def test_tables_without_rows_are_refused(sim_scenario, rows):
    with pytest.raises(ValidationError):
        sim_scenario({"tier": "dram"}, engram={"rows_per_head": [rows] * 3})


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_tables_larger_than_the_world_do_not_fit(sim_scenario, placement):
    """10^15 rows a head: refused by the door, or short of a number of bytes that is said."""
    try:
        resolved = sim_scenario(placement, engram={"rows_per_head": [10**15] * 3})
    except ValidationError:
        return
    with pytest.raises(InfeasibleScenario) as error:
        simulate(resolved)
    assert error.value.shortfall_bytes > 10**15


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_do_not_enter_a_profile(sim_scenario, value):
    with pytest.raises(ValidationError):
        sim_scenario({"tier": "dram"}, hardware={"host": {"memory_bandwidth_gb_per_s": value}})


def test_a_part_that_takes_longer_than_a_lifetime_is_refused(sim_scenario):
    hardware = {"device": {"memory_bandwidth_gb_per_s": 1e-300}}
    with pytest.raises(BadInput, match="correct the profile"):
        simulate(sim_scenario({"tier": "dram"}, hardware=hardware))


@pytest.mark.parametrize(
    "change",
    [
        {"cache_gib": math.nan},
        {"cache_gib": -1},
        {"cache_gib": 1e300},
        {"cache_gib": 1, "cache_policy": "belady"},
        {"cache_policy": "lfu"},
        {"page_cache_residency_ratio": math.nan},
        {"page_cache_residency_ratio": -1e-9},
        {"page_cache_residency_ratio": 1e15},
    ],
    ids=str,
)
def test_caches_that_are_none_are_refused(sim_scenario, change):
    with pytest.raises(ValidationError):
        sim_scenario({"tier": "nvme", **change})


@pytest.mark.parametrize(("tier", "why"), [("hbm", "the memory that the rows are in"), ("none", "no rows to keep")])
def test_a_cache_in_front_of_what_needs_none_is_refused_with_a_reason(sim_scenario, tier, why):
    with pytest.raises(ValidationError, match=rf"cache_gib=1 with tier '{tier}'.*{why}.*leave it out"):
        sim_scenario({"tier": tier, "cache_gib": 1})


@pytest.mark.parametrize("policy", ["lru", "lfu", "static_hot"])
@pytest.mark.parametrize("cache_gib", [5e-324, 1e-9, 0.5])
@pytest.mark.parametrize("resident", [5e-324, 1 - 1e-16, 1.0])
def test_caches_of_nothing_and_of_everything_are_answers(sim_scenario, policy, cache_gib, resident):
    placement = {"tier": "nvme", "cache_gib": cache_gib, "cache_policy": policy, "page_cache_residency_ratio": resident}
    record = simulate(sim_scenario(placement, workload=ONE_TOKEN), with_baselines=False)
    assert finite(record)
    assert record.metrics.page_cache.read_ahead_s.value >= 0


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(NUMBERS),
    value=st.sampled_from(ABSURD),
    placement=st.sampled_from(PLACEMENTS),
    tensor=st.sampled_from([1, 4]),
)
def test_a_number_no_machine_has_is_an_error_or_an_answer(sim_scenario, name, value, placement, tensor):
    hardware: dict = {}
    place = hardware
    *path, last = name.split(".")
    for part in path:
        place = place.setdefault(part, {})
    place[last] = value
    try:
        record = simulate(
            sim_scenario(placement, hardware=hardware, parallel={"tensor": tensor}, workload=ONE_TOKEN),
            with_baselines=False,
        )
    except (TiercastError, ValidationError):
        return
    assert finite(record)


def dotted_fields(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted path of every field of the sections of a scenario."""
    found = []
    for name, info in schema.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found += dotted_fields(info.annotation, f"{prefix}{name}.")
        elif prefix or name == "seed":
            found.append(prefix + name)
    return found


HOSTILE = [0, -1, 1, 0.5, 5e-324, 1e-12, 10**6, 10**15, 2**63, 1e300, math.nan, math.inf, -math.inf, "", "x", None, []]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    path=st.sampled_from(dotted_fields(Scenario)),
    value=st.sampled_from(HOSTILE),
    placement=st.sampled_from([*PLACEMENTS, {"tier": "nvme", "cache_gib": 0.001, "cache_policy": "lfu"}]),
)
def test_a_field_with_a_value_nobody_means_is_an_error_or_an_answer(sim_scenario, path, value, placement):
    assume((path, value) != ("workload.num_requests", 10**6))  # a right answer, in minutes where events are needed
    section, _, name = path.partition(".")
    sections: dict = {"workload": ONE_TOKEN}
    if section == "placement":
        placement = {**placement, name: value}
    else:
        sections[section] = {**sections.get(section, {}), name: value} if name else value
    try:
        record = simulate(sim_scenario(placement, **sections), with_baselines=False)
    except (TiercastError, ValidationError):
        return
    assert finite(record)


def numbers_in(data, path=()):
    """Paths of every number of a document as plain data."""
    if isinstance(data, dict):
        return [found for key, part in data.items() for found in numbers_in(part, (*path, key))]
    if isinstance(data, list):
        return [found for index, part in enumerate(data) for found in numbers_in(part, (*path, index))]
    return [path] if isinstance(data, int | float) and not isinstance(data, bool) else []


def with_number(data, path, value):
    """A copy of the document with one number replaced."""
    if not path:
        return value
    if isinstance(data, list):
        return [with_number(part, path[1:], value) if i == path[0] else part for i, part in enumerate(data)]
    return {key: with_number(part, path[1:], value) if key == path[0] else part for key, part in data.items()}


FULL_MACHINE = {
    "nvme": {"num_reads_in_flight": 8, "latency_tail": [{"read_ratio": 0.99, "latency_us": 900}], "host_read_us": 12},
    "interference": [{"tier": "nvme", "path": "disk", "compute_speed_ratio": 0.9, "lookup_speed_ratio": 0.9}],
}


@pytest.mark.parametrize("tensor", [1, 3])
def test_a_machine_with_any_number_of_devices_is_an_error_or_an_answer(sim_scenario, tensor):
    whole = sim_scenario({"tier": "nvme"}).hardware.model_dump(mode="json")
    many = with_number(whole, ("device", "num_per_host"), 10**18)
    answer_or_error(sim_scenario, {"tier": "nvme"}, hardware=many, parallel={"tensor": tensor})


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), value=st.sampled_from(HOSTILE), placement=st.sampled_from(PLACEMENTS))
def test_a_machine_file_with_any_number_wrong_is_an_error_or_an_answer(sim_scenario, data, value, placement):
    whole = sim_scenario({"tier": "nvme"}, hardware=FULL_MACHINE).hardware.model_dump(mode="json")
    path = data.draw(st.sampled_from(numbers_in(whole)))
    answer_or_error(sim_scenario, placement, hardware=with_number(whole, path, value))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), value=st.sampled_from(HOSTILE), placement=st.sampled_from(PLACEMENTS), dialect=st.booleans())
def test_a_model_file_with_any_number_wrong_is_an_error_or_an_answer(sim_scenario, data, value, placement, dialect):
    model = sim_scenario({"tier": "nvme"}).model.model_dump(mode="json")
    moe = {"num_routed_experts": 8, "num_active_experts": 2, "num_shared_experts": 1}
    backbone = {**model["backbone"], "moe": {**moe, "expert_bytes": 9000, "expert_params": 4500}} if dialect else {}
    sections = {"backbone": backbone or model["backbone"], "engram": model["engram"]}
    path = data.draw(st.sampled_from(numbers_in(sections)))
    answer_or_error(sim_scenario, placement, **with_number(sections, path, value))


def answer_or_error(sim_scenario, placement, **changes):
    """One clear line, or a record in which everything is finite; within seconds."""
    start_s = time.monotonic()
    try:
        record = simulate(sim_scenario(placement, workload=ONE_TOKEN, **changes), with_baselines=False)
    except (TiercastError, ValidationError):
        pass
    else:
        assert finite(record)
    assert time.monotonic() - start_s < 20, "as good as a hang"
