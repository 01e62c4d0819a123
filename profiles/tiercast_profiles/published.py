"""A published measurement, as data: what was reported, by whom, and from which inputs Tiercast predicts it.

A case holds no result of ours and no constant fitted to it. Inputs the source gives are values; inputs it does not
give are bands or lists of choices, each with its own source.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tiercast_profiles.document import Document, Quantity, Strict
from tiercast_profiles.hardware import LookupPath, Tier
from tiercast_profiles.scenario import Prefetch

Settings = dict[str, Any]  # dotted scenario paths and what to set them to; the scenario schema checks the values


WaitsAt = Literal["layer", "step"]


class SimulatedRatio(Strict):
    """Throughput of one arm over another, both simulated; the ratio is taken at the same end of the bands.

    ``arm`` and ``baseline`` are settings on the scenario, ``arm_hardware`` and ``baseline_hardware`` on its hardware
    profile (``lookups.dram/uva.fixed_us`` names a curve). ``choices`` lists the values an unknown input may have, the
    likeliest first; every combination is simulated.
    """

    kind: Literal["simulated_ratio"]
    scenario: Settings
    arm: Settings = {}
    baseline: Settings = {}
    arm_hardware: Settings = {}
    baseline_hardware: Settings = {}
    choices: dict[str, tuple[Any, ...]] = {}


class DriveReads(Strict):
    """Rows read below the device: the shipped curve of a machine, with the rate of reads where the source gives it.

    ``is_serial``: one read after another, each at the latency of the machine's drive.
    """

    hardware: str
    tier: Tier
    path: LookupPath
    row_bytes: int = Field(gt=0)
    reads_per_s: Quantity | None = None
    is_serial: bool = False

    @model_validator(mode="after")
    def _one_way_to_read(self) -> Self:
        if self.is_serial and (self.reads_per_s is not None or self.tier != "nvme"):
            raise ValueError("is_serial reads a drive at its latency: tier nvme, and no reads_per_s")
        return self


class WindowRatio(Strict):
    """Throughput of one prefetch mode over another, or over resident tables, in a step whose length is known.

    ``step_ms`` is the step of the baseline; its layers take equal shares of it. ``rows_per_layer`` are the rows the
    slowest rank reads for one Engram layer and step. ``waits_at`` lists where the engine may wait for rows that its
    host stages, the likeliest first: at each Engram ``layer``, or once in front of the ``step``, because a captured
    graph cannot wait inside.
    """

    kind: Literal["window_ratio"]
    reads: DriveReads
    step_ms: Quantity
    num_layers: int = Field(gt=0)
    engram_layer_ids: tuple[int, ...] = Field(min_length=1)
    rows_per_layer: Quantity
    prefetch: Prefetch
    baseline: Literal["resident", "off"]
    waits_at: tuple[WaitsAt, ...] = Field(default=("layer",), min_length=1)

    @model_validator(mode="after")
    def _layers_exist(self) -> Self:
        if list(self.engram_layer_ids) != sorted(set(self.engram_layer_ids)):
            raise ValueError(f"engram_layer_ids={list(self.engram_layer_ids)} must rise")
        if self.engram_layer_ids[-1] >= self.num_layers or self.engram_layer_ids[0] < 0:
            raise ValueError(f"engram_layer_ids={list(self.engram_layer_ids)} lie outside 0..{self.num_layers - 1}")
        return self


class SerialReads(Strict):
    """Throughput when reads that ran one after another run at once, in a step of ``step_ms`` with serial reads."""

    kind: Literal["serial_reads"]
    hardware: str
    step_ms: Quantity
    num_reads: Quantity


class LookupTime(Strict):
    """Time of one lookup of ``rows`` rows alone, in ms."""

    kind: Literal["lookup_time"]
    reads: DriveReads
    rows: Quantity


class TableMemory(Strict):
    """Device memory that tables outside it leave free: GiB per rank, or KV room after over KV room before.

    The scenario says model and ranks; it is planned with the tables in ``hbm`` and in ``dram``.
    """

    kind: Literal["table_memory"]
    scenario: Settings
    kv_room_gib: Quantity | None = None


Prediction = Annotated[
    SimulatedRatio | WindowRatio | SerialReads | LookupTime | TableMemory, Field(discriminator="kind")
]


class PublishedQuantity(Strict):
    """One reported number; either it is predicted, or ``not_scored`` says why it cannot be.

    The band of ``published`` is the spread its source gives. ``unknown_inputs`` says why a predicted band is wider than
    a quarter of the value.
    """

    name: str = Field(min_length=1)
    unit: str = Field(min_length=1)
    published: Quantity
    prediction: Prediction | None = None
    not_scored: str | None = Field(default=None, min_length=20)
    unknown_inputs: str | None = Field(default=None, min_length=20)

    @model_validator(mode="after")
    def _scored_or_not(self) -> Self:
        if (self.prediction is None) == (self.not_scored is None):
            raise ValueError("give either prediction or not_scored")
        return self


class PublishedCase(Document):
    """A measurement somebody published, with its grade.

    ``A``: both arms and enough inputs to predict it; ``B``: both arms, some input missing.
    """

    case: int = Field(gt=0)
    grade: Literal["A", "B"]
    quantities: tuple[PublishedQuantity, ...] = Field(min_length=1)
