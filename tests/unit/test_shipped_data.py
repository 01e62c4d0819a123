"""Shipped documents load, each number has its evidence, and published totals come out of our own arithmetic."""

from decimal import Decimal
from importlib import resources

import pytest
import yaml

from tiercast_profiles import store
from tiercast_profiles.document import Document
from tiercast_profiles.errors import NoDevicePrice, UnknownHardware, UnknownModel, UnknownPrices
from tiercast_profiles.head_sizes import head_sizes, is_prime, table_rows

HARDWARE = (
    "a100-pcie-80",
    "a100-sxm-80",
    "b200-sxm",
    "b300-sxm",
    "gb200",
    "gb300",
    "gh200-144",
    "gh200-96",
    "h100-pcie",
    "h100-sxm",
    "h20",
    "h20-3e",
    "h200-sxm",
    "h800-sxm",
    "l4",
    "l40s",
    "mi300x",
    "mi325x",
    "mi355x",
    "rtx-4090",
    "rtx-5090",
    "rtx-pro-6000",
)
MODELS = (
    "deepseek-v4.1-flash",
    "engram-27b",
    "longcat-flash-lite",
    "paper-4b-100b",
    "paper-8b-100b",
    "qwen3.8-flash-next",
    "tiny",
    "tiny-wide",
)
DOCUMENTS = [("hardware", name) for name in HARDWARE] + [("models", name) for name in MODELS] + [("prices", "default")]
KIND_OF_MARK = {
    "V": {"published"},
    "V2": {"published"},
    "M": {"measured"},
    "D": {"derived", "assumed"},
    "R": {"assumed"},
    "?": {"derived", "assumed"},
}
LOADERS = {"hardware": store.load_hardware, "models": store.load_model, "prices": store.load_prices}


def _load(kind: str, name: str) -> Document:
    return LOADERS[kind](name)


def _decimal_paths(value: object, path: str = "") -> list[str]:
    """Money is dumped as text, so the schema's own walk does not see it."""
    if isinstance(value, Decimal):
        return [path]
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in _decimal_paths(v, f"{path}.{k}" if path else k)]
    return []


def test_what_is_shipped():
    assert store.shipped_names("hardware") == HARDWARE
    assert store.shipped_names("models") == MODELS
    assert store.shipped_names("prices") == ("default",)


@pytest.mark.parametrize(("kind", "name"), DOCUMENTS)
def test_every_number_has_evidence(kind, name):
    document = _load(kind, name)
    assert document.name == name
    paths = document.numeric_paths() + _decimal_paths(document.model_dump())
    assert paths
    assert [path for path in paths if document.source_of(path) is None] == []


@pytest.mark.parametrize(("kind", "name"), DOCUMENTS)
def test_kind_and_mark_agree_and_every_source_is_used(kind, name):
    document = _load(kind, name)
    assert [key for key, s in document.sources.items() if s.kind not in KIND_OF_MARK[s.mark]] == []
    assert sorted(set(document.sources) - set(document.evidence.values())) == []


@pytest.mark.parametrize(("kind", "name"), DOCUMENTS)
def test_evidence_names_paths_that_exist(kind, name):
    document = _load(kind, name)
    paths = document.numeric_paths() + _decimal_paths(document.model_dump())
    dead = [p for p in document.evidence if p and not any(n == p or n.startswith(p + ".") for n in paths)]
    assert dead == []


@pytest.mark.parametrize(("kind", "name"), DOCUMENTS)
def test_no_key_is_written_twice(kind, name):
    text = (resources.files("tiercast_profiles") / "data" / kind / f"{name}.yaml").read_text(encoding="utf-8")
    node = yaml.compose(text)

    def walk(item: yaml.Node) -> None:
        if isinstance(item, yaml.MappingNode):
            keys = [key.value for key, _ in item.value]
            assert len(keys) == len(set(keys)), f"a key of {sorted(keys)} is written twice"
            for _, value in item.value:
                walk(value)
        elif isinstance(item, yaml.SequenceNode):
            for value in item.value:
                walk(value)

    walk(node)


