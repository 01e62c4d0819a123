"""What a validation looks like: one summary over the cases, then every metric of each."""

from collections.abc import Sequence

from tiercast_cli import render, views
from tiercast_cli.validation import Case, rank
from tiercast_profiles.compare import MetricComparison

SUMMARY = (
    ("output_tokens_per_s", "output tokens/s"),
    ("stall_ms_per_step", "stall ms/step"),
    ("hidden_ratio", "hidden share"),
    ("step_ms.p50", "step p50 ms"),
)


def cases(results: Sequence[Case]) -> None:
    """Summary, ranking, and the full table of each case."""
    summary(results)
    ranking(results)
    for case in results:
        render.heading(f"{case.name}: {views.placement_words(case.measured.placement)}")
        views.comparison("", case.comparison)
        for kind, record in (("measured", case.measured), ("predicted", case.predicted)):
            for warning in record.provenance.warnings:
                render.line(f"{views.WARNING_SIGN}{kind}: {warning}")


def summary(results: Sequence[Case]) -> None:
    """The chosen metrics of every case: measured, predicted, error."""
    for name, title in SUMMARY:
        render.table(title, ["arm", "measured", "predicted", "error"], [row(case, name) for case in results])


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
    """Name, measured, predicted and error of one metric of one case."""
    measured, predicted = case.metric(name, of="measured"), case.metric(name, of="predicted")
    found = case.comparison.metric(name)
    if name in views.RATIOS:
        points = "" if found is None else f"{100 * found.difference:+.1f} pt"
        return [case.name, render.percent_with_interval(measured), render.percent_with_interval(predicted), points]
    return [case.name, render.with_interval(measured), render.with_interval(predicted), _error(found)]


def _error(found: MetricComparison | None) -> str:
    """Relative, except where the measured value is zero or next to nothing: a stall is judged by its time."""
    if found is None:
        return ""
    if found.error_ratio is None or found.name == "stall_ms_per_step":
        return f"{found.difference:+.3g} {found.unit}" if found.difference else "0"
    return render.percent(found.error_ratio, signed=True)
