"""A scenario: hardware + model + placement + workload + prices, as a file asks for it and as it was resolved.

Names of options follow vLLM and SGLang where those have a word for the thing.
"""

import hashlib
from typing import Literal, Self

from pydantic import Field, InstanceOf, field_validator, model_validator

from tiercast_profiles.document import Grown, Strict, canonical_json, document_json
from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.hardware import HOST_DRIVEN_PATHS, HardwareProfile, LookupPath, Tier
from tiercast_profiles.model import ModelSpec, RowLayout
from tiercast_profiles.prices import PriceBook
from tiercast_profiles.workload import Workload

PlacementTier = Literal["none", "hbm", "dram", "cxl", "nvme", "pool"]
MAX_SEED = 2**63 - 1
MAX_RANKS_NAMED = 1024  # of those that an error lists
Prefetch = Literal["off", "step_entry", "prev_step"]
GraphMode = Literal["eager", "piecewise", "full"]
CachePolicy = Literal["lru", "lfu", "static_hot"]
Replication = Literal["none", "per_rank", "per_numa", "per_node"]

ALLOWED_PATHS: dict[Tier, tuple[LookupPath, ...]] = {
    "hbm": ("device",),
    "dram": ("uva", "cpu_gather"),
    "cxl": ("uva", "cpu_gather"),
    "nvme": ("disk",),
    "pool": ("pool",),
}


class Parallel(Grown):
    """Tensor-parallel ranks of one replica and number of data-parallel replicas.

    With ``prefill`` above 0 so many further replicas compute prompts only, and the ``data`` replicas decode only.
    """

    added_fields = frozenset({"prefill"})

    tensor: int = Field(default=1, gt=0, le=1024)
    data: int = Field(default=1, gt=0, le=1024)
    prefill: int = Field(default=0, ge=0, le=1024)

    @property
    def num_replicas(self) -> int:
        """Replicas of both roles."""
        return self.data + self.prefill