@pytest.mark.parametrize("name", HARDWARE)
def test_datasheet_curves_are_uncalibrated_and_banded(name):
    profile = store.load_hardware(name)
    assert profile.calibration == "datasheet"
    for curve in profile.lookups:
        assert not curve.is_calibrated
        assert not curve.points
        assert curve.fixed_us.is_banded
        assert curve.row_ns.is_banded
        assert curve.bandwidth_gb_per_s.is_banded
        assert curve.removes_duplicates == (curve.path == "disk")
    pairs = {(curve.tier, curve.path) for curve in profile.lookups}
    assert {("hbm", "device"), ("dram", "uva"), ("dram", "cpu_gather"), ("nvme", "disk")} <= pairs
    assert {tier for tier, _ in pairs if profile.tier_capacity_gb(tier) is None} == set()


@pytest.mark.parametrize("name", ["h200-sxm", "h800-sxm"])
def test_hopper_has_no_fp4_and_gathers_slower_than_it_streams(name):
    profile = store.load_hardware(name)
    assert set(profile.device.dense_tflops) == {"fp32", "bf16", "fp8"}
    uva = profile.curve("dram", "uva")
    assert uva is not None
    band = uva.bandwidth_gb_per_s
    # facts: 7-30 GB/s random at about 100 GB, below the 35 GB/s SM streaming ceiling
    assert (band.low, band.high) == (7, 30)


def test_the_one_public_gather_time_lies_in_the_band():
    """7.4 ms for one layer of an 8,192-token chunk, 24 rows of 264 B per token: prior, not fitted."""
    uva = store.load_hardware("h200-sxm").curve("dram", "uva")
    assert uva is not None
    num_rows, moved_bytes = 8192 * 24, 288

    def time_ms(bound):
        rate = uva.bandwidth_gb_per_s.at(bound, higher_is_better=True)
        per_row_ns = max(uva.row_ns.at(bound, higher_is_better=False), moved_bytes / rate)
        return (uva.fixed_us.at(bound, higher_is_better=False) * 1e3 + num_rows * per_row_ns) / 1e6

    assert time_ms("optimistic") < 7.4 < time_ms("pessimistic")


