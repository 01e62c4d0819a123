"""The one record: what was run or predicted, from what inputs, and what came out.

A measured and a simulated record have the same shape, the same clock (integer ns since run start) and the same
statistics; they are told apart only by ``kind``.
"""

from typing import Literal

from pydantic import Field

from tiercast_profiles.document import Strict, canonical_json, canonical_sha256
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
    """

    layer_id: int
    window_us: Metric
    lookup_us: Metric
    stall_us: Metric
    required_gb_per_s: Metric | None


class Metrics(Strict):
    """The metrics every record reports; absent means not known, never zero."""

    output_tokens_per_s: Metric
    total_tokens_per_s: Metric
    ttft_ms: Percentiles
    tpot_ms: Percentiles | None
    step_ms: Percentiles
    stall_ms_per_step: Metric
    lookup_ms_per_step: Metric
    hidden_ratio: Metric | None
    penalty_ratio: dict[Literal["no_engram", "hbm"], Metric] = {}
    kv_capacity_tokens: Metric | None
    memory_bytes: dict[Literal["hbm", "dram", "cxl", "nvme", "pool"], int]
    rows_per_token: float
    unique_row_ratio: float | None
    cache_hit_ratio: float | None = None
    layers: tuple[LayerWindow, ...] = ()


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
