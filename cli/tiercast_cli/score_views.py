"""The table of scores, and what is said beside it of the cases as a whole."""

from collections.abc import Mapping, Sequence

from tiercast_cli import render, run_pace
from tiercast_cli.case_scores import AT_PACE, Failure, ScoredCase
from tiercast_profiles.compare import EXPECTED_DIFFERENCES
from tiercast_profiles.quantiles import median
from tiercast_profiles.scores import Score

COLUMNS = ("error of", "cases", "median", "p90", "worst", "mean", "bias", "r", "spread", "in-\nside")
TITLES = {
    "output_tokens_per_s": "throughput",
    "ttft_ms.p50": "TTFT p50",
    "ttft_ms.p90": "TTFT p90",
    "tpot_ms.p50": "TPOT p50",
    "tpot_ms.p90": "TPOT p90",
    "step_ms.p50": "step p50",
    "step_ms.p90": "step p90",
    "stall_ms_per_step": "stall",
    "hidden_ratio": "hidden",
    "penalty": "penalty",
}
INTERVALS = ("output_tokens_per_s", "ttft_ms.p50", "tpot_ms.p50")
LEGEND = (
    "cases: 3/4 where one of four could not be run or predicted",
    "median, p90, worst, mean: of absolute errors; bias: mean error; r: correlation of measured and predicted",
    "spread: half the distance between the quartiles of the repeats, median over the cases",
    "inside: predictions that lie between those quartiles",
)


def tables(groups: Mapping[str, Sequence[Score]]) -> None:
    """One table per group of cases."""
    for group, scores in groups.items():
        title = "all cases, at the pace of the machine around each run" if group == AT_PACE else f"{group} cases"
        render.table(title, list(COLUMNS), [row(score) for score in scores if score.num_cases])


def pace_line(cases: Sequence[ScoredCase]) -> str:
    """How slow the machine was around the runs of the cases; empty where that was not timed."""
    return run_pace.line([pace for case in cases if (pace := case.run_pace) is not None])


def failure_lines(failures: Sequence[Failure]) -> list[str]:
    """Each case that could not be run or predicted, and why."""
    return [f"failed: {failure.case}: {failure.reason}" for failure in failures]


def inputs_line(cases: Sequence[ScoredCase]) -> str:
    """The resolved inputs that differ between the two records of any case, but for those that have to."""
    differing = sorted({path for case in cases for path in case.differing_inputs} - set(EXPECTED_DIFFERENCES))
    return f"resolved inputs that differ: {', '.join(differing) if differing else 'none'}"


def interval_line(cases: Sequence[ScoredCase]) -> str:
    """How often the predicted interval holds what was measured, and how wide it is; empty where none was predicted."""
    parts = []
    for metric in INTERVALS:
        pairs = [case.metrics[metric] for case in cases if metric in case.metrics]
        held = [both for both in pairs if both.predicted.low is not None and both.predicted.high is not None]
        if held:
            num_inside = sum(both.is_in_interval is True for both in held)
            width = median([both.half_interval_ratio for both in held])
            parts.append(f"{TITLES[metric]} {num_inside} of {len(held)} (±{render.percent(width)})")
    return f"measured median inside the predicted interval (half its width): {', '.join(parts)}" if parts else ""


def row(score: Score) -> list[str]:
    """One metric: the cells of ``COLUMNS``."""

    def cell(value: float | None, *, signed: bool = False) -> str:
        if value is None:
            return render.UNKNOWN
        if score.unit == "ratio":
            return render.percent(value, signed=signed)
        return f"{value:{'+' if signed else ''}.2f}"

    unit = {"ratio": "", "points": " pt"}.get(score.unit, f" {score.unit}")
    num_scored = score.num_cases - score.num_failed
    return [
        f"{TITLES[score.metric]}{unit}",
        f"{num_scored}/{score.num_cases}" if score.num_failed else f"{score.num_cases}",
        cell(score.median_absolute),
        cell(score.p90_absolute),
        cell(score.worst_absolute),
        cell(score.mean_absolute),
        cell(score.bias, signed=True),
        render.UNKNOWN if score.correlation is None else f"{score.correlation:.3f}",
        cell(score.machine_spread),
        f"{score.num_inside_spread}",
    ]
