"""What a machine is, as measured by the probes or stated by a datasheet.

One document describes one host with its devices. On a machine without a GPU the CPU is the device: its DRAM stands
for HBM (tier ``hbm``), and the tier below it is the NVMe file.
"""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tiercast_profiles.document import Bound, Document, Grown, Quantity, Strict
from tiercast_profiles.gather import GatherSweep
from tiercast_profiles.model import Precision

Tier = Literal["hbm", "dram", "cxl", "nvme", "pool"]
TIERS: tuple[Tier, ...] = ("hbm", "dram", "cxl", "nvme", "pool")
LookupPath = Literal["device", "uva", "cpu_gather", "disk", "pool"]
PATHS: tuple[LookupPath, ...] = ("device", "uva", "cpu_gather", "disk", "pool")
HOST_DRIVEN_PATHS: frozenset[LookupPath] = frozenset({"cpu_gather", "disk", "pool"})
MAX_GRANULARITY_BYTES = 2**30  # far above any page or sector; keeps bytes a lookup moves within 64 bits

VERIFY_TOKENS = 4
"""Tokens per sequence at which attention of steps that verify drafts is measured; the last of them sees the context."""

Component = Literal[
    "embed",  # token ids to hidden states, by tokens in the step
    "linear",  # one decoder layer without attention: norms, projections, MLP, residuals; by tokens
    "attention_decode",  # attention of one layer for one new token per sequence; by sequences, context
    "attention_verify",  # the same for VERIFY_TOKENS tokens per sequence, as drafts are verified; by sequences, context
    "attention_prefill",  # attention of one layer for one chunk; by chunk tokens, context before the chunk
    "engram_module",  # one Engram layer once its rows are staged: dequantise, project, gate, convolve; by tokens
    "engram_chunk",  # what a chunk beside others or beside decodes adds to one Engram layer of a GPU; tokens of one
    "hash",  # row ids of all Engram layers; by tokens
    "lookup_issue",  # time the compute thread spends handing one step's lookups to the prefetcher; by tokens
    "lookup_way",  # a step's first lookup by a GPU's host, ahead, without its gather: wake-up, ids, rows; by sequences
    "head",  # final norm, language-model head, sampling; by sequences that sample
    "step_overhead",  # what is left of a step: scheduling, batch build, bookkeeping; by sequences
]


class Collective(Strict):
    """Tensor-parallel traffic between devices of one host, per direction."""

    bandwidth_gb_per_s: Quantity
    latency_us: Quantity


class Device(Strict):
    """One GPU, or the CPU that stands for it.

    ``dense_tflops`` are peak rates without sparsity. The efficiency ratios turn peaks into what kernels reach.
    ``step_host_overhead_us`` is the host time per step that compute does not cover, by graph mode.
    """

    kind: Literal["cuda", "rocm", "cpu"]
    product_name: str
    num_per_host: int = Field(gt=0)
    num_compute_units: int = Field(gt=0)
    memory_capacity_gb: Quantity
    memory_reserve_gb: Quantity
    memory_bandwidth_gb_per_s: Quantity
    memory_efficiency_ratio: Quantity
    dense_tflops: dict[Precision, Quantity]
    matmul_efficiency_ratio: Quantity
    layer_overhead_us: dict[Literal["eager", "piecewise", "full"], Quantity]
    step_overhead_us: dict[Literal["eager", "piecewise", "full"], Quantity]
    collective: Collective | None = None
    has_unified_memory: bool = False
    power_w: Quantity | None = None


class Link(Strict):
    """A copy path between host and device; ``num_sharing`` devices divide it."""

    bandwidth_gb_per_s: Quantity
    latency_us: Quantity
    num_sharing: int = Field(default=1, gt=0)


