"""What a lookup costs on this machine: its time alone, its hops, and what it takes of shared resources."""

from dataclasses import dataclass, replace
from typing import Literal

from tiercast_profiles.document import Bound
from tiercast_profiles.errors import MissingCapability
from tiercast_profiles.hardware import HOST_DRIVEN_PATHS, Link, Storage
from tiercast_profiles.head_sizes import table_rows
from tiercast_profiles.rng import stream
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.units import GB, NS_PER_S, NS_PER_US
from tiercast_sim.checked import non_negative, positive, speed_ratio
from tiercast_sim.compute_table import TableTimes
from tiercast_sim.host_cache import HostCacheTimes
from tiercast_sim.lookup import CurveTimes, bytes_moved, row_pieces
from tiercast_sim.memory import replicas_per_host
from tiercast_sim.overheads import LookupOverheads
from tiercast_sim.page_cache import PartlyResident
from tiercast_sim.storage import LatencyTail, pool_bandwidth, reads_per_s
from tiercast_sim.table_choice import table_of_way
from tiercast_sim.time_spread import ALWAYS_ALIKE, Cases
from tiercast_sim.work import NO_LOOKUP, LookupWork

TOKEN_ID_BYTES = 4
ResourceKind = Literal["bytes", "reads", "core_seconds", "messages"]


@dataclass(frozen=True, slots=True)
class _Demand:
    """Units of one shared resource a rank takes per row, and which ranks of the replica share that resource."""

    resource: str
    num_ranks: int
    units_per_row: float
    capacity_per_s: float
    kind: ResourceKind = "bytes"
    most_per_s: float | None = None  # what it gives where nobody else is on it, if more than the capacity left here
    units_per_s: float | None = None  # taken all the time a lookup reads, whatever its rows


