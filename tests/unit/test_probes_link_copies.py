"""Copies over the link of a GPU whose host and streams have clocks of their own: what lands in a sample, and when."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_runtime.probes import hold, link_copies  # noqa: E402
from tiercast_runtime.probes.link_copies import CopyTrial  # noqa: E402
from tiercast_runtime.probes.timing import Effort  # noqa: E402

ONCE = Effort(0, num_warm_ups=0, min_rounds=3, max_rounds=3)
NUM_BYTES = 1000  # one GB/s where a copy takes 1 µs
DEVICE = torch.device("cuda", 0)
MS = 1_000_000


class Gpu:
    """Streams that work off what they are given; each call that hands over a copy takes the host ``launch_ns``."""

    def __init__(self, launch_ns=5_000):
        self.launch_ns, self.host_ns = launch_ns, 0
        self.streams = []
        self.main = self.current = self.stream()
        self.holds_ns = []

    def stream(self, device=None):
        made = SimpleNamespace(at_ns=0)
        made.wait_event = lambda event: setattr(made, "at_ns", max(made.at_ns, event.at_ns))
        self.streams.append(made)
        return made

    @contextmanager
    def on(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def enqueue(self, takes_ns):
        self.host_ns += self.launch_ns
        self.current.at_ns = max(self.current.at_ns, self.host_ns) + takes_ns

    def sleep(self, cycles):
        self.holds_ns.append(cycles / hold.MOST_CYCLES_A_NS)
        self.current.at_ns = max(self.current.at_ns, self.host_ns) + self.holds_ns[-1]

    def event(self):
        made = SimpleNamespace(at_ns=0)
        made.record = lambda stream=None: setattr(made, "at_ns", max((stream or self.current).at_ns, self.host_ns))
        made.query = lambda: self.host_ns >= made.at_ns
        made.elapsed_time = lambda other: (other.at_ns - made.at_ns) / MS
        return made

    def synchronize(self, device=None):
        self.host_ns = max(self.host_ns, *(stream.at_ns for stream in self.streams))

    def way(self, takes_ns=1_000):
        """Copies of ``NUM_BYTES`` that take the device ``takes_ns`` each."""

        def enqueue(num_copies):
            for _ in range(num_copies):
                self.enqueue(takes_ns)

        octets = SimpleNamespace(nbytes=NUM_BYTES, device=torch.device("cpu"))

        def nothing(*_):
            pass

        return SimpleNamespace(
            source=octets,
            target=octets,
            enqueue=enqueue,
            change=nothing,
            verify_changes=nothing,
            verify_all=nothing,
        )


@pytest.fixture
def gpu(monkeypatch):
    made = Gpu()
    for module in (hold, link_copies):
        monkeypatch.setattr(module, "cuda_event", made.event)
    monkeypatch.setattr(torch.cuda, "_sleep", made.sleep)
    monkeypatch.setattr(torch.cuda, "synchronize", made.synchronize)
    monkeypatch.setattr(torch.cuda, "Stream", made.stream)
    monkeypatch.setattr(torch.cuda, "stream", made.on)
    return made


def test_what_the_host_takes_to_enqueue_is_in_no_gated_sample(gpu):
    trial = CopyTrial("rate", gpu.way(1_000), DEVICE)
    assert dict(trial.run())["rate"] == pytest.approx(1.0)
    assert gpu.holds_ns == [hold.LEAST_HOLD_NS]
    in_time = CopyTrial("rate", gpu.way(1_000), DEVICE, is_gated=False)
    assert dict(in_time.run())["rate"] == pytest.approx(0.2)  # a copy every 5 µs, as fast as the host can


def test_a_gate_that_opens_early_is_made_longer_and_stays_so(gpu):
    gpu.launch_ns = 150_000  # 20 copies in 3 ms
    trial = CopyTrial("rate", gpu.way(1_000), DEVICE)
    assert dict(trial.run())["rate"] == pytest.approx(1.0)
    assert gpu.holds_ns == [1 * MS, 2 * MS, 4 * MS]
    assert dict(trial.run())["rate"] == pytest.approx(1.0)
    assert gpu.holds_ns == [1 * MS, 2 * MS, 4 * MS, 4 * MS]
    assert trial.parameters["gate"] == "shut until all copies were enqueued"


def test_a_gate_that_is_never_long_enough_is_told(gpu):
    gpu.launch_ns = 10 * MS  # 20 copies in twice the longest hold
    trial = CopyTrial("rate", gpu.way(1_000), DEVICE)
    trial.run()
    assert gpu.holds_ns == [*(2**power * MS for power in range(7)), hold.MOST_HOLD_NS]
    assert str(trial.parameters["gate"]).startswith("opened before all copies were enqueued")


def test_the_other_direction_runs_for_all_of_the_timed_copies(gpu):
    trial = CopyTrial("rate", gpu.way(1_000), DEVICE, gpu.way(1_000))
    assert dict(trial.run()) == {"rate": pytest.approx(1.0), "rate.overlap": 1.0}
    _, (rate, overlap) = trial.measure(ONCE, lambda: 0)
    assert (rate.name, rate.unit, rate.status) == ("copy.rate", "GB/s", "ok")
    assert (overlap.name, overlap.unit, overlap.samples) == ("copy.rate.overlap", "ratio", (1.0, 1.0, 1.0))
    assert rate.parameters["opposite_copies"] == link_copies.NUM_OPPOSITE_COPIES


def test_a_rate_is_invalid_where_the_other_direction_was_done_early(gpu):
    """40 copies of 0.2 µs are over 8 µs behind the gate; the timed ones run from 4 to 20."""
    trial = CopyTrial("rate", gpu.way(1_000), DEVICE, gpu.way(200))
    _, (rate, overlap) = trial.measure(ONCE, lambda: 0)
    assert overlap.samples == pytest.approx((0.25, 0.25, 0.25))
    assert (rate.status, rate.reason) == ("invalid", "the other direction ran in only 25% of the time")
