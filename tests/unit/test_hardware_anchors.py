"""A measured profile in percent of its datasheet, and profile files of other schema versions."""

from pathlib import Path

import pytest
import yaml

from tiercast_profiles import store
from tiercast_profiles.anchors import compare_with_preset, is_same_product, lookup_time_us, matching_preset
from tiercast_profiles.document import Quantity
from tiercast_profiles.errors import BadInput
from tiercast_profiles.hardware import HardwareProfile

PRESETS = [store.load_hardware(name) for name in store.shipped_names("hardware")]
SOURCE = {"kind": "measured", "mark": "M", "source": "made up for the test", "date": "2026-11-25"}


def measured(**evidence):
    """An H200 host on which two things were measured: copies to the GPU, and lookups over the link."""
    data = store.load_hardware("h200-sxm").model_dump(mode="json")
    data["name"] = "mine"
    data["host_to_device"]["bandwidth_gb_per_s"] = 44.0
    data["lookups"][1] |= {"is_calibrated": True, "fixed_us": 20, "row_ns": 1, "bandwidth_gb_per_s": 28.8}
    data["sources"]["probe"] = SOURCE
    paths = ("host_to_device.bandwidth_gb_per_s", "lookups.1")
    kept = {k: v for k, v in data["evidence"].items() if not k.startswith("lookups.1.")}
    data["evidence"] = kept | dict.fromkeys(paths, "probe") | evidence
    return HardwareProfile.model_validate(data)


def test_only_what_was_measured_is_compared():
    rows = compare_with_preset(measured(), store.load_hardware("h200-sxm"))
    assert [row.what for row in rows] == [
        "host_to_device.bandwidth_gb_per_s",
        "dram by uva, 264 B rows: 24 at once",
        "dram by uva, 264 B rows: 196,608 at once",
    ]
    copies, few, many = rows
    assert (copies.of_anchor_ratio, copies.is_in_band, copies.mark) == (0.8, False, "M")
    assert few.measured == pytest.approx(20 + 24 * 0.010)  # 288 B at 28.8 GB/s are 10 ns
    assert few.is_in_band
    assert many.measured == pytest.approx(264 / (10 + 20_000 / 196_608), rel=1e-9)
    assert many.of_anchor_ratio == pytest.approx(many.measured / many.anchor)


def test_a_lookup_has_the_band_of_its_parameters():
    curve = store.load_hardware("h200-sxm").curve("dram", "uva")
    time_us = lookup_time_us(curve, 1000, 264)
    assert time_us.value == pytest.approx(10 + 288 / 14.5)
    assert time_us.low == pytest.approx(3.7 + 288 / 30)
    assert time_us.high == pytest.approx(64 + 288 / 7)
    sharp = curve.model_copy(
        update={"fixed_us": Quantity(value=1), "row_ns": Quantity(value=5), "bandwidth_gb_per_s": Quantity(value=288)}
    )
    assert lookup_time_us(sharp, 1000, 264) == Quantity(value=6)


def test_a_datasheet_has_nothing_measured():
    with pytest.raises(BadInput, match="h100-sxm: holds no measured number that 'h200-sxm' states too"):
        compare_with_preset(store.load_hardware("h100-sxm"), store.load_hardware("h200-sxm"))


@pytest.mark.parametrize(
    ("product", "name"),
    [("NVIDIA H200", "h200-sxm"), ("NVIDIA L40S", "l40s"), ("AMD Instinct MI355X", "mi355x"), ("NVIDIA L4", "l4")],
)
def test_the_preset_is_found_by_the_product(product, name):
    profile = measured()
    profile = profile.model_copy(update={"device": profile.device.model_copy(update={"product_name": product})})
    assert matching_preset(profile, PRESETS).name == name


@pytest.mark.parametrize(
    ("product", "text"),
    [
        (
            "NVIDIA H100",
            "several shipped machines are of product 'NVIDIA H100'; give --with one of: h100-pcie, h100-sxm",
        ),
        ("AMD EPYC 9554", "no shipped machine is of product 'AMD EPYC 9554'; give --with one of: a100-pcie-80"),
        ("", "no shipped machine is of product ''"),
    ],
)
def test_an_unclear_product_is_asked_for(product, text):
    profile = measured()
    profile = profile.model_copy(update={"device": profile.device.model_copy(update={"product_name": product})})
    with pytest.raises(BadInput, match=text):
        matching_preset(profile, PRESETS)


def test_products_differ_by_a_word():
    assert is_same_product("NVIDIA H100 80GB HBM3", "H100")
    assert not is_same_product("NVIDIA H20", "NVIDIA H200")
    assert not is_same_product("NVIDIA H20-3e", "NVIDIA H200")


def test_a_profile_from_before_the_newer_fields_loads_and_hashes_the_same():
    """The profile in the data was written before parts, sweeps and telemetry envelopes existed."""
    path = Path(__file__).parent / "data" / "profile-of-2026-11-24.yaml"
    profile = store.load_hardware(str(path))
    old = yaml.safe_load(path.read_text(encoding="utf-8"))
    again = yaml.safe_load(store.to_yaml(profile))
    assert set(old) == set(again)
    assert [old[key] for key in old if key != "probes"] == [again[key] for key in old if key != "probes"]


@pytest.mark.parametrize(
    ("version", "text"),
    [
        (2, "schema_version 2 is newer than 1, the one this Tiercast reads; upgrade Tiercast"),
        (0, "schema_version 0: this Tiercast reads 1, the first there was; write the file anew"),
        ("one", "schema_version 'one': this Tiercast reads 1"),
    ],
)
def test_another_schema_version_says_what_to_do(tmp_path, version, text):
    data = store.load_hardware("h200-sxm").model_dump(mode="json") | {"schema_version": version, "new_field": 1}
    path = tmp_path / "machine.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(BadInput, match=text) as caught:
        store.load_hardware(str(path))
    assert "\n" not in str(caught.value)


def test_a_changed_number_is_one_changed_line(tmp_path):
    """Profiles are diffable by a person."""
    profile = store.load_hardware("h200-sxm")
    host = profile.host.model_copy(update={"num_cores": 96})
    before, after = (store.to_yaml(p).splitlines() for p in (profile, profile.model_copy(update={"host": host})))
    assert [(a, b) for a, b in zip(before, after, strict=True) if a != b] == [
        ("  num_cores: 112", "  num_cores: 96"),
    ]
