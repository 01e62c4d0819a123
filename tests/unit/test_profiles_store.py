"""The door: everything wrong with a file is one line, the right exit code, and never half a file."""

import errno
import json
import os
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from tiercast_profiles import store
from tiercast_profiles.document import canonical_json, canonical_sha256
from tiercast_profiles.errors import BadInput, FileProblem, MissingCapability, TiercastError, UnknownHardware
from tiercast_profiles.hardware import LookupPoint
from tiercast_profiles.scenario import combine

SCENARIO = {
    "schema_version": 1,
    "hardware": "h200-sxm",
    "model": "deepseek-v4.1-flash",
    "parallel": {"tensor": 8},
    "placement": {"tier": "dram"},
    "workload": {
        "kind": "closed_loop",
        "concurrency": 4,
        "num_requests": 8,
        "prompt_tokens": {"fixed": 128},
        "output_tokens": {"uniform": [8, 16]},
    },
}


def _changed(path: str, value: object) -> dict:
    data = json.loads(json.dumps(SCENARIO))
    *parents, last = path.split(".")
    target = data
    for key in parents:
        target = target[key]
    target[last] = value
    return data


def _write(tmp_path: Path, text: str, name: str = "scenario.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def _fails(load, text: str) -> TiercastError:
    with pytest.raises(TiercastError, match=text) as caught:
        load()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return caught.value


def test_a_scenario_loads_from_yaml_and_json_alike(tmp_path):
    as_yaml = _write(tmp_path, yaml.safe_dump(SCENARIO))
    as_json = _write(tmp_path, json.dumps(SCENARIO), "scenario.json")
    assert store.load_scenario(as_yaml) == store.load_scenario(as_json)


def test_missing_file(tmp_path):
    error = _fails(lambda: store.load_scenario(tmp_path / "absent.yaml"), "absent.yaml: no such file")
    assert isinstance(error, FileProblem)


def test_a_path_that_is_no_file_is_not_a_name(tmp_path):
    _fails(lambda: store.load_hardware(str(tmp_path / "absent.yaml")), "no such file")


def test_folder_in_place_of_a_file(tmp_path):
    _fails(lambda: store.load_scenario(tmp_path), "is a folder")


@pytest.mark.parametrize("cut", [1, 20, -2])
def test_truncated_json(tmp_path, cut):
    path = _write(tmp_path, json.dumps(SCENARIO)[:cut], "scenario.json")
    assert isinstance(_fails(lambda: store.load_scenario(path), r"not complete JSON \(line 1"), FileProblem)


def test_broken_yaml(tmp_path):
    path = _write(tmp_path, "placement: {tier: dram\nworkload: [")
    assert isinstance(_fails(lambda: store.load_scenario(path), "not valid YAML at line"), FileProblem)


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "just words", "7"])
def test_not_a_mapping(tmp_path, text):
    path = _write(tmp_path, text)
    assert isinstance(_fails(lambda: store.load_scenario(path), "not a mapping"), FileProblem)


def test_an_empty_file_holds_nothing(tmp_path):
    _fails(lambda: store.load_scenario(_write(tmp_path, "# all commented out\n")), "holds nothing, not a mapping")


def test_a_key_given_twice_is_refused_where_it_comes_again(tmp_path):
    text = yaml.safe_dump(SCENARIO, sort_keys=False)
    line = len(text.splitlines()) + 1
    _fails(
        lambda: store.load_scenario(_write(tmp_path, text + "seed: 3\n" * 2)),
        rf"not valid YAML at line {line + 1} \(key 'seed' is given twice",
    )
    twice = json.dumps(SCENARIO)[:-1] + ', "seed": 1, "seed": 2}'
    _fails(lambda: store.load_scenario(_write(tmp_path, twice, "twice.json")), "not valid JSON .*'seed' is given twice")
    anchored = text + "x: &a {seed: 1}\n"
    _fails(lambda: store.load_scenario(_write(tmp_path, anchored)), "x: unknown key")


