"""Our prediction of the stall beside what published formulas say, on measured records."""

from dataclasses import dataclass
from pathlib import Path

from tiercast_profiles.model import ModelSpec
from tiercast_profiles.record import RunRecord
from tiercast_profiles.store import load_hardware, load_model, load_record
from tiercast_profiles.units import GB, NS_PER_MS
from tiercast_sim.lookup import bytes_moved, row_pieces
from tiercast_sim.peer_formulas import FORMULAS, PlainStep

OURS = "Tiercast"


@dataclass(frozen=True, slots=True)
class Guess:
    """One prediction of one measured arm; times are means over its steps."""

    arm: str
    name: str
    measured_stall_ms: float
    stall_ms: float
    measured_step_ms: float
    step_ms: float

    @property
    def stall_error_ms(self) -> float:
        """Predicted minus measured."""
        return self.stall_ms - self.measured_stall_ms

    @property
    def step_error_ratio(self) -> float:
        """Predicted ÷ measured − 1."""
        return self.step_ms / self.measured_step_ms - 1


def duel(folder: Path) -> list[Guess]:
    """Every prediction of every measured arm of a validation folder whose rows travel to the device.

    All formulas are given our compute time of each step and the bytes as the drive moves them, so that they differ in
    the stall alone.
    """
    profile = load_hardware(str(folder / "profile.yaml"))
    assert profile.nvme is not None, "the record's machine has a drive"
    rate = profile.nvme.read_bandwidth_gb_per_s.value * GB
    guesses: list[Guess] = []
    for path in sorted((folder / "measured").glob("*.json")):
        measured, ours = load_record(path), load_record(folder / "simulated" / path.name)
        if measured.placement.tier != "nvme":
            continue
        model = load_model(measured.scenario.model)
        stalls = {OURS: _mean_ms(ours, "stall_ns")}
        steps = _plain_steps(ours, model, rate, profile.nvme.read_granularity_bytes)
        for name, formula in FORMULAS.items():
            stalls[name] = sum(formula(step) for step in steps) / len(steps) / NS_PER_MS
        compute_ms = sum(step.compute_ns for step in steps) / len(steps) / NS_PER_MS
        stall_ms, step_ms = _mean_ms(measured, "stall_ns"), _mean_ms(measured, "duration_ns")
        guesses += [Guess(path.stem, name, stall_ms, own, step_ms, compute_ms + own) for name, own in stalls.items()]
    return guesses


def table(guesses: list[Guess]) -> str:
    """The error table, and who came closest on average, in Markdown."""
    lines = [
        "| arm | prediction | stall ms/step | measured | error | step ms | measured | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for guess in guesses:
        stall = f"{guess.stall_ms:.3f} | {guess.measured_stall_ms:.3f} | {guess.stall_error_ms:+.3f} ms"
        step = f"{guess.step_ms:.2f} | {guess.measured_step_ms:.2f} | {100 * guess.step_error_ratio:+.1f} %"
        lines.append(f"| {guess.arm} | {guess.name} | {stall} | {step} |")
    lines += ["", "| prediction | mean absolute error of the stall | of the step |", "|---|---|---|"]
    ranked = ranking(guesses)
    for name, stall_ms, step_ratio in ranked:
        lines.append(f"| {name} | {stall_ms:.3f} ms | {100 * step_ratio:.1f} % |")
    return "\n".join([*lines, "", f"Closest in the stall: {ranked[0][0]}."])


def ranking(guesses: list[Guess]) -> list[tuple[str, float, float]]:
    """Predictions by mean absolute error of the stall, least first: name, that error in ms, that of the step."""
    found = []
    for name in dict.fromkeys(guess.name for guess in guesses):
        own = [guess for guess in guesses if guess.name == name]
        stall_ms = sum(abs(guess.stall_error_ms) for guess in own) / len(own)
        found.append((name, stall_ms, sum(abs(guess.step_error_ratio) for guess in own) / len(own)))
    return sorted(found, key=lambda entry: entry[1])


def _plain_steps(record: RunRecord, model: ModelSpec, rate: float, granularity_bytes: int) -> list[PlainStep]:
    assert record.samples is not None, "records of a validation folder keep their samples"
    steps, engram = record.samples.steps, model.engram
    moved = sum(bytes_moved(piece, granularity_bytes) for piece in row_pieces(engram, record.placement.row_layout))
    return [
        PlainStep(
            compute_ns=duration_ns - stall_ns,
            moved_bytes=rows * moved,
            rate_bytes_per_s=rate,
            num_engram_layers=len(engram.layer_ids),
            num_layers=model.backbone.num_layers,
            is_prefetched=record.placement.prefetch != "off",
        )
        for duration_ns, stall_ns, rows in zip(steps.duration_ns, steps.stall_ns, steps.rows_read, strict=True)
    ]


def _mean_ms(record: RunRecord, column: str) -> float:
    assert record.samples is not None, "records of a validation folder keep their samples"
    values: tuple[int, ...] = getattr(record.samples.steps, column)
    return sum(values) / len(values) / NS_PER_MS
