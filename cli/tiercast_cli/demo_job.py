"""The main job: probe, look at real text, run and predict the same work, compare, then price a large model."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tiercast_cli import demo_views, inputs, pricing, probing, render, validation
from tiercast_cli.other_profile import predicted_from
from tiercast_cli.output import make_folder, to_json
from tiercast_cli.probe_turns import TurnPlan, probing_round
from tiercast_cli.text_locality import TextLocality, measure
from tiercast_cli.validation_case import Case, measured_penalty
from tiercast_profiles import __version__, store
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.record import Metric, RunRecord
from tiercast_profiles.timeline import chrome_trace

BASELINE_ARM = "demo-no-engram"
LARGE_SCENARIOS = ("v41-hbm", "v41-dram", "v41-nvme")
TEXTS = ("docs", "code")
LOCALITY_MODEL = "deepseek-v4.1-flash"
LOCALITY_TOKENS = 200_000
LOCALITY_CACHE_GIB = (0.0625, 0.25, 1.0)
LOCALITY_STREAMS = (1, 64)
PAGE_WIDTH = 100
MODELS = ("tiny",)  # of the arms
PROFILE, BEFORE = "profile.yaml", "profile-before.yaml"
# the arms stop for the probes some twenty-five times, and those take some fifty seconds
PROBES = TurnPlan(stretch_s=1.8, is_awaited=True)

Report = Callable[[str, float], None]
Show = Callable[[str, "DemoResult"], None]


@dataclass(slots=True)
class DemoResult:
    """What the demo has found so far; parts are added as they are done.

    ``first`` is the profile made before anything ran, ``profile`` the one made in turns with the arms, from which they
    are predicted.
    """

    first: HardwareProfile | None = None
    profile: HardwareProfile | None = None
    localities: list[TextLocality] = field(default_factory=list)
    validated: validation.Validation = field(default_factory=validation.Validation)
    priced: list[pricing.PricedRow] = field(default_factory=list)
    predictions: dict[str, RunRecord] = field(default_factory=dict)
    elapsed_s: dict[str, float] = field(default_factory=dict)

    @property
    def cases(self) -> tuple[Case, ...]:
        """The arms, measured and predicted."""
        return self.validated.cases


def run(folder: Path, repeats: int, report: Report, *, show: Show | None) -> DemoResult:
    """Do every part in turn; ``show`` is called with a part's name as soon as that part is done.

    Raises:
        FileProblem: the folder cannot be written, or the disk is too full for the table file.
        MissingCapability: an extra is not installed.
        InfeasibleScenario: a demo arm does not fit this machine.
    """
    make_folder(folder)
    result = DemoResult()
    parts: tuple[tuple[str, Callable[[], None]], ...] = (
        ("profile", lambda: _profile(result, folder)),
        ("locality", lambda: _locality(result)),
        ("validation", lambda: _validation(result, folder, repeats, report)),
        ("prediction", lambda: _prediction(result, report)),
    )
    for index, (name, part) in enumerate(parts):
        report(name, index / len(parts))
        start = time.perf_counter()
        part()
        result.elapsed_s[name] = round(time.perf_counter() - start, 1)
        if show is not None:
            show(name, result)
    return result


def penalties(result: DemoResult) -> dict[str, tuple[Metric, Metric | None]]:
    """Throughput lost against the arm without Engram, measured and predicted, by arm."""
    baseline = next(case for case in result.cases if case.name == BASELINE_ARM)
    found = {}
    for case in result.cases:
        if case.name != BASELINE_ARM:
            measured = measured_penalty(case.measured, baseline.measured)
            found[case.name] = (measured, case.predicted.metrics.penalty_ratio.get("no_engram"))
    return found


def summary(result: DemoResult) -> dict[str, object]:
    """Everything a page about this run needs, as data."""
    assert result.profile is not None, "the summary is made after the profile"
    host, device = result.profile.host, result.profile.device
    return {
        "schema_version": 1,
        "tool_version": __version__,
        "machine": {
            "cpu_model": host.cpu_model,
            "num_cores": host.num_cores,
            "memory_gb": host.memory_capacity_gb.value,
            "device": device.product_name,
            "device_kind": device.kind,
            "profile_sha256": result.profile.sha256,
        },
        "locality": result.localities,
        "validation": validation.as_json(result.validated),
        "penalty_vs_no_engram": {
            name: {"measured": measured, "predicted": predicted}
            for name, (measured, predicted) in penalties(result).items()
        },
        "predictions": result.priced,
        "elapsed_s": result.elapsed_s,
    }


def write(folder: Path, result: DemoResult) -> None:
    """All records, one trace per arm, the summary, the page as printed and the error table for a README.

    Raises:
        FileProblem: the disk is full; each file is written whole or not at all.
    """
    for name in ("measured", "simulated", "traces"):
        make_folder(folder / name)
    for case in result.cases:
        store.write_text(folder / "measured" / f"{case.name}.json", case.measured.to_json())
        store.write_text(folder / "simulated" / f"{case.name}.json", case.predicted.to_json())
        records = [record for record in (case.measured, case.predicted) if record.spans]
        if records:
            store.write_text(folder / "traces" / f"{case.name}.json", chrome_trace(records))
    for name, record in result.predictions.items():
        store.write_text(folder / "simulated" / f"{name}.json", record.to_json())
    store.write_text(folder / "summary.json", to_json(summary(result)))
    store.write_text(folder / "output.txt", render.to_text(lambda: demo_views.page(result), PAGE_WIDTH))
    store.write_text(folder / "error-table.md", demo_views.error_table_markdown(result))


def _profile(result: DemoResult, folder: Path) -> None:
    result.first = probing.probe(MODELS, quick=True, folder=folder)
    store.write_text(folder / BEFORE, store.to_yaml(result.first))


def _locality(result: DemoResult) -> None:
    model = store.load_model(LOCALITY_MODEL)
    for text in TEXTS:
        result.localities.append(
            measure(
                text,
                model,
                cache_gib=LOCALITY_CACHE_GIB,
                num_streams=LOCALITY_STREAMS,
                max_tokens=LOCALITY_TOKENS,
            )
        )


def _validation(result: DemoResult, folder: Path, repeats: int, report: Report) -> None:
    """Run the arms on the machine of the first profile, probe it again in turns with them, and predict from that."""
    assert result.first is not None, "the machine is probed before it runs anything"
    names, file = validation.DEMO_ARMS, folder / PROFILE
    arms = {name: inputs.resolve(name, str(folder / BEFORE)) for name in names}
    file.unlink(missing_ok=True)  # of an earlier demo
    with probing_round(MODELS, file, report, PROBES) as probes:
        measured = validation.measured_cases(
            arms,
            repeats=repeats,
            folder=folder / "tables",
            report=report,
            between=probes.turn,
            is_paced=False,  # the profile is of the same minutes
        )
        result.profile = probes.finish(report)
    result.validated = predicted_from(names, measured, first=result.first, file=file, report=report, needs_all=True)


def _prediction(result: DemoResult, report: Report) -> None:
    for index, name in enumerate(LARGE_SCENARIOS):
        report(f"predict {name}", index / len(LARGE_SCENARIOS))
        row, record = pricing.price(name, inputs.resolve(name))
        result.priced.append(row)
        if record is not None:
            result.predictions[name] = record
