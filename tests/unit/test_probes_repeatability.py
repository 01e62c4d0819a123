"""Two profiles of one machine beside each other: what agrees, what is flagged, and what is neither."""

import pytest

pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.gather import GatherPoint, GatherSweep
from tiercast_profiles.hardware import ProbeResult
from tiercast_runtime.probes.repeatability import agreements, pairs


def probe(name, value, status="ok", **parameters):
    return ProbeResult(name=name, parameters=parameters, unit="us", samples=(value,), status=status)


def sweep(time_us):
    point = GatherPoint(piece_bytes=(64,), footprint_bytes=1, num_rows=1, num_workers=1, samples_us=(time_us,))
    return GatherSweep(path="cpu_gather", pages="thp", order="random", place="local", num_threads=1, points=(point,))


def test_figures_agree_are_flagged_or_stand_out(cpu_hardware):
    first = cpu_hardware.model_copy(
        update={
            "gather_sweeps": (sweep(10.0),),
            "probes": (
                probe("copy.host", 10.0, threads=1),
                probe("copy.host", 20.0, threads=2),
                probe("lookup.nvme.disk", 5.0, "unstable", rows=1),
                probe("lookup.dram.cpu_gather", 5.0, rows=1),
                probe("lookup.dram.cpu_gather.fit", 0.1),
                probe("layers.hash", 3.0),
                probe("matmul.square", 3.0),
            ),
        }
    )
    second = cpu_hardware.model_copy(
        update={
            "gather_sweeps": (sweep(10.5),),
            "probes": (
                probe("copy.host", 10.9, threads=1),
                probe("copy.host", 23.0, threads=2),
                probe("lookup.nvme.disk", 9.0, rows=1),
                probe("lookup.dram.cpu_gather", 5.1, rows=1),
            ),
        }
    )
    found = {one.group: one for one in agreements(pairs(first, second))}
    assert set(found) == {"copy", "disk", "gather", "gather sweep"}
    assert (found["copy"].num_figures, found["copy"].num_agreeing, found["copy"].num_silent) == (2, 1, 1)
    assert (found["disk"].num_flagged, found["disk"].num_silent) == (1, 0)
    assert found["gather"].num_agreeing == 1
    assert found["gather sweep"].median_difference_ratio == pytest.approx(0.05)
    assert all(pair.agrees and pair.difference_ratio == 0 for pair in pairs(first, first))
