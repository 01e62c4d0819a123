"""What a validation looks like: one summary over the cases, then every metric of each."""

from collections.abc import Sequence

from tiercast_cli import render, score_views, views
from tiercast_cli.case_scores import AT_PACE
from tiercast_cli.validation import Validation, rank
from tiercast_cli.validation_case import Case
from tiercast_profiles.compare import unit_of
from tiercast_profiles.record import Metric
from tiercast_profiles.stats import relative_error

SUMMARY = (
    ("output_tokens_per_s", "output tokens/s"),
    ("stall_ms_per_step", "stall ms/step"),
    ("hidden_ratio", "hidden share"),
    ("step_ms.p50", "step p50 ms"),
)


def page(result: Validation) -> None:
    """Summary, scores, ranking, what there is to know of the runs, and the full table of each case."""
    summary(result.cases)
    scores(result)
    ranking(result.cases)
    circumstances(result)
    for case in result.cases:
        render.heading(f"{case.name}: {views.placement_words(case.measured.placement)}")
        views.comparison("", case.comparison)
        for kind, record in (("measured", case.measured), ("predicted", case.predicted)):
            for warning in record.provenance.warnings:
                render.line(f"{views.WARNING_SIGN}{kind}: {warning}")


def summary(results: Sequence[Case]) -> None:
    """The chosen metrics of every case: measured, predicted, error, and the error at the pace of the machine.

    Where that last column leaves no room for them, the intervals of predictions are left to each case's own table.
    """
    columns = ["arm", "measured", "predicted", "error", *([AT_PACE] if is_paced(results) else [])]
    for name, title in SUMMARY:
        rows = [row(case, name)[: len(columns)] for case in results]
        if is_paced(results) and not render.fits(columns, rows):
            rows = [[*cells[:2], cells[2].split(" [")[0], *cells[3:]] for cells in rows]
        render.table(title, columns, rows)


def is_paced(results: Sequence[Case]) -> bool:
    """Whether any case was predicted at the pace of the machine too."""
    return any(case.at_pace is not None for case in results)


def scores(result: Validation) -> None:
    """Errors over all cases, where there are several."""
    groups = result.scores
    score_views.tables(groups)
    for line in score_views.LEGEND if groups else ():
        render.line(line)


def circumstances(result: Validation) -> None:
    """Scenarios that failed, inputs that differ, and how slow the machine was around the runs."""
    scored = result.scored
    for line in score_views.failure_lines(result.failures):
        render.line(line)
    if result.scores:
        if line := score_views.interval_line(scored):
            render.line(line)
        render.line(score_views.inputs_line(scored))
    pace_line(result)
    if result.apart:
        render.line(f"the scenarios ran one by one, not in turns: {result.apart}")


def pace_line(result: Validation) -> None:
    """How slow the machine was around the runs, or why that is not known."""
    line = score_views.pace_line(result.scored)
    if line:
        render.line(f"{line}; in errors {AT_PACE} the profile was taken to that pace")
    elif result.pace_untimed:
        render.line(f"the pace of the machine around the runs was not timed: {result.pace_untimed}")


def ranking(results: Sequence[Case]) -> None:
    """Whether the simulator orders the cases as they were measured."""
    order = rank(results)
    if order is None:
        return
    render.line(f"ranking by output tokens/s, measured:  {' > '.join(order.measured)}")
    render.line(f"ranking by output tokens/s, predicted: {' > '.join(order.predicted)}")
    for better, worse in order.measured_ties:
        render.line(f"not decided by the measurement: {better} and {worse} (their intervals overlap)")
    if order.agrees:
        render.line("the predicted ranking is the measured one")
    elif order.agrees_up_to_ties:
        render.line("the predicted ranking differs only where the measurement does not decide")
    else:
        render.line("the predicted ranking differs from the measured one")


def row(case: Case, name: str) -> list[str]:
    """Name, measured, predicted, error and error at pace of one metric of one case."""
    measured, predicted, again = (case.metric(name, of=side) for side in ("measured", "predicted", "at_pace"))
    cell = render.percent_with_interval if name in views.RATIOS else render.with_interval
    return [
        case.name,
        cell(measured),
        cell(predicted),
        _error(name, measured, predicted),
        _error(name, measured, again),
    ]


def _error(name: str, measured: Metric | None, predicted: Metric | None) -> str:
    """Relative, except where the measured value is zero or next to nothing: a stall is judged by its time."""
    if measured is None or predicted is None:
        return ""
    difference = predicted.value - measured.value
    if name in views.RATIOS:
        return f"{100 * difference:+.1f} pt"
    if name == "stall_ms_per_step" or measured.value == 0:
        return f"{difference:+.3g} {unit_of(name)}" if difference else "0"
    return render.percent(relative_error(predicted.value, measured.value), signed=True)
