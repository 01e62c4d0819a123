"""What a difference looks like: in the terminal, and as Markdown for a comment on a change."""

from collections.abc import Sequence
from decimal import Decimal

from tiercast_cli import render
from tiercast_cli.pricing_views import usd
from tiercast_plan.difference import Difference, MetricChange

NONE = render.UNKNOWN
WORDS = {
    "same": "the same",
    "higher": "higher",
    "lower": "lower",
    "undecided": "undecided",
}


def show(found: Difference, *, is_markdown: bool = False) -> None:
    """The inputs that changed, the metrics, the money."""
    if is_markdown:
        for text in markdown(found).splitlines():
            render.console().print(text, soft_wrap=True)
        return
    if not found.inputs:
        render.line("no input differs")
    else:
        cells = [[change.path, change.before or NONE, change.after or NONE] for change in found.inputs]
        render.table("", ["what was changed", found.before_name, found.after_name], cells, left=3)
    render.table("", METRIC_COLUMNS, [_metric_cells(change) for change in found.metrics])
    if found.money:
        render.table("", ["money", *BEFORE_AFTER, "change"], _money_cells(found))
    if found.cost_problem is not None:
        render.line(found.cost_problem)
    for text in notes(found):
        render.line(text)


BEFORE_AFTER = ("A", "B")
METRIC_COLUMNS = ["what it did", *BEFORE_AFTER, "change", "between", "verdict"]


def markdown(found: Difference) -> str:
    """The same as Markdown tables."""
    parts = [f"**{found.before_name}** → **{found.after_name}**"]
    if found.inputs:
        cells = [[f"`{change.path}`", change.before or NONE, change.after or NONE] for change in found.inputs]
        parts.append(_table(["changed", "A", "B"], cells))
    parts.append(_table(["metric", *METRIC_COLUMNS[1:]], [_metric_cells(change) for change in found.metrics]))
    if found.money:
        parts.append(_table(["money", "A", "B", "change"], _money_cells(found)))
    if found.cost_problem is not None:
        parts.append(found.cost_problem)
    return "\n\n".join([*parts, *notes(found)]) + "\n"


def notes(found: Difference) -> Sequence[str]:
    """How the verdicts come about."""
    if not found.metrics:
        return ()
    if found.metrics[0].is_paired:
        how = "verdicts hold at the nominal inputs and at both ends of their bands"
    else:
        how = "verdicts hold where the intervals of A and B do not meet"
    return (f"{how}; undecided: the bands do not tell which is higher",)


def _metric_cells(change: MetricChange) -> list[str]:
    is_ratio = change.unit == "ratio"
    show_value = render.percent if is_ratio else render.number
    if is_ratio:
        size = f"{100 * change.change:+.1f} pt"
        between = NONE if change.low is None or change.high is None else _span(100 * change.low, 100 * change.high)
    else:
        size = NONE if change.change_ratio is None else render.percent(change.change_ratio, signed=True)
        between = NONE if change.low is None or change.high is None else _span(change.low, change.high)
    return [
        change.name,
        show_value(change.before.value),
        show_value(change.after.value),
        size,
        between,
        WORDS[change.verdict],
    ]


def _span(low: float, high: float) -> str:
    return f"{_signed(low)} .. {_signed(high)}"


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else '-' if value < 0 else ''}{render.short(abs(value))}"


def _money_cells(found: Difference) -> list[list[str]]:
    return [[item.name, usd(item.before), usd(item.after), _usd_change(item.change)] for item in found.money]


def _usd_change(change: Decimal) -> str:
    return "0" if change == 0 else f"{change:+.3g}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rules = ["---", *("---:" for _ in columns[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, rules, *rows))
