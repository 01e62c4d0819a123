"""What each assumption is worth, as a table: on the ledger, and on a folder of measured records."""

from dataclasses import dataclass
from pathlib import Path

from tiercast_plan.ablation import ABLATIONS, FIXED, NOTHING, Without
from tiercast_plan.ledger import Ledger, ledger
from tiercast_profiles.record import RunRecord
from tiercast_profiles.scenario import combine
from tiercast_profiles.store import load_hardware, load_model, load_prices, load_record
from tiercast_sim.simulate import simulate

NO_MOVE = 5e-5  # less would be shown as 0.00 %


@dataclass(frozen=True, slots=True)
class Outcome:
    """The ledger, and output tokens per second predicted for each measured arm."""

    ledger: Ledger
    arms: dict[str, float]


def table(folder: Path) -> str:
    """Every assumption that an input switches off, in Markdown; then those that none does, with the reason.

    ``folder`` is a validation folder: its profile and its measured records.
    """
    measured = {path.stem: load_record(path) for path in sorted((folder / "measured").glob("*.json"))}
    speeds = {name: record.metrics.output_tokens_per_s.value for name, record in measured.items()}

    def outcome(without: Without) -> Outcome:
        return Outcome(ledger(without=without), predicted_throughputs(folder, measured, without))

    whole = outcome(NOTHING)
    inside = f"inside of {whole.ledger.num_scored}"
    lines = [
        f"| left out | that is | {inside} | median error | moves most | arms: mean error | moves most |",
        "|---|---|---|---|---|---|---|",
        _line(NOTHING, whole, whole, speeds),
    ]
    lines += [_line(without, outcome(without), whole, speeds) for without in ABLATIONS]
    lines += ["", "| not switched off | why |", "|---|---|"]
    lines += [f"| {', '.join(names)} | {reason} |" for reason, names in _by_reason().items()]
    return "\n".join(lines)


def predicted_throughputs(folder: Path, measured: dict[str, RunRecord], without: Without) -> dict[str, float]:
    """Output tokens per second of each measured arm, predicted from the folder's profile at its nominal inputs."""
    profile = without.hardware(load_hardware(str(folder / "profile.yaml")))
    found = {}
    for name, record in measured.items():
        scenario = record.scenario
        resolved = combine(scenario, profile, without.model(load_model(scenario.model)), load_prices(scenario.prices))
        run = simulate(resolved, with_baselines=False, with_bounds=False, keep_samples=False)
        found[name] = run.metrics.output_tokens_per_s.value
    return found


def _line(without: Without, own: Outcome, whole: Outcome, measured: dict[str, float]) -> str:
    errors = [abs(own.arms[name] / value - 1) for name, value in measured.items()]
    cells = [
        without.assumption,
        without.by or "–",
        str(own.ledger.num_inside),
        f"{100 * own.ledger.median_error_ratio:.1f} %",
        _largest(_moves(own.ledger, whole.ledger)),
        f"{100 * sum(errors) / len(errors):.1f} %",
        _largest({name: value / whole.arms[name] - 1 for name, value in own.arms.items()}),
    ]
    return f"| {' | '.join(cells)} |"


def _moves(own: Ledger, whole: Ledger) -> dict[str, float]:
    """How far each prediction moved, as a share of it."""
    before = {(row.case, row.quantity): row.predicted for row in whole.rows}
    found: dict[str, float] = {}
    for row in own.rows:
        was = before[row.case, row.quantity]
        if row.predicted is not None and was:
            found[f"case {row.case}"] = max(found.get(f"case {row.case}", 0.0), row.predicted / was - 1, key=abs)
    return found


def _largest(moves: dict[str, float]) -> str:
    name = max(moves, key=lambda key: abs(moves[key]))
    return f"{name} {100 * moves[name]:+.2f} %" if abs(moves[name]) >= NO_MOVE else "–"


def _by_reason() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, reason in sorted(FIXED.items(), key=lambda entry: int(entry[0][1:])):
        found.setdefault(reason, []).append(name)
    return found
