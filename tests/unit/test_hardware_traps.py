"""Figures that circulate and are wrong: none of them has found its way into the shipped data."""

import tomllib
from pathlib import Path

import pytest

from tiercast_profiles import store
from tiercast_profiles.errors import NoDevicePrice
from tiercast_profiles.units import MIB, bytes_to_gb

ROOT = Path(__file__).parents[2]
NAMES = store.shipped_names("hardware")


def _device(name):
    return store.load_hardware(name).device


def test_b200_hosts_copy_at_gen5_rates_not_128():
    for link in (store.load_hardware("b200-sxm").host_to_device, store.load_hardware("b200-sxm").device_to_host):
        assert link.bandwidth_gb_per_s.low <= 55.6 <= link.bandwidth_gb_per_s.high < 60


def test_dense_rates_are_not_the_sparse_ones():
    assert _device("h100-sxm").dense_tflops["bf16"].value == 989
    assert _device("h100-sxm").dense_tflops["fp8"].value == 1979
    assert _device("rtx-5090").dense_tflops["fp4"].value == 1676 / 2


@pytest.mark.parametrize("name", NAMES)
def test_each_narrower_format_at_most_doubles_the_rate(name):
    """Sparse figures beside dense ones show as a factor of four; B300 and GB300 trade INT8 and FP64 for FP4."""
    rates = _device(name).dense_tflops
    factor = 3.2 if name in ("b300-sxm", "gb300") else 2.1
    for wide, narrow in (("bf16", "fp8"), ("fp8", "fp4")):
        if wide in rates and narrow in rates:
            assert rates[wide].value < rates[narrow].value <= factor * rates[wide].value


def test_l4_bandwidth_is_300_not_3350():
    assert _device("l4").memory_bandwidth_gb_per_s.value == 300


def test_memory_bandwidths_of_5090_and_h100_are_the_datasheets():
    assert _device("rtx-5090").memory_bandwidth_gb_per_s.value == 1792  # a table has 1.792e15
    assert _device("h100-sxm").memory_bandwidth_gb_per_s.value == 3350  # a table has 2.4 TB/s


def test_gb200_bandwidth_is_one_gpus():
    assert _device("gb200").memory_bandwidth_gb_per_s.value == 8000  # 13.4 TB/s is of a superchip


@pytest.mark.parametrize("name", ["gb200", "gb300"])
def test_900_gb_per_s_is_both_directions_and_two_gpus(name):
    link = store.load_hardware(name).host_to_device
    assert link.num_sharing == 2
    assert link.bandwidth_gb_per_s.high / link.num_sharing < 900 / 4


@pytest.mark.parametrize("name", ["b300-sxm", "gb300", "h800-sxm", "h20", "h20-3e"])
def test_placeholder_and_missing_prices_stay_absent(name):
    """Public $/h of B300 and GB300 are 1.2 x B200's; H20 and H800 have none."""
    profile = store.load_hardware(name)
    with pytest.raises(NoDevicePrice):
        store.load_prices("default").device_key(profile.name, profile.device.product_name)


def test_no_price_is_the_stale_list_price():
    """Blogs give $80-98/h for a p5.48xlarge; the list price is 55.04 for eight H100."""
    prices = [device.usd_per_device_hour for device in store.load_prices("default").devices.values()]
    assert prices
    assert all(price < 80 / 8 for price in prices)


def test_the_nvml_package_is_not_the_deprecated_shim():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert any(wanted.startswith("nvidia-ml-py") for wanted in extras["runtime"])
    assert not any(wanted.startswith("pynvml") for wanted in extras["runtime"])


@pytest.mark.parametrize("name", NAMES)
def test_no_gather_is_a_tenth_of_the_link(name):
    """A planner divides 32 GiB/s by ten for every GPU; here the prior comes from gathers, whatever the link."""
    curve = store.load_hardware(name).curve("dram", "uva")
    assert curve.bandwidth_gb_per_s.value > 32 * 2**30 / 1e9 / 10


@pytest.mark.parametrize("name", NAMES)
def test_a_lookup_takes_longer_than_the_latency_of_a_small_buffer(name):
    """nvbandwidth's 2 MiB pointer chase (586 to 773 ns) stays in cache and TLB: a lower bound, not a lookup."""
    assert store.load_hardware(name).curve("dram", "uva").fixed_us.low > 0.773


@pytest.mark.parametrize(
    ("name", "size_mib"), [("gb200", 189_471), ("gb300", 284_208), ("l40s", 46_068), ("rtx-pro-6000", 97_887)]
)
def test_driver_sizes_are_mebibytes(name, size_mib):
    assert _device(name).memory_capacity_gb.value == pytest.approx(bytes_to_gb(size_mib * MIB), abs=1e-3)


def test_the_optane_rate_is_reads_times_bytes():
    drive = next(part for part in store.shipped_parts() if part.name == "nvme-optane").body["nvme"]
    reads_per_s = drive["max_reads_per_s"]["value"]
    assert drive["read_bandwidth_gb_per_s"] == pytest.approx(reads_per_s * 512 / 1e9, abs=0.01)  # a log's 2.34 is GiB/s


def test_a100_has_no_fp8():
    """Its 624 is INT8; as an FP8 rate it would double what the GPU computes."""
    assert set(_device("a100-sxm-80").dense_tflops) == {"fp32", "bf16"}


def test_the_recalled_gh200_bandwidth_says_so():
    profile = store.load_hardware("gh200-96")
    assert profile.source_of("device.memory_bandwidth_gb_per_s").mark == "R"
