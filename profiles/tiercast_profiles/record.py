"""The one record: what was run or predicted, from what inputs, and what came out.

A measured and a simulated record have the same shape, the same clock (integer ns since run start) and the same
statistics; they are told apart only by ``kind``.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from tiercast_profiles.document import Grown, Strict, canonical_json, canonical_sha256
from tiercast_profiles.scenario import ResolvedPlacement, Scenario

RecordKind = Literal["measured", "simulated", "published"]


class Metric(Strict):
    """A number with its interval. ``basis`` says what the interval is made of.

    ``spread``: quartiles or extremes of repeats; ``band``: the simulator at both ends of its inputs' bands;
    ``point``: a single observation, no interval is known.
    """

    value: float
    low: float | None = None
    high: float | None = None
    basis: Literal["spread", "band", "point"] = "point"


class Percentiles(Strict):
    """Three quantiles of one distribution."""

    p50: Metric
    p90: Metric
    p99: Metric


class LayerWindow(Strict):
    """What one Engram layer needs and gets in a median decode step.

    ``window_us`` is the time between the moment its row ids are known and the moment it needs the rows;
    ``lookup_us`` what its lookup takes, queueing included; ``required_gb_per_s`` the rate that just fits the window.
    ``required_latency_us`` is the time its own lookup may take once earlier ones are out of the way; with
    ``service_us``, which it does take, no longer than that, nothing stalls. ``given_gb_per_s`` is the rate the rows
    came at. Rates are those of one rank. The last three are None where the producer cannot tell waiting from service,
    ``required_latency_us`` also where the device gathers its own rows as part of the module.
    """

    layer_id: int
    window_us: Metric
    lookup_us: Metric
    stall_us: Metric
    required_gb_per_s: Metric | None
    required_latency_us: Metric | None = None
    service_us: Metric | None = None
    given_gb_per_s: Metric | None = None


class TierOffer(Strict):
    """What a tier of the machine gives to one layer's lookup of a median decode step, alone on the machine.

    ``hidden_layer_ids`` are the Engram layers whose window is long enough for it, and for those queued before it.
    """

    tier: Literal["hbm", "dram", "cxl", "nvme", "pool"]
    path: str
    lookup_us: Metric
    given_gb_per_s: Metric
    hidden_layer_ids: tuple[int, ...]


class TimePart(Strict):
    """One part of the time of all steps of all replicas; ``mean_ms_per_step`` is its share of the mean step."""

    name: str
    total_ns: int = Field(ge=0)
    mean_ms_per_step: Metric


class TimeSpent(Strict):
    """Where the time of the steps went: ``total_ns`` of the parts sums to ``total_ns`` to the nanosecond."""

    num_steps: int = Field(gt=0)
    total_ns: int = Field(ge=0)
    parts: tuple[TimePart, ...]

    @model_validator(mode="after")
    def _parts_sum_to_the_whole(self) -> Self:
        found = sum(part.total_ns for part in self.parts)
        if found != self.total_ns:
            raise ValueError(f"parts sum to {found} ns, the steps to {self.total_ns} ns")
        return self


class KvLinks(Strict):
    """What one placement leaves for KV, and what follows from it.

    Requests of the mean length that it holds, sequences that decoded at once (weighted by time), and throughput; the
    last two are None where the placement was not run.
    """

    kv_capacity_tokens: int
    num_requests_in_kv: float
    num_decoding_mean: float | None
    output_tokens_per_s: float | None


class KvChain(Strict):
    """What a placement buys: memory freed, hence KV room, hence concurrency, hence throughput.

    ``in_hbm`` is the same scenario with every table in HBM; None where that does not fit.
    """

    hbm_freed_bytes: int
    here: KvLinks
    in_hbm: KvLinks | None


class ResourceUse(Strict):
    """How busy a shared thing was, from run start to the last finish; ``kind`` says what a unit of it is."""

    name: str
    kind: Literal["bytes", "reads", "core_seconds", "messages", "time"]
    capacity_per_s: float = Field(gt=0)
    busy_ratio: Metric


class StartUpPart(Strict):
    """One part of coming up; ``time_s`` is None where a rate is not known, and ``note`` says which."""

    name: str
    size_bytes: int = Field(ge=0)
    time_s: Metric | None
    note: str = ""


class StartUp(Strict):
    """How long the fullest host takes to come up; the total is None where a part is not known."""

    parts: tuple[StartUpPart, ...]
    total_s: Metric | None


class ReplicateMetric(Strict):
    """One metric over seeds: mean with the Student-t interval of that mean, at the nominal inputs.

    The combined interval is the band of the inputs' uncertainty, widened at both ends by the half width over seeds.
    """

    mean: float
    low: float
    high: float
    combined_low: float
    combined_high: float


class Replicates(Strict):
    """The same scenario under several seeds: what chance alone does to the numbers."""

    num_seeds: int = Field(ge=2)
    confidence_ratio: float = Field(gt=0, lt=1)
    metrics: dict[str, ReplicateMetric]


class PageCacheUse(Strict):
    """Rows of a drive that lie in the page cache: how many bytes, how long until they do, cold against warm.

    ``read_ahead_s`` is how long reading them ahead takes, ``by_traffic_s`` how long serving from a cold start takes to
    bring them in; None where it never quite does.
    """

    residency_ratio: float = Field(gt=0, le=1)
    host_resident_bytes: int = Field(ge=0)
    read_ahead_s: Metric
    by_traffic_s: Metric | None
    cold_output_tokens_per_s: Metric
    warm_output_tokens_per_s: Metric


class Metrics(Grown):
    """The metrics every record reports; absent means not known, never zero.

    ``wasted_row_ratio`` is the share of rows asked for that rejected drafts took,
    ``prefix_hit_ratio`` that of prompt tokens whose KV was there at admission,
    ``kv_transfer_ms`` the mean time a prompt's KV takes from a prefill replica to a decode replica.
    ``runs_output_tokens_per_s`` is the throughput of each repeat in the order they were run, empty for a single one
    and in predictions: what ran in the same round can be compared pair by pair.
    """

    added_fields = frozenset(
        {
            "wasted_row_ratio",
            "preemptions_per_request",
            "prefix_hit_ratio",
            "kv_transfer_ms",
            "page_cache",
            "runs_output_tokens_per_s",
        }
    )

    output_tokens_per_s: Metric
    total_tokens_per_s: Metric
    ttft_ms: Percentiles
    tpot_ms: Percentiles | None
    step_ms: Percentiles
    stall_ms_per_step: Metric
    lookup_ms_per_step: Metric
    hidden_ratio: Metric | None
    penalty_ratio: dict[Literal["no_engram", "hbm", "moe_offload"], Metric] = {}
    kv_capacity_tokens: Metric | None
    memory_bytes: dict[Literal["hbm", "dram", "cxl", "nvme", "pool"], int]
    rows_per_token: float
    unique_row_ratio: float | None
    cache_hit_ratio: float | None = None
    wasted_row_ratio: Metric | None = None
    preemptions_per_request: Metric | None = None
    prefix_hit_ratio: Metric | None = None
    kv_transfer_ms: Metric | None = None
    layers: tuple[LayerWindow, ...] = ()
    offers: tuple[TierOffer, ...] = ()
    time_spent: TimeSpent | None = None
    kv_chain: KvChain | None = None
    resources: tuple[ResourceUse, ...] = ()
    start_up: StartUp | None = None
    page_cache: PageCacheUse | None = None
    replicates: Replicates | None = None
    runs_output_tokens_per_s: tuple[float, ...] = ()


class RequestSamples(Strict):
    """One entry per finished request, in id order; times are ns since run start."""

    arrival_ns: tuple[int, ...]
    first_token_ns: tuple[int, ...]
    finish_ns: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]


class StepSamples(Strict):
    """One entry per step, in order; times are ns since run start.

    ``lookup_ns`` is the sum over layers of the time each lookup was in flight; ``rows`` counts what the tokens asked
    for, ``rows_read`` what the tier delivered after duplicates and cache hits, ``rows_hit`` those asked
    for that the cache had before the lookup, duplicates included (empty without a cache).
    """

    start_ns: tuple[int, ...]
    duration_ns: tuple[int, ...]
    prefill_tokens: tuple[int, ...]
    decode_sequences: tuple[int, ...]
    stall_ns: tuple[int, ...]
    lookup_ns: tuple[int, ...]
    rows: tuple[int, ...]
    rows_read: tuple[int, ...]
    rows_hit: tuple[int, ...] = ()


class Samples(Strict):
    """Raw samples; statistics are derived from them by ``stats`` and by nothing else."""

    requests: RequestSamples
    steps: StepSamples


class Span(Strict):
    """One bar of the timeline: what, on which lane, from when, for how long."""

    name: str
    lane: str
    start_ns: int
    duration_ns: int


class Provenance(Strict):
    """Where a record comes from. ``facts`` are the resolved settings (threads, direct I/O, versions, warnings …)."""

    tool_version: str
    git_commit: str | None = None
    hardware_name: str
    hardware_sha256: str
    hardware_calibration: Literal["measured", "datasheet"]
    model_name: str
    model_sha256: str
    prices_sha256: str
    vocabulary: str
    text_sha256: str
    facts: dict[str, str | int | float | bool] = {}
    warnings: tuple[str, ...] = ()


class RunRecord(Strict):
    """One run, measured, simulated or published."""

    schema_version: Literal[1] = 1
    kind: RecordKind
    scenario: Scenario
    placement: ResolvedPlacement
    scenario_sha256: str
    workload_sha256: str
    provenance: Provenance
    metrics: Metrics
    samples: Samples | None = None
    spans: tuple[Span, ...] = Field(default=())

    def to_json(self) -> str:
        """Canonical JSON: same inputs, same bytes."""
        return canonical_json(self.model_dump(mode="json")) + "\n"

    @property
    def sha256(self) -> str:
        """Hash of the record's canonical JSON."""
        return canonical_sha256(self.model_dump(mode="json"))
