"""Draw docs/report.png: the top of the report that ``tiercast report v41-hbm v41-dram v41-nvme`` writes.

``python docs/screenshot.py`` needs the extras report and browser, and Chromium.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tiercast_cli.report.gather import gather
from tiercast_cli.report.whole import report

TARGET = Path(__file__).with_name("report.png")
SCENARIOS = ("v41-hbm", "v41-dram", "v41-nvme")
SIZE = {"width": 1000, "height": 1400}
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


def main() -> int:
    """Predict, write the page, photograph it; returns the exit code."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.stderr.write("no Chromium on this machine; make browser\n")
        return 4
    text = report("DeepSeek-V4.1-Flash on eight H200", gather(SCENARIOS, lambda _what, _ratio: None))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        file = Path(folder) / "report.html"
        file.write_text(text, encoding="utf-8")
        browser = play.chromium.launch(executable_path=chromium, args=list(QUIET))
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-drawn]")
        page.screenshot(path=TARGET)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