class Host(Grown):
    """The host that carries the devices."""

    added_fields = frozenset({"register_gb_per_s", "page_fill_gb_per_s"})

    cpu_model: str
    num_cores: int = Field(gt=0)
    num_numa_nodes: int = Field(gt=0)
    memory_capacity_gb: Quantity
    memory_bandwidth_gb_per_s: Quantity
    random_access_ratio: Quantity  # share of memory_bandwidth that scattered row reads reach
    remote_numa_speed_ratio: Quantity
    register_gb_per_s: Quantity | None = None  # pinning memory for the devices; absent: not known
    page_fill_gb_per_s: Quantity | None = None  # first touch of the pages of a table; absent: not known
    page_size_bytes: int = Field(default=4096, gt=0)
    huge_pages: str = "unknown"


class LatencyPoint(Strict):
    """``read_ratio`` of single reads take no longer than ``latency_us``."""

    read_ratio: float = Field(gt=0.5, lt=1)
    latency_us: Quantity


class Storage(Grown):
    """A tier below host memory: the NVMe drive, a CXL expander or a remote pool, as one host sees it.

    ``latency_us`` is the median of a single read. ``host_read_us`` is what one read costs the host beside it (system
    call, file system, completion, wake-up) where the figure is a drive's own; absent: the latency was taken by a reader
    and holds it. ``num_reads_in_flight`` is how many reads a host has under way at
    most (drive queue, or messages to a pool), which with the latency bounds the reads per second; absent: no such bound
    is known and none is modelled. ``latency_tail`` are quantiles above the median, ascending; a lookup waits for its
    slowest read; absent: no tail is known and none is drawn. ``shared_bandwidth_gb_per_s`` is what all hosts get from a
    pool together; absent: hosts are not known to hinder each other.
    """

    added_fields = frozenset({"host_read_us", "num_reads_in_flight", "latency_tail", "shared_bandwidth_gb_per_s"})

    capacity_gb: Quantity
    read_bandwidth_gb_per_s: Quantity
    latency_us: Quantity
    max_reads_per_s: Quantity | None = None
    read_granularity_bytes: int = Field(gt=0, le=MAX_GRANULARITY_BYTES)
    host_read_us: Quantity | None = None
    num_reads_in_flight: int | None = Field(default=None, gt=0)
    latency_tail: tuple[LatencyPoint, ...] = ()
    shared_bandwidth_gb_per_s: Quantity | None = None

    @model_validator(mode="after")
    def _tail_rises(self) -> Self:
        values = [
            (0.5, self.latency_us.value),
            *((point.read_ratio, point.latency_us.value) for point in self.latency_tail),
        ]
        if any(a[0] >= b[0] or a[1] > b[1] for a, b in pairwise(values)):
            raise ValueError("latency_tail must rise in ratio and latency, from latency_us at 0.5")
        return self


class LookupPoint(Strict):
    """Measured time of one lookup: mean, and a band that holds the quartiles, over the samples of the probe."""

    num_rows: int = Field(gt=0)
    row_bytes: int = Field(gt=0)
    footprint_bytes: int = Field(gt=0)
    time_us: float = Field(gt=0)
    low_us: float = Field(gt=0)
    high_us: float = Field(gt=0)


NUM_SPREAD_CASES = 10


def _rising(time_ratios: tuple[float, ...]) -> tuple[float, ...]:
    if time_ratios[0] <= 0 or any(a > b for a, b in pairwise(time_ratios)):
        raise ValueError("time_ratios must be above 0 and ascend")
    return time_ratios


TimeRatios = Annotated[
    tuple[float, ...], Field(min_length=NUM_SPREAD_CASES, max_length=NUM_SPREAD_CASES), AfterValidator(_rising)
]
"""Times over their mean in ten equally likely cases, ascending."""


class TimeSpread(Strict):
    """How far lookups of so many rows lie apart."""

    num_rows: int = Field(gt=0)
    time_ratios: TimeRatios


class StepSpread(Strict):
    """How far steps of so many tokens lie apart in what they compute."""

    num_tokens: int = Field(gt=0)
    time_ratios: TimeRatios


