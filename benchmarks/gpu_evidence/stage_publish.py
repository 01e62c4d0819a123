"""Stage ``publish``: the profile as it is shipped, and the paper's Table 4 predicted from it with an H800's numbers."""

import json
from typing import Any

from gpu_evidence.context import Context, preset_of
from gpu_evidence.plan import Case
from gpu_evidence.stage_sweep import kept_sweeps
from tiercast_plan.ledger_predictions import predict
from tiercast_profiles.errors import BadInput
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.published import SimulatedRatio
from tiercast_profiles.store import load_hardware, load_published, to_yaml
from tiercast_profiles.transfer import transfer

PAPER_CASE, PAPER_MACHINE = "case-01-paper-table-4", "h800-sxm"
REHEARSED = "h200-sxm"  # stands in for the measured machine in a rehearsal, whose CPU says nothing of a GPU


def cases(context: Context) -> list[Case]:
    """Both are arithmetic; they are done anew whenever the profile or a sweep has come since."""
    return [
        Case("publish", _key(context, "profile"), 10, publish),
        Case("publish", _key(context, "table-4"), 60, table_4),
    ]


def _key(context: Context, name: str) -> str:
    """A name that changes with what is there to publish."""
    files = sorted([*context.out.glob("profile-*.yaml"), *(context.out / "gathers").glob("*.json")])
    return f"{name}-{len(files)}"


def publish(context: Context) -> dict[str, Any]:
    """The best profile with the GPU's sweeps in it, under the name it is shipped with."""
    profile = context.profile()
    sweeps = {sweep.label: sweep for sweep in (*profile.gather_sweeps, *kept_sweeps(context))}
    body = profile.model_dump(mode="json")
    name = f"{_preset(profile).name}-measured" if profile.device.kind != "cpu" else "rehearsed"
    body |= {"name": name, "gather_sweeps": [sweep.model_dump(mode="json") for sweep in sweeps.values()]}
    body["evidence"] = {key: value for key, value in body["evidence"].items() if not key.startswith("gather_sweeps")}
    for index, sweep in enumerate(sweeps.values()):
        if sweep.model is not None:
            body["evidence"] |= {f"gather_sweeps.{index}.{part}": "derived" for part in ("model", "score")}
    shipped = HardwareProfile.model_validate(body)
    context.write(f"{name}.yaml", to_yaml(shipped))
    return {"name": name, "num_sweeps": len(sweeps), "num_lookup_curves": len(shipped.lookups)}


def table_4(context: Context) -> dict[str, Any]:
    """Throughput of the paper's arms over no Engram, predicted on an H800 with this machine's efficiencies."""
    measured = context.profile()
    if context.is_rehearsal:
        measured = load_hardware(REHEARSED).model_copy(update={"calibration": "measured"})
    machine = transfer(measured, load_hardware(PAPER_MACHINE), _preset(measured))
    path = context.write("h800-from-here.yaml", to_yaml(machine))
    rows = []
    for quantity in load_published(PAPER_CASE).quantities:
        if not isinstance(quantity.prediction, SimulatedRatio):
            continue
        asked = quantity.prediction
        scenario = {**asked.scenario, "hardware": str(path)}
        choices = asked.choices
        if context.is_rehearsal:  # a few requests, the likeliest of what is not known
            choices = {name: values[:1] for name, values in choices.items()}
            scenario["workload"] = {**scenario["workload"], "concurrency": 8, "num_requests": 8}
        found = predict(asked.model_copy(update={"scenario": scenario, "choices": choices}))
        is_inside = found.low <= quantity.published.value <= found.high
        rows.append(
            {"what": quantity.name, "predicted": found.value, "low": found.low, "high": found.high}
            | {"published": quantity.published.value, "is_inside": is_inside}
        )
    context.write("table-4.json", json.dumps(rows, indent=1))
    return {row["what"]: row["predicted"] for row in rows}


def _preset(profile: HardwareProfile) -> HardwareProfile:
    try:
        return preset_of(profile)
    except BadInput:
        if profile.name == REHEARSED:
            return load_hardware(REHEARSED)
        raise
