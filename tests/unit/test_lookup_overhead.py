"""What lookups take from compute on a CPU: the arithmetic by hand, and every part measured for real."""

import math
from itertools import count
from statistics import median

import pytest

torch = pytest.importorskip("torch")

from tiercast_profiles.quantiles import capped_mean  # noqa: E402
from tiercast_runtime.paths.cpu_gather import CpuGatherPath  # noqa: E402
from tiercast_runtime.paths.disk import DiskPath  # noqa: E402
from tiercast_runtime.prefetch import LookupTiming  # noqa: E402
from tiercast_runtime.probes import lookup_overhead  # noqa: E402
from tiercast_runtime.probes.interference import Contender  # noqa: E402
from tiercast_runtime.probes.lookup_overhead import Taken, _Trial, mean_us, measure_overhead  # noqa: E402
from tiercast_runtime.probes.step_bench import Geometry, StepBench  # noqa: E402
from tiercast_runtime.probes.timing import Effort, Spread  # noqa: E402
from tiercast_runtime.table import FileTable, HostTable  # noqa: E402

CPU = torch.device("cpu")
PARTS = ("beside", "after", "inline", "issue", "wake", "turn", "behind")
THREE = Effort(0, num_warm_ups=0, min_rounds=3, max_rounds=3)


class ByHand(_Trial):
    """A trial whose passes and lookups take what is written down."""

    def __init__(self, passes_ns, lookups_ns, taken):
        self._passes, self._lookups_ns, self._taken_of = iter(passes_ns), iter(lookups_ns), taken
        self._num_rows, self._num_lookups, self._num_layers = 24, 2, 5
        self._most_layers = 6
        ticks = count(0, 70)  # the hand-over is all that lies between two looks at the clock
        self._clock = lambda: next(ticks)
        self._ahead = self._inline = self._bench = self
        self.hasher, self._batch, self._step = self, self, "the step"
        self.windows = None

    def batch(self, step):
        assert step == "the step"
        return self

    def row_ids(self, _windows):
        return None

    def begin_step(self, _ids):
        return None

    def _fresh_ids(self):
        return None

    def _pass(self):
        return next(self._passes)

    def _lookups(self, _prefetcher, _ids):
        return next(self._lookups_ns)

    def _compute(self, num_layers):
        assert num_layers == self._most_layers
        self.num_steps += 1

    def _taken(self, _prefetcher, *, layers_between=0):
        assert layers_between == (0 if self.num_steps else 2)
        return self._taken_of

    num_steps = 0


def test_a_trial_by_hand():
    # passes: unkept, alone, beside, alone again, behind an inline lookup; lookups: inline, then the worker's alone
    trial = ByHand([999, 980, 1100, 1020, 1300], [500, 400], Taken(320, 20, ()))
    assert trial.run() == [
        (("beside", 24), (1100 + 20 - 1000) / 2),
        (("after", 24), (1300 - 1000) / 2),
        (("inline", 24), (500 - 400) / 2),
        (("lookup_speed", 24), 400 / 320),
    ]


def timing(started_ns, ready_ns):
    return LookupTiming(0, 0, started_ns, ready_ns, 0, 1, 1)


def test_a_hand_over_by_hand():
    # handed over from 0 to 70; three lookups of 50, 30 and 20 with 5 and 9 between them
    timings = (timing(95, 145), timing(150, 180), timing(189, 209))
    trial = ByHand([], [], Taken(0, 0, timings))
    assert trial.handing_over() == [
        (("issue", 24), 70.0),
        (("wake", 24), 95.0 - 70),
        (("turn", 24), (5 + 9) / 2),
        (("behind", 24), 50 - (30 + 20) / 2),
    ]
    assert trial.num_steps == 2, "a whole step before the hand-over and one behind it"


def test_a_worker_that_began_before_the_hand_over_returned_did_not_wait_and_one_lookup_has_no_other():
    trial = ByHand([], [], Taken(0, 0, (timing(40, 90),)))
    assert trial.handing_over() == [(("issue", 24), 70.0), (("wake", 24), 0.0)]


