"""Gathers by a GPU as the probe times them, on the CPU: the kernel replaced by indexing, the driver by nothing."""

import importlib.util
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.units import MIB  # noqa: E402
from tiercast_runtime.memory import HostBlock  # noqa: E402
from tiercast_runtime.paths import uva  # noqa: E402
from tiercast_runtime.probes import gather  # noqa: E402
from tiercast_runtime.probes.block_content import WrongRows  # noqa: E402
from tiercast_runtime.probes.timing import Effort  # noqa: E402

CPU = torch.device("cpu")
EFFORT = Effort(0, num_warm_ups=1, min_rounds=2, max_rounds=2)
PLAN = gather.GatherPlan(((64, (1, 30)), (264, (1, 30))), (MIB, 2 * MIB))
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


class Driver:
    """Stands in for what a GPU adds; remembers which memory was pinned and read."""

    def __init__(self, monkeypatch):
        self.pinned, self.closed, self.programs, self.shift = [], [], set(), 0
        zeros = torch.zeros

        def not_pinned(*shape, pin_memory=False, **options):
            return zeros(*shape, **options)

        monkeypatch.setattr(torch, "zeros", not_pinned)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        units = SimpleNamespace(multi_processor_count=132)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: units)
        monkeypatch.setattr(uva, "require_uva", lambda device: None)
        monkeypatch.setattr(uva, "check_mapping", lambda part: None)
        monkeypatch.setattr(HostBlock, "pin", lambda block: self.pinned.append(block.span[0]))
        monkeypatch.setattr(gather, "DeviceTimer", lambda device: self.timed)

    def timed(self, work):
        work()
        return 5_000.0

    def launch(self, table, ids, out, complaints, programs):
        first = next(base for base in self.pinned if base <= table.data_ptr() < base + 2 * MIB)
        assert table.data_ptr() >= first
        self.programs.add(programs)
        out.copy_(table[(ids + self.shift) % len(table)])


@pytest.fixture
def driver(monkeypatch):
    fake = Driver(monkeypatch)
    if importlib.util.find_spec("triton") is not None:
        from tiercast_runtime.paths import uva_kernel

        monkeypatch.setattr(uva_kernel, "launch_gather", fake.launch)
    return fake


@needs_triton
def test_uva_reads_a_block_that_the_probe_has_pinned(driver):
    spreads = gather.measure_device_gather(PLAN, "uva", CPU, EFFORT)
    assert {spread.key for spread in spreads} == {
        ("uva", row_bytes, count, size)
        for row_bytes, counts in PLAN.sizes
        for count in counts
        for size in PLAN.footprints_bytes
    }
    assert all(spread.samples == (5.0, 5.0) for spread in spreads)
    assert len(driver.pinned) == 2
    assert driver.programs == {66}  # half of the multiprocessors


@needs_triton
def test_wrong_rows_of_the_kernel_are_found_before_anything_is_timed(driver):
    driver.shift = 1
    with pytest.raises(WrongRows):
        gather.measure_device_gather(PLAN, "uva", CPU, EFFORT)


def test_path_device_pins_nothing(driver):
    assert len(gather.measure_device_gather(PLAN, "device", CPU, EFFORT)) == 8
    assert driver.pinned == []


def test_a_table_that_is_not_pinned_is_no_table_of_path_uva(driver):
    table = gather.BlockTable(torch.zeros(1000, dtype=torch.uint8), 64)
    with pytest.raises(AssertionError, match="pinned host memory"):
        uva.UvaPath([table], CPU)