class LookupCosts:
    """Lookups of one replica at one bound.

    Rows are sharded over the tensor-parallel ranks by head; the slowest rank has ceil(rows per token / ranks) of them
    and the ranks move together (Assumption A8).
    """

    def __init__(self, resolved: ResolvedScenario, bound: Bound, replica: int) -> None:
        placement, hardware, engram = resolved.placement, resolved.hardware, resolved.model.engram
        assert placement.tier != "none", "no lookups without tables"
        assert placement.path is not None, "a tier has a path"
        self._resolved = resolved
        self._tensor = resolved.scenario.parallel.tensor
        self._pieces = row_pieces(engram, placement.row_layout)
        self.row_bytes = sum(self._pieces)
        self._rows_per_token = engram.num_rows_per_token
        self.rows_per_token_per_rank = -(-engram.num_rows_per_token // self._tensor)
        self.num_layers = len(engram.layer_ids)
        curve = hardware.curve(placement.tier, placement.path)
        if curve is None:
            raise MissingCapability(f"{hardware.name!r} has no curve for {placement.tier}/{placement.path}")
        self.footprint_bytes = max(table_rows(engram)) * engram.stored_row_bytes(placement.row_layout) // self._tensor
        self._curve = CurveTimes(curve, bound, self.footprint_bytes)
        self._cases = Cases({spread.num_rows: spread.time_ratios for spread in curve.spreads})
        self._overheads = LookupOverheads.of(resolved, bound)
        self._tier_times = PartlyResident(resolved, bound, self._curve, self.footprint_bytes)
        self.removes_duplicates = curve.removes_duplicates
        self._host_cache = HostCacheTimes.of(resolved, bound)
        self._hit_curve = self._hit_times(bound)
        self._remote_factor = _remote_numa_factor(resolved, bound)
        self._is_staged_by_host = placement.path in HOST_DRIVEN_PATHS and hardware.device.kind != "cpu"
        self._ids_ns = (0.0, 0.0)
        self._copy_ns = (0.0, 0.0)
        if self._is_staged_by_host:
            self._ids_ns = _hop(hardware.device_to_host, bound, "device_to_host")
            self._copy_ns = _hop(hardware.host_to_device, bound, "host_to_device")
        way = table_of_way(resolved) if self._is_staged_by_host and placement.prefetch != "off" else None
        self._way = None if way is None else TableTimes(way, bound)
        self._demands = self._shared_demands(bound, replica)
        self._tail = _tail_of(resolved, bound, replica)
        self._known: dict[tuple[int, int, int, bool], LookupWork] = {}
        self.largest_rows_per_rank = 0

    @property
    def rows_per_token(self) -> int:
        """Rows one token asks of one layer, over all ranks."""
        return self._rows_per_token

    @property
    def curve(self) -> CurveTimes:
        """The times these costs are taken from."""
        return self._curve

    def lookup(self, rows_read: int, rows_found: int, num_tokens_of_ids: int, *, is_behind: bool = False) -> LookupWork:
        """One layer's lookup: rows the tier delivers and rows it finds in a cache, over all ranks.

        ``num_tokens_of_ids`` is not zero on the first lookup of a step: the host then waits for that many token ids.
        ``is_behind`` where the worker comes to it right from another one.
        """
        if rows_read == 0 and rows_found == 0:
            return NO_LOOKUP
        key = (rows_read, rows_found, num_tokens_of_ids, is_behind)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._price(rows_read, rows_found, num_tokens_of_ids, is_behind=is_behind)
        if self._tail is None or rows_read == 0:
            return known
        num_reads = self._on_slowest_rank(rows_read) * len(self._pieces)
        num_reads = round(num_reads * (1 - self._tier_times.resident_ratio))
        extra_ns = self._tail.slowest_ns(num_reads) if num_reads else 0
        return replace(known, duration_ns=known.duration_ns + extra_ns) if extra_ns else known

    @property
    def has_draws(self) -> bool:
        """True where two lookups of the same rows may take different times."""
        return self._tail is not None

    def _price(self, rows_read: int, rows_found: int, num_tokens_of_ids: int, *, is_behind: bool) -> LookupWork:
        rows, hits = self._on_slowest_rank(rows_read), self._on_slowest_rank(rows_found)
        self.largest_rows_per_rank = max(self.largest_rows_per_rank, rows)
        tier_ns = 0.0
        if rows:
            alone_ns = self._tier_times.time_ns(rows, self._pieces)
            fixed_ns = min(alone_ns, self._curve.fixed_ns)
            tier_ns = fixed_ns + (alone_ns - fixed_ns) * self._remote_factor
        if self._is_staged_by_host:  # its cache lies in host memory, so hits travel up with the rest
            tier_ns += self._rows_up_ns(rows + hits)
            if num_tokens_of_ids:
                tier_ns += self._ids_down_ns(num_tokens_of_ids) + self._beyond_hops_ns(num_tokens_of_ids)
        taken_ns = wait_ns = 0
        if self._overheads is not None:
            tier_ns += self._overheads.lookup_ns(rows + hits)
            if is_behind and rows:  # what finds all its rows in a cache has no drive to wait for
                tier_ns -= min(self._overheads.saved_ns(rows + hits), self._curve.fixed_ns)
            taken_ns = self._overheads.taken_ns(rows + hits)
            wait_ns = self._overheads.wait_ns(rows + hits, is_behind=is_behind)
        if self._host_cache is None:
            cache_ns = self._hit_curve.time_ns(hits, self._pieces)
        else:
            cache_ns = self._host_cache.time_ns(rows, hits)
        duration_ns = max(1, round(tier_ns + cache_ns))
        usage = []
        for demand in self._demands:
            if demand.units_per_s is not None:
                if rows:
                    usage.append((demand.resource, demand.num_ranks * demand.units_per_s))
                continue
            # A10: what the curve says one rank reaches alone is possible, whatever the shared resource is said to give.
            most = demand.capacity_per_s if demand.most_per_s is None else demand.most_per_s
            per_rank = min(rows * demand.units_per_row * NS_PER_S / duration_ns, most)
            usage.append((demand.resource, demand.num_ranks * per_rank))
        size = rows * self.row_bytes
        rate = size * NS_PER_S / duration_ns
        ratios = self._cases.at(rows) if rows else ALWAYS_ALIKE
        return LookupWork(duration_ns, tuple(usage), rate, rows_read, size, rows_found, taken_ns, wait_ns, ratios)

    def _rows_up_ns(self, num_rows: int) -> float:
        latency_ns, ns_per_byte = self._copy_ns
        return latency_ns + num_rows * self.row_bytes * ns_per_byte

    def _ids_down_ns(self, num_tokens: int) -> float:
        latency_ns, ns_per_byte = self._ids_ns
        return latency_ns + num_tokens * TOKEN_ID_BYTES * ns_per_byte

    def _beyond_hops_ns(self, num_tokens: int) -> float:
        """What the way of a step's first lookup takes beside its gather and both hops, where the profile timed it.

        Assumption A105: the worker that wakes up and its calls; beyond the largest step that was timed the hops grow
        alone, and the worker is awake for the step's other lookups.
        """
        if self._way is None:
            return 0.0
        count = min(num_tokens, int(self._way.largest_tokens("lookup_way")))
        hops_ns = self._rows_up_ns(count * self.rows_per_token_per_rank) + self._ids_down_ns(count)
        return max(0.0, self._way.time_ns("lookup_way", count) - hops_ns)

    def _on_slowest_rank(self, rows: int) -> int:
        return -(-rows * self.rows_per_token_per_rank // self._rows_per_token)

    def _hit_times(self, bound: Bound) -> CurveTimes:
        """Cache hits are gathered from device memory, unless the host's cache was timed.

        Raises:
            MissingCapability: a cache, and neither of both is known.
        """
        hardware, placement = self._resolved.hardware, self._resolved.placement
        curve = hardware.curve("hbm", "device")
        if curve is None:
            if placement.cache_gib > 0 and self._host_cache is None:
                raise MissingCapability(
                    f"cache_gib={placement.cache_gib:g} needs a curve for hbm/device, which {hardware.name!r} lacks; "
                    "set cache_gib to 0"
                )
            return self._curve
        size = int(placement.cache_gib * 2**30) or self.footprint_bytes
        return CurveTimes(curve, bound, size)

    def _shared_demands(self, bound: Bound, replica: int) -> tuple[_Demand, ...]:
        """Resources this replica's ranks share with each other and with other replicas of the host."""
        hardware, placement = self._resolved.hardware, self._resolved.placement
        per_host = replicas_per_host(self._resolved)
        host, first_rank = replica // per_host, replica % per_host * self._tensor
        moved = sum(bytes_moved(piece, self._curve.curve.read_granularity_bytes) for piece in self._pieces)
        resident = self._tier_times.resident_ratio
        demands = []
        if placement.tier == "dram" or resident > 0:
            rate = (
                positive(hardware.host.memory_bandwidth_gb_per_s, bound, "host.memory_bandwidth_gb_per_s")
                * speed_ratio(hardware.host.random_access_ratio, bound, "host.random_access_ratio")
                * GB
            )
            size = moved if placement.tier == "dram" else resident * self._tier_times.bytes_of_resident(self._pieces)
            demands.append(_Demand(f"dram of host {host}", self._tensor, size, rate))
        if placement.tier not in ("hbm", "dram"):
            missing = 1 - resident
            storage = _storage(self._resolved)
            rate = positive(storage.read_bandwidth_gb_per_s, bound, f"{placement.tier}.read_bandwidth_gb_per_s") * GB
            amplified = sum(bytes_moved(piece, storage.read_granularity_bytes) for piece in self._pieces)
            demands.append(_Demand(f"{placement.tier} of host {host}", self._tensor, amplified * missing, rate))
            reads = reads_per_s(storage, bound, placement.tier)
            if reads is not None:
                name = f"{placement.tier} reads of host {host}"
                demands.append(_Demand(name, self._tensor, len(self._pieces) * missing, reads, "reads"))
            shared = pool_bandwidth(self._resolved, storage, bound)
            if shared is not None:
                whole, left = shared
                demands.append(_Demand("pool of all hosts", self._tensor, amplified, left, most_per_s=whole))
        threads = self._curve.curve.num_threads
        if placement.path in HOST_DRIVEN_PATHS and threads is not None:
            cores = float(hardware.host.num_cores)
            name = f"cores of host {host}"
            per_rank = min(cores, float(threads))
            demands.append(_Demand(name, self._tensor, 0, cores, "core_seconds", units_per_s=per_rank))
        if hardware.device.kind != "cpu" and placement.tier != "hbm":
            link = hardware.host_to_device
            rate = positive(link.bandwidth_gb_per_s, bound, "host_to_device.bandwidth_gb_per_s") * GB
            size = self.row_bytes if self._is_staged_by_host else moved
            ranks = range(first_rank, first_rank + self._tensor)
            groups = [rank // link.num_sharing for rank in ranks]
            for group in sorted(set(groups)):
                demands.append(_Demand(f"link {group} of host {host}", groups.count(group), size, rate))
        return tuple(demands)

    def capacities(self) -> dict[str, float]:
        """Units per second of every shared resource this replica touches."""
        return {demand.resource: demand.capacity_per_s for demand in self._demands}

    def kinds(self) -> dict[str, ResourceKind]:
        """What a unit of each of them is."""
        return {demand.resource: demand.kind for demand in self._demands}


def _remote_numa_factor(resolved: ResolvedScenario, bound: Bound) -> float:
    """How much longer rows take when one shared copy serves several NUMA nodes.

    Assumption A13: curves are measured with local memory, and the one copy is spread so that a share 1 − 1/nodes of
    every rank's reads is remote.
    """
    host = resolved.hardware.host
    is_shared = resolved.placement.replication == "per_node" and resolved.placement.tier == "dram"
    if not is_shared or host.num_numa_nodes == 1:
        return 1.0
    ratio = speed_ratio(host.remote_numa_speed_ratio, bound, "host.remote_numa_speed_ratio")
    local = 1 / host.num_numa_nodes
    return local + (1 - local) / ratio


def _hop(link: Link, bound: Bound, name: str) -> tuple[float, float]:
    latency_ns = non_negative(link.latency_us, bound, f"{name}.latency_us") * NS_PER_US
    rate = positive(link.bandwidth_gb_per_s, bound, f"{name}.bandwidth_gb_per_s") * GB
    return latency_ns, NS_PER_S / rate


def _tail_of(resolved: ResolvedScenario, bound: Bound, replica: int) -> LatencyTail | None:
    tier = resolved.placement.tier
    if tier not in ("nvme", "cxl", "pool"):
        return None
    storage = _storage(resolved)
    if not storage.latency_tail:
        return None
    return LatencyTail(storage, bound, tier, stream(resolved.scenario.seed, f"latency tail/{replica}"))


def _storage(resolved: ResolvedScenario) -> Storage:
    hardware, tier = resolved.hardware, resolved.placement.tier
    storage = {"nvme": hardware.nvme, "cxl": hardware.cxl, "pool": hardware.pool}[tier]
    if storage is None:
        raise MissingCapability(f"hardware {hardware.name!r} has no tier {tier!r}; choose another tier")
    return storage