class Taking(_Trial):
    """Two lookups whose rows take 5 and 7 ns to take, of which 4 are a wait; a layer takes 100."""

    def __init__(self):
        self.now, self.layers = 0, []
        self._num_lookups, self._clock = 2, lambda: self.now

    def rows_for(self, index):
        self.now += (5, 7)[index]

    def take_timings(self):
        return [LookupTiming(0, 0, 10, 40, 0, 1, 1), LookupTiming(1, 0, 40, 60, 4, 1, 1)]

    def _compute(self, num_layers):
        self.layers.append(num_layers)
        self.now += 100 * num_layers


@pytest.mark.parametrize("layers", [0, 3])
def test_rows_are_taken_between_layers_whose_time_is_not_in_it(layers):
    trial = Taking()
    assert trial._taken(trial, layers_between=layers) == Taken(30 + 20, 5 + 7 - 4, tuple(trial.take_timings()))
    assert trial.layers == [3] * (layers > 0), "between the two lookups, not around them"


def test_sizes_count_alike_however_well_each_is_known():
    steady = Spread(("beside", 12), (1000.0, 1000.0, 1000.0))  # 1 ns of error: 0 is never assumed
    shaky = Spread(("beside", 96), (8000.0, 9000.0, 10_000.0))
    found = mean_us([steady, shaky])
    assert found.value == 5.0
    error = math.sqrt(1 + math.pi / 2 / 3 * (1000 / 1.349) ** 2) / 2 / 1000
    assert (found.low, found.high) == pytest.approx((5 - error, 5 + error), rel=1e-4)
    assert mean_us([Spread(("after", 12), (-30.0, -20.0, -10.0))]).value == 0.0, "lookups do not speed compute up"
    late = Spread(("wake", 12), (1000.0, 1000.0, 1000.0, 1400.0))
    assert (mean_us([late]).value, mean_us([late], of_means=True).value) == (1.0, 1.1)


@pytest.fixture(scope="module")
def bench(mini_model):
    with StepBench(mini_model("v41"), CPU, Geometry(9, 192, 24)) as made:
        yield made


@pytest.mark.parametrize("name", ["cpu_gather", "disk"])
def test_every_part_is_measured_by_size(bench, name, tmp_path):
    engram, num_layers = bench.model.engram, len(bench.model.engram.layer_ids)
    if name == "disk":
        table = FileTable(engram, 0, "packed", tmp_path)
        path, tier = DiskPath([table] * num_layers, CPU), "nvme"
    else:
        table = HostTable(engram, 0, "packed")
        path, tier = CpuGatherPath([table] * num_layers, CPU), "dram"
    contender = Contender(tier, name, path, num_layers, table.num_rows)
    entry, probes = measure_overhead(bench, contender, THREE)
    path.close()
    rows = engram.num_rows_per_token
    prefix, parts = f"interference.{tier}.{name}.", (*PARTS, "lookup_speed")
    found = {(probe.name.removeprefix(prefix), probe.parameters["rows"]) for probe in probes}
    assert found == {(part, size) for part in parts for size in (rows, 8 * rows)}
    assert {len(probe.samples) for probe in probes} == {3}
    overhead = entry.overhead
    assert entry.compute_speed_ratio.value == 1.0
    assert [point.num_rows for point in overhead.points] == [rows, 8 * rows]
    for part in PARTS:
        means = [getattr(point, f"{part}_us").value for point in overhead.points]
        middle = capped_mean if part in ("issue", "wake", "turn") else median
        found = [middle(probe.samples) for probe in probes if probe.name == f"{prefix}{part}"]
        assert means == pytest.approx([max(0.0, each) for each in found], rel=1e-3)
    assert overhead.turn_us.value > 0
    assert overhead.wake_us.value >= 0
    assert overhead.issue_us.value > 0
    assert overhead.beside_us.value >= 0
    assert overhead.after_us.value >= 0
    assert overhead.inline_us.value >= 0
    assert 0 < entry.lookup_speed_ratio.value <= 1


def test_where_no_size_has_room_one_short_sequence_does(bench, monkeypatch):
    monkeypatch.setattr(lookup_overhead, "has_room", lambda *_: False)
    num_layers = len(bench.model.engram.layer_ids)
    path = CpuGatherPath([bench.table] * num_layers, CPU)
    contender = Contender("dram", "cpu_gather", path, num_layers, bench.table.num_rows)
    _, probes = measure_overhead(bench, contender, THREE)
    path.close()
    assert {probe.parameters["rows"] for probe in probes} == {bench.model.engram.num_rows_per_token}
