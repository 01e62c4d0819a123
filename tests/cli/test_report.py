"""The report: what it shows, that it is one file without a network, and that a browser draws it without a complaint."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("plotly", reason="needs the report extra")

SECTIONS = (
    "overview penalty cost time hidden timeline kv start-up pareto sensitivity reuse evidence".split()  # noqa: SIM905
)


@pytest.fixture
def contents(run, files, monkeypatch):
    """One of everything a report takes: two records, a scenario, a sweep, row reuse of a text."""
    monkeypatch.chdir(files.folder)
    files.change("hbm.yaml", placement={"tier": "hbm"})
    Path("text.txt").write_text("the cat sat on the mat and the cat sat on the mat again. " * 40)
    run("simulate", "scenario.yaml", "-o", "nvme.json")
    run("simulate", "hbm.yaml", "-o", "hbm.json")
    sweep = ("what-if", "scenario.yaml", "--vary", "workload.concurrency=1..4", "--vary", "placement.tier=hbm,nvme")
    run(*sweep, "-o", "sweep.json")
    run(
        "locality",
        "text.txt",
        "--model",
        files.body["model"],
        "--cache-gib",
        "0.0001,1",
        "--streams",
        "1,2",
        "-o",
        "reuse.json",
    )
    return ["nvme.json", "hbm.json", "scenario.yaml", "sweep.json", "reuse.json"]


class Page(HTMLParser):
    """Collects what the tests ask of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.outside: list[str] = []
        self.charts: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "section":
            self.sections.append(found["id"] or "")
        if found.get("class") == "chart":
            self.charts.append(found)
        self.outside += [
            value or "" for name, value in attrs if name in ("src", "href") and not (value or "").startswith("#")
        ]


def figures_of(text: str) -> dict:
    return json.loads(re.search(r'id="figures">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_has_every_section_and_needs_nothing_from_outside(run, contents):
    result = run("report", *contents, "-o", "report.html", "--title", "Tables & <tiers>")
    assert result.exit_code == 0, result.output
    text = Path("report.html").read_text()
    page = Page(text)
    assert page.sections == SECTIONS
    assert page.outside == [], "an address outside the page"
    assert "<title>Tables &amp; &lt;tiers&gt;</title>" in text
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in page.charts)
    assert [chart["id"] for chart in page.charts] == list(dict.fromkeys(chart["id"] for chart in page.charts))
    assert set(figures_of(text)) == {chart["id"] for chart in page.charts}
    assert "made up for a test" in text, "the evidence of a number of the model"
    summary = json.loads(run("report", *contents, "-o", "again.html", "--title", "Tables & <tiers>", "--json").stdout)
    assert summary["sections"] == SECTIONS
    assert summary["answer"] in " ".join(result.stdout.split())
    assert Path("again.html").read_text() == text


def test_figures_are_valid_and_hold_the_numbers_of_the_records(run, contents):
    from plotly.graph_objects import Figure

    run("report", *contents, "-o", "report.html")
    figures = figures_of(Path("report.html").read_text())
    for figure in figures.values():
        Figure(figure)  # raises on anything plotly does not know
    record = json.loads(Path("nvme.json").read_text())
    lost = figures["chart-penalty-0"]["data"][0]
    bars = dict(zip(lost["y"], lost["x"], strict=True))
    assert bars["nvme"] == pytest.approx(100 * record["metrics"]["penalty_ratio"]["no_engram"]["value"])
    time = figures["chart-time-0"]["data"]
    spent = record["metrics"]["time_spent"]
    assert sum(part["x"][0] for part in time) == pytest.approx(spent["total_ns"] / spent["num_steps"] / 1e6)
    stall = figures["chart-hidden-0"]["data"][1]
    assert dict(zip(stall["y"], stall["x"], strict=True))["nvme, layer 1"] > 0


def test_the_answer_names_the_best_of_what_compares(run, files, monkeypatch):
    monkeypatch.chdir(files.folder)
    files.change("hbm.yaml", placement={"tier": "hbm"})
    files.change("other.yaml", workload={**files.body["workload"], "concurrency": 1})
    args = ("report", "scenario.yaml", "hbm.yaml", "other.yaml", "-o", "report.html", "--json")
    answer = json.loads(run(*args).stdout)["answer"]
    assert "the cheapest of 2 runs is hbm.yaml (hbm by device" in answer
    assert "Next is scenario.yaml: -" in answer
    assert "other.yaml (nvme by disk" in answer, "another workload is another question"


def test_a_sweep_alone_makes_a_report(run, contents):
    result = run("report", "sweep.json", "-o", "report.html")
    assert result.exit_code == 0
    assert Page(Path("report.html").read_text()).sections == ["pareto", "sensitivity"]
    assert "No run is in this report" in result.stdout


def test_mistakes_are_one_line_and_no_file(fails, files, monkeypatch):
    monkeypatch.chdir(files.folder)
    Path("odd.json").write_text("{}")
    assert "nothing a report can show; give a record" in fails(2, "report", "odd.json", "-o", "report.html")
    Path("cut.json").write_text('{"kind": ')
    assert "not complete JSON" in fails(2, "report", "cut.json", "-o", "report.html")
    Path("rows.json").write_text('[{"settings": {}}]')
    assert "rows.json: row 0" in fails(2, "report", "rows.json", "-o", "report.html")
    Path("reuse.json").write_text('{"reuse": 1}')
    assert "not row reuse" in fails(2, "report", "reuse.json", "-o", "report.html")
    assert "unknown scenario" in fails(2, "report", "nonesuch", "-o", "report.html")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert "tiercast[report]" in fails(4, "report", "scenario.yaml", "-o", "report.html")
    assert not Path("report.html").exists()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture
def browser():
    """A headless Chromium of the machine, without a network."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the browser extra: make browser")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: make browser")
    with api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield chromium
        chromium.close()


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 390)])
def test_a_browser_draws_every_chart_and_logs_nothing(run, contents, browser, scheme, width):
    """On a desk and on a phone, light and dark, by keyboard, and on paper."""
    run("report", *contents, "-o", "report.html")
    context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": width, "height": 800})
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(request.url))
    page.goto(Path("report.html").resolve().as_uri())
    page.wait_for_selector("html[data-drawn]", timeout=30_000)
    charts = page.locator(".chart")
    assert page.locator("html").get_attribute("data-drawn") == str(charts.count())
    assert charts.count() == page.locator(".chart:has(svg.main-svg)").count() > 8
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page itself does not scroll sideways"
    ink = page.evaluate("getComputedStyle(document.body).color")
    drawn = page.evaluate("getComputedStyle(document.querySelector('.xtick text')).fill")
    assert drawn == ink, "charts follow the colours of the page"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    first = page.locator("summary").first
    first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.get_attribute("open") is not None
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert said == []
    context.close()
