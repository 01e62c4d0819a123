"""What a drive or a pool gives beyond bandwidth: reads in flight, slow reads, hosts that share it."""

import numpy as np

from tiercast_profiles.document import Bound
from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.hardware import Storage
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import GB, NS_PER_S, NS_PER_US
from tiercast_sim.checked import non_negative, positive
from tiercast_sim.memory import num_hosts


def reads_per_s(storage: Storage, bound: Bound, tier: str) -> float | None:
    """Reads per second one host can get, or None where nothing bounds them but bandwidth.

    Assumption A71: with a queue of depth d and reads of latency L at most d / L reads end per second (Little's law).
    """
    limits = []
    if storage.max_reads_per_s is not None:
        limits.append(positive(storage.max_reads_per_s, bound, f"{tier}.max_reads_per_s"))
    if storage.num_reads_in_flight is not None:
        latency_ns = positive(storage.latency_us, bound, f"{tier}.latency_us", higher_is_better=False) * NS_PER_US
        limits.append(storage.num_reads_in_flight * NS_PER_S / latency_ns)
    return min(limits, default=None)


def pool_bandwidth(resolved: ResolvedScenario, storage: Storage, bound: Bound) -> tuple[float, float] | None:
    """Bytes per second of a pool, whole and as left for the hosts of this scenario; None where hosts do not contend.

    Assumption A72: other hosts on the pool ask for as much as these do, all the time.

    Raises:
        BadInput: fewer hosts share the pool than the scenario itself has.
        MissingCapability: other hosts share it and the profile does not say what it gives to all of them.
    """
    if resolved.placement.tier != "pool":
        return None
    own, sharing = num_hosts(resolved), resolved.placement.num_pool_hosts
    if sharing is not None and sharing < own:
        raise BadInput(
            f"placement.num_pool_hosts={sharing} is below the {own} hosts of the scenario itself; count them too"
        )
    if storage.shared_bandwidth_gb_per_s is None:
        if sharing is not None and sharing > 1:
            raise MissingCapability(
                f"placement.num_pool_hosts={sharing} needs pool.shared_bandwidth_gb_per_s, which the profile of "
                f"{resolved.hardware.name!r} does not state"
            )
        return None
    rate = positive(storage.shared_bandwidth_gb_per_s, bound, "pool.shared_bandwidth_gb_per_s") * GB
    return rate, rate * own / (sharing or own)


class LatencyTail:
    """Extra time of a lookup whose slowest read lies in the tail, drawn from a named stream.

    Assumption A73: reads are slow independently, and a lookup waits for its slowest one behind all others. Of n reads
    the slowest has the quantile u to the power 1/n with u uniform; beyond the last known quantile the tail is flat.
    """

    def __init__(self, storage: Storage, bound: Bound, tier: str, generator: np.random.Generator) -> None:
        self._generator = generator
        median_ns = non_negative(storage.latency_us, bound, f"{tier}.latency_us") * NS_PER_US
        self._ratios, self._extra_ns = [0.5], [0.0]
        for point in storage.latency_tail:
            latency_ns = non_negative(point.latency_us, bound, f"{tier}.latency_tail {point.read_ratio}") * NS_PER_US
            self._ratios.append(point.read_ratio)
            self._extra_ns.append(max(self._extra_ns[-1], latency_ns - median_ns))

    def slowest_ns(self, num_reads: int) -> int:
        """Time the slowest of ``num_reads`` reads takes longer than the median read."""
        ratio = self._generator.random() ** (1 / num_reads)
        return round(float(np.interp(ratio, self._ratios, self._extra_ns)))
