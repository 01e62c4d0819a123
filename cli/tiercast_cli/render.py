"""Tables and number formats: the only place that knows what a result looks like on a terminal.

Meaning is always in words and signs, never in colour alone; rich honours ``NO_COLOR`` and the terminal's width.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tiercast_profiles.record import Metric

UNKNOWN = "–"
SHORTEST_NAME = 12  # what a first column of names keeps beside numbers, however much these take
LONGEST_WORDS = 24  # what a further column of words keeps beside a first one of long names
LONGEST_UNBROKEN = 20  # a word column up to this wide keeps its width; a wider one gives way first

_page: ContextVar[Console | None] = ContextVar("page", default=None)


def console() -> Console:
    """The console that results go to; its width is the terminal's, or COLUMNS, or 80 in a pipe."""
    return _page.get() or Console(highlight=False, markup=False, emoji=False, soft_wrap=False)


def to_text(view: Callable[[], None], width: int) -> str:
    """What a view prints, as plain text of a given width."""
    sheet = io.StringIO()
    page = Console(file=sheet, width=width, color_system=None, highlight=False, markup=False, emoji=False)
    token = _page.set(page)
    try:
        view()
    finally:
        _page.reset(token)
    return "\n".join(text.rstrip() for text in sheet.getvalue().splitlines()) + "\n"


def heading(text: str) -> None:
    """A line that starts a part of the output."""
    out = console()
    out.print()
    out.print(Text(text, style="bold"))


def line(text: str = "") -> None:
    """A line of prose, wrapped to the width."""
    console().print(Text(text))


def command(text: str) -> None:
    """A line to type: never wrapped, because a line break in the middle would be copied along."""
    console().print(Text(text), soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """A table: the first ``left`` columns are words, aligned left; the others are numbers, aligned right.

    Names of one word in a first column that is too wide break behind a dot or an underscore, never within a word.
    """
    has_names = bool(rows) and left > 0 and not any(" " in row[0] for row in rows)
    if has_names:
        rows = _names_broken(columns, rows, left)
    grid = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        is_word = index < left
        longest = max((len(part) for row in rows for part in row[index].splitlines()), default=0)
        is_wrapped = is_word and longest > LONGEST_UNBROKEN and not (has_names and index == 0)
        grid.add_column(Text(column), justify="left" if is_word else "right", overflow="fold", no_wrap=not is_wrapped)
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    out = console()
    out.print()
    if title:
        out.print(Text(title, style="bold"))
    out.print(grid)


def _names_broken(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> Sequence[Sequence[str]]:
    """The rows with the names of the first column broken so that the other columns have the room they need."""
    widths = [
        max(len(part) for cell in cells for part in cell.split("\n")) for cells in zip(columns, *rows, strict=True)
    ]
    others = [min(width, LONGEST_WORDS) if index < left else width for index, width in enumerate(widths)][1:]
    least = SHORTEST_NAME if left == 1 else LONGEST_UNBROKEN  # further columns of words give way first
    room = max(least, console().width - sum(others) - (2 * len(columns) - 1))
    if widths[0] <= room or sum(widths) + 2 * len(columns) - 1 <= console().width:
        return rows
    return [[_broken(row[0], room), *row[1:]] for row in rows]


def _broken(name: str, room: int) -> str:
    """A name on lines of at most ``room`` characters: broken behind a dot if that is enough, else behind any sign.

    Lines fill from the end, so that what is measured and its unit stay together; a word that is wider itself is cut.
    """
    lines = [name]
    for signs in (".", "._/-"):
        lines = [""]
        for word in reversed(re.split(rf"(?<=[{re.escape(signs)}])(?=.)", name)):
            for piece in reversed([word[start : start + room] for start in range(0, len(word), room)]):
                if lines[0] and len(piece) + len(lines[0]) > room:
                    lines.insert(0, "")
                lines[0] = piece + lines[0]
        if all(len(word) <= room for word in re.split(rf"(?<=[{re.escape(signs)}])(?=.)", name)):
            break
    return "\n".join(lines)


def fits(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a table of these cells is no wider than the page, a long first column of words wrapped."""
    widths = [
        max(len(part) for cell in cells for part in cell.split("\n")) for cells in zip(columns, *rows, strict=True)
    ]
    between = 2 * len(columns) - 1
    return min(widths[0], LONGEST_UNBROKEN) + sum(widths[1:]) + between <= console().width


def number(value: float | None, digits: int = 4) -> str:
    """A number with that many significant digits at least; what is not known is a dash, never a zero."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.3e}" if abs(value) < 1e-4 else f"{value:,.0f}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def percent(ratio: float | None, *, signed: bool = False) -> str:
    """A ratio in percent."""
    if ratio is None:
        return UNKNOWN
    return f"{round(100 * ratio, 1) + 0.0:{'+' if signed else ''}.1f} %"  # adding 0.0 turns −0.0 into 0.0


def value(metric: "Metric | None") -> str:
    """The value of a metric, without its interval."""
    return UNKNOWN if metric is None else number(metric.value)


def interval(metric: "Metric | None") -> str:
    """The interval of a metric as ``low .. high``, or a dash when none is known."""
    if metric is None or metric.low is None or metric.high is None:
        return UNKNOWN
    return f"{number(metric.low)} .. {number(metric.high)}"


def with_interval(metric: "Metric | None") -> str:
    """Value and interval in one cell, a little shorter than apart."""
    if metric is None or metric.low is None or metric.high is None:
        return value(metric)
    return f"{short(metric.value)} [{short(metric.low)} .. {short(metric.high)}]"


def short(value: float) -> str:
    """A number with three significant digits, millions as M."""
    return f"{number(value / 1e6, 3)} M" if abs(value) >= 1e6 else number(value, 3)


def percent_interval(metric: "Metric | None") -> str:
    """The interval of a ratio in percent, or a dash when none is known."""
    if metric is None or metric.low is None or metric.high is None:
        return UNKNOWN
    return f"{round(100 * metric.low, 1) + 0.0:.1f} .. {round(100 * metric.high, 1) + 0.0:.1f}"


def percent_with_interval(metric: "Metric | None") -> str:
    """Ratio and interval in percent, in one cell."""
    if metric is None or metric.low is None:
        return percent(None if metric is None else metric.value)
    return f"{percent(metric.value)} [{percent_interval(metric)}]"
