"""The serving loop against queueing theory: M/D/1 and M/M/1 queues, processor sharing, Little's law."""

import math

import pytest

from tiercast_profiles.rng import stream
from tiercast_profiles.scenario import Engine, Speculative
from tiercast_profiles.workload import Workload, draw_requests
from tiercast_sim.clock import Clock
from tiercast_sim.links import Network
from tiercast_sim.serving import Scheduler
from tiercast_sim.source import RequestSource
from tiercast_sim.step import Replica, World
from tiercast_sim.work import StepWork

STEP_NS = 1_000_000


class ConstantCosts:
    wants_upcoming = False

    def price(self, _plan, _upcoming):
        return StepWork(0, (STEP_NS,))


class ExponentialCosts:
    """Steps of exponential length with mean ``STEP_NS``."""

    wants_upcoming = False

    def __init__(self, seed):
        self._generator = stream(seed, "service")

    def price(self, _plan, _upcoming):
        return StepWork(0, (max(1, round(self._generator.exponential(STEP_NS))),))


def sojourn_times_ns(load, seed, num_requests=4000, costs=None):
    """Arrival to finish of requests that each take one step of the only slot."""
    workload = Workload.model_validate(
        {
            "kind": "poisson",
            "requests_per_s": load * 1e9 / STEP_NS,
            "num_requests": num_requests,
            "prompt_tokens": {"fixed": 1},
            "output_tokens": {"fixed": 1},
        }
    )
    requests = draw_requests(workload, seed)
    clock = Clock()
    source = RequestSource(workload, requests, 1)
    scheduler = Scheduler(Engine(max_num_seqs=1), 10**9, Speculative(), seed)
    clock.process(
        Replica(World(clock, Network(clock, {}), source, "off"), 0, scheduler, costs or ConstantCosts()).run()
    )
    clock.run()
    return [finish - arrival for finish, arrival in zip(source.finish_ns, source.arrival_ns, strict=True)]


def mean_and_error(values_of_seed):
    """Mean over eight replicates and its standard error; the queue starts empty, so the first 500 are dropped."""
    means = []
    for seed in range(8):
        values = values_of_seed(seed)[500:]
        means.append(sum(values) / len(values))
    mean = sum(means) / len(means)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in means) / (len(means) - 1) / len(means))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_mean_wait_of_an_m_d_1_queue(load):
    """Pollaczek–Khinchine with constant service D: mean wait = rho D / (2 (1 − rho))."""
    mean, error = mean_and_error(lambda seed: sojourn_times_ns(load, seed))
    assert mean - STEP_NS == pytest.approx(load * STEP_NS / (2 * (1 - load)), abs=4 * error)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_time_in_an_m_m_1_queue(load):
    """Mean D / (1 − rho), and exponential: a share 1/e of the requests stays longer than that."""
    expected = STEP_NS / (1 - load)
    times = [sojourn_times_ns(load, seed, costs=ExponentialCosts(seed)) for seed in range(8)]
    mean, error = mean_and_error(lambda seed: times[seed])
    assert mean == pytest.approx(expected, abs=4 * error)
    share, error = mean_and_error(lambda seed: [time > expected for time in times[seed]])
    assert share == pytest.approx(math.exp(-1), abs=4 * error)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_flows_that_share_a_link_fairly_are_a_processor_sharing_queue(load):
    """M/G/1-PS: the mean time is D / (1 − rho) whatever the law of the sizes, here constant."""

    def times(seed):
        clock, found = Clock(), []
        network = Network(clock, {"link": 1e9})
        gaps = stream(seed, "arrivals").exponential(STEP_NS / load, size=2500)

        def arrive():
            for gap in gaps:
                yield clock.timeout(round(gap))
                start_ns = clock.now_ns
                flow = network.start(STEP_NS, (("link", 1e9),), 1e9)
                flow.done.callbacks.append(lambda _event, start_ns=start_ns: found.append(clock.now_ns - start_ns))

        clock.process(arrive())
        clock.run()
        return found

    mean, error = mean_and_error(times)
    assert mean == pytest.approx(STEP_NS / (1 - load), abs=4 * error)


def test_lindley_recursion_gives_every_single_wait():
    """W(n+1) = max(0, W(n) + D − gap): the same arrivals by the recursion, request by request."""
    workload = Workload.model_validate(
        {
            "kind": "poisson",
            "requests_per_s": 700.0,
            "num_requests": 300,
            "prompt_tokens": {"fixed": 1},
            "output_tokens": {"fixed": 1},
        }
    )
    arrivals = [request.arrival_ns for request in draw_requests(workload, 5)]
    wait, expected = 0, []
    for index, arrival in enumerate(arrivals):
        if index:
            wait = max(0, wait + STEP_NS - (arrival - arrivals[index - 1]))
        expected.append(wait + STEP_NS)
    assert sojourn_times_ns(0.7, 5, num_requests=300) == expected


