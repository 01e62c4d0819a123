"""The result of a suite as Markdown tables for README and docs/validation.md."""

from collections.abc import Mapping, Sequence

from tiercast_cli import render, score_views, suite_views
from tiercast_cli.case_scores import AT_PACE, POINTS
from tiercast_cli.suite_result import SuiteCase, SuiteResult
from tiercast_profiles.scores import Score

TITLES = {
    "output_tokens_per_s": "throughput",
    "ttft_ms.p50": "TTFT, median",
    "ttft_ms.p90": "TTFT, p90",
    "tpot_ms.p50": "TPOT, median",
    "tpot_ms.p90": "TPOT, p90",
    "step_ms.p50": "step time, median",
    "step_ms.p90": "step time, p90",
    "stall_ms_per_step": "stall per step",
    "hidden_ratio": "hidden share",
    "penalty": "throughput lost against no Engram",
}
CASE_METRICS = ("output_tokens_per_s", "ttft_ms.p50", "tpot_ms.p50", "stall_ms_per_step", "hidden_ratio", "penalty")


def short_table(result: SuiteResult) -> str:
    """One line per metric: all cases, those held out beside them, and what is left at the pace the machine had."""
    columns = ("error of", "cases", "median", "p90", "worst", "held out", "median", "p90", "worst")
    head = (*columns, "at the machine's pace: median", "p90", "machine's own spread")
    paced = {score.metric: score for score in result.scores.get(AT_PACE, ())}
    rows = []
    for whole in result.scores["all"]:
        apart, then = result.score_of(whole.metric, "held out"), paced.get(whole.metric)
        rows.append(
            [
                TITLES[whole.metric],
                _count(whole),
                *errors(whole),
                _count(apart),
                *errors(apart),
                *([render.UNKNOWN] * 2 if then is None else errors(then)[:2]),
                _size(whole, whole.machine_spread),
            ]
        )
    return table(head, rows)


def score_table(result: SuiteResult, group: str) -> str:
    """Everything a score says, one line per metric."""
    head = ("error of", "cases", "median", "p90", "worst", "worst case", "mean", "bias", "r", "inside the spread")
    rows = []
    for found in result.scores[group]:
        cells = [_size(found, found.mean_absolute), _size(found, found.bias, signed=True)]
        correlation = render.UNKNOWN if found.correlation is None else f"{found.correlation:.3f}"
        inside = f"{found.num_inside_spread} of {found.num_cases - found.num_failed}"
        rows.append(
            [TITLES[found.metric], _count(found), *errors(found), found.worst_case, *cells, correlation, inside]
        )
    return table(head, rows)


def case_table(result: SuiteResult) -> str:
    """Every case: measured, predicted and error of what matters; ``*`` marks an error inside the machine's spread."""
    head = ("case", "held out", "measured tokens/s", "predicted", *(TITLES[metric] for metric in CASE_METRICS))
    rows = []
    for case in result.cases:
        speed = case.metrics["output_tokens_per_s"]
        rows.append(
            [
                case.name,
                "yes" if case.is_held_out else "",
                render.with_interval(speed.measured),
                render.value(speed.predicted),
                *(_case_error(case, metric) for metric in CASE_METRICS),
            ]
        )
    return table(head, rows)


def beside_table(results: Mapping[str, Sequence[Score]]) -> str:
    """The same records predicted from several profiles: how each scores in throughput, penalty and stall."""
    head = ("predicted from", "throughput bias", "median", "worst", "penalty bias", "median", "stall bias", "median")
    rows = []
    for words, scores in results.items():
        found = {score.metric: score for score in scores}
        speed, penalty, stall = (found[metric] for metric in ("output_tokens_per_s", "penalty", "stall_ms_per_step"))
        rows.append(
            [
                words,
                _size(speed, speed.bias, signed=True),
                *errors(speed)[::2],
                _size(penalty, penalty.bias, signed=True),
                _size(penalty, penalty.median_absolute),
                _size(stall, stall.bias, signed=True),
                _size(stall, stall.median_absolute),
            ]
        )
    return table(head, rows)


def notes(result: SuiteResult) -> str:
    """Order of the cases, failures, differing inputs and drift, as a list."""
    lines = suite_views.order_lines(result.cases)
    lines += [*score_views.failure_lines(result.failures), *suite_views.circumstances(result)]
    lines.append(f"held out: declared {result.held_out_declared}")
    return "\n".join(f"* {line}" for line in lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _count(score: Score) -> str:
    return f"{score.num_cases}" + (f" ({score.num_failed} failed)" if score.num_failed else "")


def errors(score: Score) -> list[str]:
    """Median, 90th percentile and worst of the absolute errors."""
    return [_size(score, value) for value in (score.median_absolute, score.p90_absolute, score.worst_absolute)]


def _size(score: Score, value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return render.UNKNOWN
    sign = "+" if signed else ""
    if score.unit == "ratio":
        return f"{100 * value:{sign}.1f} %"
    return f"{value:{sign}.1f} pt" if score.unit == "points" else f"{value:{sign}.2f} {score.unit}"


def _case_error(case: SuiteCase, metric: str) -> str:
    both = case.metrics.get(metric)
    if both is None:
        return render.UNKNOWN
    difference = both.predicted.value - both.measured.value
    mark = " *" if case.is_inside_spread(metric) else ""
    if metric in ("hidden_ratio", "penalty"):
        return f"{POINTS * difference:+.1f} pt{mark}"
    if metric == "stall_ms_per_step":
        return f"{difference:+.2f} ms{mark}"
    return f"{100 * difference / both.measured.value:+.1f} %{mark}"