def test_not_text(tmp_path):
    path = tmp_path / "scenario.yaml"
    path.write_bytes(b"\xff\xfe\x00binary")
    _fails(lambda: store.load_scenario(path), "not a UTF-8 text file")


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("placemnt", {}, "placemnt: unknown key; known here: schema_version"),
        ("placement.teir", "dram", "placement.teir: unknown key; known here: tier, path, prefetch"),
        ("placement.cache_gib", -1, r"placement.cache_gib: .*greater than or equal to 0 \(given -1\)"),
        ("workload.num_requests", 0, "workload.num_requests"),
        ("workload.num_requests", float("inf"), "workload.num_requests"),
        ("workload.num_requests", 1.5, "workload.num_requests"),
        ("workload.concurrency", None, "closed_loop needs concurrency"),
        ("workload.output_tokens", {"uniform": [9, 8]}, r"workload.output_tokens.uniform: .*must not exceed"),
        ("workload.output_tokens", {"fixed": -3}, r"workload.output_tokens.*fixed: .*\(given -3\)"),
        ("workload.output_tokens", {"unifrom": [8, 9]}, r"workload.output_tokens: must be \{fixed: n\}"),
        ("workload.output_tokens", 7, r"workload.output_tokens: must be \{fixed: n\}"),
        ("placement.tier", "tape", "placement.tier"),
        ("placement.path", "disk", "cannot serve tier 'dram'"),
        ("schema_version", 2, "schema_version"),
        ("parallel.tensor", -8, "parallel.tensor"),
        ("seed", -1, "seed"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, path, value, text):
    file = _write(tmp_path, yaml.safe_dump(_changed(path, value)))
    _fails(lambda: store.load_scenario(file), text)


def test_missing_field_is_named(tmp_path):
    data = dict(SCENARIO)
    del data["workload"]
    path = _write(tmp_path, yaml.safe_dump(data))
    _fails(lambda: store.load_scenario(path), "workload: missing")


def test_a_negative_size_in_a_profile(tmp_path):
    data = store.load_hardware("h200-sxm").model_dump(mode="json")
    data["host"]["page_size_bytes"] = -4096
    path = _write(tmp_path, yaml.safe_dump(data), "machine.yaml")
    _fails(lambda: store.load_hardware(str(path)), r"host.page_size_bytes: .*greater than 0 \(given -4096\)")


@pytest.mark.parametrize("given", ["fast", True, [1, 2]])
def test_a_quantity_that_is_none_says_what_it_may_be(tmp_path, given):
    data = store.load_hardware("h200-sxm").model_dump(mode="json")
    data["device"]["memory_bandwidth_gb_per_s"] = given
    path = _write(tmp_path, yaml.safe_dump(data), "machine.yaml")
    text = r"device.memory_bandwidth_gb_per_s: must be a number or \{value, low, high\} \(given "
    _fails(lambda: store.load_hardware(str(path)), text)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("workload.concurrency", True),
        ("workload.output_tokens.uniform", [True, 9]),
        ("placement.cache_gib", False),
        ("parallel", {"tensor": True}),
        ("seed", True),
    ],
)
def test_a_boolean_is_no_number(place, value):
    data = _changed(place, value)
    where = {"workload.output_tokens.uniform": ".0", "parallel": ".tensor"}.get(place, "")
    text = rf"^scenario: {place}{where}: must be a number \(given {place != 'placement.cache_gib'}\)$"
    _fails(lambda: store.parse(store.Scenario, data, "scenario"), text)


def test_a_boolean_deep_in_a_profile_is_no_number(tmp_path):
    data = store.load_hardware("h200-sxm").model_dump(mode="json")
    assert data["lookups"][1]["removes_duplicates"] is False, "a boolean where one belongs"
    data["lookups"][1]["read_granularity_bytes"] = True
    path = _write(tmp_path, yaml.safe_dump(data), "machine.yaml")
    _fails(lambda: store.load_hardware(str(path)), r"lookups.1.read_granularity_bytes: must be a number \(given True\)")


def test_whole_floats_and_ints_stay_numbers_and_a_bare_off_a_word():
    data = _changed("workload.concurrency", 8.0)
    data["placement"] |= {"cache_gib": 0, "prefetch": False}
    scenario = store.parse(store.Scenario, data, "scenario")
    assert (scenario.workload.concurrency, scenario.placement.cache_gib) == (8, 0.0)
    assert isinstance(scenario.workload.concurrency, int)
    assert scenario.placement.prefetch == "off"


