"""What the result of the validation suite looks like: scores first, then every case."""

from pathlib import Path

from tiercast_cli import render
from tiercast_cli.output import to_json
from tiercast_cli.suite import POINTS, SuiteCase, SuiteResult
from tiercast_profiles import store
from tiercast_profiles.errors import CheckFailed
from tiercast_profiles.scores import Score

PAGE_WIDTH = 110
RANKED = "output_tokens_per_s"


def page(result: SuiteResult) -> None:
    """Scores of all, of open and of held-out cases; the order of the arms; each case; failures; the machine's drift."""
    render.heading(f"{len(result.cases)} cases on {result.hardware_name}, {result.repeats} runs each")
    for group, scores in result.scores.items():
        rows = [_score_row(score) for score in scores if score.num_cases]
        columns = ["error", "cases", "median", "p90", "worst", "mean", "bias", "r"]
        render.table(f"{group} cases", columns, rows)
    render.line(f"held out: declared {result.held_out_declared}")
    render.table("cases", ["case", "measured\ntokens/s", "predicted\ntokens/s", "error", "penalty\nerror"],
                 [_case_row(case) for case in result.cases])  # fmt: skip
    for order in result.orders:
        verdict = "as measured" if order.agrees_up_to_ties else "NOT as measured"
        render.line(f"{order.work}: {' > '.join(order.predicted)} ({verdict}: {' > '.join(order.measured)})")
    for failure in result.failures:
        render.line(f"failed: {failure.case}: {failure.reason}")
    before, after = result.decode_step_ms.get("before"), result.decode_step_ms.get("after")
    if before is not None and after is not None:
        change = render.percent(after.value / before.value - 1, signed=True)
        render.line(f"the machine itself: one decode step took {render.with_interval(before)} ms before the suite and "
                    f"{render.with_interval(after)} ms after it ({change})")  # fmt: skip


def write(folder: Path, result: SuiteResult) -> None:
    """The result as data and the page as printed."""
    store.write_text(folder / "suite.json", to_json(result))
    store.write_text(folder / "suite.txt", render.to_text(lambda: page(result), PAGE_WIDTH))


def check(result: SuiteResult, max_error_ratio: float | None) -> None:
    """Hold the worst throughput error against the limit that was asked for, if one was.

    Raises:
        CheckFailed: naming the worst case.
    """
    if max_error_ratio is None:
        return
    found = next(score for score in result.scores["all"] if score.metric == RANKED)
    if found.num_failed:
        raise CheckFailed(f"{found.num_failed} of {found.num_cases} cases could not be run")
    if found.worst_absolute is not None and found.worst_absolute > max_error_ratio:
        raise CheckFailed(
            f"worst {RANKED} error {100 * found.worst_absolute:.1f} % ({found.worst_case}) exceeds the allowed "
            f"{100 * max_error_ratio:.1f} %"
        )


def _score_row(score: Score) -> list[str]:
    def cell(value: float | None, *, signed: bool = False) -> str:
        if value is None:
            return render.UNKNOWN
        if score.unit == "ratio":
            return render.percent(value, signed=signed)
        return f"{value:{'+' if signed else ''}.2f}"

    unit = "" if score.unit == "ratio" else f", {score.unit}"
    failed = f" ({score.num_failed} failed)" if score.num_failed else ""
    return [
        f"{score.metric}{unit}",
        f"{score.num_cases}{failed}",
        cell(score.median_absolute),
        cell(score.p90_absolute),
        cell(score.worst_absolute),
        cell(score.mean_absolute),
        cell(score.bias, signed=True),
        render.UNKNOWN if score.correlation is None else f"{score.correlation:.3f}",
    ]


def _case_row(case: SuiteCase) -> list[str]:
    speed, penalty = case.metrics[RANKED], case.metrics.get("penalty")
    points = render.UNKNOWN
    if penalty is not None:
        points = f"{POINTS * (penalty.predicted.value - penalty.measured.value):+.1f} pt"
    return [
        case.name + (" (held out)" if case.is_held_out else ""),
        render.with_interval(speed.measured),
        render.with_interval(speed.predicted),
        render.percent(speed.predicted.value / speed.measured.value - 1, signed=True),
        points,
    ]
