"""Runs measured beside one profile of a machine, predicted from another one of it, or from several pooled."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tiercast_cli import inputs, probing
from tiercast_cli.validation import MeasuredCases, Validation, predicted_cases
from tiercast_profiles import store
from tiercast_profiles.pooling import pool
from tiercast_profiles.record import RunRecord

if TYPE_CHECKING:
    from tiercast_profiles.hardware import HardwareProfile
    from tiercast_profiles.model import ModelSpec
    from tiercast_profiles.scenario import ResolvedScenario


def predicted_from_pool(
    names: Sequence[str],
    measured: MeasuredCases,
    *,
    first: "HardwareProfile",
    profiles: "Sequence[HardwareProfile]",
    file: Path,
    report: Callable[[str, float], None],
) -> Validation:
    """Pool the profiles into a file and predict from it what was measured beside the ``first``.

    Raises:
        BadInput: the profiles are not of one machine.
        FileProblem: the file cannot be written.
        TiercastError: why the first scenario failed, where all did.
    """
    store.write_text(file, store.to_yaml(pool(profiles)))
    return predicted_from(names, measured, first=first, file=file, report=report)


def predicted_from(
    names: Sequence[str],
    measured: MeasuredCases,
    *,
    first: "HardwareProfile",
    file: Path,
    report: Callable[[str, float], None],
    needs_all: bool = False,
) -> Validation:
    """Predict from the profile in a file what was measured beside the ``first``, another one of the same machine.

    Raises:
        TiercastError: why the first scenario failed, where all did, or where any did and ``needs_all``.
    """
    whole = store.load_hardware(str(file))
    again = {name: inputs.resolve(name, str(file)) for name in measured.found.records}
    records = restated(measured.found.records, again, measured.pace_model, first, whole)
    found = replace(measured.found, records=records)
    return predicted_cases(names, again, replace(measured, found=found), report, needs_all=needs_all)


def restated(
    records: Mapping[str, RunRecord],
    ready: "Mapping[str, ResolvedScenario]",
    model: "ModelSpec | None",
    first: "HardwareProfile",
    whole: "HardwareProfile",
) -> dict[str, RunRecord]:
    """Records of runs on the machine of one profile as of the machine of another that is the same one's.

    The pace around the runs was timed beside the ``first``; beside the ``whole`` it is another number.

    Args:
        records: measured, by case.
        ready: every case on the machine of the ``whole``.
        model: whose reference steps were timed; None where none were.
        first: the profile of the records.
        whole: the one they are to be predicted from.
    """
    factors = {} if model is None else _pace_factors(model, first, whole)
    found = {}
    for name, record in records.items():
        facts = {
            key: round(float(value) * factors[key], 4) if key in factors else value
            for key, value in record.provenance.facts.items()
        }
        resolved = ready[name]
        machine = {"hardware_name": whole.name, "hardware_sha256": resolved.hardware.sha256}
        provenance = record.provenance.model_copy(update={"facts": facts, **machine})
        update = {"scenario": resolved.scenario, "scenario_sha256": resolved.sha256, "provenance": provenance}
        found[name] = record.model_copy(update=update)
    return found


def _pace_factors(model: "ModelSpec", first: "HardwareProfile", whole: "HardwareProfile") -> dict[str, float]:
    """What a pace beside the first profile is multiplied by to be one beside the other, by fact."""
    times = []
    for profile in (first, whole):
        with probing.pace_of(profile, model) as pace:
            times.append(pace.profile_us())
    return {name: us / times[1][name] for name, us in times[0].items() if times[1].get(name)}
