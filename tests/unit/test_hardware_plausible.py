"""Shipped hosts, links and lower tiers beside the figures they were collected from: no value strays from its source.

Peaks, ceilings and ranges stand here a second time, from the literature and not from the data files.
"""

from itertools import pairwise

import pytest

from tiercast_profiles import store
from tiercast_profiles.document import Quantity
from tiercast_profiles.hardware import HardwareProfile

PARTS = {part.name: part for part in store.shipped_parts()}
ROUNDING = 0.01


def banded(part, *path):
    """The number at a path of a part, as low, value, high."""
    value = PARTS[part].body
    for key in path:
        value = value[key]
    quantity = Quantity.model_validate(value)
    low, high = quantity.low, quantity.high
    return (quantity.value if low is None else low, quantity.value, quantity.value if high is None else high)


# links: copies of a pinned buffer in GB/s, what the multiprocessors read at best, round trip in us
LINKS = {
    "pcie-gen3-x16": ((12.3, 12.3), 12, 1.0),
    "pcie-gen4-x8": ((14.2, 14.2), 14.2, 1.4),
    "pcie-gen4-x16": ((25, 26.5), 25, 1.0),
    "pcie-gen5-x16": ((55, 57.3), 35, 0.8),
    "nvlink-c2c": ((299, 375), 342, 0.6),
    "nvlink-c2c-shared": ((2 * 164.8, 2 * 200.7), 200.9, 0.586),  # of two GPUs together
}
LARGE_TABLE_GATHERS = {"pcie-gen4-x16": (5, 16), "pcie-gen5-x16": (7, 30)}  # 100 GB and more


@pytest.mark.parametrize("name", LINKS)
def test_a_link_copies_what_was_published_and_gathers_no_more_than_it_streams(name):
    (least, most), streamed, round_trip_us = LINKS[name]
    low, value, high = banded(name, "host_to_device", "bandwidth_gb_per_s")
    assert least <= value <= most
    assert value <= high <= most
    assert low > 0.6 * value
    curve = PARTS[name].body["lookups"][0]
    assert not curve["is_calibrated"], "a prior says that it is one"
    _, gathered, best = banded(name, "lookups", 0, "bandwidth_gb_per_s")
    assert gathered < streamed
    assert best <= streamed
    assert banded(name, "host_to_device", "latency_us")[0] >= round_trip_us
    assert banded(name, "lookups", 0, "fixed_us")[0] > round_trip_us, "a lookup makes at least one round trip"


@pytest.mark.parametrize("name", LARGE_TABLE_GATHERS)
def test_gathers_from_a_large_table_have_the_collected_range(name):
    low, value, high = banded(name, "lookups", 0, "bandwidth_gb_per_s")
    assert (low, high) == LARGE_TABLE_GATHERS[name]
    assert value == pytest.approx((low * high) ** 0.5, rel=0.01)


def test_each_generation_of_pcie_doubles_the_one_before():
    rates = [banded(f"pcie-gen{number}-x16", "host_to_device", "bandwidth_gb_per_s")[1] for number in (3, 4, 5)]
    for slow, fast in pairwise(rates):
        assert 1.9 < fast / slow < 2.2
    half = banded("pcie-gen4-x8", "host_to_device", "bandwidth_gb_per_s")[1]
    assert 0.45 < half / rates[1] < 0.6


# hosts of two sockets: channels, MT/s, bytes of a transfer of one socket, and ns of a random local read
SOCKETS = {
    "two-ice-lake": (8, 3200, (85, 110)),
    "two-milan": (8, 3200, (85, 110)),
    "two-sapphire-rapids": (8, 4800, (110, 120)),
    "two-emerald-rapids": (8, 5600, (105, 120)),
    "two-granite-rapids": (12, 6400, (130, 130)),
    "two-granite-rapids-mrdimm": (12, 8800, (130, 130)),
    "two-genoa": (12, 4800, (105, 120)),
    "two-turin": (12, 6000, (115, 125)),
}
REMOTE_NS = (60, 130)


@pytest.mark.parametrize("name", SOCKETS)
def test_a_host_streams_four_fifths_of_its_peak(name):
    channels, mega_transfers_per_s, _ = SOCKETS[name]
    peak_gb_per_s = 2 * channels * mega_transfers_per_s * 8 / 1000
    low, value, high = banded(name, "host", "memory_bandwidth_gb_per_s")
    assert 0.795 <= low / peak_gb_per_s < value / peak_gb_per_s < high / peak_gb_per_s <= 0.885


@pytest.mark.parametrize("name", SOCKETS)
def test_far_memory_is_slower_by_what_a_hop_between_sockets_takes(name):
    fast, slow = SOCKETS[name][2]
    low, value, high = banded(name, "host", "remote_numa_speed_ratio")
    assert low >= fast / (fast + REMOTE_NS[1]) - ROUNDING
    assert high <= slow / (slow + REMOTE_NS[0]) + ROUNDING
    assert low < value < high


