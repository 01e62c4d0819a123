"""Figures that circulate and are wrong: none of them has found its way into the shipped data."""

import tomllib
from pathlib import Path

import pytest

from tiercast_profiles import store
from tiercast_profiles.errors import NoDevicePrice
from tiercast_profiles.text import load_text
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


@pytest.mark.parametrize("name", ["h800-sxm", "h20", "h20-3e"])
def test_missing_prices_stay_absent(name):
    profile = store.load_hardware(name)
    with pytest.raises(NoDevicePrice):
        store.load_prices("default").device_key(profile.name, profile.device.product_name)


@pytest.mark.parametrize("name", ["b300-sxm", "gb300"])
def test_placeholder_prices_say_so(name):
    """Public $/h of B300 and GB300 are 1.2 x those of B200 and GB200: derived, and no quote."""
    source = store.load_prices("default").source_of(f"devices.{name}.usd_per_device_hour")
    assert (source.kind, source.mark) == ("derived", "D")
    assert "placeholder and not a quote" in source.source


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


def test_the_row_floor_of_a_gathering_gpu_was_read_in_gibibytes():
    """DGL reports GiB/s: 1.43 to 1.7 GiB/s of 32 B rows is 17.5 to 20.8 ns a row, not 18.8 to 22.4."""
    row_ns = [32 / (rate * 2**30) * 1e9 for rate in (1.7, 1.43)]
    curve = next(part for part in store.shipped_parts() if part.name == "pcie-gen4-x16").body["lookups"][0]
    assert curve["row_ns"]["low"] == pytest.approx(row_ns[0] / 2, rel=0.02)
    assert curve["row_ns"]["high"] == pytest.approx(row_ns[1] * 2, rel=0.02)


@pytest.mark.parametrize("text", ["docs", "code"])
def test_texts_do_not_repeat_one_prompt(text):
    """A published hit rate of 99.1 % came from a repeated filler prompt: texts here ask for new n-grams."""
    pytest.importorskip("tiktoken", reason="the text extra is not installed")
    folded = load_text(text, store.load_model("tiny")).folded_ids[:8192]
    grams = {tuple(folded[index : index + 3].tolist()) for index in range(len(folded) - 2)}
    assert 0.3 < len(grams) / len(folded) < 0.95


# GPUs as collected: GB (None: given in MiB, above), HBM GB/s, dense BF16, FP8 and FP4 TFLOP/s, W
COLLECTED = {
    "a100-pcie-80": (80, 1935, 312, None, None, 300),
    "a100-sxm-80": (80, 2039, 312, None, None, 400),
    "h100-pcie": (80, 2000, 756.5, 1513, None, 350),
    "h100-sxm": (80, 3350, 989, 1979, None, 700),
    "h800-sxm": (80, 3350, 989, 1979, None, 700),
    "h20": (96, 4000, 148, 296, None, 400),
    "h20-3e": (141, 4800, 148, 296, None, 400),
    "h200-sxm": (141, 4800, 989, 1979, None, 700),
    "gh200-96": (96, 4000, 989, 1979, None, 1000),
    "gh200-144": (144, 4900, 989, 1979, None, 1000),
    "b200-sxm": (180, 7670, 2250, 4500, 9000, 1000),
    "b300-sxm": (268, 7750, 2250, 4500, 13500, 1100),
    "gb200": (None, 8000, 2500, 5000, 10000, 1200),
    "gb300": (None, 8000, 2500, 5000, 15000, 1400),
    "l4": (24, 300, 121, 242, None, 72),
    "l40s": (None, 864, 362, 733, None, 350),
    "rtx-4090": (24, 1008, 165, 330, None, 450),
    "rtx-5090": (32, 1792, 209.5, 419, 838, 575),
    "rtx-pro-6000": (None, 1792, 467.8, 935.6, 1871, 600),
    "mi300x": (192, 5300, 1307, 2615, None, 750),
    "mi325x": (256, 6000, 1307, 2615, None, 1000),
    "mi355x": (288, 8000, 2516, 5033, 10066, 1400),
}


def test_every_shipped_gpu_was_collected():
    assert sorted(COLLECTED) == sorted(NAMES)


@pytest.mark.parametrize("name", sorted(COLLECTED))
def test_shipped_figures_are_those_collected(name):
    capacity_gb, gb_per_s, *tflops, power_w = COLLECTED[name]
    device = _device(name)
    if capacity_gb is not None:
        assert device.memory_capacity_gb.value == capacity_gb
    assert device.memory_bandwidth_gb_per_s.value == gb_per_s
    rates = (device.dense_tflops.get(precision) for precision in ("bf16", "fp8", "fp4"))
    assert [None if rate is None else rate.value for rate in rates] == tflops
    assert device.power_w.value == power_w


def test_every_collected_host_link_and_lower_tier_is_a_part():
    names = {(part.kind, part.name) for part in store.shipped_parts()}
    hosts = ("ice-lake", "milan", "sapphire-rapids", "emerald-rapids", "granite-rapids", "granite-rapids-mrdimm")
    wanted = {("host", f"two-{name}") for name in (*hosts, "genoa", "turin", "grace")}
    wanted |= {("link", f"pcie-{name}") for name in ("gen3-x16", "gen4-x8", "gen4-x16", "gen5-x16")}
    wanted |= {("link", "nvlink-c2c"), ("link", "nvlink-c2c-shared")}
    tiers = ("cxl-module", "cxl-pooled", "cxl-switched", "nvme-gen5", "nvme-gen5-consumer", "nvme-gen6", "nvme-optane")
    wanted |= {("tiers", name) for name in (*tiers, "pool-rdma-200g", "pool-rdma-400g", "pool-rdma-800g")}
    assert wanted <= names
