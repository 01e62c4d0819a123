"""What a page is put together from: sections of text, charts and tables, whatever they show."""

from dataclasses import dataclass
from typing import Any

Figure = dict[str, Any]  # Any: JSON of plotly.js: data and layout


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first ``left`` columns are words. ``is_folded``: shown when asked for."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    is_folded: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with the sentence that says what it shows, for a reader who cannot see it, and its numbers."""

    label: str
    figure: Figure
    numbers: Table | None


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page under a heading."""

    key: str
    title: str
    text: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
