"""Stages ``probe`` and ``sweep``: the hardware profile of this machine, and gathers by size of the table."""

import dataclasses
import datetime
import json
import tempfile
from pathlib import Path
from typing import Any

from gpu_evidence.context import Context
from gpu_evidence.plan import Case, footprints
from tiercast_profiles.store import to_yaml
from tiercast_profiles.units import GIB, MIB, format_bytes
from tiercast_runtime.probes import gather
from tiercast_runtime.probes.layers import LayerGrid
from tiercast_runtime.probes.plan import FULL, QUICK, ProbePlan
from tiercast_runtime.probes.profile import assemble
from tiercast_runtime.probes.survey import survey
from tiercast_runtime.probes.timing import Effort, seconds

BRIEF = Effort(0, num_warm_ups=1, min_rounds=2, max_rounds=2)
SWEEP = Effort(seconds(12), num_warm_ups=2, min_rounds=9, max_rounds=60)
HOST_SWEEP_BYTES = 8 * GIB  # of the host's own gathers; the GPU's are swept to the largest table in stage "sweep"
SWEEP_ROW_BYTES = (64, 128, 256, 264, 320, 512, 1024, 4096)
SWEEP_ROWS = (16, 256, 4096, 65_536)
GPU_GRID = LayerGrid(
    sequences=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    contexts=(128, 512, 1024, 2048),
    chunks=(64, 256, 1024, 2048, 8192),
    starts=(0, 1024),
)


def probe_cases(context: Context) -> list[Case]:
    """A quick profile, so that the arms can start early, then the full one; a rehearsal has one brief one."""
    if context.is_rehearsal:
        return [Case("probe", "profile-quick", 20, profile_case("profile-quick", rehearsal_plan(), ["tiny"]))]
    quick = dataclasses.replace(QUICK, grid=GPU_GRID, tokens=(1, 8, 64, 256, 512, 8192))
    full = dataclasses.replace(FULL, sweep=QUICK.sweep, grid=GPU_GRID, tokens=(1, 4, 16, 64, 128, 256, 512, 8192))
    return [
        Case("probe", "profile-quick", 150, profile_case("profile-quick", quick, ["paper-4b-100b"])),
        Case("probe", "profile-full", 420, profile_case("profile-full", full, ["paper-4b-100b", "paper-8b-100b"])),
    ]


def rehearsal_plan() -> ProbePlan:
    """Every probe, as briefly as it goes."""
    efforts = [field.name for field in dataclasses.fields(QUICK) if isinstance(getattr(QUICK, field.name), Effort)]
    sizes = {"copy_bytes": 4 * MIB, "footprint_bytes": 8 * MIB, "file_bytes": 8 * MIB}
    grid = LayerGrid(sequences=(1, 2, 4), contexts=(16, 64), chunks=(16, 64), starts=(0,))
    return dataclasses.replace(
        QUICK, grid=grid, row_bytes=(64,), tokens=(1, 8, 64), **sizes, **dict.fromkeys(efforts, BRIEF)
    )


def profile_case(name: str, plan: ProbePlan, models: list[str]) -> Any:
    """A case that probes this machine and writes its profile."""

    def run(context: Context) -> dict[str, Any]:
        specs = [context.model(model) for model in models]
        today = datetime.datetime.now(tz=datetime.UTC).date()
        with tempfile.TemporaryDirectory(dir=context.tables_folder) as folder:
            found = survey(
                plan=plan,
                models=specs,
                folder=Path(folder),
                device=context.device,
                date=today,
                memory_bytes=64 * MIB if context.is_rehearsal else HOST_SWEEP_BYTES,
                progress=lambda what, _share: print(f"  probing {what}", flush=True) if what else None,
            )
            profile = assemble(found)
        context.write(f"{name}.yaml", to_yaml(profile))
        not_ok = [f"{probe.name}: {probe.reason}" for probe in profile.probes if probe.status != "ok"]
        context.write(f"logs/{name}-not-ok.json", json.dumps(not_ok, indent=1))
        curves = {f"{curve.tier}/{curve.path}_gb_per_s": curve.bandwidth_gb_per_s.value for curve in profile.lookups}
        link = profile.host_to_device.bandwidth_gb_per_s.value
        return {"host_to_device_gb_per_s": link, **curves, "num_probes_not_ok": len(not_ok)}

    return run


def sweep_cases(context: Context) -> list[Case]:
    """Gathers by path and footprint, smallest first; the largest table is filled once for the arms and not here."""
    if context.is_rehearsal:
        return [Case("sweep", "host-8MiB", 5, sweep_case("cpu_gather", 8 * MIB))]
    if context.state.numbers("environment/machine") is None:
        return []  # the table is not planned yet
    sizes = [size for size in footprints(context.table_bytes) if size <= 70 * GIB]
    found = []
    for size in sizes:
        expected = 20 + 4 * size / GIB
        found.append(Case("sweep", f"uva-{_label(size)}", expected, sweep_case("uva", size)))
        if size <= 4 * GIB:
            found.append(Case("sweep", f"device-{_label(size)}", 20, sweep_case("device", size)))
    return found


def sweep_case(path: str, size: int) -> Any:
    """A case that times gathers of several row widths and counts from one footprint."""

    def run(context: Context) -> dict[str, Any]:
        is_brief = context.is_rehearsal
        widths, counts = (SWEEP_ROW_BYTES[:2], SWEEP_ROWS[:2]) if is_brief else (SWEEP_ROW_BYTES, SWEEP_ROWS)
        plan = gather.GatherPlan(tuple((width, counts) for width in widths), (size,))
        effort = BRIEF if is_brief else SWEEP
        if path == "cpu_gather":
            spreads = gather.measure_host_gather(plan, ["cpu_gather"], 1, effort)
        else:
            spreads = gather.measure_device_gather(plan, path, context.device, effort)  # type: ignore[arg-type]
        rows = [
            {
                "path": spread.key[0],
                "row_bytes": spread.key[1],
                "rows": spread.key[2],
                "footprint_bytes": spread.key[3],
                "low_us": spread.low,
                "time_us": spread.value,
                "high_us": spread.high,
                "gb_per_s": spread.key[1] * spread.key[2] / spread.value / 1e3,
            }
            for spread in spreads
        ]
        context.write(f"sweep/{path}-{_label(size)}.json", json.dumps(rows, indent=1))
        return {"best_gb_per_s": max(row["gb_per_s"] for row in rows)}

    return run


def _label(size: int) -> str:
    return format_bytes(size).replace(" ", "")