class Placement(Grown):
    """Where the tables live and how their rows travel. None means: the natural choice for the tier and device."""

    added_fields = frozenset({"cache_policy", "page_cache_residency_ratio"})

    tier: PlacementTier
    path: LookupPath | None = None
    prefetch: Prefetch = "step_entry"
    replication: Replication = "per_node"
    row_layout: RowLayout = "packed"
    cache_gib: float = Field(default=0.0, ge=0, le=1e6)
    cache_policy: CachePolicy = "lru"
    page_cache_residency_ratio: float = Field(default=0.0, ge=0, le=1)
    graph_mode: GraphMode | None = None
    num_pool_hosts: int | None = Field(default=None, gt=0, le=100_000)

    @field_validator("prefetch", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        return "off" if value is False else value  # YAML 1.1 reads a bare `off` as false

    @model_validator(mode="after")
    def _path_fits_the_tier(self) -> Self:
        if self.path is not None:
            allowed = () if self.tier == "none" else ALLOWED_PATHS[self.tier]
            if self.path not in allowed:
                raise ValueError(
                    f"path {self.path!r} cannot serve tier {self.tier!r}; allowed: {', '.join(allowed) or 'no path'}"
                )
        if self.tier == "none" and self.cache_gib > 0:
            raise ValueError(f"cache_gib={self.cache_gib:g} with tier 'none': there are no rows to keep; leave it out")
        if self.tier == "hbm" and self.cache_gib > 0:
            raise ValueError(
                f"cache_gib={self.cache_gib:g} with tier 'hbm': a cache would lie in the memory that the rows are in, "
                "and a hit would cost a row's read and the search for it; leave it out, or give the table another tier"
            )
        if self.cache_policy != "lru" and self.cache_gib == 0:
            raise ValueError(f"cache_policy={self.cache_policy!r} says how a cache chooses; give cache_gib too")
        if self.page_cache_residency_ratio > 0 and self.tier != "nvme":
            raise ValueError(
                f"page_cache_residency_ratio={self.page_cache_residency_ratio:g} is about rows of a drive; tier is "
                f"{self.tier!r}; leave it out"
            )
        if self.num_pool_hosts is not None and self.tier != "pool":
            raise ValueError(
                f"num_pool_hosts={self.num_pool_hosts} says who shares a pool; tier is {self.tier!r}; leave it out"
            )
        return self


class Engine(Grown):
    """Serving-engine limits, named as vLLM names them.

    ``kv_reservation``: KV blocks for the whole request at admission, or on demand, preempting by recomputation.
    """

    added_fields = frozenset({"kv_reservation", "prefix_caching"})

    max_num_seqs: int = Field(default=512, gt=0, le=100_000)
    max_num_batched_tokens: int = Field(default=8192, gt=0, le=10_000_000)
    kv_block_tokens: int = Field(default=16, gt=0, le=65_536)
    memory_utilization_ratio: float = Field(default=0.9, gt=0, le=1)
    kv_reservation: Literal["full", "on_demand"] = "full"
    prefix_caching: bool = False


class Speculative(Grown):
    """Speculative decoding: draft tokens per step and the chance that each is accepted in turn.

    ``draft_step_us`` is what the draft model takes to draft one token for every sequence of a batch; None: not known.
    """

    added_fields = frozenset({"draft_step_us"})

    draft_tokens: int = Field(default=0, ge=0, le=64)
    acceptance_ratio: float = Field(default=0.7, ge=0, le=1)
    draft_step_us: float | None = Field(default=None, ge=0, le=1e9)


class Scenario(Strict):
    """One scenario file. ``hardware``, ``model`` and ``prices`` are shipped names or paths."""

    schema_version: Literal[1]
    hardware: str = Field(min_length=1)
    model: str = Field(min_length=1)
    parallel: Parallel = Parallel()
    placement: Placement
    workload: Workload
    engine: Engine = Engine()
    speculative: Speculative = Speculative()
    prices: str = "default"
    seed: int = Field(default=0, ge=0, lt=MAX_SEED + 1)

    @model_validator(mode="after")
    def _budget_holds_a_step(self) -> Self:
        per_sequence = 1 + self.speculative.draft_tokens
        if self.engine.max_num_batched_tokens < per_sequence:
            raise ValueError(
                f"engine.max_num_batched_tokens={self.engine.max_num_batched_tokens} is below the {per_sequence} "
                "tokens one decoding sequence needs per step"
            )
        return self


class ResolvedPlacement(Grown):
    """The placement with every natural choice made."""

    added_fields = frozenset({"cache_policy", "page_cache_residency_ratio"})

    tier: PlacementTier
    path: LookupPath | None
    prefetch: Prefetch
    replication: Replication
    row_layout: RowLayout
    cache_gib: float
    graph_mode: GraphMode
    num_pool_hosts: int | None = None
    cache_policy: CachePolicy = "lru"
    page_cache_residency_ratio: float = 0.0


class ResolvedScenario(Strict):
    """A scenario with its documents loaded: what the runtime and the simulator both take.

    Its documents were validated when they were loaded; they are frozen, and not validated again with every placement.
    """

    scenario: Scenario
    hardware: InstanceOf[HardwareProfile]
    model: InstanceOf[ModelSpec]
    prices: InstanceOf[PriceBook]
    placement: ResolvedPlacement

    @property
    def num_ranks(self) -> int:
        """Devices the scenario uses."""
        return self.scenario.parallel.tensor * self.scenario.parallel.num_replicas

    @property
    def sha256(self) -> str:
        """Hash of everything that decides the result; raw probe samples, which decide nothing, are left out."""
        scenario = self.scenario.model_dump(mode="json", exclude={"hardware", "model", "prices"})
        # Canonical JSON of one object, put together from that of its parts, of which the documents are kept.
        parts = {
            "hardware": document_json(self.hardware, frozenset({"probes"})),
            "model": document_json(self.model),
            "placement": canonical_json(self.placement.model_dump(mode="json")),
            "prices": document_json(self.prices),
            "scenario": canonical_json({**scenario, "workload": self.scenario.workload.identity()}),
        }
        text = ",".join(f'"{name}":{part}' for name, part in sorted(parts.items()))
        return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()

    def with_placement(self, placement: Placement) -> "ResolvedScenario":
        """The same scenario with another placement, resolved anew."""
        scenario = self.scenario.model_copy(update={"placement": placement})
        return combine(scenario, self.hardware, self.model, self.prices)


def natural_path(tier: PlacementTier, hardware: HardwareProfile) -> LookupPath | None:
    """The path a tier is read by when the scenario names none.

    Host memory is read by the GPU itself (``uva``), or by worker threads where the device is a CPU.
    """
    if tier == "none":
        return None
    if tier in ("dram", "cxl"):
        return "cpu_gather" if hardware.device.kind == "cpu" else "uva"
    return ALLOWED_PATHS[tier][0]


def natural_graph_mode(path: LookupPath | None, hardware: HardwareProfile) -> GraphMode:
    """Graphs where the device and path allow them: host-driven paths break a full graph (facts: engines' docs)."""
    if hardware.device.kind == "cpu":
        return "eager"
    return "piecewise" if path in HOST_DRIVEN_PATHS else "full"


def _check_heads(tensor: int, hardware: HardwareProfile, model: ModelSpec) -> None:
    """Refuse ranks that cannot share the attention heads, as engines do.

    Each rank has as many heads as every other, and whole KV heads or a copy of one.
    """
    heads, kv_heads = model.backbone.num_attention_heads, model.backbone.num_kv_heads
    most = hardware.device.num_per_host

    def can_share(ranks: int) -> bool:
        return heads % ranks == 0 and (kv_heads % ranks == 0 or ranks % kv_heads == 0)

    if tensor > most or not can_share(tensor):
        # more ranks than heads cannot share them; files may name any number of devices or heads
        allowed = [ranks for ranks in range(1, min(most, heads, MAX_RANKS_NAMED) + 1) if can_share(ranks)]
        raise BadInput(
            f"parallel.tensor={tensor}: {heads} attention heads and {kv_heads} KV heads of {model.name!r} do not "
            f"divide evenly over so many ranks; allowed on one {hardware.name!r} host are "
            f"{', '.join(map(str, allowed))}"
        )


def combine(scenario: Scenario, hardware: HardwareProfile, model: ModelSpec, prices: PriceBook) -> ResolvedScenario:
    """Make every natural choice and check what only the documents together can tell.

    Raises:
        BadInput: a graph mode the path cannot have, more ranks than one host carries, or heads they cannot share.
        MissingCapability: the machine has no such tier or no curve for the path.
    """
    wanted = scenario.placement
    path = wanted.path or natural_path(wanted.tier, hardware)
    graph_mode = wanted.graph_mode or natural_graph_mode(path, hardware)
    if graph_mode == "full" and path in HOST_DRIVEN_PATHS:
        raise BadInput(f"graph_mode 'full' cannot hold path {path!r}, which the host drives; use piecewise or eager")
    if graph_mode != "eager" and hardware.device.kind == "cpu":
        raise BadInput(f"graph_mode {graph_mode!r} needs a GPU; hardware {hardware.name!r} is a CPU; use eager")
    if scenario.parallel.tensor > hardware.device.num_per_host:
        raise BadInput(
            f"parallel.tensor={scenario.parallel.tensor} exceeds the {hardware.device.num_per_host} devices of one "
            f"{hardware.name!r} host"
        )
    _check_heads(scenario.parallel.tensor, hardware, model)
    parallel = scenario.parallel
    if parallel.prefill and parallel.tensor * parallel.num_replicas > hardware.device.num_per_host:
        raise BadInput(
            f"parallel.prefill={parallel.prefill} and data={parallel.data} with tensor={parallel.tensor} exceed the "
            f"{hardware.device.num_per_host} devices of one {hardware.name!r} host; KV moves between devices of a host"
        )
    if parallel.prefill and hardware.device.collective is None:
        raise MissingCapability(
            f"parallel.prefill={parallel.prefill} moves KV over device.collective, which the profile of "
            f"{hardware.name!r} does not have; set prefill to 0 or add it"
        )
    if path is not None and wanted.tier != "none" and hardware.curve(wanted.tier, path) is None:
        known = ", ".join(f"{curve.tier}/{curve.path}" for curve in hardware.lookups) or "none"
        raise MissingCapability(
            f"hardware {hardware.name!r} has no curve for tier {wanted.tier!r} by path {path!r}; it has: {known}"
        )
    placement = ResolvedPlacement(
        tier=wanted.tier,
        path=path,
        prefetch=wanted.prefetch,
        replication=wanted.replication,
        row_layout=wanted.row_layout,
        cache_gib=wanted.cache_gib,
        graph_mode=graph_mode,
        num_pool_hosts=wanted.num_pool_hosts,
        cache_policy=wanted.cache_policy,
        page_cache_residency_ratio=wanted.page_cache_residency_ratio,
    )
    return ResolvedScenario(scenario=scenario, hardware=hardware, model=model, prices=prices, placement=placement)
