"""Figures as plotly.js takes them: plain mappings, so that only the page needs the library.

Colours are those of Okabe and Ito, which stay apart for colour-blind readers; no chart says by colour alone what its
labels do not say too. Colours of text and grid come from the page, light or dark.
"""

from collections.abc import Sequence

from tiercast_cli.report.parts import Figure
from tiercast_profiles.record import Metric

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C00", "#7F7F7F")

PATTERNS = ("", "/", "x", ".")  # what tells bars apart once the colours start again
GREY = "#7F7F7F"  # seen on light and on dark paper

Bar = tuple[str, float, float | None, float | None]  # label, value, low, high


def colour(index: int) -> str:
    """A colour by number; after the last one they start again."""
    return COLOURS[index % len(COLOURS)]


def bar_of(label: str, metric: Metric, scale: float = 1) -> Bar:
    """A bar of a metric with its interval."""
    low, high = (None if end is None else end * scale for end in (metric.low, metric.high))
    return label, metric.value * scale, low, high


def bars(series: Sequence[tuple[str, Sequence[Bar]]], axis: str, *, is_stacked: bool = False) -> Figure:
    """Bars of one or more series over the same labels, with intervals where they are known."""
    data = []
    for index, (name, items) in enumerate(series):
        trace = {
            "type": "bar",
            "name": name,
            "orientation": "h",
            "y": [item[0] for item in items],
            "x": [item[1] for item in items],
            "marker": {"color": colour(index), "pattern": {"shape": PATTERNS[index // len(COLOURS) % len(PATTERNS)]}},
            "hovertemplate": "%{y}: %{x:,.4~g}<extra>" + name + "</extra>",
        }
        if not is_stacked and any(item[2] is not None for item in items):
            trace["error_x"] = {
                "type": "data",
                "symmetric": False,
                "color": GREY,
                "array": [0 if item[3] is None else item[3] - item[1] for item in items],
                "arrayminus": [0 if item[2] is None else item[1] - item[2] for item in items],
            }
        data.append(trace)
    labels = {item[0] for _, items in series for item in items}
    layout = {
        "barmode": "stack" if is_stacked else "group",
        "xaxis": {"title": {"text": axis}, "zeroline": True, "automargin": True},
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
        "height": 150 + 34 * len(labels) * (1 if is_stacked else len(series)),
        "showlegend": len(series) > 1,
    }
    return {"data": data, "layout": layout}


def points(
    series: Sequence[tuple[str, Sequence[tuple[float, float, str]]]],
    x_axis: str,
    y_axis: str,
    *,
    line: Sequence[tuple[float, float]] = (),
    line_name: str = "",
) -> Figure:
    """Points of several series, each with a label, and a line through some of them."""
    symbols = ("circle", "square", "diamond", "cross", "triangle-up", "x")
    data: list[Figure] = []
    if line:
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": line_name,
                "x": [x for x, _ in line],
                "y": [y for _, y in line],
                "line": {"shape": "hv", "dash": "dot", "color": GREY},
                "hoverinfo": "skip",
            }
        )
    for index, (name, items) in enumerate(series):
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text" if len(items) <= 8 else "markers",
                "name": name,
                "x": [item[0] for item in items],
                "y": [item[1] for item in items],
                "text": [item[2] for item in items],
                "textposition": "top center",
                "marker": {"size": 11, "color": colour(index), "symbol": symbols[index % len(symbols)]},
                "hovertemplate": "%{text}<br>%{x:,.4~g}, %{y:,.4~g}<extra></extra>",
            }
        )
    return {"data": data, "layout": _axes(x_axis, y_axis, has_legend=len(data) > 1)}


def lines(
    series: Sequence[tuple[str, Sequence[float], Sequence[float | None]]],
    x_axis: str,
    y_axis: str,
    *,
    is_log: bool = False,
) -> Figure:
    """A line for each series."""
    dashes = ("solid", "dash", "dot", "dashdot", "longdash")
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": list(xs),
            "y": list(ys),
            "line": {"color": colour(index), "dash": dashes[index % len(dashes)]},
            "hovertemplate": "%{x:,.4~g}: %{y:,.4~g}<extra>" + name + "</extra>",
        }
        for index, (name, xs, ys) in enumerate(series)
    ]
    layout = _axes(x_axis, y_axis, has_legend=len(series) > 1)
    if is_log:
        layout["xaxis"]["type"] = "log"
    return {"data": data, "layout": layout}


def timeline(lanes: Sequence[str], slices: Sequence[tuple[str, str, float, float]], axis: str) -> Figure:
    """Bars on lanes: (lane, what, start, length), on one axis of time."""
    kinds = list(dict.fromkeys(lane.split(" layer")[0].split()[-1] for lane in lanes))
    data = []
    for index, kind in enumerate(kinds):
        own = [item for item in slices if item[0].split(" layer")[0].split()[-1] == kind]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": kind,
                "y": [item[0] for item in own],
                "base": [item[2] for item in own],
                "x": [item[3] for item in own],
                "text": [item[1] for item in own],
                "textposition": "inside",
                "insidetextanchor": "start",
                "marker": {"color": colour(index), "line": {"width": 1, "color": "rgba(127,127,127,0.6)"}},
                "hovertemplate": "%{text}<br>from %{base:,.4~g}, for %{x:,.4~g}<extra></extra>",
            }
        )
    layout = {
        "barmode": "overlay",
        "xaxis": {"title": {"text": axis}, "automargin": True},
        "yaxis": {"categoryorder": "array", "categoryarray": list(reversed(lanes)), "automargin": True},
        "height": 150 + 36 * len(lanes),
        "showlegend": len(kinds) > 1,
    }
    return {"data": data, "layout": layout}


def _axes(x_axis: str, y_axis: str, *, has_legend: bool) -> Figure:
    return {
        "xaxis": {"title": {"text": x_axis}, "automargin": True, "rangemode": "tozero"},
        "yaxis": {"title": {"text": y_axis}, "automargin": True, "rangemode": "tozero"},
        "height": 420,
        "showlegend": has_legend,
    }
