"""The page: one HTML file that needs no network, reads on a phone, in the dark, by keyboard and on paper."""

import html
import json
from collections.abc import Sequence

from tiercast_cli.report.parts import Chart, Figure, Section, Table
from tiercast_profiles.errors import MissingCapability

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --soft: #5b6572; --rule: #d5dae0; --mark: #0b62c4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7ebf0; --paper: #14181d; --soft: #a3adb9; --rule: #39424d; --mark: #79b4ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
a { color: var(--mark); }
:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
header p.answer { font-size: 1.25rem; line-height: 1.4; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0; list-style: none; }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; }
section { border-top: 1px solid var(--rule); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption { text-align: left; font-weight: 600; padding: .25rem 0; }
th, td { padding: .2rem .7rem .2rem 0; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top; }
td, th { white-space: nowrap; }
th.word, td.word { text-align: left; white-space: normal; min-width: 6rem; max-width: 32rem;
  overflow-wrap: break-word; }
figure { margin: 1rem 0; } figcaption, .soft { color: var(--soft); }
.chart { width: 100%; min-height: 150px; }
summary { cursor: pointer; padding: .25rem 0; color: var(--mark); }
footer { margin-top: 2rem; border-top: 1px solid var(--rule); color: var(--soft); font-size: .85rem; }
@media print { nav, .skip { display: none; } body { max-width: none; } section { break-inside: auto; }
  figure { break-inside: avoid; } }
"""

_SCRIPT = """
const figures = JSON.parse(document.getElementById("figures").textContent);
const box = key => document.getElementById(key);
function look() {
  const style = getComputedStyle(document.documentElement);
  return { ink: style.getPropertyValue("--ink").trim(), rule: style.getPropertyValue("--rule").trim() };
}
function dressed(layout) {
  const { ink, rule } = look();
  const axis = given => ({ ...given, gridcolor: rule, zerolinecolor: rule, linecolor: rule });
  return { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 13 },
    xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis), margin: { t: 40, r: 10, b: 50, l: 10 },
    legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", traceorder: "normal" } };
}
const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
function draw() {
  return Promise.all(Object.entries(figures).map(([key, figure]) =>
    Plotly.react(box(key), figure.data, dressed(figure.layout), options)));
}
draw().then(() => { document.documentElement.dataset.drawn = String(Object.keys(figures).length); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")]; opened.forEach(each => { each.open = true; });
});
addEventListener("afterprint", () => { opened.forEach(each => { each.open = false; }); opened = []; });
"""


def page(title: str, answer: str, sections: Sequence[Section], foot: str) -> str:
    """The whole page as text: same contents, same bytes.

    Raises:
        MissingCapability: the report extra is not installed.
    """
    figures: dict[str, Figure] = {}
    body = "\n".join(_section(section, figures) for section in sections)
    links = "".join(f'<li><a href="#{section.key}">{_text(section.title)}</a></li>' for section in sections)
    data = json.dumps(figures, sort_keys=True, allow_nan=False).replace("</", "<\\/")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<h1>{_text(title)}</h1>
<p class="answer">{_text(answer)}</p>
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main id="content">
{body}
</main>
<footer><p>{_text(foot)}</p></footer>
<script type="application/json" id="figures">{data}</script>
<script>{plotly_js()}</script>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def plotly_js() -> str:
    """The text of plotly.js, which the page carries with it.

    Raises:
        MissingCapability: the report extra is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingCapability(
            "charts need the report extra; install it with: pip install 'tiercast[report]'"
        ) from None
    text: str = get_plotlyjs()
    return text


def _section(section: Section, figures: dict[str, Figure]) -> str:
    parts = [f'<section id="{section.key}" aria-labelledby="{section.key}-title">']
    parts.append(f'<h2 id="{section.key}-title">{_text(section.title)}</h2>')
    parts += [f"<p>{_text(line)}</p>" for line in section.text]
    parts += [_chart(chart, f"{section.key}-{index}", figures) for index, chart in enumerate(section.charts)]
    parts += [_table(table) for table in section.tables]
    return "\n".join([*parts, "</section>"])


def _chart(chart: Chart, key: str, figures: dict[str, Figure]) -> str:
    figures[f"chart-{key}"] = chart.figure
    label = html.escape(chart.label, quote=True)
    numbers = "" if chart.numbers is None else _folded("Numbers", _table(chart.numbers))
    return (
        f'<figure><div class="chart" id="chart-{key}" role="img" aria-label="{label}"></div>'
        f"<figcaption>{_text(chart.label)}</figcaption>{numbers}</figure>"
    )


def _table(table: Table) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        return "".join(
            f"<{tag}{scope}{' class=word' if index < table.left else ''}>{_text(cell)}</{tag}>"
            for index, cell in enumerate(row)
        )

    head = f"<thead><tr>{cells('th', table.columns)}</tr></thead>"
    rows = "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    caption = f"<caption>{_text(table.title)}</caption>" if table.title and not table.is_folded else ""
    label = html.escape(table.title or "table", quote=True)
    whole = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"<table>{caption}{head}<tbody>{rows}</tbody></table></div>"
    )
    return _folded(table.title, whole) if table.is_folded else whole


def _folded(summary: str, inner: str) -> str:
    return f"<details><summary>{_text(summary)}</summary>{inner}</details>"


def _text(text: str) -> str:
    return html.escape(text, quote=False)
