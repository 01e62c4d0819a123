"""The GPU's gather sweep, the kernel replaced by indexing and the device by a formula; the chase in an interpreter."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.units import MIB  # noqa: E402
from tiercast_runtime.probes import sweep_device as probe  # noqa: E402
from tiercast_runtime.probes.block_content import WrongRows, fill_random  # noqa: E402
from tiercast_runtime.probes.sweep_grid import SweepPlan  # noqa: E402
from tiercast_runtime.probes.sweep_ids import RowSource  # noqa: E402
from tiercast_runtime.probes.timing import Effort  # noqa: E402

CPU = torch.device("cpu")
EFFORT = Effort(0, num_warm_ups=0, min_rounds=3, max_rounds=3)
PLAN = SweepPlan(
    payloads=((64,), (256,), (256, 8), (512,)),
    num_rows=(64, 1024),
    min_footprint_bytes=MIB,
    max_footprint_bytes=4 * MIB,
    num_workers=(64, 512, 2048),
)


class Device:
    """Gathers by indexing; a gather takes 5 µs and 2 ns for every byte, shared by up to 2,048 rows in flight."""

    def __init__(self):
        self.calls, self.time_ns = [], 0.0

    def launch(self, table, ids, out, complaints, programs):
        out.copy_(table[ids])
        self.calls.append((len(ids), table.shape[1], programs))
        self.time_ns += 5_000 + 2 * out.numel() / min(programs, 32)

    def timed(self, work):
        self.time_ns = 0.0
        work()
        return self.time_ns


@pytest.fixture
def block():
    content = np.empty(4 * MIB, dtype=np.uint8)
    fill_random(content)
    return torch.from_numpy(content)


def test_a_sweep_holds_every_payload_footprint_and_number_of_rows_in_flight(block):
    device = Device()
    by = probe.Gatherer(CPU, device.launch, device.timed)
    sweep = probe.sweep_device(block, probe.DeviceArm("uva", "thp"), PLAN, EFFORT, RowSource("random"), by=by)
    assert sweep.label == "uva/thp/random/local"
    points = {(p.piece_bytes, p.footprint_bytes // MIB, p.num_rows, p.num_workers): p for p in sweep.points}
    assert {((64,), 1, 64, 64), ((256, 8), 4, 1024, 512), ((256,), 4, 1024, 1024)} <= set(points)
    # 1,024 rows, 16 by each program: 512 in flight are 32 programs
    assert (1024, 8, 32) in device.calls
    assert points[(256,), 4, 1024, 512].time_us == pytest.approx(5 + 2 * 1024 * 256 / 32 / 1e3)
    assert points[(256, 8), 4, 1024, 512].time_us == pytest.approx(10 + 2 * 1024 * 264 / 32 / 1e3)
    assert sweep.model is not None
    assert sweep.score.num_held_out > 0
    done = probe.with_round_trip(sweep, 1_500.0)
    assert done.round_trip_ns == 1_500
    assert done.num_requests_outstanding > 0
    assert done.model == sweep.model


def test_wrong_rows_end_the_sweep(block):
    device = Device()

    def launch(table, ids, out, complaints, programs):
        out.copy_(table[ids.flip(0)])

    by = probe.Gatherer(CPU, launch, device.timed)
    with pytest.raises(WrongRows, match="other rows than were asked for"):
        probe.sweep_device(block, probe.DeviceArm("uva", "thp"), PLAN, EFFORT, RowSource("random"), by=by)


def test_a_chase_follows_the_ring_and_is_divided_by_its_hops(block):
    seen = []

    def chase(words, place, hops):
        for _ in range(hops):
            place[0] = words[place[0]]
        seen.append(int(place[0]))

    def timed(work):
        work()
        return 3_000_000.0

    assert probe.device_round_trip_ns(block.numpy(), CPU, timed, chase) == 3_000_000 / probe.NUM_HOPS
    assert len(set(seen)) == probe.NUM_CHASES + 1  # never at the same place twice


INTERPRETED = """
import numpy as np, torch
from tiercast_runtime.probes.chase_kernel import launch_chase
from tiercast_runtime.probes.round_trip import lay_ring
words = np.zeros(1 << 12, dtype=np.int64)
first = lay_ring(words, 64)
place = torch.tensor([first])
launch_chase(torch.from_numpy(words), place, 5)
expected = first
for _ in range(5):
    expected = words[expected]
assert int(place[0]) == expected
launch_chase(torch.from_numpy(words), place, 59)
assert int(place[0]) == first
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_chase_kernel_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
