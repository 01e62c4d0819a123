"""What the result of the validation suite looks like: scores first, then every case."""

from collections.abc import Sequence
from pathlib import Path

from tiercast_cli import render, score_views, suite_result
from tiercast_cli.case_scores import POINTS
from tiercast_cli.output import to_json
from tiercast_cli.suite_result import SuiteCase, SuiteResult
from tiercast_profiles import store
from tiercast_profiles.errors import CheckFailed
from tiercast_profiles.quantiles import median

PAGE_WIDTH = 110
RANKED = "output_tokens_per_s"
APART = {
    "output_tokens_per_s": "a hundredth or more",
    "stall_ms_per_step": "a hundredth of a step or more",
    "hidden_ratio": "a point or more",
}


def page(result: SuiteResult) -> None:
    """Scores of all, of open and of held-out cases; the order of the arms; each case; failures; the machine's drift."""
    render.heading(f"{len(result.cases)} cases on {result.hardware_name}, {result.repeats} runs each")
    if result.predicted_from_sha256 != result.profile_sha256:
        render.line(f"predicted from another profile: {result.predicted_from} ({result.predicted_from_sha256[:12]})")
    score_views.tables(result.scores)
    for line in (f"held out: declared {result.held_out_declared}", *score_views.LEGEND):
        render.line(line)
    columns = ["case", "measured\ntokens/s", "predicted\ntokens/s", "error", "inside\nspread", "penalty\nerror"]
    render.table("cases", columns, [case_row(case) for case in result.cases])
    for line in order_lines(result.cases):
        render.line(line)
    for line in (*score_views.failure_lines(result.failures), *circumstances(result)):
        render.line(line)


def circumstances(result: SuiteResult) -> list[str]:
    """What else there is to know of the runs: predicted intervals, inputs that differ, the machine's pace, others."""
    lines = (
        score_views.interval_line(result.cases),
        score_views.inputs_line(result.cases),
        score_views.pace_line(result.cases),
        others_line(result),
    )
    return [line for line in lines if line]


def order_lines(cases: Sequence[SuiteCase]) -> list[str]:
    """Per ranked metric how many pairs of cases the prediction puts in the measured order, and those it does not.

    Of pairs that differ by less than a hundredth only the number is given.
    """
    lines = []
    orders = suite_result.orders(cases)
    for metric in dict.fromkeys(order.metric for order in orders):
        of_metric = [order for order in orders if order.metric == metric]
        for kind, words in (("work", "arms of a work"), ("arm", "works of an arm")):
            group = [order for order in of_metric if order.group.startswith(f"{kind} ")]
            num_decided, num_pairs = (
                sum(getattr(order, name) for order in group) for name in ("num_decided", "num_pairs")
            )
            num_wrong = sum(len(order.wrong) for order in group)
            num_apart = sum(order.num_apart or 0 for order in group)
            apart = [pair for order in group for pair in order.wrong_apart]
            listed = "".join(f"; measured {more} > {less}" for more, less in apart)
            lines.append(
                f"{metric}, {words}: {num_decided - num_wrong} of {num_decided} pairs in the measured order "
                f"({num_pairs - num_decided} undecided by the measurement), {num_apart - len(apart)} of {num_apart} "
                f"of those that differ by {APART[metric]}{listed}"
            )
    return lines


def others_line(result: SuiteResult) -> str:
    """What other processes used of the machine while the cases ran; empty where the kernel does not say."""
    found = [case.cores_used_by_others for case in result.cases if case.cores_used_by_others is not None]
    if not found:
        return ""
    return f"other processes used {median(found):.2f} cores in the median case, {max(found):.2f} in the worst"


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
    found = result.score_of(RANKED)
    if found.num_failed:
        raise CheckFailed(f"{found.num_failed} of {found.num_cases} cases could not be run")
    if found.worst_absolute is not None and found.worst_absolute > max_error_ratio:
        raise CheckFailed(
            f"worst {RANKED} error {100 * found.worst_absolute:.1f} % ({found.worst_case}) exceeds the allowed "
            f"{100 * max_error_ratio:.1f} %"
        )


def case_row(case: SuiteCase) -> list[str]:
    """Throughput on both sides, its error, whether that is inside the machine's spread, and the penalty's error."""
    speed, penalty = case.metrics[RANKED], case.metrics.get("penalty")
    points = render.UNKNOWN
    if penalty is not None:
        points = f"{POINTS * (penalty.predicted.value - penalty.measured.value):+.1f} pt"
    return [
        case.name + (" (held out)" if case.is_held_out else ""),
        render.with_interval(speed.measured),
        render.with_interval(speed.predicted),
        render.percent(speed.predicted.value / speed.measured.value - 1, signed=True),
        {True: "yes", False: "no", None: render.UNKNOWN}[case.is_inside_spread(RANKED)],
        points,
    ]
