"""Machines put together from parts: every part fits a machine, and a wrong combination is one clear line."""

from importlib import resources
from pathlib import Path

import pytest
import yaml

from tiercast_profiles import store
from tiercast_profiles.document import canonical_sha256
from tiercast_profiles.errors import BadInput
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.parts import PART_KINDS

PARTS = [(part.kind, part.name) for part in store.shipped_parts()]
FOLDER = resources.files("tiercast_profiles") / "data" / "parts"
MACHINE = {
    "schema_version": 1,
    "name": "mine",
    "description": "a machine of the test",
    "parts": {
        "gpu": "h100-sxm",
        "overheads": "serving-engine",
        "link": "pcie-gen5-x16",
        "host": "two-sapphire-rapids",
        "tiers": ["nvme-gen5"],
    },
    "evidence": {"device.num_per_host": "machine-shape"},
    "device": {"num_per_host": 8},
}


def _machine(**changes: object) -> dict:
    return {**MACHINE, **changes}


def _load(tmp_path: Path, data: dict) -> HardwareProfile:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return store.load_hardware(str(path))


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_every_part_completes_a_machine(tmp_path, kind, name):
    parts = {**MACHINE["parts"], kind: [name] if kind == "tiers" else name}
    profile = _load(tmp_path, _machine(parts=parts))
    part = next(part for part in store.shipped_parts() if (part.kind, part.name) == (kind, name))
    assert set(part.sources) <= set(profile.sources)  # nothing a part says where it has it from gets lost
    for curve in profile.lookups:
        assert not curve.is_calibrated
        assert all(number.is_banded for number in (curve.fixed_us, curve.row_ns, curve.bandwidth_gb_per_s))
    assert store.parse(HardwareProfile, yaml.safe_load(store.to_yaml(profile)), "copy") == profile


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_a_part_is_named_as_its_file(kind, name):
    data = yaml.safe_load((FOLDER / kind / f"{name}.yaml").read_text(encoding="utf-8"))
    assert data["name"] == name
    assert kind in PART_KINDS


def test_every_shared_source_is_used_by_two_or_more():
    shared = yaml.safe_load((FOLDER / "sources.yaml").read_text(encoding="utf-8"))
    machines = [
        yaml.safe_load(entry.read_text(encoding="utf-8"))
        for entry in (resources.files("tiercast_profiles") / "data" / "hardware").iterdir()
    ]
    users = [part.evidence for part in store.shipped_parts()] + [machine["evidence"] for machine in machines]
    assert [key for key in shared if sum(key in evidence.values() for evidence in users) < 2] == []


def test_every_gpu_is_in_a_machine():
    folder = resources.files("tiercast_profiles") / "data" / "hardware"
    used = {yaml.safe_load(entry.read_text(encoding="utf-8"))["parts"]["gpu"] for entry in folder.iterdir()}
    assert used == {name for kind, name in PARTS if kind == "gpu"}


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("h200-sxm", "00fa136ebefa2eb4bade096f082c9ee8a50396fe52100ef1a4309139800a0e57"),
        ("gb200", "a443d79bf594f90299b18bd4631b03d051e2b419135f2dc89cebd643f605c839"),
    ],
)
def test_a_machine_that_was_a_whole_file_is_the_same_document(name, sha256):
    """Records of earlier runs name these hashes; a machine may be written anew, its content may not change unseen."""
    assert canonical_sha256(store.load_hardware(name).model_dump(mode="json")) == sha256


def test_evidence_of_curves_is_counted_through(tmp_path):
    profile = _load(tmp_path, MACHINE)
    pairs = [(curve.tier, curve.path) for curve in profile.lookups]
    assert pairs == [("hbm", "device"), ("dram", "uva"), ("dram", "cpu_gather"), ("nvme", "disk")]
    assert profile.evidence["lookups.0"] == "hbm-gather"
    assert profile.evidence["lookups.1.bandwidth_gb_per_s"] == "uva-prior"
    assert profile.evidence["lookups.3.row_ns"] == "nvme-rate"
    assert profile.evidence["interference"] == "interference"


def test_own_values_win_over_those_of_parts(tmp_path):
    source = {"kind": "assumed", "mark": "R", "source": "what stands in the rack", "date": "2026-11-25"}
    data = _machine(
        device={"num_per_host": 4},
        host={"memory_capacity_gb": 3000},
        sources={"rack": source},
        evidence={"device.num_per_host": "rack", "host.memory_capacity_gb": "rack"},
    )
    profile = _load(tmp_path, data)
    assert (profile.device.num_per_host, profile.host.memory_capacity_gb.value) == (4, 3000)
    assert profile.source_of("host.memory_capacity_gb").source == "what stands in the rack"
    assert profile.host.num_cores == 112


def test_a_part_of_ones_own_is_a_file_beside_the_machine(tmp_path):
    host = yaml.safe_load((FOLDER / "host" / "two-genoa.yaml").read_text(encoding="utf-8"))
    host["host"]["num_cores"] = 96
    (tmp_path / "my-host.yaml").write_text(yaml.safe_dump(host), encoding="utf-8")
    assert _load(tmp_path, _machine(parts={**MACHINE["parts"], "host": "my-host.yaml"})).host.num_cores == 96


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"parts": {**MACHINE["parts"], "gpu": "h9000"}}, "parts.gpu: unknown part 'h9000'; known: a100-pcie-80, "),
        (
            {"parts": {**MACHINE["parts"], "gpus": "h100-sxm"}},
            "parts.gpus: unknown kind of part; known: gpu, overheads",
        ),
        ({"parts": {**MACHINE["parts"], "tiers": [7]}}, r"parts.tiers: give the name of a part.*\(given 7\)"),
        ({"parts": "h100-sxm"}, "parts: give a mapping of names to values"),
        (
            {"parts": {**MACHINE["parts"], "tiers": ["nvme-gen5", "nvme-gen6"]}},
            "part tiers/nvme-gen6: source 'nvme-drive' is already another source",
        ),
        ({"parts": {**MACHINE["parts"], "link": []}}, "host_to_device: missing"),
        ({"evidence": {}}, "no evidence for device.num_per_host"),
        ({"evidence": {"device.num_per_host": "hearsay"}}, "evidence names sources that are not listed: hearsay"),
        ({"sources": []}, "sources: give a mapping"),
    ],
)
def test_what_does_not_fit_together_is_one_line(tmp_path, changes, text):
    with pytest.raises(BadInput, match=text) as caught:
        _load(tmp_path, _machine(**changes))
    assert "\n" not in str(caught.value)


def test_two_parts_that_state_the_same_value_are_refused(tmp_path):
    (tmp_path / "more.yaml").write_text("description: a second host\nhost: {num_cores: 3}\n", encoding="utf-8")
    parts = {**MACHINE["parts"], "tiers": ["more.yaml"]}
    with pytest.raises(BadInput, match=r"part tiers/more.yaml: host.num_cores is already stated by another part"):
        _load(tmp_path, _machine(parts=parts))


def test_a_part_without_a_description_is_refused(tmp_path):
    (tmp_path / "more.yaml").write_text("nvme: {}\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"part tiers/more.yaml: description: missing"):
        _load(tmp_path, _machine(parts={**MACHINE["parts"], "tiers": ["more.yaml"]}))


def test_the_machine_of_the_page_is_a_machine(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "hardware.md").read_text(encoding="utf-8")
    profile = _load(tmp_path, yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0]))
    assert (profile.device.product_name, profile.host.memory_capacity_gb.value) == ("NVIDIA H100 PCIe", 768)