def test_gb200_shares_its_chip_link():
    profile = store.load_hardware("gb200")
    assert profile.device.num_per_host == 4
    assert profile.host_to_device.num_sharing == 2
    per_device = profile.host_to_device.bandwidth_gb_per_s.value / 2
    assert per_device == pytest.approx(168.5)  # facts: each of four at once
    assert profile.device.memory_capacity_gb.value == pytest.approx(189_471 * 2**20 / 1e9, abs=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_published_table_rows_come_out_of_the_prime_search(name):
    model = store.load_model(name)
    if model.published_table_rows is not None:
        assert table_rows(model.engram) == model.published_table_rows
    if not model.engram.rules.has_prime_sizes:
        return
    flat = [size for layer in head_sizes(model.engram) for order in layer for size in order]
    assert len(flat) == len(set(flat))
    assert all(is_prime(size) for size in flat)


def test_v41_published_bytes():
    model = store.load_model("deepseek-v4.1-flash")
    assert model.published_table_rows == (384_006_168, 384_016_682)
    assert model.engram.row_bytes == 264
    layers = [rows * model.engram.row_bytes for rows in table_rows(model.engram)]
    assert layers == [98_305_579_008 + 3_072_049_344, 98_308_270_592 + 3_072_133_456]
    assert head_sizes(model.engram)[0][0][0] == 16_000_057
    assert head_sizes(model.engram)[0][-1][-1] == 16_000_463
    assert (head_sizes(model.engram)[1][0][0], head_sizes(model.engram)[1][-1][-1]) == (16_000_477, 16_000_889)
    moe = model.backbone.moe
    assert moe is not None
    assert moe.expert_bytes * moe.num_routed_experts * 40 == pytest.approx(288.78e9, rel=1e-4)
    # 107.8 GiB for 4,325,113 tokens, and 154.38 GiB for 6,194,599 (vLLM PR 57491)
    kv = model.backbone.kv_bytes_per_token
    assert kv.high == round(107.8 * 2**30 / 4_325_113)
    assert kv.value == pytest.approx(154.38 * 2**30 / 6_194_599, abs=1)
    resident_gib = {tp: model.backbone.weight_bytes / tp / 2**30 + 17.2 for tp in (2, 4, 8)}
    assert resident_gib == pytest.approx({2: 145.2, 4: 81.2, 8: 49.2})


def test_the_qwen_rows_are_the_primes_filled_up_to_a_multiple_of_128():
    model = store.load_model("qwen3.8-flash-next")
    engram = model.engram
    assert sum(size for order in head_sizes(engram)[0] for size in order) == 320_001_446
    assert table_rows(engram) == (320_001_536,)
    assert engram.num_rows_per_token * engram.row_values == 2_560
    assert table_rows(engram)[0] * engram.row_values / 2**30 == pytest.approx(47.7, abs=0.05)  # the FP8 file
    assert table_rows(engram)[0] * engram.row_bytes / 2**30 == pytest.approx(95, abs=0.5)
    assert not model.backbone.is_runnable
    moe = model.backbone.moe
    assert moe is not None
    embeddings = 2 * model.backbone.vocab_size * model.backbone.hidden_size
    assert 48 * 513 * moe.expert_params + embeddings == pytest.approx(125e9, rel=0.03)


def test_longcat_is_the_published_62_8_gb_at_the_input():
    model = store.load_model("longcat-flash-lite")
    engram = model.engram
    assert (engram.num_rows_per_token, engram.row_bytes, engram.layer_ids) == (12, 512, (0,))
    assert table_rows(engram)[0] == 12 * 78 * model.backbone.vocab_size
    assert table_rows(engram)[0] * engram.row_bytes == pytest.approx(62.8e9, rel=1e-3)
    assert engram.projection_outputs(model.backbone) == model.backbone.hidden_size
    assert not model.backbone.is_runnable
    assert model.backbone.weight_bytes == 2 * (68_500_000_000 - table_rows(engram)[0] * engram.row_values)


@pytest.mark.parametrize("name", ["paper-4b-100b", "paper-8b-100b"])
def test_paper_layers_hold_a_hundred_billion_parameters(name):
    model = store.load_model(name)
    assert sum(table_rows(model.engram)) * model.engram.row_values == pytest.approx(100e9, rel=1e-3)
    assert model.engram.layer_ids == (1,)
    low, high = model.row_values_band or (0, 0)
    assert low < model.engram.row_values < high
    backbone = model.backbone
    assert backbone.is_runnable
    heads, kv_heads = backbone.num_attention_heads, backbone.num_kv_heads
    attention = backbone.hidden_size * backbone.head_dim * 2 * (heads + kv_heads)
    layer = attention + 3 * backbone.hidden_size * backbone.intermediate_size
    head = backbone.vocab_size * backbone.hidden_size
    assert backbone.active_params_prefill == backbone.num_layers * layer
    assert backbone.active_params_decode == backbone.num_layers * layer + head
    assert backbone.weight_bytes == 2 * (backbone.num_layers * layer + 2 * head)
    assert backbone.kv_bytes_per_token.value == 2 * 2 * kv_heads * backbone.head_dim * backbone.num_layers


def test_engram_27b_is_the_paper_table():
    model = store.load_model("engram-27b")
    params = sum(table_rows(model.engram)) * model.engram.row_values
    assert params == pytest.approx(2_262_400 * 1_280 * 2, rel=1e-3)
    assert model.engram.row_bytes * model.engram.num_rows_per_token == 5_120


def test_prices_are_the_quoted_ones_and_nothing_else_is_priced():
    book = store.load_prices("default")
    assert {key: price.usd_per_device_hour for key, price in book.devices.items()} == {
        "h100-sxm": Decimal("1.30"),
        "h200-sxm": Decimal("1.60"),
        "b200-sxm": Decimal("2.90"),
        "b300-sxm": Decimal("3.48"),
        "gb200": Decimal("3.30"),
        "gb300": Decimal("3.96"),
        "mi300x": Decimal("1.55"),
        "mi325x": Decimal("1.80"),
        "mi355x": Decimal("2.10"),
    }
    assert book.device_key("my-measured-box", "NVIDIA H200") == "h200-sxm"
    with pytest.raises(
        NoDevicePrice, match=r"no device price for hardware 'h800-sxm'; it has: b200-sxm, b300-sxm, gb200"
    ) as caught:
        book.device_key("h800-sxm", "NVIDIA H800")
    assert isinstance(caught.value, UnknownPrices)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("load", "error", "known"),
    [
        (store.load_hardware, UnknownHardware, HARDWARE),
        (store.load_model, UnknownModel, MODELS),
        (store.load_prices, UnknownPrices, ("default",)),
    ],
)
def test_unknown_names_list_the_known(load, error, known):
    with pytest.raises(error) as caught:
        load("no-such-thing")
    assert caught.value.exit_code == 2
    assert caught.value.known == known
    assert all(name in str(caught.value) for name in known)