def test_a_long_value_is_cut_in_the_message():
    data = _changed("seed", 10**400)
    with pytest.raises(BadInput) as caught:
        store.parse(store.Scenario, data, "scenario")
    assert str(caught.value).endswith(f"(given 1{'0' * 58}…)")
    with pytest.raises(UnknownHardware) as caught:
        store.load_hardware("h" * 200)
    assert str(caught.value).startswith(f"unknown hardware '{'h' * 58}…; known: ")


def test_an_unknown_key_deep_in_a_profile_lists_the_known_ones(tmp_path):
    data = store.load_hardware("h200-sxm").model_dump(mode="json")
    data["lookups"][1]["bandwith_gb_per_s"] = 3
    path = _write(tmp_path, yaml.safe_dump(data), "machine.yaml")
    text = r"lookups.1.bandwith_gb_per_s: unknown key; known here: tier, path, .*bandwidth_gb_per_s"
    _fails(lambda: store.load_hardware(str(path)), text)


def test_a_number_without_evidence_is_refused(tmp_path):
    data = store.load_hardware("h200-sxm").model_dump(mode="json")
    del data["evidence"]["device.power_w"]
    path = _write(tmp_path, yaml.safe_dump(data), "machine.yaml")
    _fails(lambda: store.load_hardware(str(path)), "no evidence for device.power_w")


def test_a_value_outside_its_band_is_refused(tmp_path):
    data = store.load_hardware("h200-sxm").model_dump(mode="json")
    data["device"]["memory_reserve_gb"] = {"value": 9, "low": 1, "high": 6}
    path = _write(tmp_path, yaml.safe_dump(data), "machine.yaml")
    _fails(lambda: store.load_hardware(str(path)), "outside its band")


@pytest.mark.parametrize(
    ("tensor", "kv_heads", "is_allowed"), [(3, 1, False), (4, 1, True), (6, 6, True), (4, 6, False), (4, 2, True)]
)
def test_ranks_share_heads_evenly(tensor, kv_heads, is_allowed):
    """As engines ask it: equally many heads a rank, and whole KV heads or a copy of one."""
    hardware, model = store.load_hardware("h200-sxm"), store.load_model("deepseek-v4.1-flash")
    heads = 12 if kv_heads == 6 else 64
    backbone = model.backbone.model_copy(update={"num_attention_heads": heads, "num_kv_heads": kv_heads})
    model = model.model_copy(update={"backbone": backbone})
    scenario = store.parse(store.Scenario, _changed("parallel", {"tensor": tensor}), "scenario")
    if is_allowed:
        assert combine(scenario, hardware, model, store.load_prices("default")).num_ranks == tensor
        return
    allowed = "1, 2, 3, 6" if kv_heads == 6 else "1, 2, 4, 8"
    text = rf"parallel.tensor={tensor}: {heads} attention heads and {kv_heads} KV heads .* allowed on one .* {allowed}$"
    _fails(lambda: combine(scenario, hardware, model, store.load_prices("default")), text)


def test_unknown_hardware_is_never_a_default():
    data = _changed("hardware", "h9000")
    with pytest.raises(UnknownHardware, match=r"known: .*gb200, .*h200-sxm, h800-sxm"):
        store.resolve(store.parse(store.Scenario, data, "scenario"))


def test_more_ranks_than_a_host_has():
    with pytest.raises(BadInput, match="exceeds the 8 devices"):
        store.resolve(store.parse(store.Scenario, _changed("parallel.tensor", 16), "scenario"))


def test_a_tier_the_machine_lacks():
    data = _changed("placement", {"tier": "cxl"}) | {"hardware": "gb200", "parallel": {"tensor": 4}}
    with pytest.raises(MissingCapability, match="no curve for tier 'cxl'") as caught:
        store.resolve(store.parse(store.Scenario, data, "scenario"))
    assert caught.value.exit_code == 4


def test_documents_survive_a_round_trip(tmp_path):
    for name in ("h200-sxm", "gb200"):
        profile = store.load_hardware(name)
        path = tmp_path / f"{name}.yaml"
        store.write_text(path, store.to_yaml(profile))
        assert store.load_hardware(str(path)).sha256 == profile.sha256
    book = store.load_prices("default")
    path = tmp_path / "prices.yaml"
    store.write_text(path, store.to_yaml(book))
    assert store.load_prices(str(path)) == book
    assert book.dram_usd_per_gb == Decimal(20)


