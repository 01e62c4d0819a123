"""What to run and how large: decided before anything is allocated."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiercast_profiles.document import canonical_sha256
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.store import load_model
from tiercast_profiles.units import GIB, MIB

if TYPE_CHECKING:
    from gpu_evidence.context import Context

PAPER_PARAMETERS = 100_000_000_000
ROW_VALUES = 256  # FP8 with one scale per 32 values: 264 bytes a row, as in V4.1
HOST_RESERVE_BYTES = 14 * GIB  # process, staging, page cache, and what the system keeps
HOST_TO_ASK_BYTES = 8 * GIB  # beside the table: of the reserve this much is asked for, the rest is what runs already
DEVICE_RESERVE_BYTES = 20 * GIB  # weights of the 4B backbone, work buffers, context and a least KV cache
DISK_RESERVE_BYTES = 6 * GIB
LARGEST_DISK_TABLE_BYTES = 8 * GIB  # written by one thread, and direct reads meet no cache of the host's


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure. ``seconds`` is what it is expected to take; ``run`` returns the numbers for the summary.

    Where it ``needs_tables`` in host memory, the first of a process takes as long as those do besides.
    """

    stage: str
    name: str
    seconds: float
    run: "Callable[[Context], dict[str, Any]]"
    needs_tables: bool = False

    @property
    def key(self) -> str:
        """Its key in the state file."""
        return f"{self.stage}/{self.name}"


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that can be taken: host memory, device memory, disk."""

    host_bytes: int
    device_bytes: int
    disk_bytes: int


def paper_table_bytes() -> int:
    """Bytes of the paper's 100 billion parameters as FP8 rows with their scales."""
    return PAPER_PARAMETERS // ROW_VALUES * (ROW_VALUES + ROW_VALUES // 32)


def host_table_bytes(room: Room, asked_bytes: int | None = None) -> int:
    """Size of the table in host memory: the paper's, or what the host has room for; never below 64 MiB."""
    fitting = min(paper_table_bytes(), room.host_bytes - HOST_RESERVE_BYTES)
    return max(64 * MIB, fitting if asked_bytes is None else min(asked_bytes, paper_table_bytes()))


def fits_device(table_bytes: int, room: Room) -> bool:
    """Whether the same table also fits beside the backbone in device memory."""
    return table_bytes + DEVICE_RESERVE_BYTES <= room.device_bytes


def disk_table_bytes(room: Room, host_bytes: int) -> int:
    """Size of the table file: that of the host's table, or less where the drive is small."""
    return max(64 * MIB, min(host_bytes, room.disk_bytes - DISK_RESERVE_BYTES, LARGEST_DISK_TABLE_BYTES))


def paper_model(name: str, table_bytes: int) -> ModelSpec:
    """A backbone of the paper's Table 4 with FP8 rows and one table of about ``table_bytes``."""
    base = load_model(name)
    data = base.model_dump(mode="json")
    heads = len(base.engram.ngram_orders) * base.engram.num_heads_per_order
    rows = table_bytes // (ROW_VALUES + ROW_VALUES // 32) // heads
    data["engram"] |= {
        "row_values": ROW_VALUES,
        "row_format": "fp8_block32",
        "rows_per_head": [rows] * len(base.engram.ngram_orders),
    }
    data["name"] = f"{base.name.removesuffix('-100b')}-{round(table_bytes / GIB)}gib"
    data["description"] = f"{base.description} Here with FP8 rows of {ROW_VALUES} values and {table_bytes:,} bytes."
    return ModelSpec.model_validate(data)


def fingerprint(*parts: object) -> str:
    """Short hash of what decides a result; part of a record's file name."""
    return canonical_sha256([str(part) for part in parts])[:8]