def test_littles_law_in_a_closed_loop(sim_scenario):
    """With N requests always inside, N = throughput × mean time in the system."""
    from tiercast_sim.run import run

    resolved = sim_scenario(
        {"tier": "dram"},
        workload={
            "kind": "closed_loop",
            "concurrency": 6,
            "num_requests": 600,
            "prompt_tokens": {"uniform": [4, 40]},
            "output_tokens": {"uniform": [2, 20]},
        },
    )
    requests = run(resolved, "nominal").samples.requests
    elapsed = max(requests.finish_ns)
    mean_ns = sum(f - a for f, a in zip(requests.finish_ns, requests.arrival_ns, strict=True)) / 600
    assert 600 / elapsed * mean_ns == pytest.approx(6, rel=0.02)  # the last six leave an emptying loop


def poisson_run(sim_scenario, requests_per_s, seed, count, **engine):
    from tiercast_sim.run import run

    workload = {
        "kind": "poisson",
        "requests_per_s": requests_per_s,
        "num_requests": count,
        "prompt_tokens": {"fixed": 16},
        "output_tokens": {"fixed": 1},
    }
    result = run(sim_scenario({"tier": "dram"}, workload=workload, engine=engine, seed=seed), "nominal")
    assert result.engine == "arithmetic"
    return result


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_whole_scenarios_on_the_fast_path_are_an_m_d_1_queue(sim_scenario, load):
    """One request at a time, all alike: Pollaczek–Khinchine for the wait, with the step's own length as service."""
    alone = {"max_num_seqs": 1, "max_num_batched_tokens": 16}
    step_ns = poisson_run(sim_scenario, 1.0, 0, 1, **alone).summary.elapsed_ns
    step_ns -= poisson_run(sim_scenario, 1.0, 0, 1, **alone).steps[0].start_ns

    def times(seed):
        requests = poisson_run(sim_scenario, load * 1e9 / step_ns, seed, 4000, **alone).requests
        return (requests.finish_ns - requests.arrival_ns).tolist()

    mean, error = mean_and_error(times)
    assert mean - step_ns == pytest.approx(load * step_ns / (2 * (1 - load)), abs=4 * error)


def test_littles_law_with_requests_that_come_and_go(sim_scenario):
    """Over a run that begins and ends empty, arrival rate × mean time is the mean number inside, exactly."""
    requests = poisson_run(sim_scenario, 2000.0, 3, 800, max_num_seqs=8).requests
    arrivals, finishes = requests.arrival_ns, requests.finish_ns
    elapsed = int(finishes.max())
    changes = sorted([(ns, 1) for ns in arrivals.tolist()] + [(ns, -1) for ns in finishes.tolist()])
    inside = area = last = 0
    for now, change in changes:
        area += inside * (now - last)
        inside, last = inside + change, now
    mean_inside, rate = area / elapsed, len(arrivals) / elapsed
    assert mean_inside == pytest.approx(rate * float((finishes - arrivals).mean()), rel=1e-12)


def test_a_step_of_weights_alone_is_the_roofline(sim_scenario):
    """A decode step of few tokens reads every weight once: bytes ÷ bandwidth, plus overheads apart from it."""
    from tiercast_sim.run import run

    def step_ns(gb_per_s):
        hardware = {"device": {"memory_bandwidth_gb_per_s": gb_per_s}}
        workload = {
            "kind": "closed_loop",
            "concurrency": 1,
            "num_requests": 1,
            "prompt_tokens": {"fixed": 4},
            "output_tokens": {"fixed": 50},
        }
        result = run(sim_scenario({"tier": "none"}, hardware=hardware, workload=workload), "nominal")
        return result.summary.median_decode.duration_ns

    base = sim_scenario({"tier": "none"}).hardware.device
    assert base.memory_bandwidth_gb_per_s is not None
    times = {rate: step_ns(rate) for rate in (1.0, 2.0, 4.0)}
    # time = overhead + bytes / rate: the differences halve as the rate doubles
    assert times[1.0] - times[2.0] == pytest.approx(2 * (times[2.0] - times[4.0]), rel=0.01)
    assert times[1.0] > times[2.0] > times[4.0]