class LookupCurve(Grown):
    """How long one device needs to fetch rows from a tier by a path, alone on the machine.

    Time of ``n`` rows = ``fixed_us`` + n × max(``row_ns``, bytes per row / ``bandwidth_gb_per_s``), where the bytes per
    row are rounded up to ``read_granularity_bytes``. Where ``points`` were measured they are interpolated instead and
    the parameters, fitted to them, only extend them. ``num_threads`` is how many host threads fetch on a host-driven
    path; absent: not known, and lookups of several devices do not compete for cores. ``spreads`` say by rows how far
    lookups of one size lie apart; absent: not known, and every lookup takes its mean.
    """

    added_fields = frozenset({"num_threads", "spreads"})

    tier: Tier
    path: LookupPath
    is_calibrated: bool
    fixed_us: Quantity
    row_ns: Quantity
    bandwidth_gb_per_s: Quantity
    read_granularity_bytes: int = Field(gt=0, le=MAX_GRANULARITY_BYTES)
    removes_duplicates: bool
    num_threads: int | None = Field(default=None, gt=0)
    points: tuple[LookupPoint, ...] = ()
    spreads: tuple[TimeSpread, ...] = ()


class HostCachePoint(Strict):
    """What a cache of rows in host memory takes of a lookup of so many rows, beside reading those that are missing.

    ``find_us``: looking for them where none is there, up to the read. ``keep_us``: handing on and keeping as many that
    were read, each of which makes another one leave. ``hit_us``: the whole of a lookup whose rows are all there. Means,
    and bands that hold the quartiles, over the samples of the probe.
    """

    num_rows: int = Field(gt=0)
    row_bytes: int = Field(gt=0)
    find_us: Quantity
    keep_us: Quantity
    hit_us: Quantity


class ComputePoint(Grown):
    """Measured time of one component; ``num_tokens`` and ``context_tokens`` mean what the component says.

    ``host_us`` is the time the host needs to issue it where that goes on beside the device: then ``time_us`` is the
    device's own, and of a row of such components the one that takes longer in all decides. Absent: ``time_us`` is all
    there is to it.
    """

    added_fields = frozenset({"host_us"})

    num_tokens: int = Field(gt=0)
    context_tokens: int = Field(ge=0)
    time_us: float = Field(ge=0)
    low_us: float = Field(ge=0)
    high_us: float = Field(ge=0)
    host_us: float | None = Field(default=None, ge=0)

    def alone_us(self, bound: Bound = "nominal") -> float:
        """The component by itself, at a bound: the device's time, or the host's where that is longer."""
        of_device = {"nominal": self.time_us, "optimistic": self.low_us, "pessimistic": self.high_us}[bound]
        return max(of_device, self.host_us or 0.0)


class SettlingPoint(Strict):
    """A decode batch of ``num_sequences`` behind a step with prompts.

    Its first step takes ``first_ratio`` more than a settled one, each further step ``decay_ratio`` of what the one
    before took more.
    """

    num_sequences: int = Field(gt=0)
    first_ratio: float = Field(ge=0)
    decay_ratio: float = Field(gt=0, lt=1)


