"""Running a sweep for a command, and what its rows look like."""

import datetime
from collections.abc import Sequence

from tiercast_cli import inputs, pricing_views, render, views
from tiercast_cli.output import progress
from tiercast_plan.sweep import SoFar, SweepRow, sweep
from tiercast_profiles.errors import InfeasibleScenario


def run(
    name_or_path: str,
    sets: Sequence[str],
    varies: Sequence[str],
    profile: str | None,
    *,
    num_jobs: int = 1,
    cluster: str | None = None,
    state: str | None = None,
    is_nominal: bool = False,
) -> tuple[SweepRow, ...]:
    """Predict and price every combination.

    Raises:
        BadInput: a setting is malformed, names an unknown key or holds a value that is not allowed.
    """
    scenario = inputs.load_scenario(name_or_path)
    if profile is not None:
        scenario = scenario.model_copy(update={"hardware": profile})
    today = datetime.datetime.now(tz=datetime.UTC).date()
    with progress("what-if") as report:

        def listen(far: SoFar) -> None:
            best = "" if far.best is None else f", best {far.best}"
            report(f"{far.done} of {far.total}, {far.failed} without a result{best}", far.done / far.total)

        return sweep(
            scenario,
            sets,
            varies,
            today=today,
            progress=listen,
            num_jobs=num_jobs,
            cluster=cluster,
            state=state,
            is_nominal=is_nominal,
        )


def view(rows: Sequence[SweepRow]) -> None:
    """One line per point: what was set, and what came of it; then what it costs."""
    head = "\n".join(rows[0].settings) or "scenario"
    speed, price = [], []
    for row in rows:
        words = ", ".join(str(value) for value in row.settings.values()) or "as given"
        if row.metrics is None:
            speed.append([words, "no result", "", "", "", ""])
            continue
        metrics = row.metrics
        speed.append(
            [
                words,
                render.value(metrics.output_tokens_per_s),
                render.interval(metrics.output_tokens_per_s),
                render.value(metrics.step_ms.p50),
                render.value(metrics.stall_ms_per_step),
                render.value(metrics.kv_capacity_tokens),
            ]
        )
        if row.cost is not None:
            mtok = row.cost.usd_per_mtok
            price.append([words, *pricing_views.money(mtok["total"]), *pricing_views.money(mtok["output"])])
    render.table("", [head, "output\ntokens/s", "interval", "step p50\nms", "stall\nms/step", "KV room\ntokens"], speed)
    if price:
        render.table("", [head, "USD/Mtok\nall tokens", "interval", "USD/Mtok\noutput only", "interval"], price)
    problems(rows)
    said = [row.warnings for row in rows] + [row.cost.warnings for row in rows if row.cost is not None]
    for warning in dict.fromkeys(warning for warnings in said for warning in warnings):
        render.line(views.WARNING_SIGN + warning)


def to_csv(rows: Sequence[SweepRow]) -> str:
    """One line per point."""
    from tiercast_cli.sweep_csv import to_csv

    return to_csv(rows)


def require_charts() -> None:
    """Fail before a long sweep, not after it, when its page could not be drawn.

    Raises:
        MissingCapability: the report extra is not installed.
    """
    from tiercast_cli.report.page import plotly_js

    plotly_js()


def page(rows: Sequence[SweepRow], name: str) -> str:
    """The sweep as a page of HTML."""
    from tiercast_cli.report.whole import sweep_page

    return sweep_page(rows, name)


def problems(rows: Sequence[SweepRow]) -> None:
    """Each reason once, with the points it holds for."""
    points: dict[str, list[str]] = {}
    for row in rows:
        label = ", ".join(f"{path}={value}" for path, value in row.settings.items()) or "the scenario"
        for problem in (row.problem, row.cost_problem):
            if problem is not None:
                points.setdefault(problem, []).append(label)
    for problem, labels in points.items():
        render.line(f"{' and '.join(labels)}: {problem}")


def check_any_result(rows: Sequence[SweepRow]) -> None:
    """Refuse to call it done when no point has a result.

    Raises:
        InfeasibleScenario: with the reason of the first point.
    """
    if rows and all(row.metrics is None for row in rows):
        raise InfeasibleScenario(f"no point has a result; the first: {rows[0].problem}", rows[0].shortfall_bytes)
