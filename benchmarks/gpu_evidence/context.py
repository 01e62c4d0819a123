"""What the cases of one stage share: settings, folders, the profile, and a table filled and pinned only once."""

import gc
import os
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from gpu_evidence.plan import Room, disk_table_bytes, host_table_bytes, paper_model
from gpu_evidence.state import State
from tiercast_profiles.anchors import matching_preset
from tiercast_profiles.errors import MissingCapability
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.store import load_hardware, load_model, shipped_names, write_text
from tiercast_runtime.device import pick_device
from tiercast_runtime.memory import PIN_CHUNK_BYTES, available_host_bytes
from tiercast_runtime.table import HostTable, MemoryTable

ASSUMED_FILL_BYTES_PER_S = 0.8e9  # to touch, fill and pin a table, until it is known
LEAST_USE_SECONDS = 90.0  # of tables once they are there: they go with the process that filled them
PROFILES = ("profile-full", "profile-quick")  # the better one first


class CopiedTable(MemoryTable):
    """A host table's rows copied to the device over the link, which is faster than computing them again."""

    def __init__(self, source: HostTable, device: torch.device) -> None:
        super().__init__(source.engram, source.layer_index, source.layout, source.num_rows)
        self.parts = tuple(_copied(part, device) for part in source.parts)

    def close(self) -> None:
        """Let go of the memory."""
        self.parts = ()


def _copied(part: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Rows on the device, copied piece by piece as they were pinned: a driver may refuse one copy over several."""
    found = torch.empty_like(part, device=device)
    if not part.is_contiguous():
        return found.copy_(part)
    source, target = part.view(-1), found.view(-1)
    for first in range(0, source.numel(), PIN_CHUNK_BYTES):
        target[first : first + PIN_CHUNK_BYTES].copy_(source[first : first + PIN_CHUNK_BYTES])
    return found


@dataclass
class Context:
    """Shared by the cases of a stage. ``is_rehearsal``: the tiny model on the CPU."""

    out: Path
    is_rehearsal: bool
    table_bytes_asked: int | None
    state: State
    _tables: dict[str, list[MemoryTable]] = field(default_factory=dict)

    @cached_property
    def device(self) -> torch.device:
        """Where arms compute."""
        if self.is_rehearsal:
            return torch.device("cpu")
        device = pick_device()
        if device.type != "cuda":
            raise MissingCapability("no CUDA GPU that torch can use; rehearse on the CPU with --rehearse")
        return device

    @cached_property
    def room(self) -> Room:
        """Memory and disk that can be taken now."""
        device_bytes = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else available_host_bytes()
        return Room(available_host_bytes(), device_bytes, shutil.disk_usage(self.tables_folder).free)

    @property
    def tables_folder(self) -> Path:
        """Where table files lie."""
        folder = self.out / "tables"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def table_bytes(self) -> int:
        """Size of the table in host memory; what an earlier call chose is kept, so that all arms have the same."""
        known = self.state.numbers("environment/machine")
        if known is not None:
            return int(known["table_bytes"])
        return host_table_bytes(self.room, self.table_bytes_asked)

    @property
    def grown_bytes(self) -> int | None:
        """The host's memory where it grows as it is used, as found before; None where it does not."""
        return (self.state.numbers("environment/memory") or {}).get("grown_bytes") or None

    def model(self, name: str = "paper-4b-100b") -> ModelSpec:
        """The model of the arms, with the table this host has room for."""
        return load_model("tiny") if self.is_rehearsal else paper_model(name, self.table_bytes)

    def disk_model(self) -> ModelSpec:
        """The same backbone with a table that fits the drive."""
        if self.is_rehearsal:
            return load_model("tiny")
        return paper_model("paper-4b-100b", self.disk_table_bytes)

    @property
    def disk_table_bytes(self) -> int:
        """Size of the table on the drive, as an earlier call chose it."""
        known = self.state.numbers("environment/machine")
        return disk_table_bytes(self.room, self.table_bytes) if known is None else int(known["disk_table_bytes"])

    @property
    def profile_name(self) -> str | None:
        """Which profile is the best measured so far; None before there is one."""
        return next((name for name in PROFILES if (self.out / f"{name}.yaml").exists()), None)

    def profile(self) -> HardwareProfile:
        """The best profile measured so far.

        Raises:
            MissingCapability: none is there.
        """
        name = self.profile_name
        if name is None:
            raise MissingCapability("no profile yet; the probe stage comes first")
        return load_hardware(str(self.out / f"{name}.yaml"))

    def host_tables(self) -> list[MemoryTable]:
        """Tables in host memory, pinned beside a GPU; made at the first call, kept to the end of the stage."""
        if "host" not in self._tables:
            engram, is_gpu = self.model().engram, self.device.type == "cuda"
            self._tables["host"] = [
                HostTable(engram, index, "packed", is_pinned=is_gpu) for index in range(len(engram.layer_ids))
            ]
        return self._tables["host"]

    @property
    def tables_seconds(self) -> float:
        """What :meth:`host_tables` will take here: as long as it took before, and time to use them; or nothing more."""
        if self.is_rehearsal or "host" in self._tables:
            return 0.0
        known = self.state.numbers("arms/host-tables")
        fill_s = self.table_bytes / ASSUMED_FILL_BYTES_PER_S if known is None else known["seconds"]
        return float(fill_s) + LEAST_USE_SECONDS

    def resident_tables(self) -> list[MemoryTable]:
        """The same rows in device memory, copied from the host's; dropped by ``drop_resident``."""
        if "resident" not in self._tables:
            host = [table for table in self.host_tables() if isinstance(table, HostTable)]
            self._tables["resident"] = [CopiedTable(table, self.device) for table in host]
        return self._tables["resident"]

    def drop_resident(self) -> None:
        """Free the tables in device memory."""
        for table in self._tables.pop("resident", ()):
            table.close()
        self.free()

    def free(self) -> None:
        """Give back device memory that nothing uses."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Give everything back."""
        for tables in self._tables.values():
            for table in tables:
                table.close()
        self._tables.clear()

    def write(self, name: str, text: str) -> Path:
        """Write a record file under the output folder."""
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        return path


def preset_of(profile: HardwareProfile) -> HardwareProfile:
    """The datasheet of a measured machine.

    Raises:
        BadInput: none or several shipped presets are of its device.
    """
    presets = [load_hardware(name) for name in shipped_names("hardware")]
    return matching_preset(profile, [preset for preset in presets if preset.calibration == "datasheet"])


def environment_of(root: Path) -> dict[str, str]:
    """Environment of a child process that imports the packages of this checkout."""
    folders = ("benchmarks", "profiles", "runtime", "simulator", "planner", "cli")
    paths = [str(root / folder) for folder in folders]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}


def plain(value: Any) -> Any:
    """Numbers as JSON has them, rounded to five digits."""
    return float(f"{value:.5g}") if isinstance(value, float) else value