class Settling(Strict):
    """How decode batches come to rest behind a prompt chunk of ``chunk_tokens``, by sequences, ascending.

    The activations of a chunk take weights and keys out of the caches, and decode steps bring them back one after
    another.
    """

    chunk_tokens: int = Field(gt=0)
    points: tuple[SettlingPoint, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        counts = [point.num_sequences for point in self.points]
        if counts != sorted(set(counts)):
            raise ValueError(f"points have {counts} sequences; each number once, ascending")
        return self


class ComputeTable(Grown):
    """Measured component times of one model on this machine; decode batches are settled.

    ``context_statistic`` says which context of a decode batch the attention time follows: ``max`` where the batch is
    padded, ``mean`` where a kernel walks each sequence's own length. ``engram_sha256`` is the shape of the Engram
    layers that ran between the decoder's; None: there were none. ``settling``: what steps behind prompts take more;
    absent where that was not measured. ``spreads`` say by tokens how far steps lie apart; absent: not known, and every
    step takes its mean.
    """

    added_fields = frozenset({"settling", "spreads"})

    model_name: str
    shape_sha256: str
    engram_sha256: str | None = None
    graph_mode: Literal["eager", "piecewise", "full"]
    num_threads: int | None = Field(default=None, gt=0)
    context_statistic: Literal["max", "mean"]
    components: dict[Component, tuple[ComputePoint, ...]]
    settling: Settling | None = None
    spreads: tuple[StepSpread, ...] = ()


class Efficiency(Strict):
    """How a measured device computes the decoder layers of one model, as shares that another device may reach too.

    ``arithmetic_ratio`` is the share of ``device.dense_tflops`` of ``precision``, ``memory_ratio`` that of
    ``device.memory_bandwidth_gb_per_s``; both are of this profile's own, measured peaks. The overheads are what a layer
    and a step take beside. ``residual_ratio`` is the median miss of the fit over ``num_points`` layers.
    """

    model_name: str
    graph_mode: Literal["eager", "piecewise", "full"]
    precision: Precision
    num_points: int = Field(gt=0)
    residual_ratio: float = Field(ge=0)
    arithmetic_ratio: Quantity
    memory_ratio: Quantity
    layer_overhead_us: Quantity
    step_overhead_us: Quantity


class InterferencePoint(Strict):
    """The same at one size: lookups of ``num_rows`` rows of ``row_bytes`` beside a step of ``num_tokens``.

    ``num_programs`` is the grid of a gather by the GPU, ``num_threads`` the threads of one by the host; absent: the
    path has none to choose.
    """

    num_tokens: int = Field(gt=0)
    num_rows: int = Field(gt=0)
    row_bytes: int = Field(gt=0)
    num_programs: int | None = Field(default=None, gt=0)
    num_threads: int | None = Field(default=None, gt=0)
    compute_speed_ratio: Quantity
    lookup_speed_ratio: Quantity


WORKER_TIMES = frozenset({"wake_us", "turn_us", "behind_us"})


class OverheadPoint(Grown):
    """What lookups of so many rows take: see :class:`LookupOverhead`."""

    added_fields = WORKER_TIMES

    num_rows: int = Field(gt=0)
    issue_us: Quantity
    beside_us: Quantity
    after_us: Quantity
    inline_us: Quantity
    wake_us: Quantity | None = None
    turn_us: Quantity | None = None
    behind_us: Quantity | None = None


class LookupOverhead(Grown):
    """What lookups by the host take from the thread that computes, beside the time it waits for them.

    ``issue_us``: handing the lookups of a step over. A lookup made beside compute takes ``beside_us`` from it; one that
    the thread makes itself between layers takes ``inline_us`` more than its curve says, and what is computed behind it
    ``after_us`` more. The worker begins the first lookup of a step ``wake_us`` after it was handed over, each further
    one ``turn_us`` behind the one before; such a lookup takes ``behind_us`` less than its curve says, which is that of
    a worker, caches and a drive that were idle; absent: not known, and taken for nothing. These are means over the
    ``points``, one for each size of lookup that was timed; absent: only the means are known.
    """

    added_fields = WORKER_TIMES | {"points"}

    issue_us: Quantity
    beside_us: Quantity
    after_us: Quantity
    inline_us: Quantity
    wake_us: Quantity | None = None
    turn_us: Quantity | None = None
    behind_us: Quantity | None = None
    points: tuple[OverheadPoint, ...] = ()

    def by_rows(self) -> tuple[OverheadPoint, ...]:
        """The points in order of rows; the means as the only one where there are none."""
        if self.points:
            return tuple(sorted(self.points, key=lambda point: point.num_rows))
        return (
            OverheadPoint(
                num_rows=1,
                issue_us=self.issue_us,
                beside_us=self.beside_us,
                after_us=self.after_us,
                inline_us=self.inline_us,
                wake_us=self.wake_us,
                turn_us=self.turn_us,
                behind_us=self.behind_us,
            ),
        )


class Interference(Grown):
    """How much a running lookup and the compute beside it slow each other (1 = not at all).

    The ratios are those of the runtime's own sizes. ``points`` say how they move with the size of the lookup, the step
    and the grid; absent: measured at one size only. ``overhead`` is there where the device is a CPU: a time for each
    lookup, however long it runs, and the speed of compute is 1.
    """

    added_fields = frozenset({"points", "overhead"})

    tier: Tier
    path: LookupPath
    compute_speed_ratio: Quantity
    lookup_speed_ratio: Quantity
    points: tuple[InterferencePoint, ...] = ()
    overhead: LookupOverhead | None = None


class Reading(Strict):
    """One telemetry value; an unknown is never a zero."""

    value: float | str | None
    unit: str
    status: Literal["ok", "not_supported", "no_permission", "error"]


class ProbeResult(Strict):
    """Raw samples of one probe, kept whether or not they are used.

    ``status`` ``unstable`` marks samples whose interquartile range exceeds 5 % of their median (earlier
    profiles: 10 %): kept, flagged, and used only where nothing steadier was measured.
    """

    name: str
    parameters: dict[str, str | int | float] = {}
    unit: str
    samples: tuple[float, ...] = ()
    status: Literal["ok", "unstable", "invalid", "not_supported", "failed"]
    reason: str = ""
    telemetry: dict[str, Reading] = {}


class HardwareProfile(Document, Grown):
    """A host with its devices, links, tiers and the curves the simulator reads.

    ``gather_sweeps`` are scattered row reads over row size, footprint, page size, order and workers, each with its
    fitted model; absent: none was measured. ``efficiencies`` are what layer times say of the device in shares of its
    peaks; absent: no layer was timed, or by a version that did not fit them. ``host_cache`` is what a cache in host
    memory takes of lookups by the host; absent: not known, and rows that are there take a gather by the device.
    """

    added_fields = frozenset({"gather_sweeps", "efficiencies", "host_cache"})

    calibration: Literal["measured", "datasheet"]
    device: Device
    host: Host
    host_to_device: Link
    device_to_host: Link
    nvme: Storage | None = None
    cxl: Storage | None = None
    pool: Storage | None = None
    lookups: tuple[LookupCurve, ...]
    host_cache: tuple[HostCachePoint, ...] = ()
    compute: tuple[ComputeTable, ...] = ()
    efficiencies: tuple[Efficiency, ...] = ()
    interference: tuple[Interference, ...] = ()
    gather_sweeps: tuple[GatherSweep, ...] = ()
    probes: tuple[ProbeResult, ...] = ()

    @model_validator(mode="after")
    def _one_curve_per_tier_and_path(self) -> Self:
        pairs = [(curve.tier, curve.path) for curve in self.lookups]
        if len(pairs) != len(set(pairs)):
            raise ValueError("lookups holds two curves for one tier and path")
        return self

    def curve(self, tier: Tier, path: LookupPath) -> LookupCurve | None:
        """The curve of a tier by a path, or None when this machine has none."""
        return next((curve for curve in self.lookups if (curve.tier, curve.path) == (tier, path)), None)

    def tier_capacity_gb(self, tier: Tier) -> Quantity | None:
        """Capacity of a tier on one host (one device for ``hbm``), or None when the machine has no such tier."""
        if tier == "hbm":
            return self.device.memory_capacity_gb
        if tier == "dram":
            return self.host.memory_capacity_gb
        storage = {"nvme": self.nvme, "cxl": self.cxl, "pool": self.pool}[tier]
        return None if storage is None else storage.capacity_gb
