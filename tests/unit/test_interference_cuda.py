"""Lookups beside compute on a GPU: what is enqueued in which order, with streams and events replaced by a log."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_runtime.prefetch import LookupTiming  # noqa: E402
from tiercast_runtime.probes import hold, interference  # noqa: E402

LAUNCH_NS, LOOKUP_NS, COMPUTE_NS = 3_000_000, 5_000, 200_000


class Gpu:
    """A device that works off what was enqueued behind a hold; the host needs ``LAUNCH_NS`` to enqueue a pass."""

    def __init__(self):
        self.host_ns, self.device_ns, self.log = 0, 0, []
        self.lookups = []

    def clock(self):
        return self.host_ns

    def enqueue(self, what, takes_ns):
        self.device_ns = max(self.device_ns, self.host_ns) + takes_ns
        self.log.append(what)

    def sleep(self, cycles):
        self.enqueue(("hold", cycles), cycles / hold.MOST_CYCLES_A_NS)

    def event(self):
        event = SimpleNamespace(at_ns=None)
        event.record = lambda: setattr(event, "at_ns", max(self.device_ns, self.host_ns))
        return event

    def layers_pass(self, hidden, batch):
        self.host_ns += LAUNCH_NS
        self.enqueue("compute", COMPUTE_NS)

    def synchronize(self, device=None):
        self.host_ns = max(self.host_ns, self.device_ns)

    # the prefetcher, whose side stream starts where the compute stream is when a step begins
    def begin_step(self, row_ids):
        self.log.append(("lookups", len(row_ids)))
        at_ns = max(self.device_ns, self.host_ns)
        self.lookups = []
        for index in range(len(row_ids)):
            self.host_ns += 50_000
            at_ns = max(at_ns, self.host_ns)
            self.lookups.append(LookupTiming(index, 0, round(at_ns), round(at_ns + LOOKUP_NS), 0, 1, 1))
            at_ns += LOOKUP_NS

    def rows_for(self, index):
        pass

    def take_timings(self):
        self.synchronize()
        return self.lookups


@pytest.fixture
def duel(monkeypatch):
    gpu = Gpu()

    class Events:
        def __init__(self, clock):
            self.refreshed = 0

        def ns(self, event):
            return round(event.at_ns)

        def refresh_if_old(self):
            self.refreshed += 1

    monkeypatch.setattr(interference, "EventClock", Events)
    monkeypatch.setattr(interference, "cuda_event", gpu.event)
    monkeypatch.setattr(torch.cuda, "synchronize", gpu.synchronize)
    monkeypatch.setattr(torch.cuda, "_sleep", gpu.sleep)
    engram = SimpleNamespace(num_rows_per_token=4, layer_ids=(1, 2))
    bench = SimpleNamespace(
        device=torch.device("cuda", 0),
        model=SimpleNamespace(engram=engram),
        backbone=SimpleNamespace(embed=lambda batch: None),
        layers_pass=gpu.layers_pass,
    )
    path = SimpleNamespace(device=torch.device("cpu"))
    contender = interference.Contender("dram", "uva", path, 256, 1000)
    batch = SimpleNamespace(num_tokens=8)
    made = interference._Duel(bench, batch, contender, gpu, gpu.clock)
    return gpu, made


def test_lookups_and_compute_start_together_however_long_their_launches_take(duel):
    gpu, trial = duel
    assert trial._num_lookups == 16  # of 5 µs each: two fifths of a pass that the device takes 200 µs for
    gpu.log.clear()
    found = dict(trial.run())
    assert found["compute"] == pytest.approx(1.0, abs=0.01)  # nothing slows this device down
    assert found["lookup"] == pytest.approx(1.0, abs=0.01)
    names = [entry if isinstance(entry, str) else entry[0] for entry in gpu.log]
    assert names == ["hold", "lookups", "hold", "compute", "hold", "lookups", "compute", "hold", "compute"]
    holds = {entry[1] for entry in gpu.log if entry[0] == "hold"}
    launches_ns = LAUNCH_NS + 16 * 50_000
    assert holds == {hold.MOST_CYCLES_A_NS * round(interference.HOLD_MARGIN * launches_ns)}


def test_the_events_are_put_on_the_clock_anew_from_time_to_time(duel):
    _, trial = duel
    trial.run()
    trial.run()
    assert trial._events.refreshed == 2
