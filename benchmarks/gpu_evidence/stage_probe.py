"""Stages ``probe`` and ``probe-full``: the hardware profile of this machine."""

import dataclasses
import datetime
import json
import tempfile
from pathlib import Path
from typing import Any

from gpu_evidence.context import Context
from gpu_evidence.plan import Case
from tiercast_profiles.store import to_yaml
from tiercast_profiles.units import GIB, MIB
from tiercast_runtime.probes.layers import LayerGrid
from tiercast_runtime.probes.plan import FULL, QUICK, ProbePlan
from tiercast_runtime.probes.profile import assemble
from tiercast_runtime.probes.survey import survey
from tiercast_runtime.probes.timing import Effort, seconds

BRIEF = Effort(0, num_warm_ups=1, min_rounds=2, max_rounds=2)
LAYERS = Effort(seconds(30), num_warm_ups=1, min_rounds=5, max_rounds=40)  # per model, and as much for its graphs
HOST_SWEEP_BYTES = 8 * GIB  # of the host's own gathers; the GPU's are swept to the largest table in stage "sweep"
GPU_GRID = LayerGrid(
    sequences=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    contexts=(128, 512, 1024),  # at 2048 half the batches would need a cache of their own
    chunks=(64, 256, 1024, 2048, 4096, 8192),
    starts=(0, 1024),
    captured=(96, 144, 192, 320, 384),  # between powers of two a product's tiles are partly empty
)


def probe_cases(context: Context) -> list[Case]:
    """A quick profile, so that the arms can start early; a rehearsal has a brief one."""
    _forget_lost(context, "probe/profile-quick")
    if context.is_rehearsal:
        return [Case("probe", "profile-quick", 20, profile_case("profile-quick", rehearsal_plan(), ["tiny"]))]
    quick = dataclasses.replace(QUICK, grid=GPU_GRID, tokens=(1, 8, 64, 256, 512, 8192))
    return [Case("probe", "profile-quick", 180, profile_case("profile-quick", quick, ["paper-4b-100b"]))]


def full_cases(context: Context) -> list[Case]:
    """The full profile, which takes most of a call and so comes behind the arms; a rehearsal has none."""
    _forget_lost(context, "probe-full/profile-full")
    if context.is_rehearsal:
        return []
    tokens = (1, 4, 16, 64, 128, 256, 512, 8192)
    full = dataclasses.replace(
        FULL,
        sweep=QUICK.sweep,
        layers=LAYERS,
        grid=GPU_GRID,
        tokens=tokens,
        copies=QUICK.copies,
        rates=QUICK.rates,
        row_bytes=(64, 256, 1024),
        gather=Effort(seconds(4), num_warm_ups=1, min_rounds=9, max_rounds=60),
        interference=Effort(seconds(4), num_warm_ups=1, min_rounds=7, max_rounds=60),
    )
    models = ["paper-4b-100b", "paper-8b-100b"]
    return [Case("probe-full", "profile-full", 400, profile_case("profile-full", full, models))]


def _forget_lost(context: Context, key: str) -> None:
    """A profile that another machine made and that did not come along is probed again: nothing runs without one."""
    if context.state.numbers(key) is not None and not (context.out / f"{key.split('/')[1]}.yaml").exists():
        context.state.forget(key)


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
        counts = {"num_compute_tables": len(profile.compute), "num_probes_not_ok": len(not_ok)}
        return {"host_to_device_gb_per_s": link, **counts, **curves}

    return run