@pytest.mark.parametrize("name", [name for name, part in PARTS.items() if part.kind == "host"])
def test_random_rows_come_at_half_to_seven_tenths_of_the_stream(name):
    assert banded(name, "host", "random_access_ratio") == (0.5, 0.6, 0.7)
    streamed = banded(name, "host", "memory_bandwidth_gb_per_s")[2]
    _, gathered, best = banded(name, "lookups", 0, "bandwidth_gb_per_s")
    assert gathered < 0.7 * streamed
    assert best <= streamed


def test_grace_is_measured_below_its_peak_and_two_of_them_share_a_link():
    low, value, high = banded("one-grace", "host", "memory_bandwidth_gb_per_s")
    assert value == 486
    assert low < value < high <= 546
    assert banded("two-grace", "host", "memory_bandwidth_gb_per_s")[1] == 2 * value
    assert 110 / value <= banded("two-grace", "host", "remote_numa_speed_ratio")[1] <= 150 / value


def test_newer_hosts_are_not_slower_than_those_before_them():
    rates = [banded(name, "host", "memory_bandwidth_gb_per_s")[1] for name in SOCKETS]
    intel, amd = [rates[index] for index in (0, 2, 3, 4, 5)], [rates[index] for index in (1, 6, 7)]
    assert intel == sorted(intel)
    assert amd == sorted(amd)


# lower tiers


@pytest.mark.parametrize(
    ("name", "gb_per_s", "latency_us"),
    [("cxl-module", 36, (0.2, 0.3)), ("cxl-pooled", 60, (0.596, 0.596)), ("cxl-switched", 12, (0.5, 0.6))],
)
def test_cxl_memory_is_slower_than_its_host_and_faster_than_a_drive(name, gb_per_s, latency_us):
    assert banded(name, "cxl", "read_bandwidth_gb_per_s")[1] == gb_per_s
    _, latency, slowest = banded(name, "cxl", "latency_us")
    assert latency_us[0] <= latency <= latency_us[1]
    assert 0.11 < latency <= slowest <= 5 * 0.12, "two to five times as slow as local memory"


# read GB/s, µs of a single read, random reads of 4 KiB per second
DRIVES = {
    "nvme-gen5": (14, (50, 80), (3.3e6, 3.3e6)),
    "nvme-gen5-consumer": (14, (50, 80), (2.2e6, 2.4e6)),
    "nvme-gen6": (28, (50, 80), (5.4e6, 5.5e6)),
}
SPARK_READS_PER_S = 112_000  # what an application reached on a drive of a DGX Spark: the low end of every drive


@pytest.mark.parametrize("name", DRIVES)
def test_a_drive_reads_what_its_maker_says_at_most_and_what_an_application_reached_at_least(name):
    gb_per_s, latency_us, reads_per_s = DRIVES[name]
    assert banded(name, "nvme", "read_bandwidth_gb_per_s")[1] == gb_per_s
    low, value, high = banded(name, "nvme", "latency_us")
    assert (low, high) == latency_us
    assert low <= value <= high
    assert banded(name, "nvme", "max_reads_per_s") == (SPARK_READS_PER_S, *reads_per_s)
    block = PARTS[name].body["nvme"]["read_granularity_bytes"]
    assert reads_per_s[1] * block <= gb_per_s * 1e9, "reads of a block do not add up to more than the drive streams"
    assert -(-264 // block) * block / 264 == pytest.approx(15.5, abs=0.05), "a row costs a whole block"
    fastest, _, slowest = banded(name, "lookups", 0, "row_ns")
    assert fastest == pytest.approx(1e9 / reads_per_s[1], rel=0.01)
    assert slowest == pytest.approx(1e9 / SPARK_READS_PER_S, rel=0.01)


def test_optane_answers_in_ten_microseconds():
    assert banded("nvme-optane", "nvme", "latency_us")[1] == 10


@pytest.mark.parametrize(("name", "line_gb_per_s"), [("pool-rdma-200g", 25), ("pool-rdma-400g", 50)])
def test_a_pool_is_read_over_one_to_eight_lines_never_faster_than_a_packet_a_row(name, line_gb_per_s):
    lines = [rate / line_gb_per_s for rate in banded(name, "pool", "read_bandwidth_gb_per_s")]
    assert lines == [1, 2, 8]
    low, value, _ = banded(name, "pool", "latency_us")
    assert 2 * 0.8 <= low <= value, "a read goes there and back"
    assert banded(name, "lookups", 0, "row_ns")[0] >= 1e9 / 200e6, "a card sends 100 to 200 M packets a second"
    assert banded(name, "lookups", 0, "bandwidth_gb_per_s")[1] == line_gb_per_s / 4


@pytest.mark.parametrize("name", store.shipped_names("hardware"))
def test_each_tier_of_a_machine_is_slower_than_the_one_above_it(name):
    """Rows of a tier that is cheaper and larger never come sooner: otherwise two numbers were mixed up."""
    profile: HardwareProfile = store.load_hardware(name)
    fixed = {
        curve.tier: curve.fixed_us.value
        for curve in profile.lookups
        if (curve.tier, curve.path) in {("hbm", "device"), ("dram", "uva"), ("cxl", "uva"), ("nvme", "disk")}
    }
    ordered = [fixed[tier] for tier in ("hbm", "dram", "cxl", "nvme") if tier in fixed]
    assert len(ordered) >= 3
    assert ordered == sorted(ordered)