def test_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "record.json"
    store.write_text(path, "old, and much longer than what follows")
    store.write_text(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("is_there_before", [True, False])
def test_a_full_disk_leaves_no_half_written_file(tmp_path, monkeypatch, is_there_before):
    path = tmp_path / "record.json"
    if is_there_before:
        path.write_text("old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    error = _fails(lambda: store.write_text(path, "new"), "record.json: cannot be written .*No space left")
    assert isinstance(error, FileProblem)
    assert [p.name for p in tmp_path.iterdir()] == (["record.json"] if is_there_before else [])
    assert not is_there_before or path.read_text() == "old"


def test_writing_into_a_missing_folder(tmp_path):
    _fails(lambda: store.write_text(tmp_path / "absent" / "record.json", "x"), "cannot be written .*No such file")


def test_canonical_json_is_stable_and_finite():
    assert canonical_json({"b": [1, 2.5], "a": {"é": None}}) == '{"a":{"é":null},"b":[1,2.5]}'
    assert canonical_sha256({"a": 1, "b": 2}) == canonical_sha256({"b": 2, "a": 1})
    # The literal keeps the hash of every record and profile from changing unnoticed.
    assert canonical_sha256({"a": 1, "b": [True, "x"]}) == (
        "63e8063d9dc6f0fd5a24b4706818a165fd57c3531b74466cf5dea62bff09b0b6"
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("nan")})


def test_the_hash_of_a_scenario_does_not_hold_the_name_of_its_file(tmp_path):
    path = tmp_path / "box.yaml"
    store.write_text(path, store.to_yaml(store.load_hardware("h200-sxm")))
    by_name = store.resolve(store.parse(store.Scenario, SCENARIO, "scenario"))
    by_path = store.resolve(store.parse(store.Scenario, _changed("hardware", str(path)), "scenario"))
    assert by_name.sha256 == by_path.sha256
    assert store.resolve(store.parse(store.Scenario, _changed("seed", 1), "scenario")).sha256 != by_name.sha256


def test_the_hash_of_a_resolved_scenario_is_that_of_one_canonical_text():
    """It is put together from parts, some of them kept; a changed copy of a kept document is another document."""
    resolved = store.resolve(store.parse(store.Scenario, SCENARIO, "scenario"))
    hashes = {resolved.hardware.sha256}
    for calibration in ("datasheet", "measured"):
        hardware = resolved.hardware.model_copy(update={"calibration": calibration})
        changed = resolved.model_copy(update={"hardware": hardware})
        scenario = changed.scenario.model_dump(mode="json", exclude={"hardware", "model", "prices"})
        whole = {
            "scenario": scenario | {"workload": changed.scenario.workload.identity()},
            "hardware": hardware.model_dump(mode="json", exclude={"probes"}),
            "model": changed.model.model_dump(mode="json"),
            "prices": changed.prices.model_dump(mode="json"),
            "placement": changed.placement.model_dump(mode="json"),
        }
        assert changed.sha256 == changed.sha256 == canonical_sha256(whole)
        assert hardware.sha256 == canonical_sha256(hardware.model_dump(mode="json"))
        hashes.add(hardware.sha256)
    assert len(hashes) == 2, "the shipped profile is one of the two, the other differs"


def test_a_point_is_one_line_and_a_profile_reads_back(cpu_hardware):
    point = {"num_rows": 8, "row_bytes": 64, "footprint_bytes": 1024, "time_us": 1.5, "low_us": 1.0, "high_us": 2.0}
    curve = cpu_hardware.lookups[0].model_copy(update={"points": (LookupPoint.model_validate(point),)})
    hardware = cpu_hardware.model_copy(update={"lookups": (curve, *cpu_hardware.lookups[1:])})
    text = store.to_yaml(hardware)
    assert "- {num_rows: 8, row_bytes: 64, footprint_bytes: 1024, time_us: 1.5, low_us: 1.0, high_us: 2.0}" in text
    assert "\n    kind:" in text, "words stay in blocks"
    assert type(hardware).model_validate(yaml.safe_load(text)) == hardware
