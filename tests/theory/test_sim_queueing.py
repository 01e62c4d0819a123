"""The serving loop against queueing theory: an M/D/1 queue and Little's law."""

import math

import pytest

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


def sojourn_times_ns(load, seed, num_requests=4000):
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
    clock.process(Replica(World(clock, Network(clock, {}), source, "off"), 0, scheduler, ConstantCosts()).run())
    clock.run()
    return [finish - arrival for finish, arrival in zip(source.finish_ns, source.arrival_ns, strict=True)]


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_mean_wait_of_an_m_d_1_queue(load):
    """Pollaczek–Khinchine with constant service D: mean wait = rho D / (2 (1 − rho))."""
    means = []
    for seed in range(8):
        times = sojourn_times_ns(load, seed)[500:]  # the queue starts empty: drop the warm-up
        means.append(sum(times) / len(times) - STEP_NS)
    mean = sum(means) / len(means)
    error = math.sqrt(sum((value - mean) ** 2 for value in means) / (len(means) - 1) / len(means))
    assert mean == pytest.approx(load * STEP_NS / (2 * (1 - load)), abs=4 * error)


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
