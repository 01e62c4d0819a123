"""fit, doctor and allocate as a person runs them."""

import json

import pytest

from tiercast_cli import doctoring
from tiercast_plan.host_facts import HostFacts

MATRIX = (
    "fit",
    "--model",
    "deepseek-v4.1-flash",
    "--hardware",
    "H100,h200,gb200",
    "--replication",
    "per_node,per_numa",
)
ALLOCATE = ("allocate", "--model", "deepseek-v4.1-flash", "--hardware", "h200", "--sparse-params", "740e9")


@pytest.fixture
def bare_machine(monkeypatch):
    """A container of which little is known, in the place of the machine the tests run on."""
    facts = HostFacts(
        memory_total_bytes=64 << 30,
        memory_available_bytes=60 << 30,
        page_cache_bytes=1 << 30,
        cgroup_limit_bytes=32 << 30,
        shm_total_bytes=64 << 20,
        shm_free_bytes=64 << 20,
        memlock_limit_bytes=8 << 20,
        is_memlock_unlimited=False,
        thp_mode="madvise",
        thp_shmem_mode="never",
        huge_page_bytes=None,
        num_free_huge_pages=None,
        num_numa_nodes=2,
        numa_balancing=1,
        container="docker",
        nvidia_driver=None,
        num_nvidia_devices=0,
        amd_driver=None,
        disk_free_bytes=1 << 40,
        has_direct_io=None,
        disk_path=".",
    )
    monkeypatch.setattr(doctoring, "read_host_facts", lambda _disk: facts)


@pytest.mark.parametrize("width", [80, 120])
def test_the_fit_matrix_is_as_committed(run, golden, width):
    result = run(*MATRIX, width=width)
    assert result.exit_code == 0
    golden(f"fit.{width}.txt", result.stdout)


def test_fit_json_has_every_piece_in_bytes(run, golden):
    result = run("fit", "--model", "tiny", "--hardware", "l4", "--tier", "dram", "--json")
    golden("fit.json", result.stdout)
    for row in json.loads(result.stdout):
        used = sum(row["hbm_bytes_per_rank"].values())
        assert used + row["kv_room_bytes_per_rank"] == row["hbm_usable_bytes_per_rank"]


def test_nothing_fits_on_a_small_card(run):
    result = run("fit", "--model", "deepseek-v4.1-flash", "--hardware", "l4")
    assert result.exit_code == 3
    assert "nothing fits; nearest: l4 TP8" in result.stderr


@pytest.mark.parametrize(
    ("args", "text"), [(("--tier", "tape"), "'tape' is not one of hbm, dram"), (("--replication", "two"), "'two'")]
)
def test_fit_names_the_wrong_word(fails, args, text):
    assert text in fails(2, "fit", "--model", "tiny", "--hardware", "l4", *args)


@pytest.mark.parametrize("width", [80, 120])
def test_the_findings_are_as_committed(run, golden, bare_machine, width):
    result = run("doctor", "v41-dram", width=width)
    assert result.exit_code == 1
    assert "tiercast: this machine cannot serve deepseek-v4.1-flash, tables in dram" in result.stderr
    golden(f"doctor.{width}.txt", result.stdout)


def test_doctor_json(run, golden, bare_machine):
    result = run("doctor", "--model", "deepseek-v4.1-flash", "--copies", 2, "--json")
    assert result.exit_code == 1
    golden("doctor.json", result.stdout)
    assert json.loads(result.stdout)["need"]["host_bytes"] == 2 * 768_022_850 * 264


def test_doctor_of_a_machine_that_is_elsewhere(run):
    result = run("doctor", "v41-dram", "--hardware", "h200-sxm", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["machine"] == "h200-sxm"
    assert {check["status"] for check in found["checks"]} == {"ok", "warn", "not_supported"}


def test_doctor_of_this_machine_needs_no_reason(run):
    result = run("doctor", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["is_healthy"]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("v41-dram", "--model", "tiny"), "not both"),
        (("--copies", 2), "--copies 2 belongs to --model"),
        (("--disk", "/nowhere/at/all"), "is not a folder"),
    ],
)
def test_doctor_names_what_does_not_go_together(fails, args, text):
    assert text in fails(2, "doctor", *args)


@pytest.mark.parametrize("width", [80, 120])
def test_the_splits_are_as_committed(run, golden, width):
    result = run(*ALLOCATE, width=width)
    assert result.exit_code == 0
    golden(f"allocate.{width}.txt", result.stdout)


def test_splits_spend_the_budget_and_keep_the_published_shares(run):
    found = json.loads(run(*ALLOCATE, "--json").stdout)
    alone, low, high = found["splits"]
    one_expert_per_layer = 35_389_440 * 40
    for split, share in ((alone, 1.0), (low, 0.8), (high, 0.75)):
        assert 0 <= share * 740e9 - split["expert_params"] < one_expert_per_layer
        spent = split["expert_params"] + split["engram_params"]
        assert 740e9 - spent < (one_expert_per_layer if share == 1 else 256)
        assert split["engram_bytes"] == split["engram_rows"] * 264
    assert alone["engram_rows"] == 0
    assert found["is_in_range"] is False
    assert "outside, so nothing is promised" in found["range_note"]
    assert all("6e20" in gain or "same budgets" in gain for gain in found["published_gains"])


def test_a_model_without_experts_has_nothing_to_split(fails):
    args = ("allocate", "--model", "paper-4b-100b", "--hardware", "h200", "--sparse-params", "1e11")
    assert "has no experts" in fails(4, *args)
    small = ("allocate", "--model", "deepseek-v4.1-flash", "--hardware", "h200", "--sparse-params", "1000")
    assert "less than one expert per layer" in fails(2, *small)
