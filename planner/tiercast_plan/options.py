"""What there is to choose from: ranks per replica, tier, path, prefetch and copies of the tables, for one machine."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.hardware import TIERS, HardwareProfile
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.prices import PriceBook
from tiercast_profiles.scenario import (
    ALLOWED_PATHS,
    Engine,
    Parallel,
    Placement,
    Prefetch,
    Replication,
    ResolvedScenario,
    Scenario,
    combine,
)
from tiercast_profiles.workload import Lengths, Workload


@dataclass(frozen=True, slots=True)
class Load:
    """What every plan has to serve: how long requests are, what text they carry, how the engine is set."""

    prompt_tokens: Lengths
    output_tokens: Lengths
    text: str
    engine: Engine
    seed: int


def tensor_sizes(hardware: HardwareProfile) -> tuple[int, ...]:
    """Ranks per replica that fill a host with whole replicas: powers of two."""
    most = hardware.device.num_per_host
    return tuple(size for size in (1, 2, 4, 8, 16, 32, 64) if size <= most and most % size == 0)


def placements(hardware: HardwareProfile) -> Iterator[Placement]:
    """Every tier and path, whether or not the machine has them: what it lacks is an answer too.

    A copy per NUMA node is an option for host memory alone; the natural row layout is kept.
    """
    for tier in TIERS:
        for path in ALLOWED_PATHS[tier]:
            if tier == "hbm":
                yield Placement(tier=tier, path=path)
                continue
            prefetches: tuple[Prefetch, ...] = ("step_entry", "prev_step", "off")
            copies: tuple[Replication, ...] = ("per_node",)
            if tier == "dram" and hardware.host.num_numa_nodes > 1:
                copies = ("per_node", "per_numa")
            for prefetch, replication in product(prefetches, copies):
                yield Placement(tier=tier, path=path, prefetch=prefetch, replication=replication)


def host_scenario(
    hardware: HardwareProfile,
    model: ModelSpec,
    prices: PriceBook,
    load: Load,
    *,
    tensor: int,
    placement: Placement,
    concurrency: int,
    num_requests: int,
) -> ResolvedScenario:
    """One host full of replicas in a closed loop; ``concurrency`` counts the requests of the whole host.

    Raises:
        BadInput, MissingCapability: the machine cannot have this placement.
    """
    workload = Workload(
        kind="closed_loop",
        concurrency=concurrency,
        num_requests=num_requests,
        prompt_tokens=load.prompt_tokens,
        output_tokens=load.output_tokens,
        text=load.text,
    )
    scenario = Scenario(
        schema_version=1,
        hardware=hardware.name,
        model=model.name,
        parallel=Parallel(tensor=tensor, data=hardware.device.num_per_host // tensor),
        placement=placement,
        workload=workload,
        engine=load.engine,
        prices=prices.name,
        seed=load.seed,
    )
    return combine(scenario, hardware, model, prices)


def try_host_scenario(
    hardware: HardwareProfile, model: ModelSpec, prices: PriceBook, load: Load, *, tensor: int, placement: Placement
) -> ResolvedScenario | str:
    """The scenario at one request per replica, or why the machine cannot have it."""
    replicas = hardware.device.num_per_host // tensor
    try:
        return host_scenario(
            hardware,
            model,
            prices,
            load,
            tensor=tensor,
            placement=placement,
            concurrency=replicas,
            num_requests=replicas,
        )
    except (BadInput, MissingCapability) as error:
        return str(error)
